/* firstdiff.h: records your engine's tensors, for `firstdiff explain` to compare with llama.cpp.
 *
 * C99 and C++11; no dependency, nothing to link. docs/trace-format.md says what each site means.
 *
 *     firstdiff capture reference -m model.gguf -p "Once upon a time" -o ref
 *
 *     firstdiff_trace *fd = firstdiff_begin("mine", "ref/plan.txt", "my engine");
 *     for each step of ref/plan.txt {                     // its token ids, not your own
 *         firstdiff_step(fd, ids, n);
 *         ...
 *         firstdiff_f32(fd, "q", layer, q, n);            // firstdiff_tensor: any type and layout
 *         ...
 *     }
 *     firstdiff_end(fd);
 *
 *     firstdiff explain mine --reference ref -m model.gguf
 *
 * Any sites may be left out. Record a tensor when it is there, before it is
 * overwritten. An engine that runs one token at a time records a row at a time: rows are stacked in
 * the order of the calls.
 *
 * Tensors on a device: give a function that copies to the host, once, after firstdiff_begin:
 *
 *     static int to_host(void *host, const void *device, size_t bytes) {
 *         return cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost) != cudaSuccess;
 *     }
 *     firstdiff_device(fd, to_host);                      // synchronise your own streams in it
 *
 * A process of several, each with its part of the model, says which and how its sites are split: an
 * axis (head, neuron, vocab, token, position) for all sites that have it, SITE=AXIS for one,
 * SITE=partial for partial sums before an all-reduce; the others are whole on every rank:
 *
 *     firstdiff_begin_rank("mine", "ref/plan.txt", "my engine", rank, world,
 *                          "head neuron o_proj=partial ffn_down=partial");
 *
 * Each writes a folder in `mine`, and firstdiff reads them as one. What is split is recorded as this
 * rank has it; by token or position in one call.
 *
 * Nothing aborts: the first mistake is printed to stderr, recording stops, firstdiff_end returns 1
 * and the folder is refused as unfinished. So is that of a killed run; `firstdiff validate mine`
 * reads what is whole in it. Where the folder is NULL nothing is recorded, so that
 * firstdiff_begin(getenv("FIRSTDIFF_TRACE"), ...) may stay in a program. Where FIRSTDIFF_OFF is
 * defined, every call compiles to nothing. A trace is used from one thread.
 */
#ifndef FIRSTDIFF_H
#define FIRSTDIFF_H

#include <stddef.h>
#include <stdint.h>

typedef struct firstdiff_trace firstdiff_trace;

/* The format of the elements in memory; they are written as they are. */
typedef enum { FIRSTDIFF_F32, FIRSTDIFF_F16, FIRSTDIFF_BF16, FIRSTDIFF_F64 } firstdiff_dtype;

/* Where the elements lie: counts and strides, in elements, of a site's axes in the site's own order
 * (rows, width) or (rows, heads, dim). The strides say how they lie in memory. */
typedef struct {
    size_t n[3];
    ptrdiff_t stride[3];
} firstdiff_axes;

/* Copies from a device to the host; 0 if it did. */
typedef int (*firstdiff_copy)(void *host, const void *device, size_t bytes);

/* Any layout, given as count and stride of each axis. Heads before tokens, with room for `capacity`
 * positions: firstdiff_strided(n, dim, n_head, capacity * dim, dim, 1). The k of a fused qkv, from
 * the address of its first k on: firstdiff_strided(n, qkv_width, n_head_kv, dim, dim, 1).
 * Transposed values: firstdiff_strided(n, 1, n_head_kv, dim * capacity, dim, capacity). */
static inline firstdiff_axes firstdiff_strided(size_t n0, ptrdiff_t stride0, size_t n1,
                                               ptrdiff_t stride1, size_t n2, ptrdiff_t stride2)
{
    firstdiff_axes axes;
    axes.n[0] = n0, axes.n[1] = n1, axes.n[2] = n2;
    axes.stride[0] = stride0, axes.stride[1] = stride1, axes.stride[2] = stride2;
    return axes;
}

/* (rows, width), one row after another. */
static inline firstdiff_axes firstdiff_rows(size_t rows, size_t width)
{
    return firstdiff_strided(rows, (ptrdiff_t)width, width, 1, 1, 1);
}

/* (rows, heads, dim), one row after another. */
static inline firstdiff_axes firstdiff_heads(size_t rows, size_t heads, size_t dim)
{
    return firstdiff_strided(rows, (ptrdiff_t)(heads * dim), heads, (ptrdiff_t)dim, dim, 1);
}

#ifdef FIRSTDIFF_OFF

/* Nothing is evaluated; sizeof keeps the compiler from calling the arguments unused. */
#define FIRSTDIFF_UNUSED(pointer) sizeof((const void *)(pointer))
#define firstdiff_begin(folder, plan, engine)                                                      \
    ((firstdiff_trace *)(0 * (FIRSTDIFF_UNUSED(folder) + FIRSTDIFF_UNUSED(plan) +                  \
                              FIRSTDIFF_UNUSED(engine))))
#define firstdiff_begin_rank(folder, plan, engine, rank, world, split)                             \
    ((firstdiff_trace *)(0 * (FIRSTDIFF_UNUSED(folder) + FIRSTDIFF_UNUSED(plan) +                  \
                              FIRSTDIFF_UNUSED(engine) + sizeof(rank) + sizeof(world) +            \
                              FIRSTDIFF_UNUSED(split))))
#define firstdiff_storage(fd, dtype) ((void)(sizeof(fd) + sizeof(dtype)))
#define firstdiff_device(fd, copy) ((void)sizeof(fd), (void)(copy))
#define firstdiff_step(fd, tokens, n)                                                              \
    ((void)(sizeof(fd) + FIRSTDIFF_UNUSED(tokens) + sizeof(n)))
#define firstdiff_tensor(fd, site, layer, dtype, data, axes)                                       \
    ((void)(sizeof(fd) + FIRSTDIFF_UNUSED(site) + sizeof(layer) + sizeof(dtype) +                  \
            FIRSTDIFF_UNUSED(data) + sizeof(axes)))
#define firstdiff_f32(fd, site, layer, data, rows)                                                 \
    ((void)(sizeof(fd) + FIRSTDIFF_UNUSED(site) + sizeof(layer) + FIRSTDIFF_UNUSED(data) +         \
            sizeof(rows)))
#define firstdiff_end(fd) (0 * (int)sizeof(fd))

#else

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef _WIN32
#include <direct.h>
#else
#include <sys/stat.h>
#endif

/* The version of docs/trace-format.md that is written. */
#define FIRSTDIFF_FORMAT_VERSION 2
#define FIRSTDIFF_SHARD_VERSION 3
#define FIRSTDIFF_STAGES 24
#define FIRSTDIFF_PATH 1024
/* Room in a step file's header for an entry: its longest name, three counts and two offsets. */
#define FIRSTDIFF_ENTRY 192
/* Bytes that are held back, so that small tensors are written together. */
#define FIRSTDIFF_PENDING 65536

typedef unsigned long long firstdiff_u64;

/* A tensor of the open step. */
typedef struct {
    int dtype; /* a firstdiff_dtype, or -1 where it is not recorded */
    firstdiff_u64 n[3];
    firstdiff_u64 offset; /* of its first byte after the header */
    firstdiff_u64 rows;   /* written so far */
} firstdiff_entry;

struct firstdiff_trace {
    char folder[FIRSTDIFF_PATH];
    char engine[256], name[256], blake3[80], architecture[32], run[40];
    firstdiff_u64 n_layer, n_embd, n_head, n_head_kv, head_dim, n_ff, n_vocab;
    int rank, world;                   /* a world of 0 where there are no ranks */
    const char *split[FIRSTDIFF_STAGES]; /* how each stage is split, or NULL where it is whole */
    firstdiff_dtype storage;
    firstdiff_copy copy;
    int failed;
    FILE *manifest;      /* manifest.json.unfinished: always whole JSON of the steps so far */
    long manifest_tail;  /* where its closing brackets begin */
    FILE *file;          /* the open step's */
    firstdiff_u64 steps;      /* begun so far */
    int32_t *tokens;     /* of the open step */
    firstdiff_u64 n_tokens, first_position;
    firstdiff_u64 room, data; /* bytes of header, and of tensors so far */
    firstdiff_u64 at;         /* of the data, where the file stands */
    firstdiff_entry *entries; /* [layer][stage], global stages under layer 0 */
    unsigned char *buffer, *host;
    size_t buffer_size, host_size;
    char *pending; /* what stdio holds back of the open step's file */
};

/* The stages in the order of a forward pass; the first letter is the shape: E (tokens, n_embd),
 * Q (tokens, n_head, head_dim), K (tokens, n_head_kv, head_dim), C (positions, n_head_kv,
 * head_dim), S (tokens, n_head, positions), F (tokens, n_ff); outside of layers e, which is as E,
 * and V (tokens, n_vocab). */
static inline const char *firstdiff_stage(int index)
{
    static const char *const stages[FIRSTDIFF_STAGES] = {
        "eembd",      "Eattn_norm",     "Qq",        "Kk",         "Kv",        "Qq_norm",
        "Kk_norm",    "Qq_rope",        "Kk_rope",   "Ck_cache",   "Cv_cache",  "Sscores",
        "Sprobs",     "Qattn_out",      "Eo_proj",   "Eattn_residual", "Effn_norm", "Fffn_gate",
        "Fffn_up",    "Fffn_act",       "Effn_down", "Elayer_out", "efinal_norm", "Vlogits"};
    return stages[index];
}

static inline int firstdiff_is_global(int stage)
{
    char shape = firstdiff_stage(stage)[0];
    return shape == 'e' || shape == 'V';
}

/* Which axis of a stage is cut in a split of that name: 0, 1, or -1 where the stage has none. */
static inline int firstdiff_cut(const char *split, int stage)
{
    char shape = firstdiff_stage(stage)[0];
    if (!split)
        return -1;
    if (!strcmp(split, "head"))
        return strchr("QKCS", shape) ? 1 : -1;
    if (!strcmp(split, "neuron") || !strcmp(split, "vocab"))
        return shape == (*split == 'n' ? 'F' : 'V') ? 1 : -1;
    if (!strcmp(split, "token") || !strcmp(split, "position"))
        return (shape == 'C') == (*split == 'p') ? 0 : -1;
    return -1;
}

/* Prints the first mistake; from then on nothing is recorded. */
#ifdef __GNUC__
__attribute__((format(printf, 2, 3)))
#endif
static inline void firstdiff_fail(firstdiff_trace *fd, const char *format, ...)
{
    va_list arguments;
    if (fd->failed)
        return;
    fd->failed = 1;
    fprintf(stderr, "firstdiff: %s: ", fd->folder);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "; recording stops\n");
}

static inline void firstdiff_path(const firstdiff_trace *fd, char *path, const char *file)
{
    snprintf(path, FIRSTDIFF_PATH + 64, "%s/%s", fd->folder, file);
}

static inline void firstdiff_step_path(const firstdiff_trace *fd, char *path, firstdiff_u64 step)
{
    char file[64];
    snprintf(file, sizeof file, "step-%04llu.safetensors", step);
    firstdiff_path(fd, path, file);
}

/* Copies text for a JSON string: quotes and backslashes escaped, control characters left out. */
static inline void firstdiff_json(char *out, size_t room, const char *text)
{
    size_t at = 0;
    for (; *text && at + 3 < room; text++) {
        if (*text == '"' || *text == '\\')
            out[at++] = '\\';
        if ((unsigned char)*text >= ' ')
            out[at++] = *text;
    }
    out[at] = 0;
}

/* Takes a line of the plan, "key value"; lines of other keys are not for the writer. */
static inline void firstdiff_plan_line(firstdiff_trace *fd, const char *line)
{
    const char *value = strchr(line, ' ');
    size_t key = value ? (size_t)(value - line) : 0;
    struct {
        const char *key;
        firstdiff_u64 *count;
    } counts[7];
    int i;
    counts[0].key = "n_layer", counts[0].count = &fd->n_layer;
    counts[1].key = "n_embd", counts[1].count = &fd->n_embd;
    counts[2].key = "n_head", counts[2].count = &fd->n_head;
    counts[3].key = "n_head_kv", counts[3].count = &fd->n_head_kv;
    counts[4].key = "head_dim", counts[4].count = &fd->head_dim;
    counts[5].key = "n_ff", counts[5].count = &fd->n_ff;
    counts[6].key = "n_vocab", counts[6].count = &fd->n_vocab;
    if (!value++)
        return;
    if (key == 5 && !strncmp(line, "model", key))
        firstdiff_json(fd->name, sizeof fd->name, value);
    if (key == 6 && !strncmp(line, "blake3", key))
        firstdiff_json(fd->blake3, sizeof fd->blake3, value);
    if (key == 12 && !strncmp(line, "architecture", key))
        firstdiff_json(fd->architecture, sizeof fd->architecture, value);
    for (i = 0; i < 7; i++)
        if (strlen(counts[i].key) == key && !strncmp(line, counts[i].key, key))
            *counts[i].count = strtoull(value, NULL, 10);
}

/* Reads which model is run. */
static inline void firstdiff_read_plan(firstdiff_trace *fd, const char *path)
{
    FILE *file = path ? fopen(path, "rb") : NULL;
    char line[512];
    size_t length = 0;
    int next;
    if (!file) {
        firstdiff_fail(fd, "cannot read the plan %s; give the plan.txt of a reference's trace",
                       path ? path : "(null)");
        return;
    }
    do {
        next = fgetc(file);
        if (next != '\n' && next != EOF) {
            /* Only lines of token ids are longer, and those are not for the writer. */
            if (length + 1 < sizeof line)
                line[length++] = (char)next;
            continue;
        }
        line[length] = 0, length = 0;
        firstdiff_plan_line(fd, line);
    } while (next != EOF);
    fclose(file);
    if (!fd->n_layer || !fd->n_embd || !fd->n_head || !fd->n_head_kv || !fd->head_dim ||
        !fd->n_ff || !fd->n_vocab || !fd->blake3[0] || fd->n_layer > 1024)
        firstdiff_fail(fd, "%s is no plan of firstdiff; give the plan.txt of a reference's trace",
                       path);
}

/* A name that no other run has: in the manifest and in every step file, so that files of two runs
 * are not taken for one. */
static inline void firstdiff_name_run(firstdiff_trace *fd)
{
    firstdiff_u64 seed[2] = {0, 0};
    FILE *random = fopen("/dev/urandom", "rb");
    if (random) {
        if (fread(seed, 1, sizeof seed, random) != sizeof seed)
            seed[0] = 0;
        fclose(random);
    }
    seed[0] ^= (firstdiff_u64)time(NULL) << 20 ^ (firstdiff_u64)clock();
    seed[1] ^= (firstdiff_u64)(uintptr_t)fd;
    snprintf(fd->run, sizeof fd->run, "%016llx%016llx", seed[0],
             seed[1]);
}

/* Removes what an earlier run left, the manifest first: a folder without it is no whole trace. */
static inline void firstdiff_clear(firstdiff_trace *fd)
{
    char path[FIRSTDIFF_PATH + 64];
    firstdiff_u64 step;
    FILE *plan;
    firstdiff_path(fd, path, "plan.txt");
    plan = fopen(path, "rb");
    if (plan) {
        fclose(plan);
        firstdiff_fail(fd, "holds a reference's trace; choose another folder");
        return;
    }
    firstdiff_path(fd, path, "manifest.json");
    remove(path);
    firstdiff_path(fd, path, "manifest.json.blake3");
    remove(path);
    for (step = 0;; step++) {
        firstdiff_step_path(fd, path, step);
        if (remove(path))
            break;
    }
    firstdiff_path(fd, path, "manifest.json.unfinished");
    fd->manifest = fopen(path, "wb");
    if (!fd->manifest)
        firstdiff_fail(fd, "cannot write %s; choose a folder you can write to", path);
}

static inline void firstdiff_make_folder(const char *folder)
{
#ifdef _WIN32
    _mkdir(folder);
#else
    mkdir(folder, 0777);
#endif
}

/* Takes one word of how sites are split: AXIS, SITE=AXIS, SITE=partial or SITE=replicated. */
static inline void firstdiff_split_word(firstdiff_trace *fd, const char *word, size_t length)
{
    static const char *const names[7] = {"head",     "neuron",  "vocab",     "token",
                                         "position", "partial", "replicated"};
    const char *equal = (const char *)memchr(word, '=', length);
    size_t site = equal ? (size_t)(equal - word) : 0, skip = equal ? site + 1 : 0;
    int stage, i, fits = 0;
    for (i = 0; i < (equal ? 7 : 5); i++) {
        if (strlen(names[i]) != length - skip || strncmp(names[i], word + skip, length - skip))
            continue;
        for (stage = 0; stage < FIRSTDIFF_STAGES; stage++) {
            const char *name = firstdiff_stage(stage) + 1;
            if (equal && (strlen(name) != site || strncmp(name, word, site)))
                continue;
            if (i < 5 && firstdiff_cut(names[i], stage) < 0)
                continue;
            fd->split[stage] = names[i];
            fits = 1;
        }
    }
    if (!fits)
        firstdiff_fail(fd, "\"%.*s\" does not say how a site is split; see docs/trace-format.md",
                       (int)length, word);
}

static inline void firstdiff_split(firstdiff_trace *fd, const char *words)
{
    while (words && *words && !fd->failed) {
        size_t length = strcspn(words, " ");
        if (length)
            firstdiff_split_word(fd, words, length);
        words += length + (words[length] == ' ');
    }
}

/* Starts the trace of one rank, of `world` that all name the same folder; `split` says how its sites
 * are split. Else as firstdiff_begin. */
static inline firstdiff_trace *firstdiff_begin_rank(const char *folder, const char *plan,
                                                    const char *engine, int rank, int world,
                                                    const char *split)
{
    firstdiff_trace *fd;
    size_t entries, i;
    const int one = 1;
    if (!folder)
        return NULL;
    fd = (firstdiff_trace *)calloc(1, sizeof *fd);
    if (!fd)
        return NULL;
    snprintf(fd->folder, sizeof fd->folder, "%s", folder);
    firstdiff_json(fd->engine, sizeof fd->engine, engine ? engine : "an engine");
    if (strlen(folder) + 16 >= sizeof fd->folder)
        firstdiff_fail(fd, "the path is too long; choose a shorter one");
    if (world && (rank < 0 || rank >= world))
        firstdiff_fail(fd, "there is no rank %d of %d", rank, world);
    fd->rank = rank, fd->world = world;
    firstdiff_split(fd, world ? split : NULL);
    if (!*(const char *)&one)
        firstdiff_fail(fd, "this machine is big-endian, a trace little-endian");
    if (!fd->failed)
        firstdiff_read_plan(fd, plan);
    if (fd->failed)
        return fd;
    entries = (size_t)fd->n_layer * FIRSTDIFF_STAGES;
    fd->entries = (firstdiff_entry *)malloc(entries * sizeof *fd->entries);
    if (!fd->entries) {
        firstdiff_fail(fd, "out of memory");
        return fd;
    }
    for (i = 0; i < entries; i++)
        fd->entries[i].dtype = -1;
    /* The data begin a page of the file: a write across pages costs more. */
    fd->room = (8 + entries * FIRSTDIFF_ENTRY + 256 + 4095) / 4096 * 4096 - 8;
    fd->pending = (char *)malloc(FIRSTDIFF_PENDING); /* without it, stdio has its own */
    firstdiff_name_run(fd);
    firstdiff_make_folder(folder);
    if (world) {
        snprintf(fd->folder + strlen(folder), 16, "/rank%d", rank);
        firstdiff_make_folder(fd->folder);
    }
    firstdiff_clear(fd);
    return fd;
}

/* Starts a trace in a folder, which is made; an earlier trace in it is replaced. `plan` is the
 * plan.txt of the reference's trace, `engine` a name for the report. NULL where nothing is to be
 * recorded, which every other call takes too. */
static inline firstdiff_trace *firstdiff_begin(const char *folder, const char *plan,
                                               const char *engine)
{
    return firstdiff_begin_rank(folder, plan, engine, 0, 0, NULL);
}

/* Declares the format in which weights, activations and cache are kept, where it is not f32; sums
 * are taken to be f32. It decides how far rounding alone may lead. Call it before the first step.
 */
static inline void firstdiff_storage(firstdiff_trace *fd, firstdiff_dtype dtype)
{
    if (fd)
        fd->storage = dtype;
}

/* Sets how tensors get to the host. */
static inline void firstdiff_device(firstdiff_trace *fd, firstdiff_copy copy)
{
    if (fd)
        fd->copy = copy;
}

static inline const char *firstdiff_dtype_name(int dtype, int upper)
{
    static const char *const names[2][4] = {{"f32", "f16", "bf16", "f64"},
                                            {"F32", "F16", "BF16", "F64"}};
    return names[upper][dtype];
}

static inline size_t firstdiff_dtype_size(int dtype)
{
    return dtype == FIRSTDIFF_F64 ? 8 : dtype == FIRSTDIFF_F32 ? 4 : 2;
}

static inline void firstdiff_write_shard(firstdiff_trace *fd)
{
    int stage, named = 0;
    if (!fd->world)
        return;
    fprintf(fd->manifest, "\"shard\": {\"rank\": %d, \"world\": %d, \"split\": {", fd->rank, fd->world);
    for (stage = 0; stage < FIRSTDIFF_STAGES; stage++)
        if (fd->split[stage])
            fprintf(fd->manifest, "%s\"%s\": \"%s\"", named++ ? ", " : "",
                    firstdiff_stage(stage) + 1, fd->split[stage]);
    fprintf(fd->manifest, "}},\n");
}

/* Writes all of the manifest but its steps. */
static inline void firstdiff_open_manifest(firstdiff_trace *fd)
{
    const char *storage = firstdiff_dtype_name((int)fd->storage, 0);
    const char *wide = "{\"storage\": \"f32\", \"accumulator\": \"f32\"}";
    fprintf(fd->manifest,
            "{\n\"format_version\": %d,\n\"run\": \"%s\",\n"
            "\"producer\": {\"name\": \"%s\", \"version\": \"firstdiff.h\"},\n"
            "\"side\": \"engine\",\n\"model\": {\"name\": \"%s\", \"blake3\": \"%s\", "
            "\"architecture\": \"%s\",\n\"shapes\": {\"n_layer\": %llu, \"n_embd\": %llu, "
            "\"n_head\": %llu, \"n_head_kv\": %llu, \"head_dim\": %llu, \"n_ff\": %llu, "
            "\"n_vocab\": %llu}},\n",
            fd->world ? FIRSTDIFF_SHARD_VERSION : FIRSTDIFF_FORMAT_VERSION, fd->run, fd->engine, fd->name, fd->blake3, fd->architecture,
            fd->n_layer, fd->n_embd, fd->n_head, fd->n_head_kv, fd->head_dim, fd->n_ff,
            fd->n_vocab);
    fprintf(fd->manifest,
            "\"arithmetic\": {\"weights\": \"%s\", \"default\": {\"storage\": \"%s\", "
            "\"accumulator\": \"f32\"}",
            storage, storage);
    if (fd->storage == FIRSTDIFF_F16 || fd->storage == FIRSTDIFF_BF16)
        fprintf(fd->manifest, ", \"stages\": {\"scores\": %s, \"probs\": %s, \"logits\": %s}", wide,
                wide, wide);
    fprintf(fd->manifest, "},\n\"device\": \"%s\",\n", fd->engine);
    firstdiff_write_shard(fd);
    fprintf(fd->manifest, "\"steps\": [\n");
    fd->manifest_tail = ftell(fd->manifest);
    fprintf(fd->manifest, "]\n}\n");
    fflush(fd->manifest);
}

/* Adds the open step to the manifest, and closes the brackets anew. */
static inline void firstdiff_list_step(firstdiff_trace *fd, firstdiff_u64 sites)
{
    firstdiff_u64 i;
    fseek(fd->manifest, fd->manifest_tail, SEEK_SET);
    fprintf(fd->manifest, "%s{\"tokens\": [", fd->steps > 1 ? ",\n" : "");
    for (i = 0; i < fd->n_tokens; i++)
        fprintf(fd->manifest, "%s%ld", i ? ", " : "", (long)fd->tokens[i]);
    fprintf(fd->manifest,
            "], \"first_position\": %llu, \"file\": \"step-%04llu.safetensors\", "
            "\"bytes\": %llu, \"sites\": %llu}",
            fd->first_position, fd->steps - 1, 8 + fd->room + fd->data, sites);
    fd->manifest_tail = ftell(fd->manifest);
    fprintf(fd->manifest, "\n]\n}\n");
    if (fflush(fd->manifest) || ferror(fd->manifest))
        firstdiff_fail(fd, "cannot write the manifest; free space on the disk");
}

/* A number of 8 bytes, the lowest first. */
static inline void firstdiff_write_u64(FILE *file, firstdiff_u64 value)
{
    int i;
    for (i = 0; i < 8; i++)
        fputc((int)(value >> (8 * i) & 255), file);
}

/* Moves to a byte of the open step's data, before `bytes` are written there. A seek empties the
 * buffer of the file, which costs more than a small tensor, so none is made in vain. */
static inline int firstdiff_seek(firstdiff_trace *fd, firstdiff_u64 offset, firstdiff_u64 bytes)
{
    int there = offset == fd->at;
    fd->at = offset + bytes;
    if (there)
        return 0;
    offset += 8 + fd->room;
#ifdef _WIN32
    return _fseeki64(fd->file, (long long)offset, SEEK_SET);
#else
    return offset > (firstdiff_u64)LONG_MAX ? 1 : fseek(fd->file, (long)offset, SEEK_SET);
#endif
}

/* Appends text, and a number, to a line; their new end. By hand, as printf took a third of the time of
 * a decoded token. */
static inline char *firstdiff_put(char *end, const char *text)
{
    size_t length = strlen(text);
    memcpy(end, text, length);
    return end + length;
}

static inline char *firstdiff_put_u64(char *end, firstdiff_u64 value)
{
    char digits[20];
    int n = 0;
    do
        digits[n++] = (char)('0' + value % 10);
    while (value /= 10);
    while (n)
        *end++ = digits[--n];
    return end;
}

/* Writes the entries of the tensors that were recorded, and forgets them; how many there are. */
static inline firstdiff_u64 firstdiff_write_entries(firstdiff_trace *fd, firstdiff_u64 *written)
{
    firstdiff_u64 sites = 0;
    firstdiff_u64 i;
    for (i = 0; i < fd->n_layer * FIRSTDIFF_STAGES; i++) {
        firstdiff_entry *entry = &fd->entries[i];
        int stage = (int)(i % FIRSTDIFF_STAGES);
        char line[FIRSTDIFF_ENTRY], *end = line;
        firstdiff_u64 bytes;
        if (entry->dtype < 0)
            continue;
        if (entry->rows != entry->n[0])
            firstdiff_fail(fd, "step %llu: %s of layer %llu has %llu of %llu rows; record every token, or none",
                           fd->steps - 1, firstdiff_stage(stage) + 1, i / FIRSTDIFF_STAGES,
                           entry->rows, entry->n[0]);
        bytes = entry->n[0] * entry->n[1] * entry->n[2] * firstdiff_dtype_size(entry->dtype);
        end = firstdiff_put(end, ",\"");
        if (!firstdiff_is_global(stage)) {
            end = firstdiff_put_u64(firstdiff_put(end, "blk."), i / FIRSTDIFF_STAGES);
            end = firstdiff_put(end, ".");
        }
        end = firstdiff_put(end, firstdiff_stage(stage) + 1);
        end = firstdiff_put(firstdiff_put(end, "\":{\"dtype\":\""),
                            firstdiff_dtype_name(entry->dtype, 1));
        end = firstdiff_put_u64(firstdiff_put(end, "\",\"shape\":["), entry->n[0]);
        end = firstdiff_put_u64(firstdiff_put(end, ","), entry->n[1]);
        if (!strchr("eEFV", firstdiff_stage(stage)[0]))
            end = firstdiff_put_u64(firstdiff_put(end, ","), entry->n[2]);
        end = firstdiff_put_u64(firstdiff_put(end, "],\"data_offsets\":["), entry->offset);
        end = firstdiff_put_u64(firstdiff_put(end, ","), entry->offset + bytes);
        end = firstdiff_put(end, "]}");
        *written += fwrite(line, 1, (size_t)(end - line), fd->file);
        entry->dtype = -1;
        sites++;
    }
    return sites;
}

/* Writes the header of the open step's file and adds the step to the manifest. */
static inline void firstdiff_close_step(firstdiff_trace *fd)
{
    char spaces[4096];
    firstdiff_u64 sites, written, left;
    int broken;
    rewind(fd->file);
    firstdiff_write_u64(fd->file, fd->room);
    written = (firstdiff_u64)fprintf(fd->file,
                                     "{\"__metadata__\":{\"run\":\"%s\",\"step\":\"%llu\"}",
                                     fd->run, fd->steps - 1);
    sites = firstdiff_write_entries(fd, &written);
    fputc('}', fd->file);
    memset(spaces, ' ', sizeof spaces);
    for (left = fd->room - written - 1; left && !ferror(fd->file);) {
        size_t some = left < sizeof spaces ? (size_t)left : sizeof spaces;
        left -= fwrite(spaces, 1, some, fd->file);
    }
    broken = ferror(fd->file);
    broken |= fclose(fd->file);
    fd->file = NULL;
    if (broken)
        firstdiff_fail(fd, "cannot write step %llu; free space on the disk", fd->steps - 1);
    if (!fd->failed)
        firstdiff_list_step(fd, sites);
    fd->first_position += fd->n_tokens;
}

/* Starts a step, which runs these ids through the model after those of all steps before: first the
 * whole prompt, then each decoded token. */
static inline void firstdiff_step(firstdiff_trace *fd, const int32_t *tokens, size_t n)
{
    char path[FIRSTDIFF_PATH + 64];
    int32_t *copy;
    if (!fd || fd->failed)
        return;
    if (!n) {
        firstdiff_fail(fd, "step %llu has no tokens", fd->steps);
        return;
    }
    if (fd->file)
        firstdiff_close_step(fd);
    else
        firstdiff_open_manifest(fd);
    copy = (int32_t *)realloc(fd->tokens, n * sizeof *tokens);
    if (!copy) {
        firstdiff_fail(fd, "out of memory");
        return;
    }
    memcpy(copy, tokens, n * sizeof *tokens);
    fd->tokens = copy, fd->n_tokens = n, fd->data = 0;
    fd->at = (firstdiff_u64)-1;
    firstdiff_step_path(fd, path, fd->steps++);
    fd->file = fopen(path, "wb");
    if (!fd->file)
        firstdiff_fail(fd, "cannot write %s; choose a folder you can write to", path);
    else if (fd->pending)
        setvbuf(fd->file, fd->pending, _IOFBF, FIRSTDIFF_PENDING);
}

/* The shape that a stage has in the open step. */
static inline void firstdiff_shape(const firstdiff_trace *fd, int stage, firstdiff_u64 n[3])
{
    firstdiff_u64 positions = fd->first_position + fd->n_tokens;
    char shape = firstdiff_stage(stage)[0];
    n[0] = shape == 'C' ? positions : fd->n_tokens;
    n[1] = shape == 'Q' || shape == 'S'   ? fd->n_head
           : shape == 'K' || shape == 'C' ? fd->n_head_kv
           : shape == 'F'                 ? fd->n_ff
           : shape == 'V'                 ? fd->n_vocab
                                          : fd->n_embd;
    n[2] = shape == 'S' ? positions : strchr("QKC", shape) ? fd->head_dim : 1;
}

/* Room of at least that many bytes, or NULL. */
static inline unsigned char *firstdiff_room(unsigned char **buffer, size_t *size, size_t bytes)
{
    if (*size < bytes) {
        free(*buffer);
        *buffer = (unsigned char *)malloc(bytes);
        *size = *buffer ? bytes : 0;
    }
    return *buffer;
}

/* The elements on the host, copied there if they are on a device: all bytes from the first in
 * memory to the last, in one call. */
static inline const unsigned char *firstdiff_on_host(firstdiff_trace *fd, const void *data,
                                                     const firstdiff_axes *axes, size_t size)
{
    ptrdiff_t low = 0, high = 0;
    int i;
    if (!fd->copy)
        return (const unsigned char *)data;
    for (i = 0; i < 3; i++) {
        ptrdiff_t reach = (ptrdiff_t)(axes->n[i] - 1) * axes->stride[i];
        *(reach < 0 ? &low : &high) += reach;
    }
    if (!firstdiff_room(&fd->host, &fd->host_size, (size_t)(high - low + 1) * size)) {
        firstdiff_fail(fd, "out of memory");
        return NULL;
    }
    if (fd->copy(fd->host, (const unsigned char *)data + low * (ptrdiff_t)size,
                 (size_t)(high - low + 1) * size)) {
        firstdiff_fail(fd, "a copy from the device failed");
        return NULL;
    }
    return fd->host - low * (ptrdiff_t)size;
}

/* Puts a row's elements one after another; keys that were not given are 0. */
static inline void firstdiff_gather(unsigned char *out, const unsigned char *row,
                                    const firstdiff_axes *axes, const firstdiff_u64 n[3],
                                    size_t size)
{
    size_t i, j;
    for (i = 0; i < axes->n[1]; i++) {
        unsigned char *to = out + i * (size_t)n[2] * size;
        const unsigned char *from = row + (ptrdiff_t)i * axes->stride[1] * (ptrdiff_t)size;
        if (axes->stride[2] == 1) {
            memcpy(to, from, axes->n[2] * size);
            continue;
        }
        for (j = 0; j < axes->n[2]; j++)
            memcpy(to + j * size, from + (ptrdiff_t)j * axes->stride[2] * (ptrdiff_t)size, size);
    }
}

/* Writes the rows of one call after those that are there. */
static inline void firstdiff_write_rows(firstdiff_trace *fd, firstdiff_entry *entry,
                                        const void *data, const firstdiff_axes *axes)
{
    size_t size = firstdiff_dtype_size(entry->dtype), i;
    size_t width = (size_t)(entry->n[1] * entry->n[2]) * size;
    const unsigned char *host = firstdiff_on_host(fd, data, axes, size);
    int whole = axes->n[2] == entry->n[2] && (entry->n[2] == 1 || axes->stride[2] == 1) &&
                axes->stride[1] == (ptrdiff_t)entry->n[2];
    int broken;
    if (!host)
        return;
    broken = firstdiff_seek(fd, entry->offset + entry->rows * width, axes->n[0] * width);
    if (whole && axes->stride[0] == (ptrdiff_t)(entry->n[1] * entry->n[2])) {
        broken |= fwrite(host, width, axes->n[0], fd->file) != axes->n[0];
    } else if (firstdiff_room(&fd->buffer, &fd->buffer_size, width)) {
        for (i = 0; i < axes->n[0] && !broken; i++) {
            memset(fd->buffer, 0, width);
            firstdiff_gather(fd->buffer, host + (ptrdiff_t)i * axes->stride[0] * (ptrdiff_t)size,
                             axes, entry->n, size);
            broken |= fwrite(fd->buffer, width, 1, fd->file) != 1;
        }
    } else {
        firstdiff_fail(fd, "out of memory");
    }
    entry->rows += axes->n[0];
    if (broken)
        firstdiff_fail(fd, "cannot write step %llu; free space on the disk", fd->steps - 1);
}

/* The place of a site, or NULL where there is none of that name and layer. */
static inline firstdiff_entry *firstdiff_find(firstdiff_trace *fd, const char *site, int layer,
                                              int *stage)
{
    for (*stage = 0; *stage < FIRSTDIFF_STAGES; ++*stage)
        if (!strcmp(firstdiff_stage(*stage) + 1, site)) {
            if (firstdiff_is_global(*stage))
                return &fd->entries[*stage];
            if (layer < 0 || (firstdiff_u64)layer >= fd->n_layer)
                break;
            return &fd->entries[(firstdiff_u64)layer * FIRSTDIFF_STAGES + (firstdiff_u64)*stage];
        }
    firstdiff_fail(fd, "there is no site %s of layer %d; see docs/trace-format.md", site, layer);
    return NULL;
}

/* Records a tensor of the open step, or some of its rows. `layer` counts from 0 and is ignored for
 * embd, final_norm and logits. Scores and probs may have fewer keys than there are positions after
 * the step: the later ones are masked. A k_cache or v_cache with fewer positions is left out, so
 * that one that grows token by token is recorded once, when it is whole. */
static inline void firstdiff_tensor(firstdiff_trace *fd, const char *site, int layer,
                                    firstdiff_dtype dtype, const void *data, firstdiff_axes axes)
{
    firstdiff_entry *entry;
    firstdiff_u64 n[3];
    int stage, fits, cut;
    if (!fd || fd->failed)
        return;
    if (!fd->file) {
        firstdiff_fail(fd, "%s was recorded before a step began; call firstdiff_step", site);
        return;
    }
    entry = firstdiff_find(fd, site, layer, &stage);
    if (!entry)
        return;
    firstdiff_shape(fd, stage, n);
    cut = firstdiff_cut(fd->split[stage], stage);
    if (cut >= 0 && (entry->dtype >= 0 || (axes.n[cut] && axes.n[cut] <= n[cut])))
        n[cut] = entry->dtype < 0 ? axes.n[cut] : entry->n[cut];
    if (cut == 0 && !axes.n[0])
        return; /* none of the step's tokens are this rank's */
    fits = axes.n[0] > 0 && axes.n[1] == n[1] &&
           (firstdiff_stage(stage)[0] == 'S' ? axes.n[2] <= n[2] : axes.n[2] == n[2]);
    if (fits && firstdiff_stage(stage)[0] == 'C' && axes.n[0] < n[0])
        return;
    if (fits && entry->dtype < 0) {
        entry->dtype = (int)dtype, entry->rows = 0, entry->offset = fd->data;
        memcpy(entry->n, n, sizeof n);
        fd->data += n[0] * n[1] * n[2] * firstdiff_dtype_size((int)dtype);
    }
    if (!fits || axes.n[0] > n[0] - entry->rows || entry->dtype != (int)dtype) {
        firstdiff_fail(fd,
                       "step %llu: %s of layer %d came as %s (%llu, %llu, %llu); it has (%llu, "
                       "%llu, %llu) of one type, and %llu rows were there",
                       fd->steps - 1, site, layer, firstdiff_dtype_name((int)dtype, 0),
                       (firstdiff_u64)axes.n[0], (firstdiff_u64)axes.n[1],
                       (firstdiff_u64)axes.n[2], n[0], n[1], n[2],
                       entry->dtype < 0 ? 0 : entry->rows);
        return;
    }
    firstdiff_write_rows(fd, entry, data, &axes);
}

/* The same of f32 rows that lie in the site's own order without gaps. What is split is the same share
 * on every rank, or one KV head where there are fewer than ranks. */
static inline void firstdiff_f32(firstdiff_trace *fd, const char *site, int layer,
                                 const float *data, size_t rows)
{
    firstdiff_u64 n[3];
    int stage;
    if (!fd || fd->failed || !firstdiff_find(fd, site, layer, &stage))
        return;
    firstdiff_shape(fd, stage, n);
    if (firstdiff_cut(fd->split[stage], stage) == 1) {
        firstdiff_u64 world = (firstdiff_u64)fd->world;
        if (n[1] % world && n[1] > world) {
            firstdiff_fail(fd, "%s is not the same share on every rank; call firstdiff_tensor", site);
            return;
        }
        n[1] = n[1] < world ? 1 : n[1] / world;
    }
    firstdiff_tensor(fd, site, layer, FIRSTDIFF_F32, data,
                     firstdiff_heads(rows, (size_t)n[1], (size_t)n[2]));
}

/* Ends the trace and frees it. 0 where the folder holds a whole trace, or nothing was to be
 * recorded. */
static inline int firstdiff_end(firstdiff_trace *fd)
{
    char from[FIRSTDIFF_PATH + 64], to[FIRSTDIFF_PATH + 64];
    int failed;
    if (!fd)
        return 0;
    if (fd->file && !fd->failed)
        firstdiff_close_step(fd);
    else if (fd->file)
        fclose(fd->file);
    if (!fd->steps)
        firstdiff_fail(fd, "no step was recorded; call firstdiff_step");
    if (fd->manifest && fclose(fd->manifest))
        firstdiff_fail(fd, "cannot write the manifest; free space on the disk");
    firstdiff_path(fd, from, "manifest.json.unfinished");
    firstdiff_path(fd, to, "manifest.json");
    if (!fd->failed && rename(from, to))
        firstdiff_fail(fd, "cannot rename %s to manifest.json", from);
    failed = fd->failed;
    free(fd->tokens);
    free(fd->entries);
    free(fd->buffer);
    free(fd->host);
    free(fd->pending);
    free(fd);
    return failed;
}

#endif /* FIRSTDIFF_OFF */
#endif /* FIRSTDIFF_H */
