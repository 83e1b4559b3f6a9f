// C = A B with tensor cores: a warp computes a tile of 16 x 16.
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <mma.h>

using namespace nvcuda;

constexpr int WMMA_M = 16, WMMA_N = 16, WMMA_K = 16;

__global__ void wmma_gemm(float* c, const half* a, const half* b, int M, int N, int K, float alpha) {
#if __CUDA_ARCH__ >= 700
    int warpM = (blockIdx.x * blockDim.x + threadIdx.x) / warpSize;
    int warpN = blockIdx.y * blockDim.y + threadIdx.y;
    if (warpM * WMMA_M >= M || warpN * WMMA_N >= N) return;
    wmma::fragment<wmma::matrix_a, WMMA_M, WMMA_N, WMMA_K, half, wmma::row_major> a_frag;
    wmma::fragment<wmma::matrix_b, WMMA_M, WMMA_N, WMMA_K, half, wmma::col_major> b_frag;
    wmma::fragment<wmma::accumulator, WMMA_M, WMMA_N, WMMA_K, float> acc_frag;
    wmma::fill_fragment(acc_frag, 0.0f);
    for (int k = 0; k < K; k += WMMA_K) {
        wmma::load_matrix_sync(a_frag, a + warpM * WMMA_M * K + k, K);
        wmma::load_matrix_sync(b_frag, b + warpN * WMMA_N * K + k, K);
        wmma::mma_sync(acc_frag, a_frag, b_frag, acc_frag);
    }
    for (int i = 0; i < acc_frag.num_elements; i++) acc_frag.x[i] *= alpha;
    wmma::store_matrix_sync(c + warpM * WMMA_M * N + warpN * WMMA_N, acc_frag, N,
                            wmma::mem_row_major);
#endif
}

// From shared memory, in bf16, B by rows.
__global__ void wmma_bf16(float* c, const __nv_bfloat16* a, const __nv_bfloat16* b, int K) {
    __shared__ alignas(32) __nv_bfloat16 tile_a[16][24];
    __shared__ alignas(32) __nv_bfloat16 tile_b[16][24];
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> acc;
    wmma::fill_fragment(acc, 0.0f);
    for (int k = 0; k < K; k += 16) {
        for (int i = threadIdx.x; i < 256; i += 32) {
            tile_a[i / 16][i % 16] = a[(i / 16) * K + k + i % 16];
            tile_b[i / 16][i % 16] = b[(k + i / 16) * 16 + i % 16];
        }
        __syncwarp();
        wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> fa;
        wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::row_major> fb;
        wmma::load_matrix_sync(fa, &tile_a[0][0], 24);
        wmma::load_matrix_sync(fb, &tile_b[0][0], 24);
        wmma::mma_sync(acc, fa, fb, acc);
        __syncwarp();
    }
    wmma::store_matrix_sync(c, acc, 16, wmma::mem_row_major);
}

// A half accumulator, loaded first and stored by columns.
__global__ void wmma_half_accumulator(half* c, const half* a, const half* b) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::col_major> fa;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::row_major> fb;
    wmma::fragment<wmma::accumulator, 16, 16, 16, half> acc;
    wmma::load_matrix_sync(acc, c, 16, wmma::mem_col_major);
    wmma::load_matrix_sync(fa, a, 16);
    wmma::load_matrix_sync(fb, b, 16);
    wmma::mma_sync(acc, fa, fb, acc);
    __syncwarp();
    wmma::store_matrix_sync(c, acc, 16, wmma::mem_col_major);
}
