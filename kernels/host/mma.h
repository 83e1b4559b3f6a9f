// Matrix products of a warp (nvcuda::wmma). Each lane holds some elements of a fragment; a product is
// computed once for the warp when all its lanes are there: f32 sums in order of k, one rounding at the end.
#pragma once
#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace nvcuda {
namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
namespace precision {
struct tf32 {};
}

// How an element lies in memory and in the fragment, and what it is computed in.
template <class T> struct cuda_host_element { using Storage = T; using Sum = float; };
template <> struct cuda_host_element<precision::tf32> { using Storage = float; using Sum = float; };
template <> struct cuda_host_element<signed char> { using Storage = signed char; using Sum = int; };
template <> struct cuda_host_element<unsigned char> { using Storage = unsigned char; using Sum = int; };
template <> struct cuda_host_element<int> { using Storage = int; using Sum = int; };
template <> struct cuda_host_element<double> { using Storage = double; using Sum = double; };

template <class Use, int M, int N, int K> struct cuda_host_shape;
template <int M, int N, int K> struct cuda_host_shape<matrix_a, M, N, K> { enum { ROWS = M, COLS = K }; };
template <int M, int N, int K> struct cuda_host_shape<matrix_b, M, N, K> { enum { ROWS = K, COLS = N }; };
template <int M, int N, int K> struct cuda_host_shape<accumulator, M, N, K> { enum { ROWS = M, COLS = N }; };

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
    using element_type = T;
    using storage_element_type = typename cuda_host_element<T>::Storage;
    enum {
        ROWS = cuda_host_shape<Use, M, N, K>::ROWS,
        COLS = cuda_host_shape<Use, M, N, K>::COLS,
        num_elements = ROWS * COLS / 32,
        num_storage_elements = num_elements,
    };
    storage_element_type x[num_elements];
};

static inline int cuda_host_lane() {
    return (int)((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32);
}

template <class F, class V>
static inline void fill_fragment(F& f, V value) {
    for (auto& x : f.x) x = (typename F::storage_element_type)value;
}

static inline float __float_to_tf32(float x) {  // 10 bits after the point, ties away
    return __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u);
}

// Element i of the lane is element lane * num_elements + i of the matrix, row by row. Inlined, so that a
// finding names the line of the kernel.
#define CUDA_HOST_PLACES(f, BODY)                                                                  \
    for (int i = 0, first = cuda_host_lane() * f.num_elements; i < f.num_elements; i++) {          \
        const size_t row = (size_t)(first + i) / f.COLS, col = (size_t)(first + i) % f.COLS;       \
        BODY;                                                                                      \
    }
#define CUDA_HOST_INLINED static inline __attribute__((always_inline))

template <class Use, int M, int N, int K, class T, class P>
CUDA_HOST_INLINED void load_matrix_sync(fragment<Use, M, N, K, T, row_major>& f, const P* p, unsigned ld) {
    CUDA_HOST_PLACES(f, f.x[i] = p[row * ld + col])
}
template <class Use, int M, int N, int K, class T, class P>
CUDA_HOST_INLINED void load_matrix_sync(fragment<Use, M, N, K, T, col_major>& f, const P* p, unsigned ld) {
    CUDA_HOST_PLACES(f, f.x[i] = p[col * ld + row])
}
template <int M, int N, int K, class T, class P>
CUDA_HOST_INLINED void load_matrix_sync(fragment<accumulator, M, N, K, T>& f, const P* p, unsigned ld,
                                        layout_t layout) {
    CUDA_HOST_PLACES(f, f.x[i] = layout == mem_row_major ? p[row * ld + col] : p[col * ld + row])
}
template <int M, int N, int K, class T, class P>
CUDA_HOST_INLINED void store_matrix_sync(P* p, const fragment<accumulator, M, N, K, T>& f, unsigned ld,
                                         layout_t layout) {
    CUDA_HOST_PLACES(f, (layout == mem_row_major ? p[row * ld + col] : p[col * ld + row]) = f.x[i])
}

template <class D, class A, class B, class C>
struct cuda_host_product {
    D* d;
    const A* a;
    const B* b;
    const C* c;

    template <class F>
    static auto at(const F* const* lanes, int row, int col) {
        const int element = row * F::COLS + col;
        return lanes[element / F::num_elements]->x[element % F::num_elements];
    }

    // All lanes' fragments at once, on the stack of the scheduler.
    static void multiply(void** arguments) {
        using Sum = typename cuda_host_element<typename A::element_type>::Sum;
        D* d[32];
        const A* a[32];
        const B* b[32];
        const C* c[32];
        for (int l = 0; l < 32; l++) {
            const cuda_host_product* lane = (const cuda_host_product*)arguments[l];
            if (!lane) return;
            d[l] = lane->d, a[l] = lane->a, b[l] = lane->b, c[l] = lane->c;
        }
        constexpr int M = A::ROWS, N = B::COLS, K = A::COLS;
        Sum left[M * K], right[K * N], sums[M * N];
        for (int i = 0; i < M * K; i++) left[i] = (Sum)at(a, i / K, i % K);
        for (int i = 0; i < K * N; i++) right[i] = (Sum)at(b, i / N, i % N);
        for (int i = 0; i < M * N; i++) sums[i] = (Sum)at(c, i / N, i % N);
        for (int row = 0; row < M; row++)
            for (int k = 0; k < K; k++)
                for (int col = 0; col < N; col++)
                    sums[row * N + col] += left[row * K + k] * right[k * N + col];
        for (int i = 0; i < M * N; i++)
            d[i / D::num_elements]->x[i % D::num_elements] = (typename D::storage_element_type)sums[i];
    }
};

// D = A B + C. D may be C.
template <int M, int N, int K, class TD, class TA, class LA, class TB, class LB, class TC>
static inline void mma_sync(fragment<accumulator, M, N, K, TD>& d,
                            const fragment<matrix_a, M, N, K, TA, LA>& a,
                            const fragment<matrix_b, M, N, K, TB, LB>& b,
                            const fragment<accumulator, M, N, K, TC>& c, bool = false, CUDA_HOST_HERE) {
    using Product = cuda_host_product<fragment<accumulator, M, N, K, TD>, fragment<matrix_a, M, N, K, TA, LA>,
                                      fragment<matrix_b, M, N, K, TB, LB>, fragment<accumulator, M, N, K, TC>>;
    Product mine = {&d, &a, &b, &c};
    cuda_host_together(0xffffffffu, Product::multiply, &mine, line, file);
}

}  // namespace wmma
}  // namespace nvcuda
using nvcuda::wmma::__float_to_tf32;
