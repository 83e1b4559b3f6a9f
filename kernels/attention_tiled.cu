// Grouped-query attention of a whole prompt (prefill) in tiles: what attention.cu computes, with each
// key and value read once for QUERIES queries.
//
// Definition: HEAD_DIM D, a multiple of 8.
//
// grid (Hq, ceil(T / QUERIES)), block 128: a block computes one head of QUERIES queries, four threads a
// query. Keys go by in tiles of KEYS; a query's running maximum and sum are in its threads' registers.
// Dynamic shared memory, in floats: q[QUERIES][D + 4] | keys[KEYS][D + 4] | values[KEYS][D + 4] |
// terms[QUERIES][KEYS + 4]. The four more keep rows 16-byte aligned and out of each other's banks.
// out        (T, Hq, D) T
// q          (T, Hq, D) T, after rope
// k_cache    [kv_head][position][dim] T, capacity positions a head; the same for v_cache
// positions  (T) int, ascending: a query sees the keys 0 to its own position
// scores_tap (T, Hq, P) float or null: the scaled scores; 0 past the query's position
// probs_tap  (T, Hq, P) float or null, needs scores_tap: the softmax; 0 past the query's position
// n_tokens   T; n_positions P, positions in the cache after this step
// Accumulator: float. Keys and values past the last query's position are never read.
// Entries: attention_tiled_f32, attention_tiled_f16.
#include "common.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 64
#endif

#define TILED_BLOCK 128
#define QUERIES 32
#define KEYS 32
#define SHARE 4  // threads of a query
#define ROW (HEAD_DIM + 4)
#define TERMS (KEYS + 4)

struct alignas(16) Four {
    float x[4];
};

__device__ __forceinline__ float dot(const Four& a, const Four& b) {
    return a.x[0] * b.x[0] + a.x[1] * b.x[1] + a.x[2] * b.x[2] + a.x[3] * b.x[3];
}

__device__ __forceinline__ const Four& four(const float* p) {
    return *reinterpret_cast<const Four*>(p);
}

// Copies `rows` rows of D elements, `stride` elements apart, as floats; zeros up to `padded` rows.
template <typename T>
__device__ __forceinline__ void copy_rows(float* to, const T* from, long long stride, int rows,
                                          int padded) {
    for (int i = threadIdx.x; i < padded * HEAD_DIM; i += TILED_BLOCK) {
        int row = i / HEAD_DIM, d = i % HEAD_DIM;
        to[row * ROW + d] = row < rows ? to_float(from[row * stride + d]) : 0.0f;
    }
}

// The largest, or the sum, over the threads of a query, in each of them.
__device__ __forceinline__ float query_max(float x) {
    for (int lanes = 1; lanes < SHARE; lanes *= 2)
        x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, lanes));
    return x;
}

__device__ __forceinline__ float query_sum(float x) {
    for (int lanes = 1; lanes < SHARE; lanes *= 2) x += __shfl_xor_sync(FULL_WARP, x, lanes);
    return x;
}

// The part of a query's output that a thread sums: dims 4 part to 4 part + 3 of every 16.
#define FOURS ((HEAD_DIM + 4 * SHARE - 1) / (4 * SHARE))

template <typename T>
__device__ void attention_tiled(T* out, const T* q, const T* k_cache, const T* v_cache,
                                const int* positions, float* scores_tap, float* probs_tap,
                                int n_head, int n_head_kv, int capacity, int n_tokens,
                                int n_positions, float scale) {
    extern __shared__ float shared[];
    float *queries = shared, *keys = queries + QUERIES * ROW, *values = keys + KEYS * ROW,
          *terms = values + KEYS * ROW;
    int head = blockIdx.x, kv_head = head / (n_head / n_head_kv), first = blockIdx.y * QUERIES;
    int rows = min(QUERIES, n_tokens - first), query = threadIdx.x / SHARE, part = threadIdx.x % SHARE;
    int token = first + min(query, rows - 1), position = positions[token];
    long long row = (long long)token * n_head + head, cache = (long long)kv_head * capacity * HEAD_DIM;
    bool own = query < rows;
    if (scores_tap) scores_tap += row * n_positions;
    if (probs_tap) probs_tap += row * n_positions;

    copy_rows<T>(queries, q + ((long long)first * n_head + head) * HEAD_DIM,
                 (long long)n_head * HEAD_DIM, rows, QUERIES);
    float maximum = NO_SCORE, sum = 0.0f;
    Four total[FOURS] = {};
    int end = positions[first + rows - 1] + 1;
    for (int tile = 0; tile < end; tile += KEYS) {
        int n = min(KEYS, end - tile);
        __syncthreads();  // the tile before is consumed
        copy_rows<T>(keys, k_cache + cache + (long long)tile * HEAD_DIM, HEAD_DIM, n, KEYS);
        copy_rows<T>(values, v_cache + cache + (long long)tile * HEAD_DIM, HEAD_DIM, n, KEYS);
        __syncthreads();

        float score[KEYS / SHARE] = {};
        for (int d = 0; d < HEAD_DIM; d += 4) {
            Four x = four(queries + query * ROW + d);
#pragma unroll
            for (int i = 0; i < KEYS / SHARE; i++)
                score[i] += dot(x, four(keys + (part + i * SHARE) * ROW + d));
        }
        float tile_max = NO_SCORE, tile_sum = 0.0f;
#pragma unroll
        for (int i = 0; i < KEYS / SHARE; i++) {
            int j = tile + part + i * SHARE;
            score[i] *= scale;
            bool seen = j <= position;
            if (scores_tap && own && seen) scores_tap[j] = score[i];
            if (!seen) score[i] = NEGATIVE_INFINITY;
            tile_max = fmaxf(tile_max, score[i]);
        }
        float new_max = fmaxf(maximum, query_max(tile_max));
        float correction = expf(maximum - new_max);
#pragma unroll
        for (int i = 0; i < KEYS / SHARE; i++) {
            float term = expf(score[i] - new_max);
            terms[query * TERMS + part + i * SHARE] = term;
            tile_sum += term;
        }
        maximum = new_max;
        sum = sum * correction + query_sum(tile_sum);
        __syncwarp();  // a query's terms are those of one warp
#pragma unroll
        for (int i = 0; i < FOURS; i++)
            for (int x = 0; x < 4; x++) total[i].x[x] *= correction;
        for (int j = 0; j < n; j++) {
            float term = terms[query * TERMS + j];
#pragma unroll
            for (int i = 0; i < FOURS; i++) {
                int d = (part + i * SHARE) * 4;
                if (d >= HEAD_DIM) continue;
                Four value = four(values + j * ROW + d);
#pragma unroll
                for (int x = 0; x < 4; x++) total[i].x[x] += term * value.x[x];
            }
        }
    }
    if (!own) return;
#pragma unroll
    for (int i = 0; i < FOURS; i++)
        for (int x = 0; x < 4; x++) {
            int d = (part + i * SHARE) * 4 + x;
            if (d < HEAD_DIM) store(out + row * HEAD_DIM + d, total[i].x[x] / sum);
        }
    // A thread reads the scores that it has written.
    for (int j = part; j < n_positions; j += SHARE) {
        if (scores_tap && j > position) scores_tap[j] = 0.0f;
        if (probs_tap) probs_tap[j] = j > position ? 0.0f : expf(scores_tap[j] - maximum) / sum;
    }
}

extern "C" __global__ void attention_tiled_f32(float* out, const float* q, const float* k_cache,
                                               const float* v_cache, const int* positions,
                                               float* scores_tap, float* probs_tap, int n_head,
                                               int n_head_kv, int capacity, int n_tokens,
                                               int n_positions, float scale) {
    attention_tiled<float>(out, q, k_cache, v_cache, positions, scores_tap, probs_tap, n_head,
                           n_head_kv, capacity, n_tokens, n_positions, scale);
}

extern "C" __global__ void attention_tiled_f16(__half* out, const __half* q, const __half* k_cache,
                                               const __half* v_cache, const int* positions,
                                               float* scores_tap, float* probs_tap, int n_head,
                                               int n_head_kv, int capacity, int n_tokens,
                                               int n_positions, float scale) {
    attention_tiled<__half>(out, q, k_cache, v_cache, positions, scores_tap, probs_tap, n_head,
                            n_head_kv, capacity, n_tokens, n_positions, scale);
}
