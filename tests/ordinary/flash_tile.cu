// Attention by tiles with an online softmax. All of the block's memory is one dynamic array that the file
// declares outside the kernel.
#include <cuda.h>
#include <cuda_runtime.h>
#include <algorithm>
#include <math.h>

extern __shared__ float sram[];

template <int Br, int Bc>
__device__ void flash_attention(const float* Q, const float* K, const float* V, float* O, const int N,
                                const int d, const float softmax_scale, const bool causal) {
    const int tx = threadIdx.x;
    const int qkv_offset = blockIdx.x * gridDim.y * N * d + blockIdx.y * N * d;
    float* Qi = sram;
    float* Kj = &sram[Br * d];
    float* Vj = Kj + Bc * d;
    float* Oi = Vj + Bc * d;
    float* S = Oi + Br * d;
    const int Tr = (N + Br - 1) / Br, Tc = (N + Bc - 1) / Bc;
    for (int i = 0; i < Tr; i++) {
        const int q = i * Br + tx;
        float m = -INFINITY, l = 0;
        for (int x = 0; x < d; x++) {
            Qi[tx * d + x] = q < N ? Q[qkv_offset + q * d + x] : 0.f;
            Oi[tx * d + x] = 0.f;
        }
        for (int j = 0; j < Tc; j++) {
            __syncthreads();
            for (int y = tx; y < Bc; y += Br) {
                const int k = std::min(j * Bc + y, N - 1);
                for (int x = 0; x < d; x++) {
                    Kj[y * d + x] = K[qkv_offset + k * d + x];
                    Vj[y * d + x] = V[qkv_offset + k * d + x];
                }
            }
            __syncthreads();
            float row_m = m;
            for (int y = 0; y < Bc; y++) {
                float sum = 0;
                for (int x = 0; x < d; x++) sum += Qi[tx * d + x] * Kj[y * d + x];
                sum *= softmax_scale;
                if (j * Bc + y >= N || (causal && j * Bc + y > q)) sum = -INFINITY;
                S[Bc * tx + y] = sum;
                row_m = max(row_m, sum);
            }
            if (row_m == -INFINITY) continue;
            const float correction = __expf(m - row_m);
            float row_l = 0;
            for (int x = 0; x < d; x++) Oi[tx * d + x] *= correction;
            for (int y = 0; y < Bc; y++) {
                const float p = __expf(S[Bc * tx + y] - row_m);
                row_l += p;
                for (int x = 0; x < d; x++) Oi[tx * d + x] += p * Vj[y * d + x];
            }
            l = l * correction + row_l;
            m = row_m;
        }
        if (q < N)
            for (int x = 0; x < d; x++) O[qkv_offset + q * d + x] = Oi[tx * d + x] / l;
    }
}

__global__ void flash_forward(float* O, const float* Q, const float* K, const float* V, int N, int d,
                              float softmax_scale, int causal) {
    flash_attention<32, 16>(Q, K, V, O, N, d, softmax_scale, causal != 0);
}

cudaError_t forward(float* O, const float* Q, const float* K, const float* V, int B, int nh, int N,
                    int d) {
    const int sram_size = (2 * 32 * d + 2 * 16 * d + 32 * 16) * sizeof(float);
    int max_sram_size;
    cudaDeviceGetAttribute(&max_sram_size, cudaDevAttrMaxSharedMemoryPerBlock, 0);
    if (sram_size > max_sram_size)
        cudaFuncSetAttribute(flash_forward, cudaFuncAttributeMaxDynamicSharedMemorySize, sram_size);
    dim3 grid_dim(B, nh), block_dim(32);
    flash_forward<<<grid_dim, block_dim, sram_size>>>(O, Q, K, V, N, d, 1.0f / sqrtf(d), true);
    return cudaPeekAtLastError();
}
