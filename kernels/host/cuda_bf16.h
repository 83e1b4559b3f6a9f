// __nv_bfloat16 and its pair on the CPU: the upper half of a float's bits.
#pragma once
#include "cuda_host_float16.h"

static inline uint16_t cuda_host_narrow_bf16(float f) {  // to nearest, ties to even
    uint32_t bits = __float_as_uint(f);
    if (f != f) return 0x7fff;  // the GPU's NaN
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

struct alignas(2) __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float f) : bits(cuda_host_narrow_bf16(f)) {}
    operator float() const { return __uint_as_float((uint32_t)bits << 16); }
};
CUDA_HOST_16_BIT_FLOAT(__nv_bfloat16, __nv_bfloat162)
CUDA_HOST_16_CONVERSIONS(__nv_bfloat16, __nv_bfloat162, bfloat16, bfloat162)
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

#define CUDART_ZERO_BF16 __ushort_as_bfloat16(0x0000U)
#define CUDART_ONE_BF16 __ushort_as_bfloat16(0x3F80U)
#define CUDART_INF_BF16 __ushort_as_bfloat16(0x7F80U)
#define CUDART_NAN_BF16 __ushort_as_bfloat16(0x7FFFU)
