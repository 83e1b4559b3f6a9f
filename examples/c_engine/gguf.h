/* Reads a GGUF file: keys, and f32 or f16 tensors widened to f32. Bad files end the program. */
#ifndef GGUF_H
#define GGUF_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *name;
    uint64_t length; /* of the name, which is not terminated */
    uint32_t type;
    const unsigned char *at; /* a key's value, or a tensor's data */
    uint64_t n[4];           /* a tensor's dims, the fastest first */
    uint64_t offset;         /* of a tensor's data */
} gguf_entry;

typedef struct {
    const char *path;
    unsigned char *bytes;
    size_t size, at;
    gguf_entry *keys, *tensors;
    uint64_t n_keys, n_tensors;
} gguf_file;

static void gguf_die(const gguf_file *g, const char *what)
{
    fprintf(stderr, "%s: %s\n", g->path, what);
    exit(2);
}

static void *gguf_alloc(const gguf_file *g, uint64_t count, size_t size)
{
    void *memory = count < SIZE_MAX / size ? calloc(count ? (size_t)count : 1, size) : NULL;
    if (!memory)
        gguf_die(g, "needs more memory than is available");
    return memory;
}

/* The next bytes, checked to be there. */
static const unsigned char *gguf_take(gguf_file *g, uint64_t bytes)
{
    const unsigned char *here = g->bytes + g->at;
    if (bytes > g->size - g->at)
        gguf_die(g, "is truncated; download it again");
    g->at += (size_t)bytes;
    return here;
}

static uint64_t gguf_u64(const unsigned char *at, int bytes)
{
    uint64_t value = 0;
    while (bytes--)
        value = value << 8 | at[bytes];
    return value;
}

static uint64_t gguf_take_u64(gguf_file *g)
{
    return gguf_u64(gguf_take(g, 8), 8);
}

static uint32_t gguf_take_u32(gguf_file *g)
{
    return (uint32_t)gguf_u64(gguf_take(g, 4), 4);
}

/* Bytes of a value of fixed size: u8 i8 u16 i16 u32 i32 f32 bool, two others, u64 i64 f64. */
static int gguf_value_size(uint32_t type)
{
    static const int sizes[13] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < 13 ? sizes[type] : 0;
}

enum { GGUF_STRING = 8, GGUF_ARRAY = 9 };

static void gguf_skip_value(gguf_file *g, uint32_t type)
{
    if (type == GGUF_STRING) {
        gguf_take(g, gguf_take_u64(g));
    } else if (type == GGUF_ARRAY) {
        uint32_t inner = gguf_take_u32(g);
        uint64_t count = gguf_take_u64(g);
        if (inner == GGUF_ARRAY)
            gguf_die(g, "has an array of arrays, which this example does not read");
        while (count--)
            gguf_skip_value(g, inner);
    } else if (gguf_value_size(type)) {
        gguf_take(g, (uint64_t)gguf_value_size(type));
    } else {
        gguf_die(g, "has a key of an unknown type");
    }
}

static void gguf_take_name(gguf_file *g, gguf_entry *entry)
{
    entry->length = gguf_take_u64(g);
    entry->name = (const char *)gguf_take(g, entry->length);
}

static const gguf_entry *gguf_find(const gguf_entry *entries, uint64_t count, const char *name)
{
    uint64_t i;
    for (i = 0; i < count; i++)
        if (entries[i].length == strlen(name) && !memcmp(entries[i].name, name, strlen(name)))
            return &entries[i];
    return NULL;
}

/* A number of any type, or `absent` where the key is not there. */
static double gguf_number(const gguf_file *g, const char *name, double absent)
{
    const gguf_entry *key = gguf_find(g->keys, g->n_keys, name);
    float f32;
    double f64;
    if (!key)
        return absent;
    if (key->type == 6)
        return memcpy(&f32, key->at, sizeof f32), (double)f32;
    if (key->type == 12)
        return memcpy(&f64, key->at, sizeof f64), f64;
    return (double)gguf_u64(key->at, gguf_value_size(key->type));
}

/* Copies a string key to `out`, which is empty where the key is not there. */
static void gguf_string(const gguf_file *g, const char *name, char *out, size_t room)
{
    const gguf_entry *key = gguf_find(g->keys, g->n_keys, name);
    uint64_t length = key && key->type == GGUF_STRING ? gguf_u64(key->at, 8) : 0;
    if (length >= room)
        length = 0;
    if (length)
        memcpy(out, key->at + 8, (size_t)length);
    out[length] = 0;
}

/* Rows of a tensor of two axes; 0 where there is none of that name. */
static uint64_t gguf_rows(const gguf_file *g, const char *name)
{
    const gguf_entry *tensor = gguf_find(g->tensors, g->n_tensors, name);
    return tensor ? tensor->n[1] : 0;
}

static float gguf_f16(unsigned half)
{
    unsigned exponent = half >> 10 & 31, fraction = half & 1023;
    double sign = half >> 15 ? -1.0 : 1.0;
    if (exponent == 31)
        return (float)(fraction ? NAN : sign * HUGE_VAL);
    if (exponent == 0)
        return (float)(sign * ldexp((double)fraction, -24));
    return (float)(sign * ldexp((double)(fraction + 1024), (int)exponent - 25));
}

/* A tensor of that many elements as f32, or NULL where there is none of that name. */
static float *gguf_tensor(const gguf_file *g, const char *name, uint64_t count)
{
    const gguf_entry *tensor = gguf_find(g->tensors, g->n_tensors, name);
    float *out;
    uint64_t i;
    if (!tensor)
        return NULL;
    if (tensor->n[0] * tensor->n[1] * tensor->n[2] * tensor->n[3] != count)
        gguf_die(g, "has a tensor whose size does not match its keys");
    if (tensor->type > 1)
        gguf_die(g, "has quantised weights; this example reads f32 and f16");
    if (count > (uint64_t)(g->bytes + g->size - tensor->at) / (tensor->type ? 2 : 4))
        gguf_die(g, "is truncated; download it again");
    out = gguf_alloc(g, count, sizeof *out);
    if (tensor->type == 0)
        memcpy(out, tensor->at, (size_t)count * sizeof *out);
    else
        for (i = 0; i < count; i++)
            out[i] = gguf_f16((unsigned)gguf_u64(tensor->at + 2 * i, 2));
    return out;
}

static void gguf_read_header(gguf_file *g)
{
    uint64_t i, alignment;
    if (memcmp(gguf_take(g, 4), "GGUF", 4) || gguf_take_u32(g) < 2)
        gguf_die(g, "is not a GGUF file of version 2 or later");
    g->n_tensors = gguf_take_u64(g);
    g->n_keys = gguf_take_u64(g);
    if (g->n_tensors > g->size || g->n_keys > g->size)
        gguf_die(g, "is truncated; download it again");
    g->keys = gguf_alloc(g, g->n_keys, sizeof *g->keys);
    g->tensors = gguf_alloc(g, g->n_tensors, sizeof *g->tensors);
    for (i = 0; i < g->n_keys; i++) {
        gguf_take_name(g, &g->keys[i]);
        g->keys[i].type = gguf_take_u32(g);
        g->keys[i].at = g->bytes + g->at;
        gguf_skip_value(g, g->keys[i].type);
    }
    for (i = 0; i < g->n_tensors; i++) {
        gguf_entry *tensor = &g->tensors[i];
        uint32_t axes, axis;
        gguf_take_name(g, tensor);
        axes = gguf_take_u32(g);
        if (axes > 4)
            gguf_die(g, "has a tensor of more than 4 axes");
        for (axis = 0; axis < 4; axis++)
            tensor->n[axis] = axis < axes ? gguf_take_u64(g) : 1;
        tensor->type = gguf_take_u32(g);
        tensor->offset = gguf_take_u64(g);
    }
    alignment = (uint64_t)gguf_number(g, "general.alignment", 32);
    gguf_take(g, (alignment - g->at % alignment) % alignment);
    for (i = 0; i < g->n_tensors; i++) {
        if (g->tensors[i].offset > g->size - g->at)
            gguf_die(g, "is truncated; download it again");
        g->tensors[i].at = g->bytes + g->at + g->tensors[i].offset;
    }
}

static gguf_file gguf_open(const char *path)
{
    gguf_file g;
    FILE *file = fopen(path, "rb");
    long size = 0;
    memset(&g, 0, sizeof g);
    g.path = path;
    if (!file || fseek(file, 0, SEEK_END) || (size = ftell(file)) < 0)
        gguf_die(&g, "cannot be read");
    rewind(file);
    g.size = (size_t)size;
    g.bytes = gguf_alloc(&g, g.size, 1);
    if (fread(g.bytes, 1, g.size, file) != g.size)
        gguf_die(&g, "cannot be read");
    fclose(file);
    gguf_read_header(&g);
    return g;
}

#endif
