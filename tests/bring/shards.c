/* One rank of several records its part of known values.
 *
 *     shards FOLDER PLAN RANK WORLD [WORDS]
 *
 * Element (i, j, k) of tensor `seed` is (31 seed + 17 i + 5 j + k) mod 61, as in layouts.c. */
#include "firstdiff.h"

#include <stdlib.h>

enum { T = 5, E = 9, HQ = 6, HK = 2, D = 4, F = 11, V = 13 };

static size_t rank, world;

/* A part of n: its size, and where it begins; the first ranks have one more where it does not add up. */
static size_t share(size_t n, size_t *start)
{
    *start = rank * (n / world) + (rank < n % world ? rank : n % world);
    return n / world + (rank < n % world);
}

/* Records the values of `seed` from (i, j) on, each with `more` added; of seed 0 they are 0. */
static void put(firstdiff_trace *fd, const char *site, size_t seed, size_t i, size_t rows, size_t j,
                size_t columns, size_t depth, float more)
{
    static float memory[4096];
    size_t r, c, k;
    for (r = 0; r < rows; r++)
        for (c = 0; c < columns; c++)
            for (k = 0; k < depth; k++)
                memory[(r * columns + c) * depth + k] =
                    more + (seed ? (float)((31 * seed + 17 * (i + r) + 5 * (j + c) + k) % 61) : 0);
    /* The writer's own idea of the share, where it has one. */
    if (seed == 1 && HQ % world == 0)
        firstdiff_f32(fd, site, 0, memory, rows);
    else
        firstdiff_tensor(fd, site, 0, FIRSTDIFF_F32, memory, firstdiff_heads(rows, columns, depth));
}

static void step(firstdiff_trace *fd, size_t first, size_t tokens)
{
    const int32_t ids[6] = {1, 2, 3, 4, 5, 6};
    size_t start, n = share(HQ, &start);
    firstdiff_step(fd, ids + first, tokens);
    put(fd, "embd", 9, 0, tokens, 0, E, 1, 0);
    put(fd, "q", 1, 0, tokens, start, n, D, 0);
    /* One KV head a rank, which some ranks have copies of. */
    put(fd, "k", 2, 0, tokens, rank * HK / world, 1, D, 0);
    n = share(F, &start);
    put(fd, "ffn_up", 10, 0, tokens, start, n, 1, 0);
    n = share(V, &start);
    put(fd, "logits", 8, 0, tokens, start, n, 1, 0);
    /* The sums of what the ranks add to the values are 0. */
    put(fd, "o_proj", rank ? 0 : 3, 0, tokens, 0, E, 1, rank ? -1 : (float)world - 1);
    n = share(tokens, &start);
    put(fd, "attn_norm", 12, start, n, 0, E, 1, 0);
    n = share(first + tokens, &start);
    put(fd, "v_cache", 6, start, n, 0, HK, D, 0);
}

int main(int count, char **arguments)
{
    firstdiff_trace *fd;
    if (count < 5)
        return 2;
    rank = (size_t)atoi(arguments[3]), world = (size_t)atoi(arguments[4]);
    fd = firstdiff_begin_rank(arguments[1], arguments[2], "an engine", (int)rank, (int)world,
                              count > 5 ? arguments[5]
                                        : "head neuron  vocab o_proj=partial "
                                          "attn_norm=token v_cache=position");
    step(fd, 0, T);
    step(fd, T, 1);
    return firstdiff_end(fd);
}
