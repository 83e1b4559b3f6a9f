// Rotary embedding in place on pairs of halves, angles in f32.
#include <cuda_fp16.h>
#include "cuda_runtime.h"
#include "device_launch_parameters.h"

__global__ void rope_half2(half2* x, const int* pos, int n_head, int head_dim, float theta_base) {
    const int pairs = head_dim / 2;
    const int token = blockIdx.y;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n_head * pairs;
         i += gridDim.x * blockDim.x) {
        const int p = i % pairs;
        const float freq = __powf(theta_base, -2.0f * p / head_dim);
        float sin_a, cos_a;
        sincosf(pos[token] * freq, &sin_a, &cos_a);
        half2* at = &x[(size_t)token * n_head * pairs + i];
        const float2 v = __half22float2(*at);
        const float2 r = make_float2(v.x * cos_a - v.y * sin_a, v.x * sin_a + v.y * cos_a);
        *at = __float22half2_rn(r);
    }
}

// The same in half arithmetic.
__global__ void rope_native(__half2* x, const __half2* cos_sin, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const __half2 v = x[i], cs = cos_sin[i];
    const __half2 swapped = __lowhigh2highlow(v);
    const __half2 c = __half2half2(__low2half(cs));
    const __half2 s = __halves2half2(__hneg(__high2half(cs)), __high2half(cs));
    x[i] = __hfma2(swapped, s, __hmul2(v, c));
}
