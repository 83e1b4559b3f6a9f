//! Why a model cannot be made up.

use std::path::PathBuf;

use crate::model::{gguf::WriteError, synth::PRESETS};

/// A shape that cannot be run, or a file that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    #[error("no shape {0}; choose one of {known}", known = PRESETS.join(", "))]
    Preset(String),
    #[error("{what} {value} is out of range; choose {min} to {max}")]
    Size { what: &'static str, value: usize, min: usize, max: usize },
    #[error("head size {0} is odd, but rope rotates pairs; choose an even one")]
    OddHead(usize),
    #[error("{n_head_kv} KV heads do not divide {n_head} query heads; choose a divisor")]
    HeadRatio { n_head: usize, n_head_kv: usize },
    #[error(
        "a qwen2 model needs query heads x head size = hidden size in llama.cpp, but {q_width} is \
         not {n_embd}; change one of them, or use the shape tiny-qwen3"
    )]
    Qwen2Width { q_width: usize, n_embd: usize },
    #[error(
        "{what} {row} is not a multiple of {block}, the block size of {weight_type}; choose one that is, or the \
         type f16"
    )]
    Block { what: &'static str, row: usize, block: usize, weight_type: &'static str },
    #[error("llama.cpp reads rope_freqs.weight for llama only, not for {0}; leave it out")]
    RopeFreqs(&'static str),
    #[error("{what} {value} is not a positive finite number; choose one that is")]
    Number { what: &'static str, value: f32 },
    #[error(
        "no architecture {name}; the nearest are {nearest}; firstdiff synth --list-archs prints all"
    )]
    Architecture { name: String, nearest: String },
    #[error("{name} needs the key {key}, which has no default; give it with --set {key}=VALUE")]
    MissingKey { name: String, key: String },
    #[error("llama.cpp does not run {name}: {detail}; {next_step}")]
    Refused { name: String, detail: String, next_step: &'static str },
    #[error("llama.cpp exited on {name} ({detail}); {next_step}")]
    Crashed { name: String, detail: String, next_step: &'static str },
    /// The message of another of these errors, from the child process.
    #[error("{0}")]
    Child(String),
    #[error("cannot run {program}: {source}; check that it is firstdiff")]
    Program { program: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Write(#[from] WriteError),
}
