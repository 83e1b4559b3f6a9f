//! The keys and tensors of a model, as llama.cpp names them, and how each tensor's values are
//! drawn.
//!
//! The scales keep activations near 1 through all layers: a projection of n inputs has deviation
//! 1/sqrt(n). Biases are large, so that a missing one shows, and make scores uneven.

use crate::model::{
    gguf::Header,
    synth::{Arch, Spec, tokenizer, values::Draw},
};

/// Positions that the model claims to be trained for: long prompts can be tested.
const CONTEXT_LENGTH: usize = 32_768;

/// About the deviation of the logits: peaked, so that near ties are rare. Where the embedding is also
/// the output projection, this raises the last token's own logit by gain^2 / |x|; a gain much larger
/// would make a model that only repeats its input.
const LOGIT_GAIN: f32 = 3.0;

/// A tensor to be written.
pub(super) struct TensorSpec {
    pub(super) name: String,
    /// In ggml's order: the row length first.
    pub(super) dims: Vec<u64>,
    pub(super) draw: Draw,
}

impl TensorSpec {
    /// Whether it is stored in the model's weight type.
    pub(super) fn is_matrix(&self) -> bool {
        self.dims.len() > 1
    }
}

/// Mean 0 and deviation gain / sqrt(inputs).
fn projection(inputs: usize, gain: f32) -> Draw {
    Draw::Normal { mean: 0.0, deviation: gain / (inputs as f32).sqrt() }
}

const NORM: Draw = Draw::Normal { mean: 1.0, deviation: 0.1 };

impl Spec {
    /// Every tensor, in file order.
    pub(super) fn tensors(&self) -> Vec<TensorSpec> {
        let (e, v) = (self.n_embd, self.n_vocab);
        let embedding = if self.tied_output {
            projection(e, LOGIT_GAIN)
        } else {
            Draw::Normal { mean: 0.0, deviation: 1.0 }
        };
        let mut list = vec![
            tensor("token_embd.weight", &[e, v], embedding),
            tensor("output_norm.weight", &[e], NORM),
        ];
        if !self.tied_output {
            list.push(tensor("output.weight", &[e, v], projection(e, LOGIT_GAIN)));
        }
        if self.rope_freqs {
            list.push(tensor("rope_freqs.weight", &[self.head_dim / 2], Draw::RopeFactor));
        }
        for layer in 0..self.n_layer {
            self.add_attention(layer, &mut list);
            self.add_feed_forward(layer, &mut list);
        }
        list
    }

    fn add_attention(&self, layer: usize, list: &mut Vec<TensorSpec>) {
        let (e, d, q_width) = (self.n_embd, self.head_dim, self.q_width());
        let kv_width = self.n_head_kv * d;
        let mut add = |part: &str, dims: &[usize], draw: Draw| {
            list.push(tensor(&format!("blk.{layer}.{part}"), dims, draw));
        };
        add("attn_norm.weight", &[e], NORM);
        let (down, up) = (-self.score_bias, self.score_bias);
        let parts =
            [("q", q_width, (up, 0.7)), ("k", kv_width, (down, 0.7)), ("v", kv_width, (0.0, 0.3))];
        for (part, outputs, (mean, deviation)) in parts {
            add(&format!("attn_{part}.weight"), &[e, outputs], projection(e, 1.0));
            if self.qkv_bias {
                add(&format!("attn_{part}.bias"), &[outputs], Draw::Normal { mean, deviation });
            }
        }
        if self.arch == Arch::Qwen3 {
            add("attn_q_norm.weight", &[d], NORM);
            add("attn_k_norm.weight", &[d], NORM);
        }
        add("attn_output.weight", &[q_width, e], projection(q_width, 1.0));
    }

    fn add_feed_forward(&self, layer: usize, list: &mut Vec<TensorSpec>) {
        let (e, f) = (self.n_embd, self.n_ff);
        let mut add = |part: &str, dims: &[usize], draw: Draw| {
            list.push(tensor(&format!("blk.{layer}.{part}"), dims, draw));
        };
        add("ffn_norm.weight", &[e], NORM);
        // silu halves what it lets through; a larger gate keeps the sum near 1.
        add("ffn_gate.weight", &[e, f], projection(e, 1.5));
        add("ffn_up.weight", &[e, f], projection(e, 1.0));
        add("ffn_down.weight", &[f, e], projection(f, 1.0));
    }

    /// Sets every key that llama.cpp reads for this architecture.
    pub(super) fn set_keys(&self, header: &mut Header) {
        let arch = self.arch.name();
        header.set_string("general.architecture", arch);
        header.set_string("general.name", &self.title());
        header.set_u32("general.file_type", self.weight_type.file_type());
        let mut sizes = vec![
            ("context_length", CONTEXT_LENGTH),
            ("embedding_length", self.n_embd),
            ("block_count", self.n_layer),
            ("feed_forward_length", self.n_ff),
            ("attention.head_count", self.n_head),
            ("attention.head_count_kv", self.n_head_kv),
            ("rope.dimension_count", self.head_dim),
            ("vocab_size", self.n_vocab),
        ];
        // Left out where it is the default, as in the files of real models.
        if self.head_dim * self.n_head != self.n_embd {
            sizes.push(("attention.key_length", self.head_dim));
            sizes.push(("attention.value_length", self.head_dim));
        }
        for (key, size) in sizes {
            header.set_u32(&format!("{arch}.{key}"), size as u32);
        }
        header.set_f32(&format!("{arch}.rope.freq_base"), self.rope_theta);
        header.set_f32(&format!("{arch}.attention.layer_norm_rms_epsilon"), self.rms_eps);
        tokenizer::set_keys(tokenizer::pre(arch), self.n_vocab, header);
    }

    /// The shape and the seed in words.
    fn title(&self) -> String {
        let Spec { n_layer, n_embd, n_head, n_head_kv, head_dim, n_ff, n_vocab, seed, .. } = self;
        let (arch, weight_type) = (self.arch.name(), self.weight_type.name());
        format!(
            "firstdiff synth {arch}: {n_layer} layers, hidden {n_embd}, {n_head}/{n_head_kv} heads \
             of {head_dim}, ffn {n_ff}, vocab {n_vocab}, {weight_type}, seed {seed}"
        )
    }
}

fn tensor(name: &str, dims: &[usize], draw: Draw) -> TensorSpec {
    let dims = dims.iter().map(|&size| size as u64).collect();
    TensorSpec { name: name.to_string(), dims, draw }
}
