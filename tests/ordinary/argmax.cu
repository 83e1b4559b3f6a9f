// The index of the largest logit, a pair of value and index going through the lanes together.
#include <cuda_runtime.h>
#include <float.h>
#include <limits>

struct __align__(8) Pair {
    float value;
    int index;
};

__device__ __forceinline__ Pair better(Pair a, Pair b) {
    return (a.value > b.value || (a.value == b.value && a.index < b.index)) ? a : b;
}

__device__ Pair warp_best(Pair p) {
    for (int offset = warpSize >> 1; offset > 0; offset >>= 1) {
        Pair other;
        other.value = __shfl_down_sync(0xffffffff, p.value, offset);
        other.index = __shfl_down_sync(0xffffffff, p.index, offset);
        p = better(p, other);
    }
    return p;
}

__global__ void argmax(int* out, const float* logits, int vocab) {
    extern __shared__ __align__(sizeof(double)) unsigned char smem_raw[];
    Pair* warp_pairs = reinterpret_cast<Pair*>(smem_raw);
    Pair p{std::numeric_limits<float>::lowest(), INT_MAX};
    const float* row = logits + (long)blockIdx.x * vocab;
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) p = better(p, Pair{row[i], i});
    p = warp_best(p);
    if (threadIdx.x % warpSize == 0) warp_pairs[threadIdx.x / warpSize] = p;
    __syncthreads();
    // As many lanes as there are warps, under a mask of just those.
    const int warps = blockDim.x / warpSize;
    if (threadIdx.x < warps) {
        const unsigned mask = (1u << warps) - 1;
        p = warp_pairs[threadIdx.x];
        for (int offset = warps / 2; offset > 0; offset /= 2) {
            const Pair other{__shfl_down_sync(mask, p.value, offset),
                             __shfl_down_sync(mask, p.index, offset)};
            if (threadIdx.x < offset) p = better(p, other);
        }
        if (threadIdx.x == 0) out[blockIdx.x] = p.index;
    }
}
