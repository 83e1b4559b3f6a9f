// f16 weights as f32, on the cuda device: half the bytes travel, and no core of the host is needed.
// grid (ceil(n / 8 / 256)), block 256; no shared memory. A thread widens a pack of 16 bytes.
// out (n) float, in (n) __half, both 16-byte aligned. Exact.
// Entry: widen_f16.
#include "common.cuh"

extern "C" __global__ void widen_f16(float* out, const __half* in, int n) {
    const int width = 8;
    int first = (blockIdx.x * blockDim.x + threadIdx.x) * width;
    if (first + width <= n) {
        Pack<__half> pack = *reinterpret_cast<const Pack<__half>*>(in + first);
#pragma unroll
        for (int i = 0; i < width; i++) out[first + i] = to_float(pack.x[i]);
    } else {
        for (int i = first; i < n; i++) out[i] = to_float(in[i]);
    }
}
