// Grouped-query attention for all tokens of a step: the engine has appended their keys and values to
// one cache [position][kv_head][dim] each, as long as it is filled.
//
// grid (heads, tokens), block 128; one block a head of a query
// out, q           [token][head][dim]
// k_cache, v_cache [position][kv_head][dim], length positions
// token t stands at position past + t and sees the keys up to its own; the scale is 1/sqrt(dim)
// dynamic shared memory: a score for each key, then a float for each thread
#include <cuda_fp16.h>

__device__ __forceinline__ float load(float x) { return x; }
__device__ __forceinline__ float load(__half x) { return __half2float(x); }
__device__ __forceinline__ void put(float* p, float x) { *p = x; }
__device__ __forceinline__ void put(__half* p, float x) { *p = __float2half(x); }

template <typename T>
__device__ void gqa_prefill(T* out, const T* q, const T* k_cache, const T* v_cache, int past,
                            int length, int heads, int kv_heads, int dim) {
    extern __shared__ float shared[];
    float *scores = shared, *partial = shared + length;
    int head = blockIdx.x, token = blockIdx.y, keys = past + token + 1;
    int kv_head = head / (heads / kv_heads);
    float scale = rsqrtf((float)dim);
    const T* q_row = q + ((long long)token * heads + head) * dim;
    long long stride = (long long)kv_heads * dim;  // from a position to the next
    const T *k = k_cache + (long long)kv_head * dim, *v = v_cache + (long long)kv_head * dim;

    float maximum = -1e30f;
    for (int j = threadIdx.x; j < keys; j += blockDim.x) {
        float score = 0.0f;
        for (int d = 0; d < dim; d++) score += load(q_row[d]) * load(k[j * stride + d]);
        scores[j] = score * scale;
        maximum = fmaxf(maximum, scores[j]);
    }
    partial[threadIdx.x] = maximum;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half)
            partial[threadIdx.x] = fmaxf(partial[threadIdx.x], partial[threadIdx.x + half]);
        __syncthreads();
    }
    maximum = partial[0];
    __syncthreads();

    float sum = 0.0f;
    for (int j = threadIdx.x; j < keys; j += blockDim.x) {
        scores[j] = expf(scores[j] - maximum);
        sum += scores[j];
    }
    partial[threadIdx.x] = sum;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();
    }

    for (int d = threadIdx.x; d < dim; d += blockDim.x) {
        float value = 0.0f;
        for (int j = 0; j < keys; j++) value += scores[j] * load(v[j * stride + d]);
        put(out + ((long long)token * heads + head) * dim + d, value / partial[0]);
    }
}

extern "C" __global__ void gqa_prefill_f32(float* out, const float* q, const float* k_cache,
                                           const float* v_cache, int past, int length, int heads,
                                           int kv_heads, int dim) {
    gqa_prefill<float>(out, q, k_cache, v_cache, past, length, heads, kv_heads, dim);
}

extern "C" __global__ void gqa_prefill_f16(__half* out, const __half* q, const __half* k_cache,
                                           const __half* v_cache, int past, int length, int heads,
                                           int kv_heads, int dim) {
    gqa_prefill<__half>(out, q, k_cache, v_cache, past, length, heads, kv_heads, dim);
}
