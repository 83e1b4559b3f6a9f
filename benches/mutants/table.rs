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
    // common.cuh: run through the kernels that reduce over a warp or a block.
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
    // cuda/gemv.cu
    ("cuda/gemv.cu", "sums[warp] = sum;\n        __syncthreads();", "sums[warp] = sum;", Barrier),
    ("cuda/gemv.cu", "    if (inside) {\n", "    {\n", Bound),
    ("cuda/gemv.cu", "c >= n0 + n1", "c > n0 + n1", Bound),
    ("cuda/gemv.cu", "c -= n0 + n1", "c -= n0", Index),
    ("cuda/gemv.cu", "i < n / width", "i <= n / width", Bound),
    ("cuda/gemv.cu", "i += 32 * WARPS", "i += 32", Stride),
    ("cuda/gemv.cu", "i = warp % WARPS * 32 + lane", "i = lane", Index),
    ("cuda/gemv.cu", "float sums[GEMV_BLOCK / 32]", "float sums[2]", Size),
    ("cuda/gemv.cu", "inside && lane == 0 && warp % WARPS == 0", "inside && lane == 0", Race),
    (
        "cuda/gemv.cu",
        "inside && lane == 0 && warp % WARPS == 0",
        "inside && warp % WARPS == 0",
        Race,
    ),
    ("cuda/gemv.cu", "    sum = warp_sum(sum);\n", "", Arithmetic),
    ("cuda/gemv.cu", "bias ? sum + bias[c] : sum", "sum + bias[c]", Bound),
    (
        "cuda/gemv.cu",
        "blockIdx.x * (GEMV_BLOCK / 32 / WARPS)",
        "blockIdx.x * (GEMV_BLOCK / 32)",
        Stride,
    ),
    ("cuda/gemv.cu", "w + (long long)c * n", "w + (long long)c * (n + 1)", Stride),
    ("cuda/gemv.cu", "float sum = 0.0f;", "float sum;", Initialisation),
    ("cuda/gemv.cu", "+ bias[c]);\n}", "+ bias[first + c]);\n}", Index),
    ("cuda/gemv.cu", "c < n; c += blockDim.x", "c <= n; c += blockDim.x", Bound),
    // cuda/widen.cu
    ("cuda/widen.cu", "if (first + width <= n)", "if (first < n)", Bound),
    ("cuda/widen.cu", "i < n; i++) out[i]", "i <= n; i++) out[i]", Bound),
    ("cuda/widen.cu", "blockDim.x + threadIdx.x) * width", "blockDim.x + threadIdx.x)", Stride),
    ("cuda/widen.cu", "    } else {\n", "    } else if (false) {\n", Bound),
    ("cuda/gemv.cu", "int c = threadIdx.x;", "int c = 0;", Race),
    ("cuda/gemv.cu", "(long long)blockIdx.x * n;", "0;", Stride),
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
        "    if (first >= last) return;\n",
        "",
        "a chunk without keys is computed, and combined by nobody",
    ),
    (
        "attention_split.cu",
        "even > LEAST_CHUNK ? even : LEAST_CHUNK",
        "even",
        "smaller chunks, the same for both kernels",
    ),
    ("attention_split.cu", "SLACK 8.0f", "SLACK 1.0f", "references that are raised more often"),
    (
        "attention_split.cu",
        "if (next < last) load<T>(values",
        "load<T>(values",
        "the last row once more, for nobody",
    ),
    (
        "attention_split.cu",
        "if (share < shares)",
        "if (share <= shares)",
        "sums of a share that nobody reads",
    ),
    (
        "attention_split.cu",
        "j < end ? exp2f(scores[row + j] * LOG2_E - maximum) / sum : 0.0f",
        "exp2f(scores[row + j] * LOG2_E - maximum) / sum",
        "the query's position is the last of the cache",
    ),
    (
        "attention_tiled.cu",
        "n = min(KEYS, end - tile)",
        "n = min(KEYS, n_positions - tile)",
        "the last query's position is the last of the cache",
    ),
    (
        "cuda/gemv.cu",
        "sums[warp / WARPS * WARPS + other]",
        "sums[other]",
        "where warps share an output it is the block's only one",
    ),
];
