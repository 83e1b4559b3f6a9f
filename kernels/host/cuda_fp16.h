// __half and __half2 on the CPU: exact conversions, arithmetic rounded once through float.
#pragma once
#include "cuda_host_float16.h"

#ifdef __F16C__
// The compiler's own functions: <immintrin.h> takes longer to read than a kernel to compile.
typedef float cuda_host_floats __attribute__((vector_size(16)));
typedef short cuda_host_shorts __attribute__((vector_size(16)));
static inline float cuda_host_widen(uint16_t h) {
    return __builtin_ia32_vcvtph2ps(cuda_host_shorts{(short)h})[0];
}
static inline uint16_t cuda_host_narrow(float f) {
    return (uint16_t)__builtin_ia32_vcvtps2ph(cuda_host_floats{f}, 0)[0];
}
#else
static inline float cuda_host_widen(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fff, bits;
    if (magnitude >= 0x7c00) {  // infinity, NaN
        return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ff) << 13);
    }
    float f = __uint_as_float(magnitude << 13) * 0x1p112f;
    memcpy(&bits, &f, 4);
    return __uint_as_float(bits | sign);
}
static inline uint16_t cuda_host_narrow(float f) {  // to nearest, ties to even
    uint32_t bits = __float_as_uint(f), sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return (uint16_t)(sign | 0x7fff);   // the GPU's NaN
    if (bits >= 0x477ff000u) return (uint16_t)(sign | 0x7c00);  // rounds to infinity
    if (bits < 0x38800000u) {                                   // subnormal: let float round
        uint32_t rounded = __float_as_uint(__uint_as_float(bits) + 0.5f);
        return (uint16_t)(sign | (rounded - 0x3f000000u));
    }
    bits += 0xc8000fffu + (bits >> 13 & 1);
    return (uint16_t)(sign | bits >> 13);
}
#endif

struct alignas(2) __half {
    uint16_t bits;
    __half() = default;
    __half(float f) : bits(cuda_host_narrow(f)) {}
    operator float() const { return cuda_host_widen(bits); }
};
CUDA_HOST_16_BIT_FLOAT(__half, __half2)
CUDA_HOST_16_CONVERSIONS(__half, __half2, half, half2)
using half = __half;
using half2 = __half2;

#define CUDART_ZERO_FP16 __ushort_as_half(0x0000U)
#define CUDART_ONE_FP16 __ushort_as_half(0x3C00U)
#define CUDART_INF_FP16 __ushort_as_half(0x7C00U)
#define CUDART_NAN_FP16 __ushort_as_half(0x7FFFU)
#define CUDART_MAX_NORMAL_FP16 __ushort_as_half(0x7BFFU)
