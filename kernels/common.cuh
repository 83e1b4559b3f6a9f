// Shared by every kernel: storage conversion, reductions over a warp and a block, wide loads.
// Storage T is float or __half; every value is computed as float.
#pragma once
#include <cuda_fp16.h>

#define FULL_WARP 0xffffffffu
#define NEGATIVE_INFINITY __int_as_float(0xff800000)

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

__device__ __forceinline__ void store(float* p, float x) { *p = x; }
__device__ __forceinline__ void store(__half* p, float x) { *p = __float2half_rn(x); }

// Sum over the 32 lanes, in every lane. Tree order: lane distance 16, 8, 4, 2, 1.
__device__ __forceinline__ float warp_sum(float x) {
    for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(FULL_WARP, x, offset);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int offset = 16; offset > 0; offset >>= 1)
        x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, offset));
    return x;
}

// Sum over the block, in every thread. Every thread must call it; the block is a multiple of 32,
// at most 1024. Order: each warp's tree, then the warps one after another.
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float partial[32];
    int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_sum(x);
    __syncthreads();  // the readers of an earlier call are done with `partial`
    if (threadIdx.x % 32 == 0) partial[warp] = x;
    __syncthreads();
    float sum = 0.0f;
    for (int w = 0; w < warps; w++) sum += partial[w];
    return sum;
}

__device__ __forceinline__ float block_max(float x) {
    __shared__ float partial[32];
    int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[warp] = x;
    __syncthreads();
    float maximum = partial[0];
    for (int w = 1; w < warps; w++) maximum = fmaxf(maximum, partial[w]);
    return maximum;
}

// 16 bytes, which a lane loads at once.
template <typename T>
struct alignas(16) Pack {
    T x[16 / sizeof(T)];
};

// Below every score, and finite: the terms of no keys are 0, not NaN.
#define NO_SCORE -3.4e38f
