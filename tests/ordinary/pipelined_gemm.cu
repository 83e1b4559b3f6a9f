// A product whose next tile is on its way while this one is multiplied.
#include <cuda_runtime.h>
#include <cuda_pipeline.h>

#define TILE 16
#define OFFSET(row, col, ld) ((row) * (ld) + (col))

__global__ void __launch_bounds__(TILE* TILE)
    sgemm_async(float* __restrict__ C, const float* __restrict__ A, const float* __restrict__ B, int M,
                int N, int K) {
    __shared__ alignas(16) float As[2][TILE * TILE];
    __shared__ alignas(16) float Bs[2][TILE * TILE];
    const int tx = threadIdx.x, ty = threadIdx.y, tid = ty * TILE + tx;
    const int row = blockIdx.y * TILE + ty, col = blockIdx.x * TILE + tx;
    auto fetch = [&](int stage, int k0) {
        if (tid < TILE * TILE / 4) {
            const int r = tid / (TILE / 4), c = tid % (TILE / 4) * 4;
            __pipeline_memcpy_async(&As[stage][OFFSET(r, c, TILE)],
                                    &A[OFFSET(blockIdx.y * TILE + r, k0 + c, K)], sizeof(float4));
            __pipeline_memcpy_async(&Bs[stage][OFFSET(r, c, TILE)],
                                    &B[OFFSET(k0 + r, blockIdx.x * TILE + c, N)], sizeof(float4));
        }
        __pipeline_commit();
    };
    float acc = 0.0f;
    fetch(0, 0);
    for (int k0 = 0, stage = 0; k0 < K; k0 += TILE, stage ^= 1) {
        if (k0 + TILE < K) {
            fetch(stage ^ 1, k0 + TILE);
            __pipeline_wait_prior(1);
        } else {
            __pipeline_wait_prior(0);
        }
        __syncthreads();
#pragma unroll 4
        for (int k = 0; k < TILE; ++k)
            acc = fmaf(As[stage][OFFSET(ty, k, TILE)], Bs[stage][OFFSET(k, tx, TILE)], acc);
        __syncthreads();
    }
    if (row < M && col < N) C[OFFSET(row, col, N)] = acc;
}
