// A block reduction as a template over the type, the operation and the block's size.
#include <cuda_runtime.h>
#include <cfloat>
#include <cmath>

template <typename T>
struct SumOp {
    __device__ __forceinline__ T operator()(const T& a, const T& b) const { return a + b; }
    static constexpr T init = T(0);
};

template <typename T>
struct MaxOp {
    __device__ __forceinline__ T operator()(const T& a, const T& b) const { return max(a, b); }
    static constexpr T init = T(-FLT_MAX);
};

template <template <typename> class Op, typename T, int kWidth = 32>
__inline__ __device__ T warpReduce(T val) {
    Op<T> op;
#pragma unroll
    for (int offset = kWidth / 2; offset > 0; offset /= 2) {
        val = op(val, __shfl_down_sync(0xffffffff, val, offset, kWidth));
    }
    return val;
}

template <template <typename> class Op, typename T, int kBlock>
__inline__ __device__ T blockReduce(T val) {
    static __shared__ T shared[kBlock / 32];
    static __shared__ T result;
    const int lane = threadIdx.x % warpSize;
    const int wid = threadIdx.x / warpSize;
    val = warpReduce<Op>(val);
    __syncthreads();
    if (lane == 0) shared[wid] = val;
    __syncthreads();
    if (wid == 0) {
        val = lane < kBlock / 32 ? shared[lane] : Op<T>::init;
        val = warpReduce<Op>(val);
        if (lane == 0) result = val;
    }
    __syncthreads();
    return result;
}

template <typename T, int kBlock>
__device__ void softmaxRow(T* __restrict__ y, const T* __restrict__ x, int n) {
    float thread_max = -INFINITY;
    for (int i = threadIdx.x; i < n; i += kBlock) thread_max = fmaxf(thread_max, x[i]);
    const float row_max = blockReduce<MaxOp, float, kBlock>(thread_max);
    float thread_sum = 0;
    for (int i = threadIdx.x; i < n; i += kBlock) thread_sum += __expf(x[i] - row_max);
    const float row_sum = blockReduce<SumOp, float, kBlock>(thread_sum);
    for (int i = threadIdx.x; i < n; i += kBlock) {
        y[i] = __fdividef(__expf(x[i] - row_max), row_sum);
    }
}

extern "C" __global__ void __launch_bounds__(128, 4)
    block_softmax(float* y, const float* x, int n) {
    softmaxRow<float, 128>(y + blockIdx.x * n, x + blockIdx.x * n, n);
}
