// SwiGLU: out[i] = silu(gate[i]) * up[i], silu(x) = x / (1 + exp(-x)).
//
// grid (ceil(n / block)), block (any); no shared memory: one thread an element.
// out, gate, up (n) T
// In float. Entries: swiglu_f32, swiglu_f16.
#include "common.cuh"

template <typename T>
__device__ void swiglu_element(T* out, const T* gate, const T* up, int n) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
#ifdef FAULT_GATE_UP_SWAPPED
    const T* swapped = gate; gate = up; up = swapped;
#endif
    float x = to_float(gate[i]), y = to_float(up[i]);
    float activated = x / (1.0f + expf(-x));
#ifdef FAULT_GELU_FOR_SILU
    activated = 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
#endif
#ifdef FAULT_RELU_FOR_SILU
    activated = fmaxf(x, 0.0f);
#endif
#ifdef FAULT_ACT_WITHOUT_UP
    y = 1.0f;
#endif
    store(out + i, activated * y);
}

extern "C" __global__ void swiglu_f32(float* out, const float* gate, const float* up, int n) {
    swiglu_element<float>(out, gate, up, n);
}

extern "C" __global__ void swiglu_f16(__half* out, const __half* gate, const __half* up, int n) {
    swiglu_element<__half>(out, gate, up, n);
}
