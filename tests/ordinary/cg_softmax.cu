// Softmax with cooperative groups: a tile of 32 threads a row, and one of 8 for short rows.
#include <cuda_runtime.h>
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <math_constants.h>

namespace cg = cooperative_groups;

template <unsigned int TileSize>
__device__ void softmax_tile(float* out, const float* inp, int N, int C) {
    cg::thread_block block = cg::this_thread_block();
    cg::thread_block_tile<TileSize> tile = cg::tiled_partition<TileSize>(block);
    const int row = blockIdx.x * tile.meta_group_size() + tile.meta_group_rank();
    if (row >= N) return;
    const float* x = inp + row * C;
    float maxval = -CUDART_INF_F;
    for (int i = tile.thread_rank(); i < C; i += tile.size()) maxval = fmaxf(maxval, x[i]);
    maxval = cg::reduce(tile, maxval, cg::greater<float>{});
    float sumval = 0.0f;
    for (int i = tile.thread_rank(); i < C; i += tile.num_threads()) sumval += expf(x[i] - maxval);
    sumval = cg::reduce(tile, sumval, cg::plus<float>());
    for (int i = tile.thread_rank(); i < C; i += tile.size()) {
        __stcs(out + row * C + i, expf(__ldcs(x + i) - maxval) / sumval);
    }
}

__global__ void softmax_warp(float* out, const float* inp, int N, int C) {
    softmax_tile<32>(out, inp, N, C);
}

__global__ void softmax_octet(float* out, const float* inp, int N, int C) {
    softmax_tile<8>(out, inp, N, C);
}

// By hand: shuffles of a tile, and a block that waits through its group.
__global__ void softmax_by_hand(float* out, const float* inp, int C) {
    auto block = cg::this_thread_block();
    auto warp = cg::tiled_partition<32>(block);
    __shared__ float partial[32];
    const float* x = inp + block.group_index().x * C;
    float sum = 0.0f;
    for (int i = block.thread_rank(); i < C; i += block.size()) sum += __expf(x[i]);
    for (int offset = warp.size() / 2; offset > 0; offset /= 2) sum += warp.shfl_down(sum, offset);
    if (warp.thread_rank() == 0) partial[warp.meta_group_rank()] = sum;
    cg::sync(block);
    float total = 0.0f;
    for (int w = 0; w < warp.meta_group_size(); w++) total += partial[w];
    total = warp.shfl(total, 0);
    block.sync();
    for (int i = block.thread_rank(); i < C; i += block.size())
        out[block.group_index().x * C + i] = __expf(x[i]) / total;
}
