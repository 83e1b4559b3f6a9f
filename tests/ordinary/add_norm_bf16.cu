// Residual and RMS norm in one, in pairs of bf16, as serving engines have it.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <type_traits>

template <typename T> struct Vec2;
template <> struct Vec2<__nv_bfloat16> { using Type = __nv_bfloat162; };

__inline__ __device__ float2 to_float2(__nv_bfloat162 v) { return __bfloat1622float2(v); }

template <typename scalar_t, int NUM_THREADS>
__device__ void fused_add_rms_norm(scalar_t* __restrict__ input, scalar_t* __restrict__ residual,
                                   const scalar_t* __restrict__ weight, float eps, int hidden) {
    using V2 = typename Vec2<scalar_t>::Type;
    static_assert(std::is_same<V2, nv_bfloat162>::value, "bf16 alone");
    __shared__ float s_variance[NUM_THREADS / 32];
    V2* in2 = reinterpret_cast<V2*>(input) + blockIdx.x * hidden / 2;
    V2* res2 = reinterpret_cast<V2*>(residual) + blockIdx.x * hidden / 2;
    const V2* w2 = reinterpret_cast<const V2*>(weight);
    float variance = 0.0f;
    for (int i = threadIdx.x; i < hidden / 2; i += NUM_THREADS) {
        V2 sum = __hadd2(in2[i], res2[i]);
        res2[i] = sum;
        const float2 f = to_float2(sum);
        variance += f.x * f.x + f.y * f.y;
    }
    for (int o = 16; o; o >>= 1) variance += __shfl_xor_sync(~0u, variance, o);
    if (threadIdx.x % 32 == 0) s_variance[threadIdx.x / 32] = variance;
    __syncthreads();
    variance = 0.0f;
    for (int w = 0; w < NUM_THREADS / 32; ++w) variance += s_variance[w];
    const float scale = __frsqrt_rn(variance / hidden + eps);
    for (int i = threadIdx.x; i < hidden / 2; i += NUM_THREADS) {
        float2 f = to_float2(res2[i]);
        f.x *= scale;
        f.y *= scale;
        in2[i] = __hmul2(__float22bfloat162_rn(f), w2[i]);
    }
}

extern "C" __global__ void fused_add_rms_norm_bf16(nv_bfloat16* input, nv_bfloat16* residual,
                                                   const nv_bfloat16* weight, float eps, int hidden) {
    fused_add_rms_norm<nv_bfloat16, 64>(input, residual, weight, eps, hidden);
}

__global__ void bf16_scalars(__nv_bfloat16* out, const float* x, int n) {
    int i = threadIdx.x;
    if (i >= n) return;
    __nv_bfloat16 b = __float2bfloat16(x[i]);
    out[i] = __hfma(b, b, __hmax(b, __float2bfloat16_rn(0.5f)));
    if (__hgt(b, out[i])) out[i] = __hneg(b);
}
