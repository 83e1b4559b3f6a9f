//! The mutants: a piece of a kernel file that occurs once, and what is put in its place.

/// What kind of mistake a mutant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    Barrier,
    Index,
    Bound,
    Initialisation,
    Mask,
    Stride,
    Race,
    Size,
    Arithmetic,
}

impl Mistake {
    pub fn name(self) -> &'static str {
        match self {
            Mistake::Barrier => "barrier removed",
            Mistake::Index => "wrong index",
            Mistake::Bound => "wrong bound",
            Mistake::Initialisation => "missing initialisation",
            Mistake::Mask => "wrong mask",
            Mistake::Stride => "wrong stride",
            Mistake::Race => "race introduced",
            Mistake::Size => "array too small",
            Mistake::Arithmetic => "wrong arithmetic",
        }
    }
}

use Mistake::*;

/// File, what is replaced, by what, the kind of mistake.
pub type Mutant = (&'static str, &'static str, &'static str, Mistake);

pub const MUTANTS: &[Mutant] = &[
    // common.cuh: run through rms_norm.cu, attention.cu and attention_split.cu.
    (
        "common.cuh",
        "partial[warp] = x;\n    __syncthreads();\n    float sum",
        "partial[warp] = x;\n    float sum",
        Barrier,
    ),
    (
        "common.cuh",
        "partial[warp] = x;\n    __syncthreads();\n    float maximum",
        "partial[warp] = x;\n    float maximum",
        Barrier,
    ),
    (
        "common.cuh",
        "block_sum(float x) {\n    __shared__ float partial[32];",
        "block_sum(float x) {\n    __shared__ float partial[2];",
        Size,
    ),
    (
        "common.cuh",
        "block_max(float x) {\n    __shared__ float partial[32];",
        "block_max(float x) {\n    __shared__ float partial[3];",
        Size,
    ),
    ("common.cuh", "w < warps; w++) sum", "w <= warps; w++) sum", Bound),
    ("common.cuh", "w < warps; w++) maximum", "w <= warps; w++) maximum", Bound),
    (
        "common.cuh",
        "offset = 16; offset > 0; offset >>= 1) x +=",
        "offset = 8; offset > 0; offset >>= 1) x +=",
        Bound,
    ),
    (
        "common.cuh",
        "offset >>= 1) x += __shfl_xor_sync",
        "offset >>= 1) x += __shfl_up_sync",
        Arithmetic,
    ),
    (
        "common.cuh",
        "offset = 16; offset > 0; offset >>= 1)\n        x = fmaxf",
        "offset = 8; offset > 0; offset >>= 1)\n        x = fmaxf",
        Bound,
    ),
    ("common.cuh", "float maximum = partial[0];", "float maximum = partial[warp];", Index),
    (
        "common.cuh",
        "if (threadIdx.x % 32 == 0) partial[warp] = x;\n    __syncthreads();\n    float sum",
        "partial[warp] = x;\n    __syncthreads();\n    float sum",
        Race,
    ),
    ("common.cuh", "FULL_WARP 0xffffffffu", "FULL_WARP 0x0000ffffu", Mask),
    ("common.cuh", "float sum = 0.0f;", "float sum;", Initialisation),
    // embedding.cu
    ("embedding.cu", "c < n_embd;", "c <= n_embd;", Bound),
    ("embedding.cu", "id = ids[row];", "id = ids[row + 1];", Index),
    ("embedding.cu", "table[id * n_embd + c]", "table[id * n_embd + c + 1]", Index),
    ("embedding.cu", "out[row * n_embd + c] = value", "out[c] = value", Stride),
    ("embedding.cu", "c += blockDim.x", "c += warpSize", Race),
    ("embedding.cu", "table[id * n_embd + c]", "table[id * (n_embd + 1) + c]", Stride),
    // rms_norm.cu
    ("rms_norm.cu", "c < n; c += blockDim.x) {", "c <= n; c += blockDim.x) {", Bound),
    ("rms_norm.cu", "c < n; c += blockDim.x)\n", "c <= n; c += blockDim.x)\n", Bound),
    ("rms_norm.cu", "(long long)blockIdx.x * n;", "(long long)blockIdx.x * (n + 1);", Stride),
    ("rms_norm.cu", "block_sum(sum) / n", "block_sum(sum) / blockDim.x", Arithmetic),
    ("rms_norm.cu", "float sum = 0.0f,", "float sum,", Initialisation),
    ("rms_norm.cu", "sum += value * value", "sum = value * value", Arithmetic),
    ("rms_norm.cu", "store(out + first + c,", "store(out + c,", Stride),
    ("rms_norm.cu", "block_sum(sum)", "warp_sum(sum)", Arithmetic),
    // bias_add.cu
    ("bias_add.cu", "bias[c])", "bias[first + c])", Index),
    ("bias_add.cu", "c < n;", "c <= n;", Bound),
    ("bias_add.cu", "int c = threadIdx.x;", "int c = 0;", Race),
    ("bias_add.cu", "(long long)blockIdx.x * n;", "0;", Stride),
    // rope.cu
    ("rope.cu", "i < n_head * half_dim", "i <= n_head * half_dim", Bound),
    ("rope.cu", "positions[blockIdx.x]", "positions[blockIdx.x + 1]", Index),
    (
        "rope.cu",
        "(long long)blockIdx.x * n_head * head_dim",
        "(long long)blockIdx.x * head_dim",
        Stride,
    ),
    ("rope.cu", "NEOX ? half_dim : 1", "NEOX ? head_dim : 1", Stride),
    ("rope.cu", "factors[pair]", "factors[i]", Index),
    ("rope.cu", "a * sine + b * cosine", "a * sine - b * cosine", Arithmetic),
    ("rope.cu", "-2.0f * pair / head_dim", "-2.0f * pair / half_dim", Arithmetic),
    ("rope.cu", "pair = i % half_dim", "pair = i % head_dim", Index),
    // kv_append.cu
    ("kv_append.cu", "        v_cache[to_v + d] = v[from + d];\n", "", Initialisation),
    ("kv_append.cu", "stride = capacity", "stride = length", Stride),
    ("kv_append.cu", "(long long)token * n_head_kv + head)", "(long long)token + head)", Stride),
    ("kv_append.cu", "d < head_dim", "d <= head_dim", Bound),
    ("kv_append.cu", "(head * stride + positions[token])", "(head * stride + positions[0])", Index),
    ("kv_append.cu", "v_position = positions[token]", "v_position = positions[head]", Index),
    // attention.cu
    ("attention.cu", "        __syncthreads();  // the tile before is consumed\n", "", Barrier),
    (
        "attention.cu",
        "head_dim, scale);\n        __syncthreads();\n",
        "head_dim, scale);\n",
        Barrier,
    ),
    ("attention.cu", "*tile = shared + 2 * head_dim", "*tile = shared + head_dim", Stride),
    ("attention.cu", "positions[blockIdx.y] + 1", "positions[blockIdx.y] + 2", Index),
    ("attention.cu", "positions[blockIdx.y] + 1", "positions[blockIdx.y]", Index),
    ("attention.cu", "kv_head = head / (n_head / n_head_kv)", "kv_head = head % n_head_kv", Index),
    (
        "attention.cu",
        "k_cache + (long long)kv_head * capacity",
        "k_cache + (long long)kv_head * n_positions",
        Stride,
    ),
    (
        "attention.cu",
        "j < end; j += blockDim.x / lanes",
        "j <= end; j += blockDim.x / lanes",
        Bound,
    ),
    ("attention.cu", "if (lane == 0) tile[j - first]", "tile[j - first]", Race),
    ("attention.cu", "if (DOT_WARP) dot = warp_sum(dot);", "", Arithmetic),
    ("attention.cu", "d = lane; d < dims", "d = lane; d <= dims", Bound),
    ("attention.cu", "float sum = out[d];", "float sum = 0.0f;", Arithmetic),
    ("attention.cu", "        out_shared[d] = 0.0f;\n", "", Initialisation),
    (
        "attention.cu",
        "for (int d = threadIdx.x; d < head_dim; d += blockDim.x) out[d] *= correction;",
        "",
        Arithmetic,
    ),
    ("attention.cu", "tile_sum = 0.0f;", "tile_sum;", Initialisation),
    (
        "attention.cu",
        "SOFTMAX_ONLINE ? blockDim.x : end",
        "SOFTMAX_ONLINE ? blockDim.x + 1 : end",
        Size,
    ),
    (
        "attention.cu",
        "j < end; j += blockDim.x) tap[j]",
        "j <= end; j += blockDim.x) tap[j]",
        Bound,
    ),
    ("attention.cu", "scores_tap += row * n_positions", "scores_tap += row * end", Stride),
    (
        "attention.cu",
        "(long long)blockIdx.y * n_head + head",
        "(long long)blockIdx.y + head",
        Stride,
    ),
    (
        "attention.cu",
        "expf(probs_tap[j] - maximum) / sum",
        "expf(probs_tap[j] - maximum)",
        Arithmetic,
    ),
    ("attention.cu", "out_shared[d] / sum", "out_shared[d]", Arithmetic),
    (
        "attention.cu",
        "d < head_dim; d += blockDim.x)\n        store",
        "d <= head_dim; d += blockDim.x)\n        store",
        Bound,
    ),
    ("attention.cu", "if (scores_tap && j >= end) scores_tap[j] = 0.0f;", "", Initialisation),
    ("attention.cu", "k + (long long)j * head_dim", "k + (long long)(j + 1) * head_dim", Index),
    ("attention.cu", "v[(long long)j * head_dim + d]", "v[(long long)d * head_dim + j]", Stride),
    // attention_split.cu
    (
        "attention_split.cu",
        "    __syncthreads();\n    if (scores_tap) {",
        "    if (scores_tap) {",
        Barrier,
    ),
    (
        "attention_split.cu",
        "        __syncthreads();\n    }\n    long long at",
        "    }\n    long long at",
        Barrier,
    ),
    (
        "attention_split.cu",
        "n, chunk, splits);\n    __syncthreads();\n",
        "n, chunk, splits);\n",
        Barrier,
    ),
    (
        "attention_split.cu",
        "    __syncthreads();  // the terms are consumed",
        "    // the terms are consumed",
        Barrier,
    ),
    (
        "attention_split.cu",
        "    __syncthreads();\n    for (int i = threadIdx.x; i < HEADS * HEAD_DIM",
        "    for (int i = threadIdx.x; i < HEADS * HEAD_DIM",
        Barrier,
    ),
    (
        "attention_split.cu",
        "slices[threadIdx.x] = x;\n        __syncthreads();",
        "slices[threadIdx.x] = x;",
        Barrier,
    ),
    ("attention_split.cu", "if (lane == 0 && j < n) score", "if (j < n) score", Race),
    ("attention_split.cu", "min(j, n - 1)", "j", Bound),
    ("attention_split.cu", "j = slot; j < n;", "j = slot; j <= n;", Bound),
    ("attention_split.cu", "offset >= S::LANES", "offset > S::LANES", Bound),
    ("attention_split.cu", "float slices[SPLIT_BLOCK]", "float slices[SPLIT_BLOCK / 2]", Size),
    ("attention_split.cu", "used = (end + chunk - 1) / chunk", "used = end / chunk + 1", Bound),
    ("attention_split.cu", "sums[s] * expf(maxima[s] - maximum)", "sums[s]", Arithmetic),
    ("attention_split.cu", "            sums[h * splits] = sum;\n", "", Initialisation),
    (
        "attention_split.cu",
        "if (lane == 0) {\n            maxima",
        "if (lane <= 1) {\n            maxima",
        Race,
    ),
    ("attention_split.cu", "(long long)head * splits + split;", "(long long)head + split;", Stride),
    ("attention_split.cu", "rounds = (n + slots - 1) / slots", "rounds = n / slots", Bound),
    ("attention_split.cu", "head = blockIdx.y * HEADS", "head = blockIdx.y", Index),
    (
        "attention_split.cu",
        "float sum[HEADS][S::DIMS] = {};",
        "float sum[HEADS][S::DIMS];",
        Initialisation,
    ),
    // swiglu.cu
    ("swiglu.cu", "if (i >= n) return;", "if (i > n) return;", Bound),
    ("swiglu.cu", "1.0f + expf(-x)", "1.0f + expf(x)", Arithmetic),
    (
        "swiglu.cu",
        "(long long)blockIdx.x * blockDim.x",
        "(long long)blockIdx.x * blockDim.x / 2",
        Stride,
    ),
    // residual_add.cu
    ("residual_add.cu", "if (i < n)", "if (i <= n)", Bound),
    ("residual_add.cu", "store(out + i,", "store(out + i + 1,", Index),
    ("residual_add.cu", "to_float(x[i])", "to_float(x[i + 1])", Index),
];

/// File, what is replaced, by what, and why it changes nothing. Nothing may be reported for them.
pub type Equivalent = (&'static str, &'static str, &'static str, &'static str);

pub const EQUIVALENT: &[Equivalent] = &[
    (
        "common.cuh",
        "    __syncthreads();  // the readers of an earlier call are done with `partial`\n",
        "",
        "between two calls of block_sum every kernel has another barrier",
    ),
    (
        "common.cuh",
        "x = warp_max(x);\n    __syncthreads();\n",
        "x = warp_max(x);\n",
        "between two calls of block_max every kernel has another barrier",
    ),
    (
        "rope.cu",
        "head = i / half_dim, pair = i % half_dim",
        "head = i % n_head, pair = i / n_head",
        "the same pairs, given to other threads",
    ),
    (
        "attention_split.cu",
        "    if (n <= 0) return;\n",
        "",
        "a chunk without keys is computed, and combined by nobody",
    ),
    (
        "attention_split.cu",
        "        __syncthreads();\n    }\n    if (!probs_tap) return;",
        "    }\n    if (!probs_tap) return;",
        "heads of at most 128 dims go round that loop once",
    ),
];
