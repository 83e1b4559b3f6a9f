// The math and bit intrinsics. Approximate ones are as exact here as the C library.
#pragma once

#define CUDA_HOST_CAST(TO, NAME, FROM)                                                             \
    static inline TO NAME(FROM from) { TO to; memcpy(&to, &from, sizeof to); return to; }
CUDA_HOST_CAST(float, __int_as_float, int)
CUDA_HOST_CAST(int, __float_as_int, float)
CUDA_HOST_CAST(float, __uint_as_float, unsigned)
CUDA_HOST_CAST(unsigned, __float_as_uint, float)
CUDA_HOST_CAST(double, __longlong_as_double, long long)
CUDA_HOST_CAST(long long, __double_as_longlong, double)

// C libraries have functions of some of these names, or will: those are macros.
static inline float cuda_host_rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float cuda_host_rsqrt(float x) { return 1.0f / sqrtf(x); }
static inline double cuda_host_rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float cuda_host_sinpif(float x) { return (float)sin(M_PI * (double)x); }
static inline float cuda_host_cospif(float x) { return (float)cos(M_PI * (double)x); }
#define rsqrt(x) cuda_host_rsqrt(x)
#define rsqrtf(x) cuda_host_rsqrtf(x)
#define sinpif(x) cuda_host_sinpif(x)
#define cospif(x) cuda_host_cospif(x)
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __powf(x, y) powf(x, y)
#define __sincosf(x, s, c) sincosf(x, s, c)
static inline float __fdividef(float a, float b) { return a / b; }
static inline float fdividef(float a, float b) { return a / b; }
static inline float __saturatef(float x) { return x > 0.0f ? x < 1.0f ? x : 1.0f : 0.0f; }
static inline float normcdff(float x) { return 0.5f * erfcf(-x * (float)M_SQRT1_2); }
static inline float rhypotf(float x, float y) { return 1.0f / hypotf(x, y); }
static inline float norm3df(float x, float y, float z) { return sqrtf(x * x + y * y + z * z); }

// Rounded to nearest, once.
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frsqrt_rn(float x) { return (float)(1.0 / sqrt((double)x)); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }

// To integers as the GPU converts: what does not fit is the nearest that does, NaN is 0.
template <class I>
static inline I cuda_host_integer(double x) {
    constexpr I most = (I)-1 > 0 ? (I)-1 : (I)((1ull << (8 * sizeof(I) - 1)) - 1);
    constexpr I least = (I)-1 > 0 ? 0 : -most - 1;
    if (!(x > (double)least)) return x != x ? 0 : least;
    return x >= (double)most ? most : (I)x;
}
#define CUDA_HOST_TO_INTEGER(NAME, I, MODE, ROUNDED)                                               \
    static inline I __float2##NAME##_##MODE(float x) { return cuda_host_integer<I>(ROUNDED((double)x)); } \
    static inline I __double2##NAME##_##MODE(double x) { return cuda_host_integer<I>(ROUNDED(x)); }
#define CUDA_HOST_TO_INTEGERS(NAME, I)                                                             \
    CUDA_HOST_TO_INTEGER(NAME, I, rn, nearbyint)                                                   \
    CUDA_HOST_TO_INTEGER(NAME, I, rz, trunc)                                                       \
    CUDA_HOST_TO_INTEGER(NAME, I, rd, floor)                                                       \
    CUDA_HOST_TO_INTEGER(NAME, I, ru, ceil)
CUDA_HOST_TO_INTEGERS(int, int)
CUDA_HOST_TO_INTEGERS(uint, unsigned)
CUDA_HOST_TO_INTEGERS(ll, long long)
CUDA_HOST_TO_INTEGERS(ull, unsigned long long)
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline float __ll2float_rn(long long x) { return (float)x; }
static inline float __ull2float_rn(unsigned long long x) { return (float)x; }
static inline double __int2double_rn(int x) { return x; }
static inline float __double2float_rn(double x) { return (float)x; }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; i++) reversed |= (x >> i & 1) << (31 - i);
    return reversed;
}
static inline int __mul24(int a, int b) { return (a << 8 >> 8) * (b << 8 >> 8); }
static inline int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((unsigned long long)a * b >> 32);
}
static inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const unsigned long long bytes = (unsigned long long)high << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned select = selector >> (4 * i), byte = bytes >> (8 * (select & 7)) & 0xff;
        result |= (select & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << (8 * i);
    }
    return result;
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)((((unsigned long long)high << 32 | low) << (shift & 31)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((unsigned long long)high << 32 | low) >> (shift & 31));
}

// Four products of bytes and their sum, which wraps as the GPU's does.
template <class A, class B>
static inline unsigned cuda_host_dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 4; i++) c += (unsigned)((A)(a >> (8 * i)) * (B)(b >> (8 * i)));
    return c;
}
static inline int __dp4a(int a, int b, int c) {
    return (int)cuda_host_dp4a<signed char, signed char>((unsigned)a, (unsigned)b, (unsigned)c);
}
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    return cuda_host_dp4a<unsigned char, unsigned char>(a, b, c);
}
static inline int __dp4a(char4 a, char4 b, int c) {
    return c + a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}
static inline unsigned __dp4a(uchar4 a, uchar4 b, unsigned c) {
    return c + (unsigned)(a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w);
}

// Of two types, as CUDA has them: of the one that C++ adds them in.
#define CUDA_HOST_MIN_MAX(A, B, T)                                                                 \
    static constexpr inline T min(A a, B b) { return (T)b < (T)a ? (T)b : (T)a; }                  \
    static constexpr inline T max(A a, B b) { return (T)a < (T)b ? (T)b : (T)a; }
#define CUDA_HOST_INTEGER_MIN_MAX(S, U)                                                            \
    CUDA_HOST_MIN_MAX(S, S, S)                                                                     \
    CUDA_HOST_MIN_MAX(U, U, U)                                                                     \
    CUDA_HOST_MIN_MAX(S, U, U)                                                                     \
    CUDA_HOST_MIN_MAX(U, S, U)
CUDA_HOST_INTEGER_MIN_MAX(int, unsigned)
CUDA_HOST_INTEGER_MIN_MAX(long, unsigned long)
CUDA_HOST_INTEGER_MIN_MAX(long long, unsigned long long)
#define CUDA_HOST_FLOAT_MIN_MAX(A, B, T, F)                                                        \
    static inline T min(A a, B b) { return fmin##F(a, b); }                                        \
    static inline T max(A a, B b) { return fmax##F(a, b); }
CUDA_HOST_FLOAT_MIN_MAX(float, float, float, f)
CUDA_HOST_FLOAT_MIN_MAX(double, double, double, )
CUDA_HOST_FLOAT_MIN_MAX(float, double, double, )
CUDA_HOST_FLOAT_MIN_MAX(double, float, double, )

// Loads and stores with a hint to the caches, of which there is nothing to see here. Inlined, so that
// a finding names the line of the kernel.
#define CUDA_HOST_LOAD(NAME)                                                                       \
    template <class T>                                                                             \
    static inline __attribute__((always_inline)) T NAME(const T* p) { return *p; }
CUDA_HOST_LOAD(__ldg)
CUDA_HOST_LOAD(__ldca)
CUDA_HOST_LOAD(__ldcg)
CUDA_HOST_LOAD(__ldcs)
CUDA_HOST_LOAD(__ldcv)
CUDA_HOST_LOAD(__ldlu)
#define CUDA_HOST_STORE(NAME)                                                                      \
    template <class T, class V>                                                                    \
    static inline __attribute__((always_inline)) void NAME(T* p, V value) { *p = value; }
CUDA_HOST_STORE(__stcg)
CUDA_HOST_STORE(__stcs)
CUDA_HOST_STORE(__stwb)
CUDA_HOST_STORE(__stwt)
