//! The model: hyperparameters and weights of a GGUF file of architecture llama, qwen2 or qwen3.

use std::path::{Path, PathBuf};

use crate::site::{Site, Stage};

/// An architecture that the engine can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    Llama,
    Qwen2,
    Qwen3,
}

/// Which elements of a head rope rotates together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// (2i, 2i+1): llama.
    Norm,
    /// (i, i + D/2): qwen2, qwen3.
    Neox,
}

/// The hyperparameters that fix every shape and operation of a forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub arch: Arch,
    pub n_layer: usize,
    /// E, hidden size.
    pub n_embd: usize,
    /// Hq, query heads.
    pub n_head: usize,
    /// Hk, KV heads; divides Hq.
    pub n_head_kv: usize,
    /// D, elements of one head; even.
    pub head_dim: usize,
    /// F, feed-forward size.
    pub n_ff: usize,
    /// V, vocabulary size.
    pub n_vocab: usize,
    /// Positions the model was trained for.
    pub n_ctx_train: usize,
    pub rope_theta: f32,
    pub rope_pairs: RopePairs,
    pub rms_eps: f32,
    /// Factor on q.k: 1/sqrt(D) unless the file says otherwise.
    pub attention_scale: f32,
}

impl Config {
    /// The stages this architecture has, in canonical order.
    pub fn stages(&self) -> Vec<Stage> {
        let qk_norm = self.arch == Arch::Qwen3;
        let has = |stage: &Stage| qk_norm || !matches!(stage, Stage::QNorm | Stage::KNorm);
        Stage::ALL.into_iter().filter(has).collect()
    }

    /// Every site of a run with that many steps (prefill included), in canonical order.
    pub fn sites(&self, steps: u32) -> Vec<Site> {
        let stages = self.stages();
        let mut sites = Vec::new();
        for step in 0..steps {
            sites.push(Site::global(step, Stage::Embd));
            for layer in 0..self.n_layer as u32 {
                let inner = stages.iter().filter(|stage| stage.in_layer());
                sites.extend(inner.map(|&stage| Site::in_layer(step, layer, stage)));
            }
            sites.push(Site::global(step, Stage::FinalNorm));
            sites.push(Site::global(step, Stage::Logits));
        }
        sites
    }

    /// The shape of a stage's tensor in a step of `tokens` tokens with `positions` in the cache.
    pub fn shape(&self, stage: Stage, tokens: usize, positions: usize) -> Vec<usize> {
        use Stage::*;
        let (hq, hk, d) = (self.n_head, self.n_head_kv, self.head_dim);
        match stage {
            Q | QNorm | QRope | AttnOut => vec![tokens, hq, d],
            K | V | KNorm | KRope => vec![tokens, hk, d],
            KCache | VCache => vec![positions, hk, d],
            Scores | Probs => vec![tokens, hq, positions],
            FfnGate | FfnUp | FfnAct => vec![tokens, self.n_ff],
            Logits => vec![tokens, self.n_vocab],
            Embd | AttnNorm | OProj | AttnResidual | FfnNorm | FfnDown | LayerOut | FinalNorm => {
                vec![tokens, self.n_embd]
            }
        }
    }
}

/// A model file, opened and checked: the engine and the reference can both run it.
pub struct Model {
    pub path: PathBuf,
    pub config: Config,
}

impl Model {
    /// Opens a GGUF file and checks that every key and tensor the engine needs is there and fits.
    pub fn open(_path: &Path) -> Result<Model, ModelError> {
        todo!()
    }

    /// blake3 of the whole file, in hex. Cached beside the path, size and modification time.
    pub fn hash(&self) -> Result<String, ModelError> {
        todo!()
    }

    /// Whether the file has a tensor of that name, such as `blk.0.attn_q.bias`.
    pub fn has(&self, _tensor: &str) -> bool {
        todo!()
    }

    /// A tensor's elements widened to f32, row-major in ggml's order (first ggml axis fastest).
    pub fn weights(&self, _tensor: &str) -> Result<Vec<f32>, ModelError> {
        todo!()
    }
}

/// Why a file cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{0}")]
    Todo(String),
}
