// What a CUDA kernel sees when it is compiled for the CPU: built-in variables, barriers, warp
// intrinsics, atomics, math, half. The scheduler behind it is cuda_host_runtime.cpp.
//
// Threads of a block are fibers that take turns on one CPU thread; a fiber gives way only at a
// barrier or a warp intrinsic. So plain statics hold the state of the running block, and a shared
// library is one "SM": the device loads several copies of it to run blocks in parallel.
//
// cp.async copies at once. A texture fetch, inline PTX, a barrier over the grid and a launch inside a
// kernel end the launch with the line they are at. Spin-waiting on another thread never ends.
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
// A compiler of kernels, for a GPU that has tensor cores and no cp.async: of two ways to write a thing,
// a kernel then takes the one that runs here.
#define __CUDACC__ 1
#define __CUDA_ARCH__ 750
#define __CUDACC_VER_MAJOR__ 12
#define __CUDACC_VER_MINOR__ 0
#define CUDART_VERSION 12000

extern "C" int printf(const char*, ...);
#include "assert.h"

#include "cuda_host_vectors.h"

// ---- the running thread, and the scheduler's entry points --------------------------------------

struct cuda_host_thread { uint3 thread, block; dim3 block_dim, grid_dim; };

extern "C" {
extern __attribute__((visibility("hidden"))) cuda_host_thread cuda_host_current;
// vote: 0 none, 1 count, 2 and, 3 or of `predicate` over the block.
int cuda_host_barrier(int vote, int predicate, int line, const char* file);
uint64_t cuda_host_warp(int op, unsigned mask, uint64_t value, int argument, int width, int line,
                        const char* file);
// Calls function(lanes' arguments, null where there is none) once all lanes of the mask are here.
void cuda_host_together(unsigned mask, void (*function)(void**), void* argument, int line,
                        const char* file);
extern __attribute__((visibility("hidden"))) char cuda_host_dynamic[];
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
#define __managed__
#define __grid_constant__
#define __inline__ inline
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __cluster_dims__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict
// Every zero-initialised static of a kernel file is shared memory: the build renames the object's
// .bss to cudashm, so that the runtime knows its range and fills it before each block. Other
// variables have sections of their own: __constant__ one each, for constants and variables cannot
// share one, and the __device__ variables one, which keeps its values from block to block.
#define __shared__ static
#define CUDA_HOST_TEXT_2(x) #x
#define CUDA_HOST_TEXT(x) CUDA_HOST_TEXT_2(x)
#define __constant__ __attribute__((section("cudaconst" CUDA_HOST_TEXT(__COUNTER__))))
#define CUDA_HOST_DEVICE_VARIABLE __attribute__((section("cudadev")))
// The dynamic shared memory is in the middle of an array of the runtime.
enum { CUDA_HOST_SHARED_GAP = 64 << 10 };

// What the build makes of CUDA's own syntax (src/engine/device/host/dialect.rs):
// extern __shared__ T name[];
#define DYN_SHARED(name, ...) __VA_ARGS__* const name = (__VA_ARGS__*)(cuda_host_dynamic + CUDA_HOST_SHARED_GAP)
// kernel<<<grid, block>>>(arguments)
#define CUDA_HOST_LAUNCH(kernel)                                                                   \
    cuda_host_fail("a launch of " kernel " by code that runs on the CPU; firstdiff makes the launches", \
                   __LINE__, __FILE__)
// asm volatile("..." : ...)
#define CUDA_HOST_PTX(instruction)                                                                 \
    cuda_host_fail("inline PTX (" instruction "), which no CPU runs; use --device cuda, or write it "  \
                   "in C++ under #ifdef CUDA_HOST", __LINE__, __FILE__)
#define CUDA_HOST_NOINLINE __attribute__((noinline))

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
static inline void __threadfence_system() { __threadfence(); }
static inline void __trap(CUDA_HOST_HERE) { cuda_host_fail("__trap()", line, file); }

enum {
    CUDA_HOST_SYNC, CUDA_HOST_IDX, CUDA_HOST_UP, CUDA_HOST_DOWN, CUDA_HOST_XOR, CUDA_HOST_BALLOT,
    CUDA_HOST_MATCH, CUDA_HOST_ACTIVE, CUDA_HOST_TOGETHER,
};

// Values of more than 8 bytes go in several steps.
template <class T>
static inline T cuda_host_shuffle(int op, unsigned mask, T value, int argument, int width, int line,
                                  const char* file) {
    for (size_t at = 0; at < sizeof value; at += 8) {
        const size_t bytes = sizeof value - at < 8 ? sizeof value - at : 8;
        uint64_t bits = 0;
        memcpy(&bits, (char*)&value + at, bytes);
        bits = cuda_host_warp(op, mask, bits, argument, width, line, file);
        memcpy((char*)&value + at, &bits, bytes);
    }
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

// The lanes that are at this place when no other lane of the warp can go on.
static inline unsigned __activemask(CUDA_HOST_HERE) {
    const unsigned lane = (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32;
    return (unsigned)cuda_host_warp(CUDA_HOST_ACTIVE, 1u << lane, 0, 0, 32, line, file);
}
template <class T>
static inline unsigned __match_any_sync(unsigned mask, T value, CUDA_HOST_HERE) {
    static_assert(sizeof(T) <= 8, "a match compares at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return (unsigned)cuda_host_warp(CUDA_HOST_MATCH, mask, bits, 0, 32, line, file);
}
template <class T>
static inline unsigned __match_all_sync(unsigned mask, T value, int* all, CUDA_HOST_HERE) {
    const unsigned equal = __match_any_sync(mask, value, line, file);
    *all = __all_sync(mask, equal == __match_any_sync(mask, 0, line, file), line, file);
    return *all ? equal : 0;
}
// Every lane goes through the values of all lanes of the mask.
template <class T, class F>
static inline T cuda_host_reduce(unsigned mask, T value, F join, int line, const char* file) {
    T result = value;
    bool is_first = true;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        const T other = __shfl_sync(mask, value, __builtin_ctz(rest), 32, line, file);
        result = is_first ? other : join(result, other);
        is_first = false;
    }
    return result;
}
#define CUDA_HOST_REDUCE(T, NAME, JOINED)                                                          \
    static inline T __reduce_##NAME##_sync(unsigned mask, T value, CUDA_HOST_HERE) {               \
        return cuda_host_reduce(mask, value, [](T a, T b) { return JOINED; }, line, file);         \
    }
#define CUDA_HOST_REDUCES(T)                                                                       \
    CUDA_HOST_REDUCE(T, add, (T)((unsigned)a + (unsigned)b))                                       \
    CUDA_HOST_REDUCE(T, min, b < a ? b : a)                                                        \
    CUDA_HOST_REDUCE(T, max, a < b ? b : a)
CUDA_HOST_REDUCES(int)
CUDA_HOST_REDUCES(unsigned)
CUDA_HOST_REDUCE(unsigned, and, a & b)
CUDA_HOST_REDUCE(unsigned, or, a | b)
CUDA_HOST_REDUCE(unsigned, xor, a ^ b)

static inline void __nanosleep(unsigned) {}
static inline void __brkpt() {}
#include "cuda_host_atomics.h"
#include "cuda_host_math.h"

// A kernel file is in a namespace of its own. A function of one of these names that it adds is one
// more overload, as it is in CUDA, and does not hide the others.
#define CUDA_HOST_OVERLOADS                                                                        \
    using ::abs, ::ceil, ::cos, ::exp, ::fabs, ::floor, ::fmax, ::fmin, ::fma, ::log, ::max, ::min, \
        ::pow, ::round, ::sin, ::sqrt, ::tanh, ::atomicAdd, ::atomicAnd, ::atomicCAS,              \
        ::atomicExch, ::atomicMax, ::atomicMin, ::atomicOr, ::atomicSub, ::atomicXor, ::__dp4a,    \
        ::__ldca, ::__ldcg, ::__ldcs, ::__ldg, ::__stcg, ::__stcs, ::__shfl_down_sync,             \
        ::__shfl_sync, ::__shfl_up_sync, ::__shfl_xor_sync;

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
// A macro cannot have the `#ifdef`s that are between.
#define CUDA_HOST_TABLE_BEGIN(NAME)                                                                \
    extern "C" __attribute__((visibility("default"))) const cuda_host_entry NAME[] = {
#define CUDA_HOST_TABLE_END {nullptr, nullptr, nullptr}};
