// RMS norm: out[r][c] = x[r][c] / sqrt(mean over c of x[r][c]^2 + eps) * weight[c].
// A row is a token's hidden vector, or one head of it (Qwen3's q and k norms).
//
// grid (rows), block (a multiple of 32); 128 bytes of static shared memory for the block's sum.
// out    (rows, n) T; may be x itself
// x      (rows, n) T
// weight (n) float
// Accumulator: float; each thread sums its elements in steps of the block, then block_sum.
// Entries: rms_norm_f32, rms_norm_f16.
#include "common.cuh"

template <typename T>
__device__ void rms_norm_row(T* out, const T* x, const float* weight, int n, float eps) {
    long long first = (long long)blockIdx.x * n;
    float sum = 0.0f, shift = 0.0f;
#ifdef FAULT_NORM_MEAN_SUBTRACTED
    for (int c = 0; c < n; c++) shift += to_float(x[first + c]) / n;
#endif
    for (int c = threadIdx.x; c < n; c += blockDim.x) {
        float value = to_float(x[first + c]) - shift;
        sum += value * value;
    }
#ifdef FAULT_NORM_SUM_ONE_WARP
    sum = threadIdx.x < 32 ? sum : 0.0f;
#endif
    float inverse_rms = rsqrtf(block_sum(sum) / n + eps);
    for (int c = threadIdx.x; c < n; c += blockDim.x)
        store(out + first + c, (to_float(x[first + c]) - shift) * inverse_rms * weight[c]);
}

extern "C" __global__ void rms_norm_f32(float* out, const float* x, const float* weight, int n,
                                        float eps) {
    rms_norm_row<float>(out, x, weight, n, eps);
}

extern "C" __global__ void rms_norm_f16(__half* out, const __half* x, const float* weight, int n,
                                        float eps) {
    rms_norm_row<__half>(out, x, weight, n, eps);
}
