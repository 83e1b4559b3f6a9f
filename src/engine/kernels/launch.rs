//! One launcher per kernel: computes grid, block and shared memory once for every device.
//!
//! `dtype` is the storage type (f32 or f16) and chooses the entry; shapes are those of the kernel's
//! own header in `kernels/`.

use crate::{
    core::tensor::DType,
    engine::device::{Arg, Buffer, Device, DeviceError, Launch},
    model::Config,
};

/// Threads of a block that shares a row or a head.
const ROW_BLOCK: u32 = 128;
/// Most threads of a block that has as many as it has work for.
const LARGE_BLOCK: usize = 512;
/// Threads of a block in which every thread has its own element.
const ELEMENT_BLOCK: u32 = 256;

/// A buffer from a byte offset on.
pub type Slice<'a> = (&'a Buffer, usize);

fn part((buffer, offset): Slice<'_>) -> Arg<'_> {
    Arg::Buffer(buffer, offset)
}

fn whole(buffer: &Buffer) -> Arg<'_> {
    Arg::Buffer(buffer, 0)
}

fn optional(buffer: Option<&Buffer>) -> Arg<'_> {
    buffer.map_or(Arg::Null, whole)
}

fn int(value: usize) -> Arg<'static> {
    Arg::I32(i32::try_from(value).expect("sizes of one step fit 31 bits"))
}

fn entry(name: &str, dtype: DType) -> String {
    format!("{name}_{dtype}")
}

fn by_rows(rows: usize) -> Launch {
    Launch { grid: [rows as u32, 1, 1], block: [ROW_BLOCK, 1, 1], shared_bytes: 0 }
}

/// A block for each row, with a thread for each of its n elements where there are not too many.
fn by_rows_of(rows: usize, n: usize) -> Launch {
    let threads = n.next_multiple_of(32).clamp(ROW_BLOCK as usize, LARGE_BLOCK);
    Launch { block: [threads as u32, 1, 1], ..by_rows(rows) }
}

fn by_elements(n: usize) -> Launch {
    let blocks = n.div_ceil(ELEMENT_BLOCK as usize) as u32;
    Launch { grid: [blocks, 1, 1], block: [ELEMENT_BLOCK, 1, 1], shared_bytes: 0 }
}

/// out (T, E) = table rows of ids (T).
pub fn embedding(
    device: &dyn Device,
    dtype: DType,
    out: &Buffer,
    table: &Buffer,
    ids: Slice<'_>,
    (tokens, n_embd): (usize, usize),
) -> Result<(), DeviceError> {
    let args = [whole(out), whole(table), part(ids), int(n_embd)];
    device.launch(&entry("embedding", dtype), by_rows(tokens), &args)
}

/// out (rows, n) = RMS norm of x (rows, n), which starts `x_offset` bytes into its buffer.
pub fn rms_norm(
    device: &dyn Device,
    dtype: DType,
    out: &Buffer,
    (x, x_offset): (&Buffer, usize),
    weight: &Buffer,
    (rows, n): (usize, usize),
    eps: f32,
) -> Result<(), DeviceError> {
    let args = [whole(out), Arg::Buffer(x, x_offset), whole(weight), int(n), Arg::F32(eps)];
    // One row has the GPU for itself: the more threads, the fewer loads one after another.
    let launch = if rows == 1 { by_rows_of(rows, n) } else { by_rows(rows) };
    device.launch(&entry("rms_norm", dtype), launch, &args)
}

/// What [`rope`] needs beyond its buffers.
pub struct Rope<'a> {
    /// Pairs (i, i + D/2) instead of (2i, 2i + 1).
    pub neox: bool,
    pub theta: f32,
    pub positions: Slice<'a>,
    /// Divisors of the angle per pair (D/2).
    pub factors: Option<&'a Buffer>,
}

/// out (T, H, D) = x (T, H, D) rotated.
pub fn rope(
    device: &dyn Device,
    dtype: DType,
    out: &Buffer,
    x: &Buffer,
    rope: &Rope<'_>,
    (tokens, n_head, head_dim): (usize, usize, usize),
) -> Result<(), DeviceError> {
    let name = if rope.neox { "rope_neox" } else { "rope_norm" };
    let args = [
        whole(out),
        whole(x),
        part(rope.positions),
        optional(rope.factors),
        int(n_head),
        int(head_dim),
        Arg::F32(rope.theta),
    ];
    let launch = by_rows_of(tokens, n_head * head_dim / 2);
    device.launch(&entry(name, dtype), launch, &args)
}

/// One layer's KV cache: [kv_head][position][dim], `capacity` positions a head.
pub struct CacheView<'a> {
    pub k: &'a Buffer,
    pub v: &'a Buffer,
    pub n_head_kv: usize,
    pub head_dim: usize,
    pub capacity: usize,
    /// P, positions in use after this step.
    pub length: usize,
}

/// Writes k and v (T, Hk, D) into the cache at `positions` (T).
pub fn kv_append(
    device: &dyn Device,
    dtype: DType,
    cache: &CacheView<'_>,
    (k, v): (Slice<'_>, Slice<'_>),
    positions: Slice<'_>,
    tokens: usize,
) -> Result<(), DeviceError> {
    let grid = [tokens as u32, cache.n_head_kv as u32, 1];
    let launch = Launch { grid, block: [32, 1, 1], shared_bytes: 0 };
    let args = [
        whole(cache.k),
        whole(cache.v),
        part(k),
        part(v),
        part(positions),
        int(cache.n_head_kv),
        int(cache.head_dim),
        int(cache.capacity),
        int(cache.length),
    ];
    device.launch(&entry("kv_append", dtype), launch, &args)
}

/// What [`attention`] needs beyond the cache.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// (T, Hq, D), after rope.
    pub q: Slice<'a>,
    /// (T, Hq, D).
    pub out: &'a Buffer,
    /// (T): each query's position.
    pub positions: Slice<'a>,
    /// (T, Hq, P) f32, if wanted.
    pub scores: Option<Slice<'a>>,
    /// (T, Hq, P) f32, if wanted.
    pub probs: Option<Slice<'a>>,
    pub n_head: usize,
    pub scale: f32,
    /// Tiles with a running softmax: shared memory does not grow with P.
    pub online: bool,
}

/// out = softmax(scale q.k) v for T queries, each over the keys up to its position.
pub fn attention(
    device: &dyn Device,
    dtype: DType,
    cache: &CacheView<'_>,
    op: &Attention<'_>,
    tokens: usize,
) -> Result<(), DeviceError> {
    let tile = if op.online { ROW_BLOCK as usize } else { cache.length };
    let launch = Launch {
        grid: [op.n_head as u32, tokens as u32, 1],
        block: [ROW_BLOCK, 1, 1],
        shared_bytes: (4 * (2 * cache.head_dim + tile)) as u32,
    };
    let args = [
        whole(op.out),
        part(op.q),
        whole(cache.k),
        whole(cache.v),
        part(op.positions),
        op.scores.map_or(Arg::Null, part),
        op.probs.map_or(Arg::Null, part),
        int(op.n_head),
        int(cache.n_head_kv),
        int(cache.head_dim),
        int(cache.capacity),
        int(cache.length),
        Arg::F32(op.scale),
    ];
    device.launch(&entry("attention", dtype), launch, &args)
}

/// What `attention_tiled.cu` has a block for, and the keys of a tile.
const TILED_BLOCK: u32 = 128;
const TILED_QUERIES: usize = 32;
const TILED_KEYS: usize = 32;

/// The definitions that make `attention_tiled.cu` fit a model.
pub fn tiled_defines(config: &Config) -> Vec<String> {
    vec![format!("HEAD_DIM={}", config.head_dim)]
}

/// [`attention`] for a whole prompt in tiles of queries and keys.
pub fn attention_tiled(
    device: &dyn Device,
    dtype: DType,
    cache: &CacheView<'_>,
    op: &Attention<'_>,
    tokens: usize,
) -> Result<(), DeviceError> {
    let rows = (TILED_QUERIES + 2 * TILED_KEYS) * (cache.head_dim + 4);
    let floats = rows + TILED_QUERIES * (TILED_KEYS + 4);
    let launch = Launch {
        grid: [op.n_head as u32, tokens.div_ceil(TILED_QUERIES) as u32, 1],
        block: [TILED_BLOCK, 1, 1],
        shared_bytes: (4 * floats) as u32,
    };
    let args = [
        whole(op.out),
        part(op.q),
        whole(cache.k),
        whole(cache.v),
        part(op.positions),
        op.scores.map_or(Arg::Null, part),
        op.probs.map_or(Arg::Null, part),
        int(op.n_head),
        int(cache.n_head_kv),
        int(cache.capacity),
        int(tokens),
        int(cache.length),
        Arg::F32(op.scale),
    ];
    device.launch(&entry("attention_tiled", dtype), launch, &args)
}

/// Most parts that the keys of a decode step are split into.
const SPLITS: usize = 128;
/// Threads of a block of `attention_split`, and of `attention_combine`.
const SPLIT_BLOCK: usize = 128;
const COMBINE_BLOCK: usize = 512;
/// Elements of a query, and of its sum, that a lane holds in registers for all heads of its block.
const LANE_ELEMENTS: usize = 64;

/// What the blocks of a split attention leave for its second kernel.
pub struct Splits {
    /// (Hq, splits, D) f32.
    partial: Buffer,
    /// (Hq, splits) f32.
    maxima: Buffer,
    sums: Buffer,
}

impl Splits {
    pub fn new(device: &dyn Device, config: &Config) -> Result<Splits, DeviceError> {
        let n = 4 * config.n_head * SPLITS;
        let alloc = |bytes| device.alloc(bytes, "partial attention");
        let (partial, maxima, sums) = (alloc(n * config.head_dim)?, alloc(n)?, alloc(n)?);
        Ok(Splits { partial, maxima, sums })
    }

    /// Query heads that one block computes: the most that divide the heads of a KV head and fit a
    /// lane's registers. A lane has as many f16 dims of a head as the kernel's `Share` says.
    fn heads(config: &Config) -> usize {
        let group = config.n_head / config.n_head_kv;
        let packs = (config.head_dim * DType::F16.size()).div_ceil(16);
        let lanes = (1 << packs.trailing_zeros()).min(32);
        let most = (LANE_ELEMENTS * lanes / config.head_dim).clamp(1, group);
        (1..=most).rev().find(|&n| group.is_multiple_of(n)).unwrap_or(1)
    }

    /// The definitions that make `attention_split.cu` fit a model.
    pub fn defines(config: &Config) -> Vec<String> {
        vec![format!("HEAD_DIM={}", config.head_dim), format!("HEADS={}", Splits::heads(config))]
    }
}

/// out = softmax(scale q.k) v for one query, its keys split over blocks.
pub fn attention_split(
    device: &dyn Device,
    dtype: DType,
    cache: &CacheView<'_>,
    op: &Attention<'_>,
    splits: &Splits,
    config: &Config,
) -> Result<(), DeviceError> {
    let heads = Splits::heads(config);
    let floats = SPLIT_BLOCK / 32 * heads * (cache.head_dim + 2);
    let block = [SPLIT_BLOCK as u32, 1, 1];
    let grid = [SPLITS as u32, (op.n_head / heads) as u32, 1];
    let args = [
        whole(&splits.partial),
        whole(&splits.maxima),
        whole(&splits.sums),
        part(op.q),
        whole(cache.k),
        whole(cache.v),
        part(op.positions),
        op.scores.map_or(Arg::Null, part),
        int(op.n_head),
        int(cache.n_head_kv),
        int(cache.capacity),
        int(cache.length),
        Arg::F32(op.scale),
    ];
    let launch = Launch { grid, block, shared_bytes: (4 * floats) as u32 };
    device.launch(&entry("attention_split", dtype), launch, &args)?;
    let args = [
        whole(op.out),
        whole(&splits.partial),
        whole(&splits.maxima),
        whole(&splits.sums),
        part(op.positions),
        op.scores.map_or(Arg::Null, part),
        op.probs.map_or(Arg::Null, part),
        int(SPLITS),
        int(cache.length),
    ];
    let block = [COMBINE_BLOCK as u32, 1, 1];
    let launch = Launch { grid: [op.n_head as u32, 1, 1], block, shared_bytes: 0 };
    device.launch(&entry("attention_combine", dtype), launch, &args)
}

/// out (n) = silu(gate) * up.
pub fn swiglu(
    device: &dyn Device,
    dtype: DType,
    out: &Buffer,
    (gate, up): (&Buffer, &Buffer),
    n: usize,
) -> Result<(), DeviceError> {
    let args = [whole(out), whole(gate), whole(up), int(n)];
    device.launch(&entry("swiglu", dtype), by_elements(n), &args)
}

/// out (n) = x + y.
pub fn residual_add(
    device: &dyn Device,
    dtype: DType,
    out: &Buffer,
    (x, y): (&Buffer, &Buffer),
    n: usize,
) -> Result<(), DeviceError> {
    let args = [whole(out), whole(x), whole(y), int(n)];
    device.launch(&entry("residual_add", dtype), by_elements(n), &args)
}
