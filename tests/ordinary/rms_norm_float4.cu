// RMS norm, a block a row: wide loads, a reduction over warps, and the function that launches it.
#include <cuda_runtime.h>
#include <stdint.h>

#define WARP_SIZE 32

__device__ __forceinline__ float warp_reduce_sum(float val) {
#pragma unroll
    for (int mask = WARP_SIZE / 2; mask > 0; mask >>= 1) {
        val += __shfl_xor_sync(0xffffffff, val, mask, 32);
    }
    return val;
}

__global__ void __launch_bounds__(256)
rms_norm_kernel(float* __restrict__ out, const float* __restrict__ x,
                const float* __restrict__ weight, const int hidden, const float eps) {
    __shared__ float warp_sums[WARP_SIZE];
    __shared__ float s_scale;
    const int row = blockIdx.x;
    const int tid = threadIdx.x;
    const float4* x4 = reinterpret_cast<const float4*>(x + (size_t)row * hidden);
    float4* out4 = reinterpret_cast<float4*>(out + (size_t)row * hidden);
    const float4* w4 = reinterpret_cast<const float4*>(weight);

    float sum = 0.f;
    for (int i = tid; i < hidden / 4; i += blockDim.x) {
        const float4 v = __ldg(&x4[i]);
        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    sum = warp_reduce_sum(sum);
    if ((tid & (warpSize - 1)) == 0) warp_sums[tid / warpSize] = sum;
    __syncthreads();
    if (tid < WARP_SIZE) {
        const int num_warps = (blockDim.x + warpSize - 1) / warpSize;
        float v = tid < num_warps ? warp_sums[tid] : 0.0f;
        v = warp_reduce_sum(v);
        if (tid == 0) s_scale = rsqrtf(v / hidden + eps);
    }
    __syncthreads();
    const float scale = s_scale;
    for (int i = tid; i < hidden / 4; i += blockDim.x) {
        const float4 v = x4[i];
        const float4 w = w4[i];
        out4[i] = make_float4(v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z,
                              v.w * scale * w.w);
    }
}

void launch_rms_norm(float* out, const float* x, const float* w, int rows, int hidden, float eps,
                     cudaStream_t stream) {
    dim3 grid(rows);
    dim3 block(min(hidden / 4, 256));
    rms_norm_kernel<<<grid, block, 0, stream>>>(out, x, w, hidden, eps);
}
