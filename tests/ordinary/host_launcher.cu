// A whole program in one file, as tutorials have it: the kernel, its launcher, and main.
#include <cuda_runtime.h>
#include <algorithm>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#define CHECK_CUDA(call)                                                                         \
    do {                                                                                         \
        cudaError_t err__ = (call);                                                              \
        if (err__ != cudaSuccess) {                                                              \
            std::cerr << "CUDA error " << cudaGetErrorString(err__) << " at " << __FILE__ << ":" \
                      << __LINE__ << std::endl;                                                  \
            throw std::runtime_error(std::string(cudaGetErrorName(err__)));                      \
        }                                                                                        \
    } while (0)
#define LAUNCH_SAXPY(T, BLOCK)                                                \
    saxpy_any<T, BLOCK><<<(n + BLOCK - 1) / BLOCK, BLOCK, 0, stream>>>(n, a, \
                                                                      x, y)

__device__ __host__ inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

template <typename T, int BLOCK>
__global__ void saxpy_any(int n, T a, const T* x, T* y) {
    int i = blockIdx.x * BLOCK + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}

__global__ void saxpy(int n, float a, const float* x, float* y) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x)
        y[i] = a * x[i] + y[i];
}

namespace launchers {
void run(int n, float a, const float* x, float* y, cudaStream_t stream) {
    if (n % 2 == 0) LAUNCH_SAXPY(float, 128);
    else saxpy<<<dim3(ceil_div(n, 256), 1, 1), 256, 0, stream>>>(n, a, x, y);
    CHECK_CUDA(cudaGetLastError());
}
}  // namespace launchers

int main(int argc, char** argv) {
    const int n = argc > 1 ? std::stoi(argv[1]) : 1 << 20;
    std::vector<float> x(n, 1.0f), y(n, 2.0f);
    float *d_x = nullptr, *d_y = nullptr;
    CHECK_CUDA(cudaMalloc(&d_x, n * sizeof(float)));
    CHECK_CUDA(cudaMalloc((void**)&d_y, n * sizeof(float)));
    CHECK_CUDA(cudaMemcpy(d_x, x.data(), n * sizeof(float), cudaMemcpyHostToDevice));
    CHECK_CUDA(cudaMemcpy(d_y, y.data(), n * sizeof(float), cudaMemcpyHostToDevice));
    cudaStream_t stream;
    CHECK_CUDA(cudaStreamCreate(&stream));
    cudaEvent_t start, stop;
    cudaEventCreate(&start);
    cudaEventCreate(&stop);
    cudaEventRecord(start, stream);
    launchers::run(n, 2.0f, d_x, d_y, stream);
    cudaEventRecord(stop, stream);
    cudaEventSynchronize(stop);
    float ms = 0;
    cudaEventElapsedTime(&ms, start, stop);
    CHECK_CUDA(cudaDeviceSynchronize());
    CHECK_CUDA(cudaMemcpy(y.data(), d_y, n * sizeof(float), cudaMemcpyDeviceToHost));
    const float worst = *std::max_element(y.begin(), y.end());
    std::cout << "max " << worst << " in " << ms << " ms\n";
    cudaFree(d_x);
    cudaFree(d_y);
    return worst == 4.0f ? 0 : 1;
}
