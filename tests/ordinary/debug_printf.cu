// A kernel under work: it prints what it sees, and asserts.
#include <cstdio>
#include <cassert>
#include <cuda_runtime.h>

#define DEBUG_PRINT(fmt, ...)                                                     \
    do {                                                                          \
        if (threadIdx.x == 0 && blockIdx.x == 0) printf("[%s:%d] " fmt "\n", __func__, __LINE__, ##__VA_ARGS__); \
    } while (0)

__device__ __noinline__ float checked_sqrt(float x) {
    assert(x >= 0.0f && "a root of a negative");
    return sqrtf(x);
}

__global__ void root(float* y, const float* x, int n) {
    const unsigned int i = blockIdx.x * blockDim.x + threadIdx.x;
    DEBUG_PRINT("n = %d, x[0] = %f", n, x[0]);
    if (i < n) {
        y[i] = checked_sqrt(x[i]);
        if (i == 0) printf("thread %u: %g -> %g\n", threadIdx.x, x[i], y[i]);
    }
}
