// A histogram in shared memory, and a maximum of floats by compare-and-swap.
#include <cuda_runtime.h>
#include <cuda_fp16.h>

__device__ static float atomicMax(float* address, float val) {
    int* address_as_i = (int*)address;
    int old = *address_as_i, assumed;
    do {
        assumed = old;
        old = atomicCAS(address_as_i, assumed,
                        __float_as_int(fmaxf(val, __int_as_float(assumed))));
    } while (assumed != old);
    return __int_as_float(old);
}

__global__ void histogram(int* bins, float* largest, const float* x, unsigned long long* visits,
                          int n) {
    __shared__ unsigned int local[16];
    __shared__ int highest;
    __shared__ float block_largest;
    if (threadIdx.x < 16) local[threadIdx.x] = 0;
    if (threadIdx.x == 0) highest = -1;
    if (threadIdx.x == 0) block_largest = -1e30f;
    __syncthreads();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        const int bin = min(15, max(0, __float2int_rd((x[i] + 1.0f) * 8.0f)));
        atomicAdd(&local[bin], 1u);
        atomicMax(&highest, bin);
        atomicMax(&block_largest, x[i]);
        atomicAdd(visits, 1ULL);
    }
    __syncthreads();
    if (threadIdx.x < 16) atomicAdd(bins + threadIdx.x, (int)local[threadIdx.x]);
    if (threadIdx.x == 0) atomicMax(bins + 16, highest);
    if (threadIdx.x == 0) atomicMax(largest, block_largest);
}

// Sums in three types.
__global__ void sums(double* d, __half* h, float* f, const float* x, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        atomicAdd(d, (double)x[i]);
        atomicAdd(h, __float2half(1.0f));
        atomicAdd(f, x[i]);
    }
}
