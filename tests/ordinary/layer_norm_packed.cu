// Layer norm over packs of 16 bytes, with the macros that a training code has around it.
#include <stdio.h>
#include <stdlib.h>
#include <assert.h>
#include <cuda_runtime.h>
#include <cuda_bf16.h>

#define WARP_SIZE 32U
typedef __nv_bfloat16 floatX;

#define CEIL_DIV(M, N) (((M) + (N) - 1) / (N))
#define cudaCheck(err) (cuda_check((err), __FILE__, __LINE__))
inline void cuda_check(cudaError_t error, const char* file, int line) {
    if (error != cudaSuccess) {
        printf("[CUDA ERROR] at file %s:%d:\n%s\n", file, line, cudaGetErrorString(error));
        exit(EXIT_FAILURE);
    }
}

template <class ElementType>
struct alignas(16) Packed128 {
    Packed128() = default;
    __device__ explicit Packed128(int4 bits) {
        static_assert(sizeof(bits) == sizeof(payload), "Size mismatch.");
        memcpy(&payload, &bits, sizeof(bits));
    }
    __device__ ElementType& operator[](int index) { return payload[index]; }
    __device__ const ElementType& operator[](int index) const { return payload[index]; }
    __device__ int4 get_bits() const {
        int4 bits;
        memcpy(&bits, &payload, sizeof(bits));
        return bits;
    }
    static constexpr const size_t size = sizeof(int4) / sizeof(ElementType);
    ElementType payload[size];
};
template <class E>
__device__ Packed128<E> load128cs(const E* address) {
    return Packed128<E>{__ldcs(reinterpret_cast<const int4*>(address))};
}
template <class E>
__device__ void store128(E* target, Packed128<E> value) {
    *reinterpret_cast<int4*>(target) = value.get_bits();
}
using x128 = Packed128<floatX>;

__device__ inline float warpReduceSum(float val) {
    for (int offset = 16; offset > 0; offset /= 2) val += __shfl_xor_sync(0xFFFFFFFF, val, offset);
    return val;
}

__global__ void layernorm_forward_kernel(floatX* __restrict__ out, float* __restrict__ mean,
                                         float* __restrict__ rstd, const floatX* __restrict__ inp,
                                         const floatX* __restrict__ weight,
                                         const floatX* __restrict__ bias, int N, int C) {
    assert(blockDim.x == WARP_SIZE && C % x128::size == 0);
    int idx = blockIdx.x * blockDim.y + threadIdx.y;
    if (idx >= N) return;
    const floatX* x = inp + idx * C;
    float sum = 0.0f;
    for (int c = threadIdx.x * x128::size; c < C; c += WARP_SIZE * x128::size) {
        const x128 in = load128cs(x + c);
        for (int k = 0; k < x128::size; ++k) sum += (float)in[k];
    }
    const float m = warpReduceSum(sum) / C;
    float v = 0.f;
    for (int c = threadIdx.x * x128::size; c < C; c += WARP_SIZE * x128::size) {
        const x128 in = load128cs(x + c);
        for (int k = 0; k < x128::size; ++k) {
            v += ((float)in[k] - m) * ((float)in[k] - m);
        }
    }
    const float s = rsqrtf(warpReduceSum(v) / C + 1e-5f);
    for (int c = threadIdx.x * x128::size; c < C; c += WARP_SIZE * x128::size) {
        const x128 in = load128cs(x + c), w = load128cs(weight + c), b = load128cs(bias + c);
        x128 result;
        for (int k = 0; k < x128::size; ++k) {
            float n = s * ((float)in[k] - m);
            result[k] = (floatX)(n * (float)w[k] + (float)b[k]);
        }
        store128(out + idx * C + c, result);
    }
    if (threadIdx.x == 0) {
        __stcs(mean + idx, m);
        __stcs(rstd + idx, s);
    }
}

void layernorm_forward(floatX* out, float* mean, float* rstd, floatX* inp, const floatX* weight,
                       const floatX* bias, int B, int T, int C, cudaStream_t stream) {
    const int block_y = 256 / WARP_SIZE;
    const int N = B * T;
    layernorm_forward_kernel<<<CEIL_DIV(N, block_y), dim3(WARP_SIZE, block_y), 0, stream>>>(
        out, mean, rstd, inp, weight, bias, N, C);
    cudaCheck(cudaGetLastError());
}
