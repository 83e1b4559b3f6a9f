//! The hyperparameters of a model that our engine can run, and the shapes that they fix.

use serde::{Deserialize, Serialize};

use crate::graph::site::{Site, Stage};

/// Which elements of a head rope rotates together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RopePairs {
    /// (2i, 2i+1).
    Norm,
    /// (i, i + D/2).
    Neox,
}

/// The hyperparameters that fix every shape and operation of a forward pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// `general.architecture`, for people: nothing follows from it.
    pub architecture: String,
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
    /// Whether each head of q and k has a norm before it is rotated.
    pub qk_norm: bool,
    pub rope_theta: f32,
    pub rope_pairs: RopePairs,
    pub rms_eps: f32,
    /// Factor on q.k.
    pub attention_scale: f32,
}

impl Config {
    /// Terms summed to make one element of a stage, with `positions` in the cache; 1 where there
    /// is no sum.
    pub fn sum_length(&self, stage: Stage, positions: usize) -> usize {
        use Stage::*;
        match stage {
            AttnNorm | FfnNorm | FinalNorm => self.n_embd,
            Q | K | V | FfnGate | FfnUp | Logits => self.n_embd,
            QNorm | KNorm | Scores => self.head_dim,
            Probs | AttnOut => positions,
            OProj => self.n_head * self.head_dim,
            FfnDown => self.n_ff,
            Embd | QRope | KRope | KCache | VCache | AttnResidual | FfnAct | LayerOut => 1,
            Other(_) => 1,
        }
    }

    /// The stages that the model has, in canonical order.
    pub fn stages(&self) -> Vec<Stage> {
        let has = |stage: &Stage| self.qk_norm || !matches!(stage, Stage::QNorm | Stage::KNorm);
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
            Other(_) => Vec::new(),
            Embd | AttnNorm | OProj | AttnResidual | FfnNorm | FfnDown | LayerOut | FinalNorm => {
                vec![tokens, self.n_embd]
            }
        }
    }
}

/// The angle of pair i at a position: position * theta^(-2 i / dim).
pub fn rope_angle(theta: f64, position: f64, pair: usize, dim: usize) -> f64 {
    position * theta.powf(-2.0 * pair as f64 / dim as f64)
}

/// The two elements of each pair.
pub fn rope_pair(pairs: RopePairs, head_dim: usize) -> impl Fn(usize) -> (usize, usize) {
    move |pair| match pairs {
        RopePairs::Norm => (2 * pair, 2 * pair + 1),
        RopePairs::Neox => (pair, pair + head_dim / 2),
    }
}
