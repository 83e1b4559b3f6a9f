// Grouped-query attention for one new token: the cache holds cache_len positions, the token's own key
// and value come as arguments, and the kernel appends them at position cache_len.
//
// grid (num_q_heads, batch), block 256
// output, q            [batch][q_head][dim]
// k_current, v_current [batch][kv_head][dim]
// kv_cache_k, _v       [batch][kv_head][max_seq][dim]
// dynamic shared memory: scores[cache_len + 1] | maximum | sum, that is cache_len + 3 floats
//
// The BUG_ definitions are mistakes that such kernels really have; tests/contract.rs plants each.
#include <cuda_fp16.h>

#define MAX_HEAD_DIM 256

__device__ __forceinline__ float load(float x) { return x; }
__device__ __forceinline__ float load(__half x) { return __half2float(x); }
__device__ __forceinline__ void put(float* p, float x) { *p = x; }
__device__ __forceinline__ void put(__half* p, float x) { *p = __float2half(x); }

template <typename T>
__device__ void gqa_decode(T* output, const T* q, const T* k_current, const T* v_current,
                           T* kv_cache_k, T* kv_cache_v, unsigned cache_len, unsigned max_seq_len,
                           unsigned num_q_heads, unsigned num_kv_heads, unsigned head_dim,
                           float scale) {
    extern __shared__ float shared[];
    float *scores = shared, *max_val = shared + cache_len + 1, *sum_exp = max_val + 1;
    __shared__ float partial[256];
    unsigned tid = threadIdx.x, q_head = blockIdx.x, batch = blockIdx.y;
    unsigned group = num_q_heads / num_kv_heads, kv_head = q_head / group;
    unsigned keys = cache_len + 1;

    const T* q_row = q + ((size_t)batch * num_q_heads + q_head) * head_dim;
    const T* k_row = k_current + ((size_t)batch * num_kv_heads + kv_head) * head_dim;
    const T* v_row = v_current + ((size_t)batch * num_kv_heads + kv_head) * head_dim;
    size_t stride = max_seq_len;
#ifdef BUG_STRIDE
    stride = cache_len + 1;
#endif
    T* k_cache = kv_cache_k + ((size_t)batch * num_kv_heads + kv_head) * stride * head_dim;
    T* v_cache = kv_cache_v + ((size_t)batch * num_kv_heads + kv_head) * stride * head_dim;
#ifdef BUG_STRIDE_READ
    const T* k_read = kv_cache_k + ((size_t)batch * num_kv_heads + kv_head) * keys * head_dim;
    const T* v_read = kv_cache_v + ((size_t)batch * num_kv_heads + kv_head) * keys * head_dim;
#else
    const T *k_read = k_cache, *v_read = v_cache;
#endif

#ifdef BUG_Q_IN_REGISTERS
    float q_vec[MAX_HEAD_DIM] = {};
#else
    __shared__ float q_vec[MAX_HEAD_DIM];
#endif
    for (unsigned d = tid; d < head_dim; d += blockDim.x) q_vec[d] = load(q_row[d]);
    __syncthreads();

    for (unsigned pos = tid; pos < keys; pos += blockDim.x) {
        const T* k = pos < cache_len ? k_read + (size_t)pos * head_dim : k_row;
        float score = 0.0f;
        for (unsigned d = 0; d < head_dim; d++) score += q_vec[d] * load(k[d]);
#ifndef BUG_UNSCALED
        score *= scale;
#endif
        scores[pos] = score;
    }
    __syncthreads();
#ifdef BUG_SOFTMAX_OVER_CACHE_LEN
    keys = cache_len;
#endif

    if (tid == 0) {
        float maximum = -1e30f;
        for (unsigned pos = 0; pos < keys; pos++) maximum = fmaxf(maximum, scores[pos]);
        *max_val = maximum;
    }
    __syncthreads();
    float local = 0.0f;
    for (unsigned pos = tid; pos < keys; pos += blockDim.x) {
        scores[pos] = expf(scores[pos] - *max_val);
        local += scores[pos];
#ifdef BUG_CURRENT_TWICE
        if (pos == cache_len) local += scores[pos];  // from the cache and from the argument
#endif
    }
    partial[tid] = local;
    __syncthreads();
#ifdef BUG_PARTIAL_REDUCTION
    for (unsigned half = 16; half > 0; half /= 2) {
#else
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
#endif
        if (tid < half) partial[tid] += partial[tid + half];
        __syncthreads();
    }
    if (tid == 0) *sum_exp = partial[0];
    __syncthreads();

    for (unsigned d = tid; d < head_dim; d += blockDim.x) {
        float sum = 0.0f;
        for (unsigned pos = 0; pos < keys; pos++) {
            const T* v = pos < cache_len ? v_read + (size_t)pos * head_dim : v_row;
            sum += scores[pos] * load(v[d]);
        }
#ifdef BUG_CURRENT_TWICE
        sum += scores[cache_len] * load(v_row[d]);
#endif
        put(output + ((size_t)batch * num_q_heads + q_head) * head_dim + d,
            keys > 0 ? sum / *sum_exp : 0.0f);
    }

    // One query head of each group appends; no other reads this slot in this launch.
    bool appends = q_head % group == 0;
#ifdef BUG_KV_HEAD_1_UNWRITTEN
    appends = appends && kv_head != 1;
#endif
    if (appends) {
        for (unsigned d = tid; d < head_dim; d += blockDim.x) {
            k_cache[(size_t)cache_len * head_dim + d] = k_row[d];
            v_cache[(size_t)cache_len * head_dim + d] = v_row[d];
        }
    }
}

extern "C" __global__ void gqa_decode_f16(__half* output, const __half* q, const __half* k_current,
                                          const __half* v_current, __half* kv_cache_k,
                                          __half* kv_cache_v, unsigned batch, unsigned cache_len,
                                          unsigned max_seq_len, unsigned num_q_heads,
                                          unsigned num_kv_heads, unsigned head_dim, float scale) {
    gqa_decode<__half>(output, q, k_current, v_current, kv_cache_k, kv_cache_v, cache_len,
                       max_seq_len, num_q_heads, num_kv_heads, head_dim, scale);
}

extern "C" __global__ void gqa_decode_f32(float* output, const float* q, const float* k_current,
                                          const float* v_current, float* kv_cache_k,
                                          float* kv_cache_v, unsigned batch, unsigned cache_len,
                                          unsigned max_seq_len, unsigned num_q_heads,
                                          unsigned num_kv_heads, unsigned head_dim, float scale) {
    gqa_decode<float>(output, q, k_current, v_current, kv_cache_k, kv_cache_v, cache_len,
                      max_seq_len, num_q_heads, num_kv_heads, head_dim, scale);
}
