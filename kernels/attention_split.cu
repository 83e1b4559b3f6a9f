// Grouped-query attention of one query (decode) with its keys split over blocks: what
// attention.cu computes, for long contexts.
//   attention_split    a block takes a chunk of the keys of one KV head, and HEADS of the query heads
//                      that read it. LANES lanes share a key and keep, as keys go by, a reference
//                      that no score is far above, the sum of the terms exp(score - reference), and
//                      the values summed with these terms.
//   attention_combine  a head's chunks, brought to one maximum and divided by the whole sum.
//
// Definitions: HEAD_DIM D, a multiple of 8; HEADS query heads of a block, a divisor of Hq / Hk.
//
// attention_split: grid (splits, Hq / HEADS), block 128. Dynamic shared memory, in floats:
// WARPS * HEADS * (D + 2), each warp's sums, reference and sum of terms.
// attention_combine: grid (Hq), block 512. Static shared memory: a weight a split, a sum a thread.
// q           (Hq, D) T, after rope
// k_cache     [kv_head][position][dim] T, capacity positions a head; the same for v_cache
// position    (1) int: the query sees the keys 0 to its own position
// maxima      (Hq, splits) float: the reference of each chunk, times log2(e); and sums
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
#define LOG2_E 1.44269504f
// How far a score may lie above its reference, in powers of two: terms stay below 256.
#define SLACK 8.0f

// How the lanes of a warp share the dims of a key: LANES lanes, each LOADS packs of WIDTH elements,
// every LANES-th one. A group of LANES lanes takes BATCH keys at a time.
template <typename T>
struct Share {
    static const int WIDTH = 16 / sizeof(T);
    static const int PACKS = HEAD_DIM / WIDTH;
    // The largest power of two that divides the packs, at most a warp.
    static const int POWER = PACKS & -PACKS;
    static const int LANES = POWER < 32 ? POWER : 32;
    static const int LOADS = PACKS / LANES;
    static const int DIMS = LOADS * WIDTH;
    // A power of two, and at most the lanes: each of them ends up with the scores of one key, its
    // own, which TWINS neighbours have in common.
    static const int MOST = LOADS == 1 ? 4 : 2;
    static const int BATCH = LANES < MOST ? LANES : MOST;
    static const int TWINS = LANES / BATCH;
    static const int GROUPS = SPLIT_BLOCK / LANES;
    // Keys that a block takes at a time.
    static const int ROUND = GROUPS * BATCH;
};

// A batch of keys, or of values: one lane's packs of it, as they were loaded. What is kept over a
// round as halves, a compiler moves about between registers.
template <typename S>
struct Batch {
    uint4 packs[S::BATCH][S::LOADS];
};

// The attention of some keys, for HEADS query heads: one lane's dims of `out`, and its own keys'
// part of `sum`. A score s counts as the term 2 ** (s log2(e) - reference). The reference of a warp
// need not be the largest score, only so near to it that no term is too large: it seldom changes.
template <int DIMS>
struct Attended {
    float reference[HEADS], sum[HEADS], out[HEADS][DIMS];
};

// Keys of a chunk: the whole divided evenly among the splits, in multiples of 16.
__device__ __forceinline__ int chunk_of(int end, int splits) {
    int even = ((end + splits - 1) / splits + 15) / 16 * 16;
    return even > LEAST_CHUNK ? even : LEAST_CHUNK;
}

// Element i of the dims that a lane has of a row.
template <typename T>
__device__ __forceinline__ float element(const uint4* packs, int i) {
    Pack<T> pack;
    memcpy(&pack, packs + i / Share<T>::WIDTH, sizeof pack);
    return to_float(pack.x[i % Share<T>::WIDTH]);
}

// Which key of a batch is the lane's own.
template <typename S>
__device__ __forceinline__ int own_key() {
    return threadIdx.x % S::LANES / S::TWINS;
}

// The key in place b of a lane's batch. Its own is in place 0, and lanes exchange what they have in
// places that are known to the compiler.
template <typename S>
__device__ __forceinline__ int key_of(int round, int b) {
    return round + threadIdx.x / S::LANES + (b ^ own_key<S>()) * S::GROUPS;
}

template <typename T>
__device__ __forceinline__ void load_row(uint4* packs, const T* row) {
    typedef Share<T> S;
#pragma unroll
    for (int load = 0; load < S::LOADS; load++)
        packs[load] =
            reinterpret_cast<const uint4*>(row)[load * S::LANES + threadIdx.x % S::LANES];
}

// Past the last key the last one is loaded, and counts for nothing.
template <typename T>
__device__ __forceinline__ void load(Batch<Share<T> >& batch, const T* cache, int round, int last) {
    typedef Share<T> S;
#pragma unroll
    for (int b = 0; b < S::BATCH; b++) {
        int key = min(key_of<S>(round, b), last - 1);
        load_row<T>(batch.packs[b], cache + (long long)key * HEAD_DIM);
    }
}

// score[h] = q . k of the lane's own key. Each lane has a part of every dot product. Two lanes share
// out the keys that both have, half each, until one is left: fewer shuffles than a sum in each lane.
template <typename T>
__device__ __forceinline__ void multiply(float* score, const float (*q)[Share<T>::DIMS],
                                         const Batch<Share<T> >& keys) {
    typedef Share<T> S;
    float dot[HEADS][S::BATCH];
#pragma unroll
    for (int b = 0; b < S::BATCH; b++)
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            dot[h][b] = 0.0f;
#pragma unroll
            for (int i = 0; i < S::DIMS; i++)
                dot[h][b] += q[h][i] * element<T>(keys.packs[b], i);
        }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
#pragma unroll
        for (int half = S::BATCH / 2; half > 0; half /= 2)
#pragma unroll
            for (int b = 0; b < half; b++) {
                dot[h][b] += __shfl_xor_sync(FULL_WARP, dot[h][b + half], half * S::TWINS);
            }
#pragma unroll
        for (int offset = S::TWINS / 2; offset > 0; offset /= 2)
            dot[h][0] += __shfl_xor_sync(FULL_WARP, dot[h][0], offset);
        score[h] = dot[h][0];
    }
}

// Makes each head's largest score the reference, if it is above it.
template <typename S>
__device__ __forceinline__ void raise(Attended<S::DIMS>& a, const float* score) {
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        float reference = fmaxf(a.reference[h], warp_max(score[h]) * LOG2_E);
        float correction = exp2f(a.reference[h] - reference);
        a.reference[h] = reference;
        a.sum[h] *= correction;
#pragma unroll
        for (int i = 0; i < S::DIMS; i++) a.out[h][i] *= correction;
    }
}

// Makes terms of the scores of the lane's own key.
template <typename S>
__device__ __forceinline__ void weigh(float* score, Attended<S::DIMS>& a) {
    float excess = NEGATIVE_INFINITY;
#pragma unroll
    for (int h = 0; h < HEADS; h++) excess = fmaxf(excess, score[h] * LOG2_E - a.reference[h]);
    if (__any_sync(FULL_WARP, excess > SLACK)) raise<S>(a, score);
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        score[h] = exp2f(score[h] * LOG2_E - a.reference[h]);
        a.sum[h] += score[h];
    }
}

// out += term[b] v[b], with the term of place b from the lane whose own key that is.
template <typename T>
__device__ __forceinline__ void add_values(Attended<Share<T>::DIMS>& a, const float* term,
                                           const Batch<Share<T> >& values) {
    typedef Share<T> S;
#pragma unroll
    for (int b = 0; b < S::BATCH; b++)
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float t = __shfl_xor_sync(FULL_WARP, term[h], b * S::TWINS);
#pragma unroll
            for (int i = 0; i < S::DIMS; i++)
                a.out[h][i] += t * element<T>(values.packs[b], i);
        }
}

// The keys of [first, last), a round at a time. The next round's keys are under way while the values
// of this one are summed, and its values while its keys are multiplied.
template <typename T>
__device__ __forceinline__ void attend(Attended<Share<T>::DIMS>& a, const T* q, const T* k,
                                       const T* v, int first, int last, float* scores_tap,
                                       int n_positions, float scale) {
    typedef Share<T> S;
    Batch<S> keys, values;
    load<T>(keys, k, first, last);
    load<T>(values, v, first, last);
    float own[HEADS][S::DIMS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        uint4 packs[S::LOADS];
        load_row<T>(packs, q + h * HEAD_DIM);
        a.reference[h] = NO_SCORE;
        a.sum[h] = 0.0f;
#pragma unroll
        for (int i = 0; i < S::DIMS; i++) {
            own[h][i] = element<T>(packs, i) * scale;
            a.out[h][i] = 0.0f;
        }
    }
    // Every lane takes part in every round, for a warp shuffles as a whole.
    for (int round = first; round < last; round += S::ROUND) {
        int next = round + S::ROUND, j = key_of<S>(round, 0);
        float score[HEADS];
        multiply<T>(score, own, keys);
        if (next < last) load<T>(keys, k, next, last);
        bool counts = j < last;
        if (scores_tap && threadIdx.x % S::TWINS == 0 && counts)
#pragma unroll
            for (int h = 0; h < HEADS; h++) scores_tap[(long long)h * n_positions + j] = score[h];
#pragma unroll
        for (int h = 0; h < HEADS; h++)
            if (!counts) score[h] = NEGATIVE_INFINITY;
        weigh<S>(score, a);
        add_values<T>(a, score, values);
        if (next < last) load<T>(values, v, next, last);
    }
}

// Sum over the lanes of a warp that are a multiple of `nearest` apart, in each of them.
template <int nearest>
__device__ __forceinline__ float sum_of_lanes(float x) {
#pragma unroll
    for (int offset = 16; offset >= nearest; offset /= 2)
        x += __shfl_xor_sync(FULL_WARP, x, offset);
    return x;
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
    if (scores_tap) scores_tap += (long long)head * n_positions;

    Attended<S::DIMS> a;
    attend<T>(a, q + head * HEAD_DIM, k_cache + cache, v_cache + cache, first, last, scores_tap,
              n_positions, scale);

    float *warp_maxima = shared + WARPS * HEADS * HEAD_DIM, *warp_sums = warp_maxima + WARPS * HEADS;
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        float sum = sum_of_lanes<S::TWINS>(a.sum[h]);
        if (lane == 0) {
            warp_maxima[warp * HEADS + h] = a.reference[h];
            warp_sums[warp * HEADS + h] = sum;
        }
#pragma unroll
        for (int i = 0; i < S::DIMS; i++) {
            int pack = i / S::WIDTH * S::LANES + lane;
            float x = sum_of_lanes<S::LANES>(a.out[h][i]);
            if (lane < S::LANES)
                shared[(warp * HEADS + h) * HEAD_DIM + pack * S::WIDTH + i % S::WIDTH] = x;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < HEADS * HEAD_DIM; i += SPLIT_BLOCK) {
        int h = i / HEAD_DIM;
        float maximum = NO_SCORE, sum = 0.0f, x = 0.0f;
        for (int w = 0; w < WARPS; w++) maximum = fmaxf(maximum, warp_maxima[w * HEADS + h]);
        for (int w = 0; w < WARPS; w++) {
            float correction = exp2f(warp_maxima[w * HEADS + h] - maximum);
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
    int head = blockIdx.x, end = *position + 1, lane = threadIdx.x % 32;
    int chunk = chunk_of(end, splits), used = (end + chunk - 1) / chunk;
    maxima += head * splits;
    sums += head * splits;
    partial += (long long)head * splits * HEAD_DIM;

    // Every warp finds the largest and the sum for itself, which takes no barrier.
    const int rows = MOST_SPLITS / 32;
    float weight[rows], own_sum[rows], maximum = NEGATIVE_INFINITY, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < rows; i++) {
        int s = lane + 32 * i;
        weight[i] = s < used ? maxima[s] : NEGATIVE_INFINITY;
        own_sum[i] = s < used ? sums[s] : 0.0f;
        maximum = fmaxf(maximum, weight[i]);
    }
    maximum = warp_max(maximum);
#pragma unroll
    for (int i = 0; i < rows; i++) {
        weight[i] = exp2f(weight[i] - maximum);
        sum += own_sum[i] * weight[i];
        if (threadIdx.x < 32) weights[lane + 32 * i] = weight[i];
    }
    sum = warp_sum(sum);
    __syncthreads();

    // A few threads share each dim.
    const int shares = COMBINE_BLOCK / HEAD_DIM;
    int d = threadIdx.x % HEAD_DIM, share = threadIdx.x / HEAD_DIM;
    float x = 0.0f;
    if (share < shares) {
#pragma unroll 8
        for (int s = share; s < used; s += shares)
            x += partial[(long long)s * HEAD_DIM + d] * weights[s];
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
        probs_tap[row + j] = j < end ? exp2f(scores[row + j] * LOG2_E - maximum) / sum : 0.0f;
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
