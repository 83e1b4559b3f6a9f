//! Random models of any shape, so that every shape can be tested without a download.

use std::{f64::consts::TAU, io::Write, path::Path};

use llama_cpp_sys_2 as sys;
use rayon::prelude::*;

use crate::{
    gguf::{Header, TensorInfo, WriteError},
    llama,
    model::Arch,
};

/// How weight matrices are stored. Vectors (norms, biases) are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    F32,
    F16,
    Q8_0,
    Q4K,
}

impl WeightType {
    /// The type of that name: f32, f16, q8_0 or q4_k.
    pub fn from_name(name: &str) -> Option<WeightType> {
        match name {
            "f32" => Some(WeightType::F32),
            "f16" => Some(WeightType::F16),
            "q8_0" => Some(WeightType::Q8_0),
            "q4_k" => Some(WeightType::Q4K),
            _ => None,
        }
    }

    fn ggml(self) -> sys::ggml_type {
        match self {
            WeightType::F32 => sys::GGML_TYPE_F32,
            WeightType::F16 => sys::GGML_TYPE_F16,
            WeightType::Q8_0 => sys::GGML_TYPE_Q8_0,
            WeightType::Q4K => sys::GGML_TYPE_Q4_K,
        }
    }

    /// Row lengths must be a multiple of this.
    fn block(self) -> usize {
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
    pub n_layer: usize,
    pub n_embd: usize,
    pub n_head: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
    pub n_ff: usize,
    /// At least [`MIN_VOCAB`]: the 256 bytes and the special tokens.
    pub n_vocab: usize,
    pub rope_theta: f32,
    pub rms_eps: f32,
    /// The output projection is the embedding.
    pub tied_output: bool,
    pub qkv_bias: bool,
    /// Llama-3 frequency scaling: `rope_freqs.weight`.
    pub rope_freqs: bool,
    pub weight_type: WeightType,
    pub seed: u64,
}

/// The smallest vocabulary: one token a byte, and two special ones.
pub const MIN_VOCAB: usize = 258;

/// A model that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    #[error("no shape {0}; there are {known}", known = PRESETS.join(", "))]
    Preset(String),
    #[error("{0}")]
    Shape(String),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// The names that [`Spec::preset`] knows.
pub const PRESETS: [&str; 4] = ["tiny-llama", "tiny-qwen2", "tiny-qwen3", "qwen2.5-0.5b"];

impl Spec {
    /// A shape by name: a few hundred kB for the tiny ones; Qwen2.5-0.5B's own sizes for the last.
    pub fn preset(name: &str) -> Result<Spec, SynthError> {
        let tiny = Spec {
            arch: Arch::Qwen2,
            n_layer: 3,
            n_embd: 96,
            n_head: 6,
            n_head_kv: 2,
            head_dim: 16,
            n_ff: 160,
            n_vocab: 320,
            rope_theta: 1e6,
            rms_eps: 1e-6,
            tied_output: false,
            qkv_bias: true,
            rope_freqs: false,
            weight_type: WeightType::F32,
            seed: 1,
        };
        Ok(match name {
            "tiny-qwen2" => tiny,
            "tiny-qwen3" => {
                Spec { arch: Arch::Qwen3, head_dim: 32, qkv_bias: false, tied_output: true, ..tiny }
            }
            "tiny-llama" => Spec {
                arch: Arch::Llama,
                qkv_bias: false,
                rope_theta: 5e5,
                rms_eps: 1e-5,
                rope_freqs: true,
                ..tiny
            },
            "qwen2.5-0.5b" => Spec {
                n_layer: 24,
                n_embd: 896,
                n_head: 14,
                n_head_kv: 2,
                head_dim: 64,
                n_ff: 4864,
                n_vocab: 151_936,
                tied_output: true,
                weight_type: WeightType::F16,
                ..tiny
            },
            _ => return Err(SynthError::Preset(name.to_string())),
        })
    }

    /// Refuses sizes that llama.cpp or the engine cannot run.
    fn check(&self) -> Result<(), SynthError> {
        let refuse = |why: String| Err(SynthError::Shape(why));
        let sizes = [
            ("layers", self.n_layer),
            ("hidden size", self.n_embd),
            ("query heads", self.n_head),
            ("KV heads", self.n_head_kv),
            ("feed-forward size", self.n_ff),
            ("head size", self.head_dim),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0 || *size > 1 << 20) {
            return refuse(format!("{name} must be 1 to {}; choose another", 1 << 20));
        }
        if !self.head_dim.is_multiple_of(2) {
            return refuse(format!("head size {} is odd; rope needs pairs", self.head_dim));
        }
        if !self.n_head.is_multiple_of(self.n_head_kv) {
            let (q, kv) = (self.n_head, self.n_head_kv);
            return refuse(format!(
                "{kv} KV heads do not divide {q} query heads; choose a divisor"
            ));
        }
        let q_width = self.n_head * self.head_dim;
        if self.arch == Arch::Qwen2 && q_width != self.n_embd {
            let e = self.n_embd;
            return refuse(format!(
                "a qwen2 model needs heads x head size = hidden size in llama.cpp, but {q_width} \
                 is not {e}; change one, or use --shape tiny-qwen3"
            ));
        }
        if self.n_vocab < MIN_VOCAB || self.n_vocab > 1 << 24 {
            return refuse(format!("vocabulary must be {MIN_VOCAB} to {}", 1 << 24));
        }
        let block = self.weight_type.block();
        for (name, row) in [("hidden size", self.n_embd), ("feed-forward size", self.n_ff)]
            .into_iter()
            .chain([("heads x head size", q_width)])
        {
            if !row.is_multiple_of(block) {
                return refuse(format!(
                    "{name} {row} is no multiple of {block}, the block of this weight type; choose \
                     one that is, or --type f16"
                ));
            }
        }
        Ok(())
    }

    /// Every tensor: name, dims in ggml's order, and how its values are drawn.
    fn tensors(&self) -> Vec<(String, Vec<u64>, Draw)> {
        let (e, f, v) = (self.n_embd as u64, self.n_ff as u64, self.n_vocab as u64);
        let (d, hq, hk) = (self.head_dim as u64, self.n_head as u64, self.n_head_kv as u64);
        let projection = |inputs: u64, gain: f64| Draw::Normal(gain / (inputs as f64).sqrt());
        let norm = Draw::Around(1.0, 0.1);
        let mut list = vec![
            ("token_embd.weight".to_string(), vec![e, v], Draw::Normal(1.0)),
            ("output_norm.weight".to_string(), vec![e], norm),
        ];
        if !self.tied_output {
            list.push(("output.weight".to_string(), vec![e, v], projection(e, 3.0)));
        }
        if self.rope_freqs {
            list.push(("rope_freqs.weight".to_string(), vec![d / 2], Draw::RopeFactor));
        }
        for layer in 0..self.n_layer {
            let mut add = |part: &str, dims: Vec<u64>, draw: Draw| {
                list.push((format!("blk.{layer}.{part}"), dims, draw));
            };
            add("attn_norm.weight", vec![e], norm);
            for (part, outputs, bias) in
                [("q", hq * d, 0.7), ("k", hk * d, 0.7), ("v", hk * d, 0.3)]
            {
                add(&format!("attn_{part}.weight"), vec![e, outputs], projection(e, 1.0));
                if self.qkv_bias {
                    add(&format!("attn_{part}.bias"), vec![outputs], Draw::Normal(bias));
                }
            }
            if self.arch == Arch::Qwen3 {
                add("attn_q_norm.weight", vec![d], norm);
                add("attn_k_norm.weight", vec![d], norm);
            }
            add("attn_output.weight", vec![hq * d, e], projection(hq * d, 1.0));
            add("ffn_norm.weight", vec![e], norm);
            add("ffn_gate.weight", vec![e, f], projection(e, 1.5));
            add("ffn_up.weight", vec![e, f], projection(e, 1.0));
            add("ffn_down.weight", vec![f, e], projection(f, 1.0));
        }
        list
    }

    fn keys(&self, header: &mut Header) {
        let arch = self.arch.name();
        header.set_string("general.architecture", arch);
        header.set_string("general.name", &format!("firstdiff synth, seed {}", self.seed));
        let sizes = [
            ("context_length", 32_768),
            ("embedding_length", self.n_embd),
            ("block_count", self.n_layer),
            ("feed_forward_length", self.n_ff),
            ("attention.head_count", self.n_head),
            ("attention.head_count_kv", self.n_head_kv),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("rope.dimension_count", self.head_dim),
            ("vocab_size", self.n_vocab),
        ];
        for (key, size) in sizes {
            header.set_u32(&format!("{arch}.{key}"), size as u32);
        }
        header.set_f32(&format!("{arch}.rope.freq_base"), self.rope_theta);
        header.set_f32(&format!("{arch}.attention.layer_norm_rms_epsilon"), self.rms_eps);
        self.tokenizer(header);
    }

    /// A byte-level BPE tokenizer without merges: one token a byte, fillers that never match.
    fn tokenizer(&self, header: &mut Header) {
        const NORMAL: i32 = 1;
        const CONTROL: i32 = 3;
        let mut tokens: Vec<String> = (0..=255u8).map(|byte| byte_character(byte).into()).collect();
        let mut types = vec![NORMAL; tokens.len()];
        for special in ["<|endoftext|>", "<|im_end|>"] {
            tokens.push(special.to_string());
            types.push(CONTROL);
        }
        for filler in tokens.len()..self.n_vocab {
            tokens.push(format!("<filler {filler}>"));
            types.push(NORMAL);
        }
        header.set_string("tokenizer.ggml.model", "gpt2");
        let pre = if self.arch == Arch::Llama { "llama-bpe" } else { "qwen2" };
        header.set_string("tokenizer.ggml.pre", pre);
        header.set_strings("tokenizer.ggml.tokens", &tokens);
        header.set_i32s("tokenizer.ggml.token_type", &types);
        header.set_strings("tokenizer.ggml.merges", &[]);
        header.set_u32("tokenizer.ggml.bos_token_id", 256);
        header.set_u32("tokenizer.ggml.eos_token_id", 257);
        header.set_bool("tokenizer.ggml.add_bos_token", false);
    }
}

/// Rows made at a time: the generator's memory.
const CHUNK_ELEMENTS: usize = 1 << 20;

/// Writes the model, whole or not at all. `progress` hears the bytes of each tensor written.
pub fn write(spec: &Spec, path: &Path, progress: &mut dyn FnMut(u64)) -> Result<(), SynthError> {
    spec.check()?;
    llama::backend();
    let mut header = Header::default();
    spec.keys(&mut header);
    let tensors = spec.tensors();
    for (name, dims, _) in &tensors {
        let is_matrix = dims.len() > 1;
        let ggml_type = if is_matrix { spec.weight_type.ggml() } else { sys::GGML_TYPE_F32 };
        header.add_tensor(name, dims, ggml_type);
    }
    let mut draws = tensors.iter();
    header.write(path, |info, out| {
        let (name, _, draw) = draws.next().expect("the header lists the same tensors");
        debug_assert_eq!(*name, info.name);
        write_tensor(info, Values::new(spec.seed, name, *draw), out)?;
        progress(info.bytes as u64);
        Ok(())
    })?;
    Ok(())
}

/// Bytes of the file that [`write`] makes, for a progress bar.
pub fn data_bytes(spec: &Spec) -> u64 {
    let of_type = |elements: u64, matrix: bool| match (matrix, spec.weight_type) {
        (false, _) | (true, WeightType::F32) => 4 * elements,
        (true, WeightType::F16) => 2 * elements,
        (true, WeightType::Q8_0) => elements / 32 * 34,
        (true, WeightType::Q4K) => elements / 256 * 144,
    };
    let bytes = |dims: &Vec<u64>| of_type(dims.iter().product(), dims.len() > 1);
    spec.tensors().iter().map(|(_, dims, _)| bytes(dims)).sum()
}

fn write_tensor(info: &TensorInfo, values: Values, out: &mut dyn Write) -> std::io::Result<()> {
    let (rows, row_length) = (info.rows(), info.row_length());
    let step = (CHUNK_ELEMENTS / row_length).max(1);
    for first in (0..rows).step_by(step) {
        let n = step.min(rows - first);
        let mut chunk = vec![0f32; n * row_length];
        let start = (first * row_length) as u64;
        chunk.par_iter_mut().enumerate().for_each(|(i, to)| *to = values.at(start + i as u64));
        if info.ggml_type == sys::GGML_TYPE_F32 {
            out.write_all(bytemuck::cast_slice(&chunk))?;
            continue;
        }
        let mut packed = vec![0u8; info.bytes / rows * n];
        let (from, to) = (chunk.as_ptr(), packed.as_mut_ptr().cast());
        let (n, row_length) = (n as i64, row_length as i64);
        // SAFETY: `chunk` holds n rows, `packed` their packed bytes; no importance matrix is used.
        unsafe {
            sys::ggml_quantize_chunk(info.ggml_type, from, to, 0, n, row_length, std::ptr::null())
        };
        out.write_all(&packed)?;
    }
    Ok(())
}

/// The distribution of a tensor's values.
#[derive(Clone, Copy, Debug)]
enum Draw {
    /// Mean 0, this standard deviation.
    Normal(f64),
    /// This mean and standard deviation.
    Around(f64, f64),
    /// 1 for the fast pairs rising to 8 for the slow ones, as llama-3's factors do.
    RopeFactor,
}

/// The values of one tensor: each depends on (seed, tensor name, index) alone.
#[derive(Clone, Copy)]
struct Values {
    key: u64,
    draw: Draw,
}

impl Values {
    fn new(seed: u64, name: &str, draw: Draw) -> Values {
        let hash = blake3::hash(format!("{seed}/{name}").as_bytes());
        let key = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes"));
        Values { key, draw }
    }

    fn at(&self, index: u64) -> f32 {
        let value = match self.draw {
            Draw::Normal(deviation) => deviation * self.normal(index),
            Draw::Around(mean, deviation) => mean + deviation * self.normal(index),
            Draw::RopeFactor => 1.0 + (index as f64).min(7.0),
        };
        value as f32
    }

    /// Standard normal, by Box and Muller from two uniform numbers of a hashed counter.
    fn normal(&self, index: u64) -> f64 {
        let uniform = |salt: u64| {
            let bits = mix(self.key.wrapping_add(mix(2 * index + salt)));
            ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64
        };
        (-2.0 * uniform(0).ln()).sqrt() * (TAU * uniform(1)).cos()
    }
}

/// The finaliser of splitmix64.
fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The character that GPT-2's byte-level alphabet gives a byte: itself where it is printable, else
/// one from 256 on.
fn byte_character(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !printable(other)).count() as u32;
    char::from_u32(256 + before).expect("256 to 323 are characters")
}
