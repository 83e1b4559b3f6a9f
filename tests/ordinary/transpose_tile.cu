// A transpose through a padded tile; the tile's size is a constant expression.
#include <cuda_runtime.h>
#include <cstddef>

constexpr int kTile = 32;
constexpr int kRows = 8;
constexpr size_t padded(size_t n) { return n + 1; }

struct Shape {
    int rows, cols;
    __host__ __device__ constexpr size_t at(int r, int c) const { return (size_t)r * cols + c; }
};

__global__ void transpose(float* __restrict__ out, const float* __restrict__ in, int rows, int cols) {
    __shared__ float tile[kTile][padded(kTile)];
    const Shape from{rows, cols}, to{cols, rows};
    int x = blockIdx.x * kTile + threadIdx.x;
    int y = blockIdx.y * kTile + threadIdx.y;
#pragma unroll
    for (int j = 0; j < kTile; j += kRows)
        if (x < cols && y + j < rows) tile[threadIdx.y + j][threadIdx.x] = in[from.at(y + j, x)];
    __syncthreads();
    x = blockIdx.y * kTile + threadIdx.x;
    y = blockIdx.x * kTile + threadIdx.y;
    for (int j = 0; j < kTile; j += kRows)
        if (x < rows && y + j < cols) out[to.at(y + j, x)] = tile[threadIdx.x][threadIdx.y + j];
}
