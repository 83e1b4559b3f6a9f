// silu(gate) * up on eight halves at a time.
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <cstdint>

union alignas(16) Half8 {
    uint4 u;
    half2 h2[4];
    __half h[8];
    __device__ Half8() {}
};

static __device__ __forceinline__ float silu(float x) { return x / (1.0f + __expf(-x)); }

__global__ void silu_and_mul(half* __restrict__ out, const half* __restrict__ gate,
                             const half* __restrict__ up, const int64_t n) {
    const int64_t i = 8 * (blockIdx.x * (int64_t)blockDim.x + threadIdx.x);
    if (i + 8 <= n) {
        Half8 g, u, o;
        g.u = *reinterpret_cast<const uint4*>(gate + i);
        u.u = __ldg(reinterpret_cast<const uint4*>(up + i));
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            float2 a = __half22float2(g.h2[k]);
            a.x = silu(a.x);
            a.y = silu(a.y);
            o.h2[k] = __hmul2(__floats2half2_rn(a.x, a.y), u.h2[k]);
        }
        *reinterpret_cast<uint4*>(&out[i]) = o.u;
    } else {
        for (int64_t j = i; j < n; ++j) {
            out[j] = __float2half_rn(silu(__half2float(gate[j]))) * up[j];
        }
    }
}

// All in half, with the functions of cuda_fp16.h.
__global__ void silu_native(half* out, const half* gate, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const half one = __float2half(1.0f);
    if (i < n && !__hisnan(gate[i])) {
        out[i] = __hmul(gate[i], hrcp(__hadd(one, hexp(__hneg(gate[i])))));
        if (__hlt(gate[i], __float2half(-10.0f))) out[i] = __ushort_as_half(0x0000U);
    }
}
