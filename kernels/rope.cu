// Rotary position embedding: each pair (a, b) of a head becomes
//   (a cos w - b sin w, a sin w + b cos w),  w = position * theta^(-2 i / D) / factor[i],
// for pair i in [0, D/2). NORM pairs (2i, 2i+1): llama. NEOX pairs (i, i + D/2): qwen2, qwen3.
//
// grid (T), block (any); no shared memory: a block rotates all heads of one token.
// out       (T, H, D) T; not x
// x         (T, H, D) T
// positions (T) int
// factors   (D/2) float, or null for all ones (llama-3 frequency scaling)
// Each angle and rotation in float. Entries: rope_norm_f32, rope_norm_f16, rope_neox_f32,
// rope_neox_f16.
#include "common.cuh"

template <typename T, bool NEOX>
__device__ void rope_token(T* out, const T* x, const int* positions, const float* factors,
                           int n_head, int head_dim, float theta) {
    int half_dim = head_dim / 2, position = positions[blockIdx.x];
    long long token = (long long)blockIdx.x * n_head * head_dim;
    for (int i = threadIdx.x; i < n_head * half_dim; i += blockDim.x) {
        int head = i / half_dim, pair = i % half_dim;
        float angle = position * powf(theta, -2.0f * pair / head_dim);
        if (factors) angle /= factors[pair];
#ifdef FAULT_ROPE_PARTIAL_HALF
        if (pair >= half_dim / 2) angle = 0.0f;
#endif
#ifdef FAULT_ROPE_HEAD_0_ONLY
        if (head > 0) angle = 0.0f;
#endif
#ifdef FAULT_ROPE_BACKWARDS
        angle = -angle;
#endif
        float cosine = cosf(angle), sine = sinf(angle);
        long long first = token + (long long)head * head_dim + (NEOX ? pair : 2 * pair);
        long long second = first + (NEOX ? half_dim : 1);
        float a = to_float(x[first]), b = to_float(x[second]);
        store(out + first, a * cosine - b * sine);
        store(out + second, a * sine + b * cosine);
    }
}

extern "C" __global__ void rope_norm_f32(float* out, const float* x, const int* positions,
                                         const float* factors, int n_head, int head_dim,
                                         float theta) {
    rope_token<float, false>(out, x, positions, factors, n_head, head_dim, theta);
}

extern "C" __global__ void rope_norm_f16(__half* out, const __half* x, const int* positions,
                                         const float* factors, int n_head, int head_dim,
                                         float theta) {
    rope_token<__half, false>(out, x, positions, factors, n_head, head_dim, theta);
}

extern "C" __global__ void rope_neox_f32(float* out, const float* x, const int* positions,
                                         const float* factors, int n_head, int head_dim,
                                         float theta) {
    rope_token<float, true>(out, x, positions, factors, n_head, head_dim, theta);
}

extern "C" __global__ void rope_neox_f16(__half* out, const __half* x, const int* positions,
                                         const float* factors, int n_head, int head_dim,
                                         float theta) {
    rope_token<__half, true>(out, x, positions, factors, n_head, head_dim, theta);
}
