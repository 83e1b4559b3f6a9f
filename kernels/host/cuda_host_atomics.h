// Atomics. Other copies of the library may run blocks of the same grid.
#pragma once

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

// Those of a block and of the whole system do the same here.
#define CUDA_HOST_ATOMIC_SCOPES(T, NAME)                                                           \
    static CUDA_HOST_ATOMIC T NAME##_block(T* p, T v) { return NAME(p, v); }                       \
    static CUDA_HOST_ATOMIC T NAME##_system(T* p, T v) { return NAME(p, v); }
// The value is converted first: what is captured is of the element's type.
#define CUDA_HOST_ATOMIC_OF(T, NAME, NEW)                                                          \
    static CUDA_HOST_ATOMIC T NAME(T* p, T v) {                                                    \
        return cuda_host_atomic(p, [v](T old) { return (T)(NEW); });                               \
    }                                                                                              \
    CUDA_HOST_ATOMIC_SCOPES(T, NAME)
#define CUDA_HOST_ATOMICS(T)                                                                       \
    CUDA_HOST_ATOMIC_OF(T, atomicAdd, old + v)                                                     \
    static CUDA_HOST_ATOMIC T atomicExch(T* p, T v) {                                              \
        return cuda_host_atomic(p, [v](T) { return v; }, false);                                   \
    }
#define CUDA_HOST_ATOMIC_CAS(T)                                                                    \
    static CUDA_HOST_ATOMIC T atomicCAS(T* p, T expected, T v) {                                   \
        return cuda_host_atomic(p, [=](T old) { return old == expected ? v : old; });              \
    }
#define CUDA_HOST_INTEGER_ATOMICS(T)                                                               \
    CUDA_HOST_ATOMIC_CAS(T)                                                                        \
    CUDA_HOST_ATOMIC_OF(T, atomicSub, old - v)                                                     \
    CUDA_HOST_ATOMIC_OF(T, atomicMax, old > v ? old : v)                                           \
    CUDA_HOST_ATOMIC_OF(T, atomicMin, old < v ? old : v)                                           \
    CUDA_HOST_ATOMIC_OF(T, atomicAnd, old & v)                                                     \
    CUDA_HOST_ATOMIC_OF(T, atomicOr, old | v)                                                      \
    CUDA_HOST_ATOMIC_OF(T, atomicXor, old ^ v)
CUDA_HOST_ATOMICS(float)
CUDA_HOST_ATOMICS(double)
CUDA_HOST_ATOMICS(int)
CUDA_HOST_ATOMICS(unsigned)
CUDA_HOST_ATOMICS(unsigned long long)
CUDA_HOST_INTEGER_ATOMICS(int)
CUDA_HOST_INTEGER_ATOMICS(unsigned)
CUDA_HOST_INTEGER_ATOMICS(unsigned long long)
CUDA_HOST_ATOMIC_CAS(unsigned short)
// CUDA has these two of the signed type alone.
CUDA_HOST_ATOMIC_OF(long long, atomicMax, old > v ? old : v)
CUDA_HOST_ATOMIC_OF(long long, atomicMin, old < v ? old : v)
static CUDA_HOST_ATOMIC unsigned atomicInc(unsigned* p, unsigned most) {
    return cuda_host_atomic(p, [most](unsigned old) { return old >= most ? 0 : old + 1; });
}
static CUDA_HOST_ATOMIC unsigned atomicDec(unsigned* p, unsigned most) {
    return cuda_host_atomic(p, [most](unsigned old) {
        return old == 0 || old > most ? most : old - 1;
    });
}
