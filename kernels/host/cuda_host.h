// What a CUDA kernel sees when it is compiled for the CPU: built-in variables, barriers, warp
// intrinsics, atomics, math, half. The scheduler behind it is cuda_host_runtime.cpp.
//
// Threads of a block are fibers that take turns on one CPU thread; a fiber gives way only at a
// barrier or a warp intrinsic. So plain statics hold the state of the running block, and a shared
// library is one "SM": the device loads several copies of it to run blocks in parallel.
//
// Not supported: inline PTX, tensor cores, cp.async, cooperative groups, textures, __constant__
// written at run time, spin-waiting on another thread.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <type_traits>
#include <utility>
// Without Bessel functions and their like, which take longer to read than a kernel to compile.
#undef _GLIBCXX_USE_STD_SPEC_FUNCS
#include <math.h>

#define CUDA_HOST 1

// ---- vector types ------------------------------------------------------------------------------

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };

#define CUDA_HOST_VECTOR(T, NAME, ALIGN_2, ALIGN_4)                                                \
    struct alignas(ALIGN_2) NAME##2 { T x, y; };                                                   \
    struct alignas(ALIGN_4) NAME##4 { T x, y, z, w; };                                             \
    static inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                              \
    static inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUDA_HOST_VECTOR(float, float, 8, 16)
CUDA_HOST_VECTOR(int, int, 8, 16)
CUDA_HOST_VECTOR(unsigned, uint, 8, 16)
CUDA_HOST_VECTOR(short, short, 4, 8)
CUDA_HOST_VECTOR(unsigned char, uchar, 2, 4)
CUDA_HOST_VECTOR(signed char, char, 2, 4)
struct float3 { float x, y, z; };
static inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }

// ---- the running thread, and the scheduler's entry points --------------------------------------

struct cuda_host_thread { uint3 thread, block; dim3 block_dim, grid_dim; };

extern "C" {
extern __attribute__((visibility("hidden"))) cuda_host_thread cuda_host_current;
// vote: 0 none, 1 count, 2 and, 3 or of `predicate` over the block.
int cuda_host_barrier(int vote, int predicate, int line, const char* file);
uint64_t cuda_host_warp(int op, unsigned mask, uint64_t value, int argument, int width, int line,
                        const char* file);
void* cuda_host_dynamic_shared(void);
void cuda_host_fail(const char* what, int line, const char* file) __attribute__((noreturn));
#ifdef CUDA_HOST_CHECKED
void cuda_host_check_atomic(void* p, size_t n, int reads);
void cuda_host_check_fence(void);
void cuda_host_copy(void* to, const void* from, size_t n);
#endif
}

#define threadIdx ((const uint3&)cuda_host_current.thread)
#define blockIdx ((const uint3&)cuda_host_current.block)
#define blockDim ((const dim3&)cuda_host_current.block_dim)
#define gridDim ((const dim3&)cuda_host_current.grid_dim)
#define warpSize 32

#ifdef CUDA_HOST_CHECKED
// A kernel is checked, its caller is not: see CUDA_HOST_UNCHECKED.
#define __global__ __attribute__((noinline))
#define CUDA_HOST_UNCHECKED __attribute__((no_sanitize("thread", "undefined")))
#else
#define __global__
#define CUDA_HOST_UNCHECKED
#endif
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __restrict__ __restrict
// Every zero-initialised static of a kernel file is shared memory: the build renames the object's
// .bss to cudashm, so that the runtime knows its range and fills it before each block.
#define __shared__ static
// The build rewrites `extern __shared__ T name[];` to this.
#define DYN_SHARED(T, name) T* const name = (T*)cuda_host_dynamic_shared()

// The line of the caller, for messages.
#define CUDA_HOST_HERE int line = __builtin_LINE(), const char* file = __builtin_FILE()

// ---- barriers and warp intrinsics --------------------------------------------------------------

static inline void __syncthreads(CUDA_HOST_HERE) { cuda_host_barrier(0, 0, line, file); }
static inline int __syncthreads_count(int p, CUDA_HOST_HERE) {
    return cuda_host_barrier(1, p, line, file);
}
static inline int __syncthreads_and(int p, CUDA_HOST_HERE) {
    return cuda_host_barrier(2, p, line, file);
}
static inline int __syncthreads_or(int p, CUDA_HOST_HERE) {
    return cuda_host_barrier(3, p, line, file);
}
#ifdef CUDA_HOST_CHECKED
static inline void __threadfence() { cuda_host_check_fence(); }
#else
static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
#endif
static inline void __threadfence_block() {}
static inline void __trap(CUDA_HOST_HERE) { cuda_host_fail("__trap()", line, file); }

enum { CUDA_HOST_SYNC, CUDA_HOST_IDX, CUDA_HOST_UP, CUDA_HOST_DOWN, CUDA_HOST_XOR, CUDA_HOST_BALLOT };

template <class T>
static inline T cuda_host_shuffle(int op, unsigned mask, T value, int argument, int width, int line,
                                  const char* file) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = cuda_host_warp(op, mask, bits, argument, width, line, file);
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T>
static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, CUDA_HOST_HERE) {
    return cuda_host_shuffle(CUDA_HOST_IDX, mask, value, lane, width, line, file);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                               CUDA_HOST_HERE) {
    return cuda_host_shuffle(CUDA_HOST_UP, mask, value, (int)delta, width, line, file);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                                 CUDA_HOST_HERE) {
    return cuda_host_shuffle(CUDA_HOST_DOWN, mask, value, (int)delta, width, line, file);
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CUDA_HOST_HERE) {
    return cuda_host_shuffle(CUDA_HOST_XOR, mask, value, lanes, width, line, file);
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_HOST_HERE) {
    cuda_host_warp(CUDA_HOST_SYNC, mask, 0, 0, 32, line, file);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_HOST_HERE) {
    return (unsigned)cuda_host_warp(CUDA_HOST_BALLOT, mask, predicate != 0, 0, 32, line, file);
}
static inline int __any_sync(unsigned mask, int predicate, CUDA_HOST_HERE) {
    return __ballot_sync(mask, predicate, line, file) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, CUDA_HOST_HERE) {
    return __ballot_sync(mask, !predicate, line, file) == 0;
}

// ---- atomics: other copies of the library may run blocks of the same grid ----------------------

#ifdef CUDA_HOST_CHECKED
// Inlined, so that the check is called at the line of the kernel. One block runs at a time.
#define CUDA_HOST_ATOMIC inline __attribute__((always_inline))
template <class T, class F>
static CUDA_HOST_ATOMIC T cuda_host_atomic(T* address, F update, bool reads = true) {
    T old, desired;
    cuda_host_check_atomic(address, sizeof old, reads);
    cuda_host_copy(&old, address, sizeof old);
    desired = update(old);
    cuda_host_copy(address, &desired, sizeof old);
    return old;
}
#else
#define CUDA_HOST_ATOMIC inline
template <class T, class F>
static CUDA_HOST_ATOMIC T cuda_host_atomic(T* address, F update, bool = true) {
    T old, desired;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    do desired = update(old);
    while (!__atomic_compare_exchange(address, &old, &desired, true, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED));
    return old;
}
#endif
#define CUDA_HOST_ATOMICS(T)                                                                       \
    static CUDA_HOST_ATOMIC T atomicAdd(T* p, T v) {                                               \
        return cuda_host_atomic(p, [v](T old) { return (T)(old + v); });                           \
    }                                                                                              \
    static CUDA_HOST_ATOMIC T atomicExch(T* p, T v) {                                              \
        return cuda_host_atomic(p, [v](T) { return v; }, false);                                   \
    }
CUDA_HOST_ATOMICS(float)
CUDA_HOST_ATOMICS(int)
CUDA_HOST_ATOMICS(unsigned)
#define CUDA_HOST_INTEGER_ATOMICS(T)                                                               \
    static CUDA_HOST_ATOMIC T atomicMax(T* p, T v) {                                               \
        return cuda_host_atomic(p, [v](T old) { return old > v ? old : v; });                      \
    }                                                                                              \
    static CUDA_HOST_ATOMIC T atomicMin(T* p, T v) {                                               \
        return cuda_host_atomic(p, [v](T old) { return old < v ? old : v; });                      \
    }                                                                                              \
    static CUDA_HOST_ATOMIC T atomicCAS(T* p, T expected, T v) {                                   \
        return cuda_host_atomic(p, [=](T old) { return old == expected ? v : old; });              \
    }
CUDA_HOST_INTEGER_ATOMICS(int)
CUDA_HOST_INTEGER_ATOMICS(unsigned)
static CUDA_HOST_ATOMIC unsigned atomicInc(unsigned* p, unsigned most) {
    return cuda_host_atomic(p, [most](unsigned old) { return old >= most ? 0 : old + 1; });
}
static CUDA_HOST_ATOMIC unsigned atomicDec(unsigned* p, unsigned most) {
    return cuda_host_atomic(p, [most](unsigned old) {
        return old == 0 || old > most ? most : old - 1;
    });
}

// ---- math --------------------------------------------------------------------------------------

static inline float __int_as_float(int i) { float f; memcpy(&f, &i, 4); return f; }
static inline int __float_as_int(float f) { int i; memcpy(&i, &f, 4); return i; }
static inline float __uint_as_float(unsigned i) { float f; memcpy(&f, &i, 4); return f; }
static inline unsigned __float_as_uint(float f) { unsigned i; memcpy(&i, &f, 4); return i; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
// glibc declares functions of these names, so the fast intrinsics are macros.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __powf(x, y) powf(x, y)
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
template <class T> static inline T __ldg(const T* p) { return *p; }
#define CUDA_HOST_MIN_MAX(T)                                                                       \
    static inline T min(T a, T b) { return b < a ? b : a; }                                        \
    static inline T max(T a, T b) { return a < b ? b : a; }
CUDA_HOST_MIN_MAX(int)
CUDA_HOST_MIN_MAX(unsigned)
CUDA_HOST_MIN_MAX(long long)
CUDA_HOST_MIN_MAX(unsigned long long)
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }

// ---- half: exact conversions, arithmetic rounded once through float ----------------------------

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
struct alignas(4) __half2 { __half x, y; };
using half = __half;
using half2 = __half2;

#define CUDA_HOST_HALF_OPERATOR(OP, NAME)                                                          \
    static inline __half operator OP(__half a, __half b) { return __half((float)a OP(float) b); }  \
    static inline __half NAME(__half a, __half b) { return a OP b; }                               \
    static inline __half2 NAME##2(__half2 a, __half2 b) { return {a.x OP b.x, a.y OP b.y}; }
CUDA_HOST_HALF_OPERATOR(+, __hadd)
CUDA_HOST_HALF_OPERATOR(-, __hsub)
CUDA_HOST_HALF_OPERATOR(*, __hmul)
CUDA_HOST_HALF_OPERATOR(/, __hdiv)
static inline __half __hfma(__half a, __half b, __half c) {
    return __half((float)((double)a * (double)b + (double)c));
}
static inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
static inline __half __float2half(float f) { return __half(f); }
static inline __half __float2half_rn(float f) { return __half(f); }
static inline float __half2float(__half h) { return (float)h; }
static inline float2 __half22float2(__half2 h) { return {(float)h.x, (float)h.y}; }
static inline __half2 __floats2half2_rn(float a, float b) { return {__half(a), __half(b)}; }
static inline __half2 __float22half2_rn(float2 f) { return {__half(f.x), __half(f.y)}; }
static inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }
static inline __half2 __half2half2(__half a) { return {a, a}; }
static inline float __low2float(__half2 h) { return (float)h.x; }
static inline float __high2float(__half2 h) { return (float)h.y; }

// ---- the table of entries that the device reads ------------------------------------------------

struct cuda_host_entry {
    const char* name;
    void (*invoke)(void** arguments);
    // A letter a parameter: p pointer, c pointer to const, t pointer to pointers, i 4-byte int,
    // l 8-byte int, f, d.
    const char* signature;
};

template <class T>
constexpr char cuda_host_letter() {
    using Target = std::remove_pointer_t<T>;
    if (std::is_pointer_v<T>)
        return std::is_pointer_v<Target> ? 't' : std::is_const_v<Target> ? 'c' : 'p';
    if (std::is_same_v<T, float>) return 'f';
    if (std::is_same_v<T, double>) return 'd';
    if (std::is_integral_v<T> && sizeof(T) == 4) return 'i';
    if (std::is_integral_v<T> && sizeof(T) == 8) return 'l';
    return '?';
}
// Of this file alone: another file's entry may have the same name.
namespace {
template <auto F>
struct cuda_host_kernel;
template <class... A, void (*F)(A...)>
struct cuda_host_kernel<F> {
    template <size_t... I>
    // The argument slots are no device memory.
    CUDA_HOST_UNCHECKED static void call(void** a, std::index_sequence<I...>) {
        (void)a;
        F(*(A*)a[I]...);
    }
    CUDA_HOST_UNCHECKED static void invoke(void** a) { call(a, std::index_sequence_for<A...>{}); }
    static constexpr char signature[sizeof...(A) + 1] = {cuda_host_letter<A>()..., 0};
};
}  // namespace
#define CUDA_HOST_ENTRY(k) {#k, &cuda_host_kernel<&k>::invoke, cuda_host_kernel<&k>::signature}
#define CUDA_HOST_TABLE(NAME, ...)                                                                 \
    extern "C" __attribute__((visibility("default"))) const cuda_host_entry NAME[] = {             \
        __VA_ARGS__, {nullptr, nullptr, nullptr}};
