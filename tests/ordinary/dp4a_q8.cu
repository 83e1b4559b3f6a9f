// A row of int8 blocks times a vector of them, four products an instruction.
#include <cuda_fp16.h>
#include <stdint.h>

#define QK8_0 32
#define WARP_SIZE 32

typedef struct {
    half d;
    int8_t qs[QK8_0];
} block_q8_0;
static_assert(sizeof(block_q8_0) == sizeof(half) + QK8_0, "wrong q8_0 block size/padding");

static __device__ __forceinline__ int get_int_b2(const void* x, const int& i32) {
    const uint16_t* x16 = (const uint16_t*)x;
    int x32 = x16[2 * i32 + 0] << 0;
    x32 |= x16[2 * i32 + 1] << 16;
    return x32;
}

static __device__ __forceinline__ int ggml_like_dp4a(const int a, const int b, int c) {
#if __CUDA_ARCH__ >= 610
    return __dp4a(a, b, c);
#else
    const int8_t* a8 = (const int8_t*)&a;
    const int8_t* b8 = (const int8_t*)&b;
    return c + a8[0] * b8[0] + a8[1] * b8[1] + a8[2] * b8[2] + a8[3] * b8[3];
#endif
}

static __device__ __forceinline__ float vec_dot_q8_0(const block_q8_0* x, const block_q8_0* y) {
    int sumi = 0;
#pragma unroll
    for (int i = 0; i < QK8_0 / 4; ++i) {
        sumi = ggml_like_dp4a(get_int_b2(x->qs, i), get_int_b2(y->qs, i), sumi);
    }
    return sumi * __half2float(x->d) * __half2float(y->d);
}

extern "C" __global__ void mul_mat_vec_q8_0(float* __restrict__ dst, const void* __restrict__ vx,
                                            const void* __restrict__ vy, const int ncols) {
    const block_q8_0* x = (const block_q8_0*)vx + blockIdx.x * (ncols / QK8_0);
    const block_q8_0* y = (const block_q8_0*)vy;
    float tmp = 0.0f;
    for (int ib = threadIdx.x; ib < ncols / QK8_0; ib += WARP_SIZE) tmp += vec_dot_q8_0(x + ib, y + ib);
#pragma unroll
    for (int mask = WARP_SIZE / 2; mask > 0; mask >>= 1)
        tmp += __shfl_xor_sync(0xffffffff, tmp, mask, WARP_SIZE);
    if (threadIdx.x == 0) dst[blockIdx.x] = tmp;
}
