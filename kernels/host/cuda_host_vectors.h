// CUDA's vector types and dim3.
#pragma once

#define CUDA_HOST_VECTOR(T, NAME, ALIGN_2, ALIGN_4)                                                \
    struct NAME##1 { T x; };                                                                       \
    struct alignas(ALIGN_2) NAME##2 { T x, y; };                                                   \
    struct NAME##3 { T x, y, z; };                                                                 \
    struct alignas(ALIGN_4) NAME##4 { T x, y, z, w; };                                             \
    static constexpr inline NAME##1 make_##NAME##1(T x) { return {x}; }                            \
    static constexpr inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                    \
    static constexpr inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }            \
    static constexpr inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUDA_HOST_VECTOR(float, float, 8, 16)
CUDA_HOST_VECTOR(int, int, 8, 16)
CUDA_HOST_VECTOR(unsigned, uint, 8, 16)
CUDA_HOST_VECTOR(short, short, 4, 8)
CUDA_HOST_VECTOR(unsigned short, ushort, 4, 8)
CUDA_HOST_VECTOR(signed char, char, 2, 4)
CUDA_HOST_VECTOR(unsigned char, uchar, 2, 4)
CUDA_HOST_VECTOR(long, long, 16, 16)
CUDA_HOST_VECTOR(unsigned long, ulong, 16, 16)
CUDA_HOST_VECTOR(long long, longlong, 16, 16)
CUDA_HOST_VECTOR(unsigned long long, ulonglong, 16, 16)
CUDA_HOST_VECTOR(double, double, 16, 16)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return {x, y, z}; }
};
