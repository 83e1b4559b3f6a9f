// Grouped-query attention of one query (decode) with its keys split over blocks: what
// attention.cu computes, for long contexts.
//   attention_split    a block takes a chunk of the keys of one KV head, and HEADS of the query heads
//                      that read it: the scores, their maximum, the sum of exp(score - maximum), and
//                      the values summed with these terms.
//   attention_combine  a head's chunks, brought to one maximum and divided by the whole sum.
//
// Definitions: HEAD_DIM D, HEADS query heads of a block, a divisor of Hq / Hk.
//
// attention_split: grid (splits, Hq / HEADS), block SPLIT_BLOCK. Dynamic shared memory, in floats:
// the larger of HEADS * chunk and WARPS * HEADS * D, for the chunk of a full cache.
// attention_combine: grid (Hq), block SPLIT_BLOCK.
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
#define LEAST_CHUNK 64

// 16 bytes, which a lane loads at once.
template <typename T>
struct alignas(16) Pack {
    T x[16 / sizeof(T)];
};

// How the lanes of a warp share the dims of a key: LANES lanes, each LOADS packs of WIDTH elements,
// every LANES-th one. So a warp reads 32 / LANES keys at a time.
template <typename T>
struct Share {
    static const int WIDTH = 16 / sizeof(T);
    static const int PACKS = HEAD_DIM / WIDTH;
    // The largest power of two that divides the packs, at most a warp.
    static const int POWER = PACKS & -PACKS;
    static const int LANES = POWER < 32 ? POWER : 32;
    static const int LOADS = PACKS / LANES;
    static const int DIMS = LOADS * WIDTH;
};

// Keys of a chunk: the whole divided evenly among the splits, in multiples of 16.
__device__ __forceinline__ int chunk_of(int end, int splits) {
    int even = ((end + splits - 1) / splits + 15) / 16 * 16;
    return even > LEAST_CHUNK ? even : LEAST_CHUNK;
}

// Sum over the LANES neighbours that share a key, in each of them.
template <int LANES>
__device__ __forceinline__ float sum_of_lanes(float x) {
    for (int offset = LANES / 2; offset > 0; offset /= 2)
        x += __shfl_xor_sync(FULL_WARP, x, offset);
    return x;
}

// score[h * chunk + j] = scale * q[h] . k[j] for the n keys of the chunk.
template <typename T>
__device__ void chunk_scores(float* score, const T* q, const T* k, int n, int chunk, float scale) {
    typedef Share<T> S;
    int lane = threadIdx.x % S::LANES, slot = threadIdx.x / S::LANES;
    const int slots = SPLIT_BLOCK / S::LANES;
    float own[HEADS][S::DIMS];
#pragma unroll
    for (int h = 0; h < HEADS; h++)
#pragma unroll
        for (int i = 0; i < S::DIMS; i++) {
            int pack = i / S::WIDTH * S::LANES + lane;
            own[h][i] = to_float(q[h * HEAD_DIM + pack * S::WIDTH + i % S::WIDTH]) * scale;
        }
    // Every lane takes part in every round, for a warp shuffles as a whole.
    int rounds = (n + slots - 1) / slots;
#pragma unroll 4
    for (int round = 0; round < rounds; round++) {
        int j = round * slots + slot;
        const Pack<T>* key = reinterpret_cast<const Pack<T>*>(k + (long long)min(j, n - 1) * HEAD_DIM);
        float dot[HEADS] = {};
#pragma unroll
        for (int load = 0; load < S::LOADS; load++) {
            Pack<T> pack = key[load * S::LANES + lane];
#pragma unroll
            for (int i = 0; i < S::WIDTH; i++) {
                float x = to_float(pack.x[i]);
#pragma unroll
                for (int h = 0; h < HEADS; h++) dot[h] += own[h][load * S::WIDTH + i] * x;
            }
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float sum = sum_of_lanes<S::LANES>(dot[h]);
            if (lane == 0 && j < n) score[h * chunk + j] = sum;
        }
    }
}

// sum[h][i] += over the keys of this thread's slot: p[h * chunk + j] v[j][dims of this lane].
template <typename T>
__device__ void chunk_values(float (*sum)[Share<T>::DIMS], const float* p, const T* v, int n,
                             int chunk) {
    typedef Share<T> S;
    int lane = threadIdx.x % S::LANES, slot = threadIdx.x / S::LANES;
    const int slots = SPLIT_BLOCK / S::LANES;
#pragma unroll 4
    for (int j = slot; j < n; j += slots) {
        const Pack<T>* value = reinterpret_cast<const Pack<T>*>(v + (long long)j * HEAD_DIM);
#pragma unroll
        for (int load = 0; load < S::LOADS; load++) {
            Pack<T> pack = value[load * S::LANES + lane];
#pragma unroll
            for (int i = 0; i < S::WIDTH; i++) {
                float x = to_float(pack.x[i]);
#pragma unroll
                for (int h = 0; h < HEADS; h++)
                    sum[h][load * S::WIDTH + i] += p[h * chunk + j] * x;
            }
        }
    }
}

// score[j] becomes exp(score[j] - maximum) for each head; its warp writes maximum and sum.
__device__ __forceinline__ void chunk_softmax(float* score, float* maxima, float* sums, int n,
                                              int chunk, int splits) {
    int lane = threadIdx.x % 32;
    for (int h = threadIdx.x / 32; h < HEADS; h += WARPS) {
        float maximum = NEGATIVE_INFINITY, sum = 0.0f;
        for (int j = lane; j < n; j += 32) maximum = fmaxf(maximum, score[h * chunk + j]);
        maximum = warp_max(maximum);
        for (int j = lane; j < n; j += 32) {
            float term = expf(score[h * chunk + j] - maximum);
            score[h * chunk + j] = term;
            sum += term;
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            maxima[h * splits] = maximum;
            sums[h * splits] = sum;
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
    int chunk = chunk_of(end, splits), first = split * chunk, n = min(chunk, end - first);
    if (n <= 0) return;
    int head = blockIdx.y * HEADS, kv_head = head / (n_head / n_head_kv);
    long long start = ((long long)kv_head * capacity + first) * HEAD_DIM;

    chunk_scores<T>(shared, q + head * HEAD_DIM, k_cache + start, n, chunk, scale);
    __syncthreads();
    if (scores_tap) {
        for (int i = threadIdx.x; i < HEADS * n; i += SPLIT_BLOCK) {
            long long row = (long long)(head + i / n) * n_positions;
            scores_tap[row + first + i % n] = shared[i / n * chunk + i % n];
        }
        __syncthreads();
    }
    long long at = (long long)head * splits + split;
    chunk_softmax(shared, maxima + at, sums + at, n, chunk, splits);
    __syncthreads();

    float sum[HEADS][S::DIMS] = {};
    chunk_values<T>(sum, shared, v_cache + start, n, chunk);
    __syncthreads();  // the terms are consumed; their memory takes each warp's sums
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int h = 0; h < HEADS; h++)
#pragma unroll
        for (int i = 0; i < S::DIMS; i++) {
            float x = sum[h][i];
            for (int offset = 16; offset >= S::LANES; offset /= 2)
                x += __shfl_xor_sync(FULL_WARP, x, offset);
            int pack = i / S::WIDTH * S::LANES + lane;
            if (lane < S::LANES)
                shared[(warp * HEADS + h) * HEAD_DIM + pack * S::WIDTH + i % S::WIDTH] = x;
        }
    __syncthreads();
    for (int i = threadIdx.x; i < HEADS * HEAD_DIM; i += SPLIT_BLOCK) {
        float x = 0.0f;
        for (int w = 0; w < WARPS; w++) x += shared[w * HEADS * HEAD_DIM + i];
        partial[(at + (long long)(i / HEAD_DIM) * splits) * HEAD_DIM + i % HEAD_DIM] = x;
    }
}

template <typename T>
__device__ void combine(T* out, const float* partial, const float* maxima, const float* sums,
                        const int* position, const float* scores, float* probs_tap, int splits,
                        int n_positions) {
    __shared__ float slices[SPLIT_BLOCK];
    int head = blockIdx.x, end = *position + 1;
    int chunk = chunk_of(end, splits), used = (end + chunk - 1) / chunk;
    maxima += head * splits;
    sums += head * splits;
    partial += (long long)head * splits * HEAD_DIM;

    float maximum = NEGATIVE_INFINITY, sum = 0.0f;
    for (int s = threadIdx.x; s < used; s += SPLIT_BLOCK) maximum = fmaxf(maximum, maxima[s]);
    maximum = block_max(maximum);
    for (int s = threadIdx.x; s < used; s += SPLIT_BLOCK) sum += sums[s] * expf(maxima[s] - maximum);
    sum = block_sum(sum);

    // A few threads share each dim, or each thread has a few dims.
    const int shares = HEAD_DIM < SPLIT_BLOCK ? SPLIT_BLOCK / HEAD_DIM : 1;
    for (int first = 0; first < HEAD_DIM; first += SPLIT_BLOCK) {
        int d = first + threadIdx.x % HEAD_DIM, share = threadIdx.x / HEAD_DIM;
        float x = 0.0f;
        if (shares == 1) {
            d = first + threadIdx.x;
            share = d < HEAD_DIM ? 0 : 1;
        }
        if (share < shares) {
#pragma unroll 8
            for (int s = share; s < used; s += shares)
                x += partial[(long long)s * HEAD_DIM + d] * expf(maxima[s] - maximum);
        }
        slices[threadIdx.x] = x;
        __syncthreads();
        if (share == 0) {
            for (int i = 1; i < shares; i++) x += slices[threadIdx.x + i * HEAD_DIM];
            store(out + head * HEAD_DIM + d, x / sum);
        }
        __syncthreads();
    }
    if (!probs_tap) return;
    long long row = (long long)head * n_positions;
    for (int j = threadIdx.x; j < n_positions; j += SPLIT_BLOCK)
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
