// Grouped-query attention over the KV cache, for one token (decode) or a whole prompt (prefill):
//   score[j] = scale * q . k[j] for j in [0, position], p = softmax(score), out = sum_j p[j] v[j].
// Query head h reads KV head h / (Hq / Hk).
//
// Eight variants of the same function, chosen by three definitions:
//   SCALE_POST      0: q is scaled before the dot product       1: each score after it
//   DOT_WARP        0: a thread sums a whole dot product        1: the 32 lanes of a warp share it
//   SOFTMAX_ONLINE  0: two passes over all scores, kept         1: tiles, running maximum and sum
//
// grid (Hq, T), block (a multiple of 32): a block computes one head of one query.
// Dynamic shared memory, in floats: q[D] | out[D] | tile[P, or the block's size when online].
// out        (T, Hq, D) T
// q          (T, Hq, D) T, after rope
// k_cache    [kv_head][position][dim] T, capacity positions a head; the same for v_cache
// positions  (T) int: a query sees the keys 0 to its own position
// scores_tap (T, Hq, P) float or null: the scaled scores; 0 past the query's position
// probs_tap  (T, Hq, P) float or null: the softmax; 0 past the query's position
// n_positions P, positions in the cache after this step
// Accumulator: float. Keys and values past the query's position are never read.
// Entries: attention_f32, attention_f16.
#include "common.cuh"

#ifndef SCALE_POST
#define SCALE_POST 1
#endif
#ifndef DOT_WARP
#define DOT_WARP 0
#endif
#ifndef SOFTMAX_ONLINE
#define SOFTMAX_ONLINE 0
#endif

// Sum over the block of the softmax terms.
__device__ __forceinline__ float softmax_sum(float x) {
#ifdef FAULT_SOFTMAX_ONE_WARP
    x = threadIdx.x < 32 ? x : 0.0f;
#endif
    return block_sum(x);
}

// The score of a key as the softmax takes it. A masked score is finite: a tile of nothing else must
// not make the running maximum infinite.
__device__ __forceinline__ float masked(float score, int key, int end) {
#ifdef FAULT_MASK_OFF_BY_ONE
    if (key == end - 1 && key > 0) score = -1e30f;
#endif
#ifdef FAULT_WINDOW_16
    if (key < end - 16) score = -1e30f;
#endif
#ifdef FAULT_SOFTMAX_TEMPERATURE
    score *= 0.5f;
#endif
    return score;
}

// tile[j - first] = score of key j, for j in [first, end). Every thread takes part.
template <typename T>
__device__ void scores_of_keys(float* tile, const float* q, const T* k, int first, int end,
                               int head_dim, float scale) {
    int lanes = DOT_WARP ? 32 : 1, lane = threadIdx.x % lanes, dims = head_dim;
#ifdef FAULT_KEYS_HALF_DIM
    dims /= 2;
#endif
    for (int j = first + threadIdx.x / lanes; j < end; j += blockDim.x / lanes) {
        const T* key = k + (long long)j * head_dim;
        float dot = 0.0f;
        for (int d = lane; d < dims; d += lanes) {
            dot += q[d] * to_float(key[d]);
#ifdef FAULT_SCORES_F16_ACCUMULATE
            dot = to_float(__float2half_rn(dot));
#endif
        }
        if (DOT_WARP) dot = warp_sum(dot);
        if (lane == 0) tile[j - first] = SCALE_POST ? dot * scale : dot;
    }
}

// out[d] += sum over j in [first, end) of p[j - first] v[j][d]. A thread owns its dims.
template <typename T>
__device__ void add_values(float* out, const float* p, const T* v, int first, int end,
                           int head_dim) {
#ifdef FAULT_VALUES_FIRST_32_KEYS
    end = min(end, 32);
#endif
    for (int d = threadIdx.x; d < head_dim; d += blockDim.x) {
        float sum = out[d];
        for (int j = first; j < end; j++)
            sum += p[j - first] * to_float(v[(long long)j * head_dim + d]);
        out[d] = sum;
    }
}

// Writes tile[j - first] to tap[j] for j in [first, end). The caller has synchronised the tile.
__device__ __forceinline__ void write_tap(float* tap, const float* tile, int first, int end) {
    if (!tap) return;
    for (int j = first + threadIdx.x; j < end; j += blockDim.x) tap[j] = tile[j - first];
}

// Leaves the unnormalised output in out[D]; returns the softmax's sum and, in `maximum`, its shift.
template <typename T>
__device__ float attend(float* out, float* tile, const float* q, const T* k, const T* v, int end,
                        int head_dim, float scale, float* scores_tap, float* probs_tap,
                        float* maximum) {
    float running_max = NEGATIVE_INFINITY, running_sum = 0.0f;
    int step = SOFTMAX_ONLINE ? blockDim.x : end;
    for (int first = 0; first < end; first += step) {
        int last = min(first + step, end);
        __syncthreads();  // the tile before is consumed
        scores_of_keys<T>(tile, q, k, first, last, head_dim, scale);
        __syncthreads();
        write_tap(scores_tap, tile, first, last);

        // A thread masks and sums the keys that it has tapped, so the tile needs no barrier between.
        float tile_max = NEGATIVE_INFINITY, tile_sum = 0.0f;
        for (int j = threadIdx.x; j < last - first; j += blockDim.x) {
            tile[j] = masked(tile[j], first + j, end);
            tile_max = fmaxf(tile_max, tile[j]);
        }
        write_tap(probs_tap, tile, first, last);
        float new_max = fmaxf(running_max, block_max(tile_max));
        float correction = expf(running_max - new_max);
        for (int j = threadIdx.x; j < last - first; j += blockDim.x) {
            tile[j] = expf(tile[j] - new_max);
            tile_sum += tile[j];
        }
        running_sum = running_sum * correction + softmax_sum(tile_sum);
        for (int d = threadIdx.x; d < head_dim; d += blockDim.x) out[d] *= correction;
        add_values<T>(out, tile, v, first, last, head_dim);
        running_max = new_max;
    }
#ifdef FAULT_SOFTMAX_OVER_PADDING
    running_sum += (31 - (end - 1) % 32) * expf(-running_max);
#endif
#ifdef FAULT_SOFTMAX_UNNORMALISED
    running_sum = 1.0f;
#endif
    *maximum = running_max;
    return running_sum;
}

template <typename T>
__device__ void attention_head(T* out, const T* q, const T* k_cache, const T* v_cache,
                               const int* positions, float* scores_tap, float* probs_tap,
                               int n_head, int n_head_kv, int head_dim, int capacity,
                               int n_positions, float scale) {
    extern __shared__ float shared[];
    float *q_shared = shared, *out_shared = shared + head_dim, *tile = shared + 2 * head_dim;
    int head = blockIdx.x, kv_head = head / (n_head / n_head_kv);
#ifdef FAULT_KV_HEAD_MODULO
    kv_head = head % n_head_kv;
#endif
#ifdef FAULT_KV_HEAD_ZERO
    kv_head = 0;
#endif
    long long row = (long long)blockIdx.y * n_head + head, out_row = row;
#ifdef FAULT_OUT_HEADS_REVERSED
    out_row += n_head - 1 - 2 * head;
#endif
    int end = positions[blockIdx.y] + 1;
#ifdef FAULT_MASK_MISSING
    end = n_positions;
#endif
    if (scores_tap) scores_tap += row * n_positions;
    if (probs_tap) probs_tap += row * n_positions;

    for (int d = threadIdx.x; d < head_dim; d += blockDim.x) {
        float value = to_float(q[row * head_dim + d]);
        q_shared[d] = SCALE_POST ? value : value * scale;
        out_shared[d] = 0.0f;
    }
    const T* k = k_cache + (long long)kv_head * capacity * head_dim;
    const T* v = v_cache + (long long)kv_head * capacity * head_dim;
#ifdef FAULT_VALUES_HEAD_ZERO
    v = v_cache;
#endif
#ifdef FAULT_VALUES_FROM_KEYS
    v = k;
#endif
    float maximum;
    float sum = attend<T>(out_shared, tile, q_shared, k, v, end, head_dim, scale, scores_tap,
                          probs_tap, &maximum);
    for (int d = threadIdx.x; d < head_dim; d += blockDim.x)
        store(out + out_row * head_dim + d, out_shared[d] / sum);
    for (int j = threadIdx.x; j < n_positions; j += blockDim.x) {
        if (scores_tap && j >= end) scores_tap[j] = 0.0f;
        if (probs_tap) probs_tap[j] = j < end ? expf(probs_tap[j] - maximum) / sum : 0.0f;
    }
}

extern "C" __global__ void attention_f32(float* out, const float* q, const float* k_cache,
                                         const float* v_cache, const int* positions,
                                         float* scores_tap, float* probs_tap, int n_head,
                                         int n_head_kv, int head_dim, int capacity,
                                         int n_positions, float scale) {
    attention_head<float>(out, q, k_cache, v_cache, positions, scores_tap, probs_tap, n_head,
                          n_head_kv, head_dim, capacity, n_positions, scale);
}

extern "C" __global__ void attention_f16(__half* out, const __half* q, const __half* k_cache,
                                         const __half* v_cache, const int* positions,
                                         float* scores_tap, float* probs_tap, int n_head,
                                         int n_head_kv, int head_dim, int capacity,
                                         int n_positions, float scale) {
    attention_head<__half>(out, q, k_cache, v_cache, positions, scores_tap, probs_tap, n_head,
                           n_head_kv, head_dim, capacity, n_positions, scale);
}
