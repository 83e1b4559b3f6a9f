//! The mutants of the worked examples, whose kernels are called as their contracts say.

use crate::table::{Equivalent, Mistake::*, Mutant};

const DECODE: &str = "examples/kernels/gqa_decode.cu";
const PREFILL: &str = "examples/kernels/gqa_prefill.cu";

pub const MUTANTS: &[Mutant] = &[
    // gqa_decode.cu
    (
        DECODE,
        "q_vec[d] = load(q_row[d]);\n    __syncthreads();\n",
        "q_vec[d] = load(q_row[d]);\n",
        Barrier,
    ),
    (
        DECODE,
        "scores[pos] = score;\n    }\n    __syncthreads();\n",
        "scores[pos] = score;\n    }\n",
        Barrier,
    ),
    (
        DECODE,
        "*max_val = maximum;\n    }\n    __syncthreads();\n",
        "*max_val = maximum;\n    }\n",
        Barrier,
    ),
    (DECODE, "partial[tid] = local;\n    __syncthreads();\n", "partial[tid] = local;\n", Barrier),
    (DECODE, "partial[tid + half];\n        __syncthreads();\n", "partial[tid + half];\n", Barrier),
    (DECODE, "*sum_exp = partial[0];\n    __syncthreads();\n", "*sum_exp = partial[0];\n", Barrier),
    (DECODE, "*max_val = shared + cache_len + 1", "*max_val = shared + cache_len", Index),
    (DECODE, "*sum_exp = max_val + 1", "*sum_exp = max_val + 2", Bound),
    (DECODE, "__shared__ float partial[256];", "__shared__ float partial[128];", Size),
    (DECODE, "    __shared__ float q_vec[MAX_HEAD_DIM];", "    __shared__ float q_vec[8];", Size),
    (DECODE, "keys = cache_len + 1;", "keys = cache_len + 2;", Bound),
    (DECODE, "d += blockDim.x) q_vec", "d += 32) q_vec", Race),
    (
        DECODE,
        "d < head_dim; d += blockDim.x) q_vec",
        "d < head_dim - 1; d += blockDim.x) q_vec",
        Bound,
    ),
    (DECODE, "kv_head = q_head / group;", "kv_head = q_head % num_kv_heads;", Index),
    (DECODE, "kv_head = q_head / group;", "kv_head = q_head;", Index),
    (DECODE, "stride = max_seq_len;", "stride = max_seq_len + 1;", Stride),
    (DECODE, "stride = max_seq_len;", "stride = cache_len + 1;", Stride),
    (
        DECODE,
        "? k_read + (size_t)pos * head_dim : k_row",
        "? k_read + (size_t)pos * (head_dim + 1) : k_row",
        Stride,
    ),
    (DECODE, "pos < cache_len ? k_read", "pos <= cache_len ? k_read", Race),
    (DECODE, "pos < cache_len ? v_read", "pos <= cache_len ? v_read", Race),
    (DECODE, "float score = 0.0f;", "float score;", Initialisation),
    (DECODE, "float local = 0.0f;", "float local;", Initialisation),
    (DECODE, "float sum = 0.0f;", "float sum;", Initialisation),
    (DECODE, "        score *= scale;", "        score /= scale;", Arithmetic),
    (DECODE, "maximum = fmaxf(maximum, scores[pos]);", "maximum = scores[pos + 1];", Index),
    (
        DECODE,
        "        local += scores[pos];\n#ifdef",
        "        local = scores[pos];\n#ifdef",
        Arithmetic,
    ),
    (DECODE, "half = blockDim.x / 2;", "half = blockDim.x / 4;", Bound),
    (DECODE, "half = blockDim.x / 2;", "half = blockDim.x;", Bound),
    (DECODE, "if (tid < half) partial", "partial", Race),
    (DECODE, "    if (tid == 0) *sum_exp", "    *sum_exp", Race),
    (DECODE, "sum += scores[pos] * load(v[d]);", "sum += scores[pos] * load(v[0]);", Index),
    (DECODE, "appends = q_head % group == 0;", "appends = true;", Race),
    (DECODE, "appends = q_head % group == 0;", "appends = q_head == 0;", Index),
    (
        DECODE,
        "k_cache[(size_t)cache_len * head_dim + d]",
        "k_cache[(size_t)(cache_len + 1) * head_dim + d]",
        Index,
    ),
    (
        DECODE,
        "v_cache[(size_t)cache_len * head_dim + d] = v_row[d]",
        "v_cache[(size_t)cache_len * head_dim + d] = k_row[d]",
        Index,
    ),
    // gqa_prefill.cu
    (
        PREFILL,
        "partial[threadIdx.x] = maximum;\n    __syncthreads();\n",
        "partial[threadIdx.x] = maximum;\n",
        Barrier,
    ),
    (
        PREFILL,
        "partial[threadIdx.x + half]);\n        __syncthreads();\n",
        "partial[threadIdx.x + half]);\n",
        Barrier,
    ),
    (PREFILL, "maximum = partial[0];\n    __syncthreads();\n", "maximum = partial[0];\n", Barrier),
    (
        PREFILL,
        "partial[threadIdx.x] = sum;\n    __syncthreads();\n",
        "partial[threadIdx.x] = sum;\n",
        Barrier,
    ),
    (
        PREFILL,
        "+= partial[threadIdx.x + half];\n        __syncthreads();\n",
        "+= partial[threadIdx.x + half];\n",
        Barrier,
    ),
    (PREFILL, "*partial = shared + length;", "*partial = shared + length - 1;", Index),
    (PREFILL, "*partial = shared + length;", "*partial = shared + length + 1;", Bound),
    (PREFILL, "keys = past + token + 1;", "keys = past + token + 2;", Bound),
    (PREFILL, "keys = past + token + 1;", "keys = past + token;", Bound),
    (PREFILL, "kv_head = head / (heads / kv_heads);", "kv_head = head % kv_heads;", Index),
    (PREFILL, "stride = (long long)kv_heads * dim;", "stride = dim;", Stride),
    (
        PREFILL,
        "((long long)token * heads + head) * dim;\n    long",
        "((long long)head * heads + token) * dim;\n    long",
        Index,
    ),
    (
        PREFILL,
        "j < keys; j += blockDim.x) {\n        float score",
        "j <= keys; j += blockDim.x) {\n        float score",
        Bound,
    ),
    (PREFILL, "float score = 0.0f;", "float score;", Initialisation),
    (PREFILL, "float maximum = -1e30f;", "float maximum = 0.0f * -1e30f;", Arithmetic),
    (PREFILL, "float sum = 0.0f;", "float sum;", Initialisation),
    (PREFILL, "        if (threadIdx.x < half) partial", "        partial", Race),
    (PREFILL, "scores[j] = score * scale;", "scores[j] = score * scale * scale;", Arithmetic),
    (
        PREFILL,
        "value += scores[j] * load(v[j * stride + d]);",
        "value += scores[j] * load(v[j * stride + d + 1]);",
        Index,
    ),
    (PREFILL, "value / partial[0]", "value / partial[1]", Index),
    (PREFILL, "int j = 0; j < keys; j++", "int j = 1; j < keys; j++", Bound),
];

pub const EQUIVALENT: &[Equivalent] = &[
    (
        DECODE,
        "keys > 0 ? sum / *sum_exp : 0.0f",
        "sum / *sum_exp",
        "there is always the token's own key",
    ),
    (
        DECODE,
        "q_head % group == 0;",
        "q_head % group == group - 1;",
        "another query head of the group appends the same",
    ),
];
