// Grouped-query attention of one query (decode) with its keys split over blocks: what
// attention.cu computes, for long contexts.
//   attention_split    a block takes a chunk of the keys of one KV head, and HEADS of the query heads
//                      that read it. LANES lanes share a key and keep, as keys go by, the largest
//                      score, the sum of exp(score - largest), and the values summed with these terms.
//   attention_combine  a head's chunks, brought to one maximum and divided by the whole sum.
//
// Definitions: HEAD_DIM D, a multiple of 8; HEADS query heads of a block, a divisor of Hq / Hk.
//
// attention_split: grid (splits, Hq / HEADS), block 128. Dynamic shared memory, in floats:
// WARPS * HEADS * (D + 2), each warp's sums, largest score and sum of terms.
// attention_combine: grid (Hq), block 512. Static shared memory: a weight a split, a sum a thread.
// q           (Hq, D) T, after rope
// k_cache     [kv_head][position][dim] T, capacity positions a head; the same for v_cache
// position    (1) int: the query sees the keys 0 to its own position
// maxima      (Hq, splits) float, and sums
// partial     (Hq, splits, D) float: the unnormalised output of each chunk
// scores_tap  (Hq, P) float or null: the scaled scores. probs_tap, which needs it: the softmax
// out         (Hq, D) T
// Accumulator: float. Keys and values past the query's position are never read.
// Entries: attention_split_f32, attention_split_f16, attention_combine_f32, attention_combine_f16.
#include "common.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 64
#endif
#ifndef HEADS
#define HEADS 1
#endif

#define SPLIT_BLOCK 128
#define WARPS (SPLIT_BLOCK / 32)
#define COMBINE_BLOCK 512
#define MOST_SPLITS 128
#define LEAST_CHUNK 64

// How the lanes of a warp share the dims of a key: LANES lanes, each LOADS packs of WIDTH elements,
// every LANES-th one. So a warp reads 32 / LANES keys at a time, BATCH times before it waits.
template <typename T>
struct Share {
    static const int WIDTH = 16 / sizeof(T);
    static const int PACKS = HEAD_DIM / WIDTH;
    // The largest power of two that divides the packs, at most a warp.
    static const int POWER = PACKS & -PACKS;
    static const int LANES = POWER < 32 ? POWER : 32;
    static const int LOADS = PACKS / LANES;
    static const int DIMS = LOADS * WIDTH;
    static const int BATCH = LOADS == 1 ? 4 : 2;
};

// Keys of a chunk: the whole divided evenly among the splits, in multiples of 16.
__device__ __forceinline__ int chunk_of(int end, int splits) {
    int even = ((end + splits - 1) / splits + 15) / 16 * 16;
    return even > LEAST_CHUNK ? even : LEAST_CHUNK;
}

// Sum over the LANES neighbours that share a key, in each of them.
template <int LANES>
__device__ __forceinline__ float sum_of_lanes(float x) {
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2)
        x += __shfl_xor_sync(FULL_WARP, x, offset);
    return x;
}

// The attention of some keys, for HEADS query heads: one lane's dims of it.
template <int DIMS>
struct Attended {
    float maximum[HEADS], sum[HEADS], out[HEADS][DIMS];
};

// One lane's part of some keys of a batch, key j[b] in the b-th place; those not below `last` count
// for nothing.
template <typename T>
__device__ __forceinline__ void attend(Attended<Share<T>::DIMS>& a,
                                       const float (*q)[Share<T>::DIMS], const T* k, const T* v,
                                       int j, int step, int last, float* scores_tap,
                                       int n_positions) {
    typedef Share<T> S;
    int lane = threadIdx.x % S::LANES;
    Pack<T> keys[S::BATCH][S::LOADS], values[S::BATCH][S::LOADS];
#pragma unroll
    for (int b = 0; b < S::BATCH; b++) {
        long long row = (long long)min(j + b * step, last - 1) * HEAD_DIM;
#pragma unroll
        for (int load = 0; load < S::LOADS; load++) {
            int at = load * S::LANES + lane;
            keys[b][load] = reinterpret_cast<const Pack<T>*>(k + row)[at];
            values[b][load] = reinterpret_cast<const Pack<T>*>(v + row)[at];
        }
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        float score[S::BATCH], maximum = a.maximum[h];
#pragma unroll
        for (int b = 0; b < S::BATCH; b++) {
            float dot = 0.0f;
#pragma unroll
            for (int i = 0; i < S::DIMS; i++)
                dot += q[h][i] * to_float(keys[b][i / S::WIDTH].x[i % S::WIDTH]);
            score[b] = sum_of_lanes<S::LANES>(dot);
            bool counts = j + b * step < last;
            if (scores_tap && lane == 0 && counts)
                scores_tap[(long long)h * n_positions + j + b * step] = score[b];
            if (!counts) score[b] = NEGATIVE_INFINITY;
            maximum = fmaxf(maximum, score[b]);
        }
        float correction = expf(a.maximum[h] - maximum);
        a.maximum[h] = maximum;
        a.sum[h] *= correction;
#pragma unroll
        for (int b = 0; b < S::BATCH; b++) {
            score[b] = expf(score[b] - maximum);
            a.sum[h] += score[b];
        }
#pragma unroll
        for (int i = 0; i < S::DIMS; i++) {
            float out = a.out[h][i] * correction;
#pragma unroll
            for (int b = 0; b < S::BATCH; b++)
                out += score[b] * to_float(values[b][i / S::WIDTH].x[i % S::WIDTH]);
            a.out[h][i] = out;
        }
    }
}

// Brings the keys of a warp's groups of lanes together, in each of them.
template <typename S>
__device__ __forceinline__ void join_groups(Attended<S::DIMS>& a) {
#pragma unroll
    for (int offset = S::LANES; offset < 32; offset *= 2)
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float maximum = fmaxf(a.maximum[h], __shfl_xor_sync(FULL_WARP, a.maximum[h], offset));
            float correction = expf(a.maximum[h] - maximum);
            a.maximum[h] = maximum;
            a.sum[h] *= correction;
            a.sum[h] += __shfl_xor_sync(FULL_WARP, a.sum[h], offset);
#pragma unroll
            for (int i = 0; i < S::DIMS; i++) {
                a.out[h][i] *= correction;
                a.out[h][i] += __shfl_xor_sync(FULL_WARP, a.out[h][i], offset);
            }
        }
}

template <typename T>
__device__ void split(float* partial, float* maxima, float* sums, const T* q, const T* k_cache,
                      const T* v_cache, const int* position, float* scores_tap, int n_head,
                      int n_head_kv, int capacity, int n_positions, float scale) {
    typedef Share<T> S;
    extern __shared__ float shared[];
    int end = *position + 1, splits = gridDim.x, split = blockIdx.x;
    int chunk = chunk_of(end, splits), first = split * chunk, last = min(first + chunk, end);
    if (first >= last) return;
    int head = blockIdx.y * HEADS, kv_head = head / (n_head / n_head_kv);
    long long cache = (long long)kv_head * capacity * HEAD_DIM;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    float own[HEADS][S::DIMS];
    Attended<S::DIMS> a;
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        a.maximum[h] = NO_SCORE;
        a.sum[h] = 0.0f;
#pragma unroll
        for (int i = 0; i < S::DIMS; i++) {
            int pack = i / S::WIDTH * S::LANES + lane % S::LANES;
            own[h][i] = to_float(q[(head + h) * HEAD_DIM + pack * S::WIDTH + i % S::WIDTH]) * scale;
            a.out[h][i] = 0.0f;
        }
    }
    if (scores_tap) scores_tap += (long long)head * n_positions;
    // Every lane takes part in every round, for a warp shuffles as a whole.
    const int groups = SPLIT_BLOCK / S::LANES;
    for (int round = first; round < last; round += groups * S::BATCH)
        attend<T>(a, own, k_cache + cache, v_cache + cache, round + threadIdx.x / S::LANES, groups,
                  last, scores_tap, n_positions);
    join_groups<S>(a);

    float *warp_maxima = shared + WARPS * HEADS * HEAD_DIM, *warp_sums = warp_maxima + WARPS * HEADS;
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        if (lane == 0) {
            warp_maxima[warp * HEADS + h] = a.maximum[h];
            warp_sums[warp * HEADS + h] = a.sum[h];
        }
#pragma unroll
        for (int i = 0; i < S::DIMS; i++) {
            int pack = i / S::WIDTH * S::LANES + lane;
            if (lane < S::LANES)
                shared[(warp * HEADS + h) * HEAD_DIM + pack * S::WIDTH + i % S::WIDTH] = a.out[h][i];
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < HEADS * HEAD_DIM; i += SPLIT_BLOCK) {
        int h = i / HEAD_DIM;
        float maximum = NO_SCORE, sum = 0.0f, x = 0.0f;
        for (int w = 0; w < WARPS; w++) maximum = fmaxf(maximum, warp_maxima[w * HEADS + h]);
        for (int w = 0; w < WARPS; w++) {
            float correction = expf(warp_maxima[w * HEADS + h] - maximum);
            sum += warp_sums[w * HEADS + h] * correction;
            x += shared[w * HEADS * HEAD_DIM + i] * correction;
        }
        long long at = (long long)(head + h) * splits + split;
        partial[at * HEAD_DIM + i % HEAD_DIM] = x;
        if (i % HEAD_DIM == 0) {
            maxima[at] = maximum;
            sums[at] = sum;
        }
    }
}

template <typename T>
__device__ void combine(T* out, const float* partial, const float* maxima, const float* sums,
                        const int* position, const float* scores, float* probs_tap, int splits,
                        int n_positions) {
    __shared__ float weights[MOST_SPLITS], slices[COMBINE_BLOCK];
    int head = blockIdx.x, end = *position + 1;
    int chunk = chunk_of(end, splits), used = (end + chunk - 1) / chunk;
    maxima += head * splits;
    sums += head * splits;
    partial += (long long)head * splits * HEAD_DIM;

    bool own = threadIdx.x < used;
    float maximum = block_max(own ? maxima[threadIdx.x] : NEGATIVE_INFINITY);
    float weight = own ? expf(maxima[threadIdx.x] - maximum) : 0.0f;
    if (own) weights[threadIdx.x] = weight;
    float sum = block_sum(own ? sums[threadIdx.x] * weight : 0.0f);

    // A few threads share each dim.
    const int shares = COMBINE_BLOCK / HEAD_DIM;
    int d = threadIdx.x % HEAD_DIM, share = threadIdx.x / HEAD_DIM;
    float x = 0.0f;
    if (share < shares) {
#pragma unroll 8
        for (int s = share; s < used; s += shares) x += partial[(long long)s * HEAD_DIM + d] * weights[s];
    }
    slices[threadIdx.x] = x;
    __syncthreads();
    if (share == 0) {
        for (int i = 1; i < shares; i++) x += slices[threadIdx.x + i * HEAD_DIM];
        store(out + head * HEAD_DIM + d, x / sum);
    }
    if (!probs_tap) return;
    long long row = (long long)head * n_positions;
    for (int j = threadIdx.x; j < n_positions; j += COMBINE_BLOCK)
        probs_tap[row + j] = j < end ? expf(scores[row + j] - maximum) / sum : 0.0f;
}

extern "C" __global__ void attention_split_f32(float* partial, float* maxima, float* sums,
                                               const float* q, const float* k_cache,
                                               const float* v_cache, const int* position,
                                               float* scores_tap, int n_head, int n_head_kv,
                                               int capacity, int n_positions, float scale) {
    split<float>(partial, maxima, sums, q, k_cache, v_cache, position, scores_tap, n_head,
                 n_head_kv, capacity, n_positions, scale);
}

extern "C" __global__ void attention_split_f16(float* partial, float* maxima, float* sums,
                                               const __half* q, const __half* k_cache,
                                               const __half* v_cache, const int* position,
                                               float* scores_tap, int n_head, int n_head_kv,
                                               int capacity, int n_positions, float scale) {
    split<__half>(partial, maxima, sums, q, k_cache, v_cache, position, scores_tap, n_head,
                  n_head_kv, capacity, n_positions, scale);
}

extern "C" __global__ void attention_combine_f32(float* out, const float* partial,
                                                 const float* maxima, const float* sums,
                                                 const int* position, const float* scores,
                                                 float* probs_tap, int splits, int n_positions) {
    combine<float>(out, partial, maxima, sums, position, scores, probs_tap, splits, n_positions);
}

extern "C" __global__ void attention_combine_f16(__half* out, const float* partial,
                                                 const float* maxima, const float* sums,
                                                 const int* position, const float* scores,
                                                 float* probs_tap, int splits, int n_positions) {
    combine<__half>(out, partial, maxima, sums, position, scores, probs_tap, splits, n_positions);
}
