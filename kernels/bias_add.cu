// Bias: x[r][c] += bias[c], in place.
//
// grid (rows), block (any); no shared memory.
// x    (rows, n) T
// bias (n) float
// One float addition an element. Entries: bias_add_f32, bias_add_f16.
#include "common.cuh"

template <typename T>
__device__ void bias_add_row(T* x, const float* bias, int n) {
    long long first = (long long)blockIdx.x * n;
    for (int c = threadIdx.x; c < n; c += blockDim.x)
        store(x + first + c, to_float(x[first + c]) + bias[c]);
}

extern "C" __global__ void bias_add_f32(float* x, const float* bias, int n) {
    bias_add_row<float>(x, bias, n);
}

extern "C" __global__ void bias_add_f16(__half* x, const float* bias, int n) {
    bias_add_row<__half>(x, bias, n);
}
