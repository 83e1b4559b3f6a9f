// Token embedding: out[t][c] = table[ids[t]][c].
//
// grid (T), block (any); no shared memory: a block copies one row.
// out    (T, E) T
// table  (V, E) T
// ids    (T) int in [0, V)
// n_embd E
// No arithmetic. Entries: embedding_f32, embedding_f16.
#include "common.cuh"

template <typename T>
__device__ void embedding_row(T* out, const T* table, const int* ids, int n_embd) {
    long long row = blockIdx.x, id = ids[row];
#ifdef FAULT_EMBD_PREVIOUS_ROW
    id = id > 0 ? id - 1 : 0;
#endif
    for (int c = threadIdx.x; c < n_embd; c += blockDim.x) {
        T value = table[id * n_embd + c];
#ifdef FAULT_EMBD_SCALED
        store(&value, to_float(value) * sqrtf(n_embd));
#endif
        out[row * n_embd + c] = value;
    }
}

extern "C" __global__ void embedding_f32(float* out, const float* table, const int* ids,
                                         int n_embd) {
    embedding_row<float>(out, table, ids, n_embd);
}

extern "C" __global__ void embedding_f16(__half* out, const __half* table, const int* ids,
                                         int n_embd) {
    embedding_row<__half>(out, table, ids, n_embd);
}
