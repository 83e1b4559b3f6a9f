// KV append: k_cache[h][positions[t]][d] = k[t][h][d], and the same for v.
//
// grid (T, Hk), block (any); no shared memory: a block writes one head of one token.
// k_cache, v_cache [kv_head][position][dim] T, capacity positions a head (the stride)
// k, v             (T, Hk, D) T
// positions        (T) int in [0, capacity)
// length           positions in the cache after this step; not needed by a right append
// No arithmetic. Entries: kv_append_f32, kv_append_f16.
#include "common.cuh"

template <typename T>
__device__ void kv_append_head(T* k_cache, T* v_cache, const T* k, const T* v,
                               const int* positions, int n_head_kv, int head_dim, int capacity,
                               int length) {
    int token = blockIdx.x, head = blockIdx.y;
    long long stride = capacity;
#ifdef FAULT_KV_HEAD_1_UNWRITTEN
    if (head == 1) return;
#endif
#ifdef FAULT_CACHE_STRIDE_LENGTH
    stride = length;
#endif
    int v_head = head, v_position = positions[token];
#ifdef FAULT_V_CACHE_HEADS_SWAPPED
    v_head = n_head_kv - 1 - head;
#endif
#ifdef FAULT_V_CACHE_SLOT_PLUS_ONE
    v_position++;
#endif
    long long from = ((long long)token * n_head_kv + head) * head_dim;
    long long to_k = (head * stride + positions[token]) * head_dim;
    long long to_v = (v_head * stride + v_position) * head_dim;
    for (int d = threadIdx.x; d < head_dim; d += blockDim.x) {
        k_cache[to_k + d] = k[from + d];
        v_cache[to_v + d] = v[from + d];
    }
}

extern "C" __global__ void kv_append_f32(float* k_cache, float* v_cache, const float* k,
                                         const float* v, const int* positions, int n_head_kv,
                                         int head_dim, int capacity, int length) {
    kv_append_head<float>(k_cache, v_cache, k, v, positions, n_head_kv, head_dim, capacity, length);
}

extern "C" __global__ void kv_append_f16(__half* k_cache, __half* v_cache, const __half* k,
                                         const __half* v, const int* positions, int n_head_kv,
                                         int head_dim, int capacity, int length) {
    kv_append_head<__half>(k_cache, v_cache, k, v, positions, n_head_kv, head_dim, capacity,
                           length);
}
