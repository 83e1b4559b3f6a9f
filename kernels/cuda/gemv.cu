// Products of the cuda device that cuBLAS is not used for: y[c] = sum over i of x[i] w[c][i] + bias[c]
// for one row x and up to three matrices at once, and a bias for rows that cuBLAS has multiplied.
//
// gemv: grid (ceil(all outputs / outputs of a block)), block 128: WARPS warps share an output, and a
// block computes 4 / WARPS of them; 16 bytes of static shared memory for the warps' sums.
// add_bias: grid (rows), block (any); no shared memory.
// x          (n) T, 16-byte aligned
// w0, w1, w2 (n0, n), (n1, n), (n2, n) T, 16-byte aligned rows; unused ones have no outputs
// b0, b1, b2 (n0), (n1), (n2) float, or null
// y0, y1, y2 (n0), (n1), (n2) O
// Accumulator: float; a lane sums every 32nd pack of 16 bytes in order, then warp_sum, then the warps.
// Entries: gemv_{f32_f32, f16_f16, f16_f32}_{1, 4}: T, O and WARPS; add_bias_f32, add_bias_f16.
#include "common.cuh"

#define GEMV_BLOCK 128

template <typename T, typename O, int WARPS>
__device__ void gemv(const T* x, const T* w0, const T* w1, const T* w2, const float* b0,
                     const float* b1, const float* b2, O* y0, O* y1, O* y2, int n0, int n1, int n2,
                     int n) {
    __shared__ float sums[GEMV_BLOCK / 32];
    const int width = 16 / sizeof(T);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int c = blockIdx.x * (GEMV_BLOCK / 32 / WARPS) + warp / WARPS;
    const T* w = w0;
    const float* bias = b0;
    O* y = y0;
    bool inside = c < n0 + n1 + n2;
    if (c >= n0 + n1) {
        w = w2; bias = b2; y = y2;
        c -= n0 + n1;
    } else if (c >= n0) {
        w = w1; bias = b1; y = y1;
        c -= n0;
    }
    float sum = 0.0f;
    if (inside) {
        const Pack<T>* row = reinterpret_cast<const Pack<T>*>(w + (long long)c * n);
        const Pack<T>* input = reinterpret_cast<const Pack<T>*>(x);
#pragma unroll 4
        for (int i = warp % WARPS * 32 + lane; i < n / width; i += 32 * WARPS) {
            Pack<T> a = input[i], b = row[i];
#pragma unroll
            for (int j = 0; j < width; j++) sum += to_float(a.x[j]) * to_float(b.x[j]);
        }
    }
    sum = warp_sum(sum);
    if (WARPS > 1) {
        if (lane == 0) sums[warp] = sum;
        __syncthreads();
        sum = 0.0f;
        for (int other = 0; other < WARPS; other++) sum += sums[warp / WARPS * WARPS + other];
    }
    if (inside && lane == 0 && warp % WARPS == 0) store(y + c, bias ? sum + bias[c] : sum);
}

template <typename T>
__device__ void add_bias(T* x, const float* bias, int n) {
    long long first = (long long)blockIdx.x * n;
    for (int c = threadIdx.x; c < n; c += blockDim.x)
        store(x + first + c, to_float(x[first + c]) + bias[c]);
}

extern "C" __global__ void gemv_f32_f32_1(const float* x, const float* w0, const float* w1, const float* w2,
    const float* b0, const float* b1, const float* b2, float* y0, float* y1, float* y2, int n0, int n1,
    int n2, int n) {
    gemv<float, float, 1>(x, w0, w1, w2, b0, b1, b2, y0, y1, y2, n0, n1, n2, n);
}

extern "C" __global__ void gemv_f32_f32_4(const float* x, const float* w0, const float* w1, const float* w2,
    const float* b0, const float* b1, const float* b2, float* y0, float* y1, float* y2, int n0, int n1,
    int n2, int n) {
    gemv<float, float, 4>(x, w0, w1, w2, b0, b1, b2, y0, y1, y2, n0, n1, n2, n);
}

extern "C" __global__ void gemv_f16_f32_1(const __half* x, const __half* w0, const __half* w1, const __half* w2,
    const float* b0, const float* b1, const float* b2, float* y0, float* y1, float* y2, int n0, int n1,
    int n2, int n) {
    gemv<__half, float, 1>(x, w0, w1, w2, b0, b1, b2, y0, y1, y2, n0, n1, n2, n);
}

extern "C" __global__ void gemv_f16_f32_4(const __half* x, const __half* w0, const __half* w1, const __half* w2,
    const float* b0, const float* b1, const float* b2, float* y0, float* y1, float* y2, int n0, int n1,
    int n2, int n) {
    gemv<__half, float, 4>(x, w0, w1, w2, b0, b1, b2, y0, y1, y2, n0, n1, n2, n);
}

extern "C" __global__ void gemv_f16_f16_1(const __half* x, const __half* w0, const __half* w1, const __half* w2,
    const float* b0, const float* b1, const float* b2, __half* y0, __half* y1, __half* y2, int n0, int n1,
    int n2, int n) {
    gemv<__half, __half, 1>(x, w0, w1, w2, b0, b1, b2, y0, y1, y2, n0, n1, n2, n);
}

extern "C" __global__ void gemv_f16_f16_4(const __half* x, const __half* w0, const __half* w1, const __half* w2,
    const float* b0, const float* b1, const float* b2, __half* y0, __half* y1, __half* y2, int n0, int n1,
    int n2, int n) {
    gemv<__half, __half, 4>(x, w0, w1, w2, b0, b1, b2, y0, y1, y2, n0, n1, n2, n);
}

extern "C" __global__ void add_bias_f32(float* x, const float* bias, int n) {
    add_bias<float>(x, bias, n);
}

extern "C" __global__ void add_bias_f16(__half* x, const float* bias, int n) {
    add_bias<__half>(x, bias, n);
}
