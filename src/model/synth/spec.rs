//! What a model to be made up is like, and which ones llama.cpp and the engine can run.

use llama_cpp_sys_2 as sys;

use crate::model::{MAX_LAYERS, synth::SynthError};

/// The architecture of a model to be made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    Llama,
    Qwen2,
    Qwen3,
}

impl Arch {
    /// The name in `general.architecture`, which also prefixes the other keys.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Llama => "llama",
            Arch::Qwen2 => "qwen2",
            Arch::Qwen3 => "qwen3",
        }
    }
}

/// How weight matrices are stored. Vectors (norms, biases) are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightType {
    F32,
    F16,
    Q8_0,
    Q4K,
}

impl WeightType {
    /// Every type, the widest first.
    pub const ALL: [WeightType; 4] =
        [WeightType::F32, WeightType::F16, WeightType::Q8_0, WeightType::Q4K];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            WeightType::F32 => "f32",
            WeightType::F16 => "f16",
            WeightType::Q8_0 => "q8_0",
            WeightType::Q4K => "q4_k",
        }
    }

    /// The type of that name: f32, f16, q8_0 or q4_k.
    pub fn from_name(name: &str) -> Option<WeightType> {
        WeightType::ALL.into_iter().find(|weight_type| weight_type.name() == name)
    }

    pub(super) fn ggml(self) -> sys::ggml_type {
        match self {
            WeightType::F32 => sys::GGML_TYPE_F32,
            WeightType::F16 => sys::GGML_TYPE_F16,
            WeightType::Q8_0 => sys::GGML_TYPE_Q8_0,
            WeightType::Q4K => sys::GGML_TYPE_Q4_K,
        }
    }

    /// `general.file_type`: llama.cpp's number for a file of mostly this type.
    pub(super) fn file_type(self) -> u32 {
        match self {
            WeightType::F32 => 0,
            WeightType::F16 => 1,
            WeightType::Q8_0 => 7,
            WeightType::Q4K => 14,
        }
    }

    /// Elements that are packed together: row lengths must be a multiple of it.
    pub(super) fn block(self) -> usize {
        match self {
            WeightType::F32 | WeightType::F16 => 1,
            WeightType::Q8_0 => 32,
            WeightType::Q4K => 256,
        }
    }
}

/// A model to be made up.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    pub arch: Arch,
    /// At most [`MAX_LAYERS`].
    pub n_layer: usize,
    /// E; no size is above [`MAX_SIZE`].
    pub n_embd: usize,
    /// Hq.
    pub n_head: usize,
    /// Hk; divides Hq.
    pub n_head_kv: usize,
    /// D; even.
    pub head_dim: usize,
    /// F.
    pub n_ff: usize,
    /// V; at least [`MIN_VOCAB`]: the 256 bytes and the special tokens.
    pub n_vocab: usize,
    pub rope_theta: f32,
    pub rms_eps: f32,
    /// The output projection is the embedding.
    pub tied_output: bool,
    pub qkv_bias: bool,
    /// The mean of the biases of queries, and of those of keys with the other sign: with a large one every
    /// score is far below 0.
    pub score_bias: f32,
    /// Llama-3 frequency scaling: `rope_freqs.weight`. For llama only.
    pub rope_freqs: bool,
    pub weight_type: WeightType,
    pub seed: u64,
}

/// The smallest vocabulary: one token a byte, and two special ones.
pub const MIN_VOCAB: usize = 258;

/// The largest vocabulary and row. It bounds the writer's memory, and keeps the size of the largest
/// file within 64 bits.
pub const MAX_SIZE: usize = 1 << 20;

impl Spec {
    /// Elements of all query heads together: the row length of the output projection.
    pub(super) fn q_width(&self) -> usize {
        self.n_head.saturating_mul(self.head_dim)
    }

    /// Refuses what llama.cpp or the engine cannot run, naming what does not fit.
    pub(super) fn check(&self) -> Result<(), SynthError> {
        self.check_ranges()?;
        if !self.head_dim.is_multiple_of(2) {
            return Err(SynthError::OddHead(self.head_dim));
        }
        let (n_head, n_head_kv) = (self.n_head, self.n_head_kv);
        if !n_head.is_multiple_of(n_head_kv) {
            return Err(SynthError::HeadRatio { n_head, n_head_kv });
        }
        let (q_width, n_embd) = (self.q_width(), self.n_embd);
        if self.arch == Arch::Qwen2 && q_width != n_embd {
            return Err(SynthError::Qwen2Width { q_width, n_embd });
        }
        if self.rope_freqs && self.arch != Arch::Llama {
            return Err(SynthError::RopeFreqs(self.arch.name()));
        }
        self.check_blocks()
    }

    fn check_ranges(&self) -> Result<(), SynthError> {
        let ranges = [
            ("number of layers", self.n_layer, 1, MAX_LAYERS),
            ("hidden size", self.n_embd, 1, MAX_SIZE),
            ("number of query heads", self.n_head, 1, MAX_SIZE),
            ("number of KV heads", self.n_head_kv, 1, MAX_SIZE),
            ("head size", self.head_dim, 1, MAX_SIZE),
            ("query heads x head size", self.q_width(), 1, MAX_SIZE),
            ("feed-forward size", self.n_ff, 1, MAX_SIZE),
            ("vocabulary size", self.n_vocab, MIN_VOCAB, MAX_SIZE),
        ];
        for (what, value, min, max) in ranges {
            if !(min..=max).contains(&value) {
                return Err(SynthError::Size { what, value, min, max });
            }
        }
        for (what, value) in [("rope theta", self.rope_theta), ("RMS epsilon", self.rms_eps)] {
            if !value.is_finite() || value <= 0.0 {
                return Err(SynthError::Number { what, value });
            }
        }
        Ok(())
    }

    /// Every row length against the type's block; a narrower type is the user's to choose.
    fn check_blocks(&self) -> Result<(), SynthError> {
        let (block, weight_type) = (self.weight_type.block(), self.weight_type.name());
        let rows = [
            ("hidden size", self.n_embd),
            ("query heads x head size", self.q_width()),
            ("feed-forward size", self.n_ff),
        ];
        match rows.into_iter().find(|(_, row)| !row.is_multiple_of(block)) {
            Some((what, row)) => Err(SynthError::Block { what, row, block, weight_type }),
            None => Ok(()),
        }
    }
}
