// What the 16-bit floats of cuda_fp16.h and cuda_bf16.h have in common: arithmetic rounded once
// through float, comparisons, functions, pairs.
#pragma once
#include "cuda_host.h"

// A double as the float whose rounding to 16 bits is that of the double: inexact ones end in a 1 bit.
static inline float cuda_host_to_odd(double d) {
    float f = (float)d;
    unsigned bits = __float_as_uint(f);
    if ((double)f != d && !(bits & 1)) bits += ((double)f < d) == (d > 0) ? 1u : -1u;
    return __uint_as_float(bits);
}

#define CUDA_HOST_16_OPERATOR(H, H2, OP, NAME)                                                     \
    static inline H operator OP(H a, H b) { return H((float)a OP(float) b); }                      \
    static inline H2 operator OP(H2 a, H2 b) { return {a.x OP b.x, a.y OP b.y}; }                  \
    static inline H& operator OP##=(H& a, H b) { return a = a OP b; }                              \
    static inline H2& operator OP##=(H2& a, H2 b) { return a = a OP b; }                           \
    static inline H NAME(H a, H b) { return a OP b; }                                              \
    static inline H NAME##_rn(H a, H b) { return a OP b; }                                         \
    static inline H2 NAME##2(H2 a, H2 b) { return a OP b; }                                        \
    static inline H2 NAME##2_rn(H2 a, H2 b) { return a OP b; }
// A comparison: false with a NaN, except that `ne` and the unordered ones are true.
#define CUDA_HOST_16_COMPARISON(H, H2, OP, NAME)                                                   \
    static inline bool NAME(H a, H b) { return (float)a OP(float) b; }                             \
    static inline bool NAME##u(H a, H b) { return __hisnan(a) || __hisnan(b) || NAME(a, b); }      \
    static inline H2 NAME##2(H2 a, H2 b) { return {H(NAME(a.x, b.x)), H(NAME(a.y, b.y))}; }        \
    static inline bool __hb##NAME(H2 a, H2 b) { return NAME(a.x, b.x) && NAME(a.y, b.y); }
#define CUDA_HOST_16_FUNCTION(H, H2, NAME, VALUE)                                                  \
    static inline H h##NAME(H h) { const float x = h; return H(VALUE); }                           \
    static inline H2 h2##NAME(H2 h) { return {h##NAME(h.x), h##NAME(h.y)}; }

#define CUDA_HOST_16_BIT_FLOAT(H, H2)                                                              \
    struct alignas(4) H2 {                                                                         \
        H x, y;                                                                                    \
        H2() = default;                                                                            \
        H2(H a, H b) : x(a), y(b) {}                                                               \
    };                                                                                             \
    CUDA_HOST_16_OPERATOR(H, H2, +, __hadd)                                                        \
    CUDA_HOST_16_OPERATOR(H, H2, -, __hsub)                                                        \
    CUDA_HOST_16_OPERATOR(H, H2, *, __hmul)                                                        \
    CUDA_HOST_16_OPERATOR(H, H2, /, __hdiv)                                                        \
    static inline H operator-(H a) { return H(-(float)a); }                                        \
    static inline H2 operator-(H2 a) { return {-a.x, -a.y}; }                                      \
    static inline H __hneg(H a) { return -a; }                                                     \
    static inline H2 __hneg2(H2 a) { return -a; }                                                  \
    static inline H __habs(H a) { return H(fabsf(a)); }                                            \
    static inline H2 __habs2(H2 a) { return {__habs(a.x), __habs(a.y)}; }                          \
    static inline bool __hisnan(H a) { return (float)a != (float)a; }                              \
    static inline int __hisinf(H a) {                                                              \
        return fabsf(a) == INFINITY ? (float)a > 0 ? 1 : -1 : 0;                                   \
    }                                                                                              \
    static inline H __hmax(H a, H b) { return H(fmaxf(a, b)); }                                    \
    static inline H __hmin(H a, H b) { return H(fminf(a, b)); }                                    \
    static inline H __hmax_nan(H a, H b) { return __hisnan(a) ? a : __hisnan(b) ? b : __hmax(a, b); } \
    static inline H __hmin_nan(H a, H b) { return __hisnan(a) ? a : __hisnan(b) ? b : __hmin(a, b); } \
    static inline H2 __hmax2(H2 a, H2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }          \
    static inline H2 __hmin2(H2 a, H2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }          \
    static inline H __hfma(H a, H b, H c) {                                                        \
        return H(cuda_host_to_odd((double)(float)a * (double)(float)b + (double)(float)c));        \
    }                                                                                              \
    static inline H __hfma_relu(H a, H b, H c) { return __hmax_nan(__hfma(a, b, c), H(0.0f)); }    \
    static inline H __hfma_sat(H a, H b, H c) { return H(__saturatef(__hfma(a, b, c))); }          \
    static inline H __hadd_sat(H a, H b) { return H(__saturatef(a + b)); }                         \
    static inline H __hmul_sat(H a, H b) { return H(__saturatef(a * b)); }                         \
    static inline H2 __hfma2(H2 a, H2 b, H2 c) {                                                   \
        return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};                                     \
    }                                                                                              \
    static inline H2 __hfma2_relu(H2 a, H2 b, H2 c) {                                              \
        return {__hfma_relu(a.x, b.x, c.x), __hfma_relu(a.y, b.y, c.y)};                           \
    }                                                                                              \
    CUDA_HOST_16_COMPARISON(H, H2, ==, __heq)                                                      \
    CUDA_HOST_16_COMPARISON(H, H2, !=, __hne)                                                      \
    CUDA_HOST_16_COMPARISON(H, H2, <, __hlt)                                                       \
    CUDA_HOST_16_COMPARISON(H, H2, <=, __hle)                                                      \
    CUDA_HOST_16_COMPARISON(H, H2, >, __hgt)                                                       \
    CUDA_HOST_16_COMPARISON(H, H2, >=, __hge)                                                      \
    CUDA_HOST_16_FUNCTION(H, H2, exp, expf(x))                                                     \
    CUDA_HOST_16_FUNCTION(H, H2, exp2, exp2f(x))                                                   \
    CUDA_HOST_16_FUNCTION(H, H2, exp10, exp10f(x))                                                 \
    CUDA_HOST_16_FUNCTION(H, H2, log, logf(x))                                                     \
    CUDA_HOST_16_FUNCTION(H, H2, log2, log2f(x))                                                   \
    CUDA_HOST_16_FUNCTION(H, H2, log10, log10f(x))                                                 \
    CUDA_HOST_16_FUNCTION(H, H2, sqrt, sqrtf(x))                                                   \
    CUDA_HOST_16_FUNCTION(H, H2, rsqrt, rsqrtf(x))                                                 \
    CUDA_HOST_16_FUNCTION(H, H2, rcp, 1.0f / x)                                                    \
    CUDA_HOST_16_FUNCTION(H, H2, sin, sinf(x))                                                     \
    CUDA_HOST_16_FUNCTION(H, H2, cos, cosf(x))                                                     \
    CUDA_HOST_16_FUNCTION(H, H2, tanh, tanhf(x))                                                   \
    CUDA_HOST_16_FUNCTION(H, H2, floor, floorf(x))                                                 \
    CUDA_HOST_16_FUNCTION(H, H2, ceil, ceilf(x))                                                   \
    CUDA_HOST_16_FUNCTION(H, H2, trunc, truncf(x))                                                 \
    CUDA_HOST_16_FUNCTION(H, H2, rint, rintf(x))                                                   \
    static inline float __low2float(H2 h) { return h.x; }                                          \
    static inline float __high2float(H2 h) { return h.y; }                                         \
    static CUDA_HOST_ATOMIC H atomicAdd(H* p, H v) {                                               \
        return cuda_host_atomic(p, [v](H old) { return old + v; });                                \
    }                                                                                              \
    static CUDA_HOST_ATOMIC H2 atomicAdd(H2* p, H2 v) {                                            \
        return cuda_host_atomic(p, [v](H2 old) { return old + v; });                               \
    }

// Conversions by name: `half` and `half2` are the words that the names are made of.
#define CUDA_HOST_16_CONVERSIONS(H, H2, half, half2)                                               \
    static inline H __float2##half(float f) { return H(f); }                                       \
    static inline H __float2##half##_rn(float f) { return H(f); }                                  \
    static inline H __double2##half(double d) { return H(cuda_host_to_odd(d)); }                   \
    static inline float __##half##2float(H h) { return h; }                                        \
    static inline float2 __##half2##2float2(H2 h) { return {(float)h.x, (float)h.y}; }             \
    static inline H2 __float2##half2##_rn(float f) { return {H(f), H(f)}; }                        \
    static inline H2 __floats2##half2##_rn(float a, float b) { return {H(a), H(b)}; }              \
    static inline H2 __float22##half2##_rn(float2 f) { return {H(f.x), H(f.y)}; }                  \
    static inline H2 __halves2##half2(H a, H b) { return {a, b}; }                                 \
    static inline H2 __##half##2##half2(H a) { return {a, a}; }                                    \
    static inline H2 make_##half2(H a, H b) { return {a, b}; }                                     \
    static inline H __low2##half(H2 h) { return h.x; }                                             \
    static inline H __high2##half(H2 h) { return h.y; }                                            \
    static inline H2 __low2##half2(H2 h) { return {h.x, h.x}; }                                    \
    static inline H2 __high2##half2(H2 h) { return {h.y, h.y}; }                                   \
    static inline H2 __lows2##half2(H2 a, H2 b) { return {a.x, b.x}; }                             \
    static inline H2 __highs2##half2(H2 a, H2 b) { return {a.y, b.y}; }                            \
    static inline H2 __lowhigh2highlow(H2 h) { return {h.y, h.x}; }                                \
    static inline int __##half##2int_rn(H h) { return __float2int_rn(h); }                         \
    static inline int __##half##2int_rz(H h) { return __float2int_rz(h); }                         \
    static inline int __##half##2int_rd(H h) { return __float2int_rd(h); }                         \
    static inline int __##half##2int_ru(H h) { return __float2int_ru(h); }                         \
    static inline unsigned __##half##2uint_rn(H h) { return __float2uint_rn(h); }                  \
    static inline unsigned __##half##2uint_rz(H h) { return __float2uint_rz(h); }                  \
    static inline H __int2##half##_rn(int i) { return H(cuda_host_to_odd(i)); }                    \
    static inline H __uint2##half##_rn(unsigned i) { return H(cuda_host_to_odd(i)); }              \
    static inline H __short2##half##_rn(short i) { return H((float)i); }                           \
    static inline H __ushort_as_##half(unsigned short bits) { H h; h.bits = bits; return h; }      \
    static inline H __short_as_##half(short bits) { H h; h.bits = (uint16_t)bits; return h; }      \
    static inline unsigned short __##half##_as_ushort(H h) { return h.bits; }                      \
    static inline short __##half##_as_short(H h) { return (short)h.bits; }
