// An inclusive scan by shuffles, and a compaction whose lanes share one atomic.
#include <cuda_runtime.h>

#define FULL_MASK 0xffffffffu

template <typename T, int W>
__device__ T scan(T v) {
    const int lane = threadIdx.x & (W - 1);
#pragma unroll
    for (int d = 1; d < W; d <<= 1) {
        T up = __shfl_up_sync(FULL_MASK, v, d, W);
        if (lane >= d) v += up;
    }
    return v;
}

__global__ void scans(int* by_warp, double* by_octet, long long* last_of_16, const int* x) {
    const int t = threadIdx.x;
    by_warp[t] = scan<int, 32>(x[t]);
    by_octet[t] = scan<double, 8>((double)x[t] / 2);
    last_of_16[t] = __shfl_sync(FULL_MASK, (long long)x[t] * (1LL << 33), 15, 16);
}

__device__ int atomicAggInc(int* counter) {
    const unsigned active = __activemask();
    const int leader = __ffs(active) - 1;
    const int lane = threadIdx.x % warpSize;
    const int rank = __popc(active & ((1u << lane) - 1));
    int warp_base;
    if (lane == leader) warp_base = atomicAdd(counter, __popc(active));
    warp_base = __shfl_sync(active, warp_base, leader);
    return warp_base + rank;
}

__global__ void compact(int* out, int* count, const int* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    if (x[i] > 0) out[atomicAggInc(count)] = x[i];
}

// Half a warp votes apart from the other half; equal keys find one another.
__global__ void votes(unsigned* out, const int* x) {
    const int t = threadIdx.x;
    if (t < 16) {
        out[t] = __ballot_sync(0x0000ffffu, x[t] > 0);
        out[32 + t] = __any_sync(0x0000ffffu, x[t] > 99) | __all_sync(0x0000ffffu, x[t] > -99) << 1;
    } else {
        out[t] = __ballot_sync(0xffff0000u, x[t] > 0);
        out[32 + t] = __shfl_xor_sync(0xffff0000u, (unsigned)t, 1, 2);
    }
    __syncwarp();
    out[64 + t] = __match_any_sync(FULL_MASK, x[t] & 3);
    out[96 + t] = __reduce_add_sync(FULL_MASK, (unsigned)t);
}
