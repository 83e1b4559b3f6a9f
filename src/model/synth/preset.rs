//! Shapes by name.

use crate::model::synth::{Arch, Spec, SynthError, WeightType};

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
            score_bias: 0.0,
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
}
