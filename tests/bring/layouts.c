/* Records known values from every layout that an engine may have, or makes one mistake.
 *
 *     layouts FOLDER PLAN [MISTAKE]
 *
 * Element (i, j, k) of tensor `seed` is (31 seed + 17 i + 5 j + k) mod 61: exact in any format. */
#include "firstdiff.h"

#include <stdlib.h>
#include <string.h>

enum { T = 5, E = 9, HQ = 6, HK = 2, D = 4, F = 11, CAPACITY = 8 };

static unsigned value(size_t seed, size_t i, size_t j, size_t k)
{
    return (unsigned)((31 * seed + 17 * i + 5 * j + k) % 61);
}

/* Fills memory of any layout; `base` is where element (0, 0, 0) lies. */
static void fill(float *base, size_t seed, firstdiff_axes axes)
{
    size_t i, j, k;
    for (i = 0; i < axes.n[0]; i++)
        for (j = 0; j < axes.n[1]; j++)
            for (k = 0; k < axes.n[2]; k++)
                base[(ptrdiff_t)i * axes.stride[0] + (ptrdiff_t)j * axes.stride[1] +
                     (ptrdiff_t)k * axes.stride[2]] = (float)value(seed, i, j, k);
}

static void record(firstdiff_trace *fd, const char *site, float *base, size_t seed,
                   firstdiff_axes axes)
{
    fill(base, seed, axes);
    firstdiff_tensor(fd, site, 0, FIRSTDIFF_F32, base, axes);
}

/* A device: its addresses mean nothing to the host, and only `to_host` reads them. */
static float device_memory[256];
static size_t copied;

static int to_host(void *host, const void *device, size_t bytes)
{
    size_t offset = (size_t)((uintptr_t)device - 4096);
    if (offset + bytes > sizeof device_memory)
        return 1;
    memcpy(host, (const char *)device_memory + offset, bytes);
    copied += bytes;
    return 0;
}

static void attention(firstdiff_trace *fd)
{
    static float memory[4096];
    size_t t;
    firstdiff_axes axes;
    /* One token, or two, a call: rows are stacked. */
    fill(memory, 1, firstdiff_heads(T, HQ, D));
    for (t = 0; t < T; t += 2)
        firstdiff_f32(fd, "q", 0, memory + t * HQ * D, t + 2 < T ? 2 : T - t);
    /* q, k and v in one row. */
    axes = firstdiff_strided(T, (HQ + 2 * HK) * D, HK, D, D, 1);
    record(fd, "k", memory + HQ * D, 2, axes);
    record(fd, "v", memory + (HQ + HK) * D, 3, axes);
    /* Heads before tokens, tokens in reverse. */
    record(fd, "q_rope", memory + (T - 1) * D, 4, firstdiff_strided(T, -D, HQ, CAPACITY * D, D, 1));
    /* A cache that grows; only the whole of it is recorded. */
    for (t = 1; t <= T; t++)
        record(fd, "k_cache", memory, t == T ? 5 : 77,
               firstdiff_strided(t, D, HK, CAPACITY * D, D, 1));
    /* Transposed values. */
    record(fd, "v_cache", memory, 6, firstdiff_strided(T, 1, HK, D * CAPACITY, D, CAPACITY));
    /* As many keys as the token sees. */
    for (t = 0; t < T; t++) {
        fill(memory, 7, firstdiff_strided(T, HQ * CAPACITY, HQ, CAPACITY, CAPACITY, 1));
        firstdiff_tensor(fd, "scores", 0, FIRSTDIFF_F32, memory + t * HQ * CAPACITY,
                         firstdiff_strided(1, 0, HQ, CAPACITY, t + 1, 1));
    }
}

static void formats(firstdiff_trace *fd)
{
    static float memory[1024];
    double wide[T * E];
    uint16_t half[T * F], brain[T * F];
    size_t i, j;
    record(fd, "attn_norm", memory, 8, firstdiff_strided(T, 16, E, 1, 1, 1)); /* padded rows */
    for (i = 0; i < T; i++)
        for (j = 0; j < E; j++)
            wide[i * E + j] = value(9, i, j, 0);
    firstdiff_tensor(fd, "embd", -1, FIRSTDIFF_F64, wide, firstdiff_rows(T, E));
    for (i = 0; i < T; i++)
        for (j = 0; j < F; j++) {
            float number = (float)value(10, i, j, 0) + 1;
            uint32_t bits;
            memcpy(&bits, &number, sizeof bits);
            brain[i * F + j] = (uint16_t)(bits >> 16);
            half[i * F + j] = (uint16_t)(((bits >> 23) - 112) << 10 | (bits >> 13 & 1023));
        }
    firstdiff_tensor(fd, "ffn_up", 0, FIRSTDIFF_F16, half, firstdiff_rows(T, F));
    firstdiff_tensor(fd, "ffn_gate", 0, FIRSTDIFF_BF16, brain, firstdiff_rows(T, F));
}

static void on_device(firstdiff_trace *fd)
{
    firstdiff_axes axes = firstdiff_strided(T, -D, HK, CAPACITY * D, D, 1);
    fill(device_memory + 40, 11, axes);
    firstdiff_device(fd, to_host);
    firstdiff_tensor(fd, "k_rope", 1, FIRSTDIFF_F32, (const float *)(uintptr_t)(4096 + 160), axes);
    firstdiff_device(fd, NULL);
    if (copied && copied != ((T - 1 + CAPACITY + 1) * D) * sizeof(float))
        exit(9);
}

static void mistake(firstdiff_trace *fd, const int32_t *ids, const char *name)
{
    static float memory[1024];
    if (!strcmp(name, "site"))
        firstdiff_f32(fd, "query", 0, memory, 1);
    if (!strcmp(name, "layer"))
        firstdiff_f32(fd, "q", 2, memory, 1);
    if (!strcmp(name, "shape"))
        firstdiff_tensor(fd, "q", 0, FIRSTDIFF_F32, memory, firstdiff_heads(1, D, HQ));
    if (!strcmp(name, "twice"))
        firstdiff_f32(fd, "logits", 0, memory, 1), firstdiff_f32(fd, "logits", 0, memory, 1);
    if (!strcmp(name, "rows"))
        firstdiff_step(fd, ids, 2), firstdiff_f32(fd, "q", 0, memory, 1);
    if (!strcmp(name, "types")) {
        firstdiff_step(fd, ids, 2), firstdiff_f32(fd, "q", 0, memory, 1);
        firstdiff_tensor(fd, "q", 0, FIRSTDIFF_F16, memory, firstdiff_heads(1, HQ, D));
    }
    if (!strcmp(name, "device")) {
        firstdiff_device(fd, to_host);
        firstdiff_f32(fd, "q", 0, (const float *)(uintptr_t)8192, 1);
    }
    if (!strcmp(name, "killed")) {
        firstdiff_f32(fd, "q", 0, memory, 1);
        abort();
    }
}

int main(int count, char **arguments)
{
    const int32_t ids[6] = {1, 2, 3, 4, 5, 6};
    firstdiff_trace *fd;
    float row[E];
    if (count < 3)
        return 2;
    fd = firstdiff_begin(arguments[1], arguments[2], "a \"quoted\" engine");
    if (count > 3 && !strcmp(arguments[3], "f16"))
        firstdiff_storage(fd, FIRSTDIFF_F16);
    if (count > 3 && !strcmp(arguments[3], "empty"))
        firstdiff_step(fd, ids, 0);
    if (count > 3 && !strcmp(arguments[3], "early"))
        firstdiff_f32(fd, "embd", 0, row, 1);
    firstdiff_step(fd, ids, T);
    attention(fd);
    formats(fd);
    on_device(fd);
    firstdiff_step(fd, ids + T, 1);
    fill(row, 12, firstdiff_rows(1, E));
    firstdiff_f32(fd, "final_norm", 0, row, 1);
    if (count > 3)
        mistake(fd, ids, arguments[3]);
    return firstdiff_end(fd);
}
