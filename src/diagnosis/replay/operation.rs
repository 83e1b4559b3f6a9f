//! The operations of a forward pass: each makes the tensor of one stage.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    graph::site::{Site, Stage},
    model::Config,
};

/// The operation that makes a stage of a layer, in every step; serialised as its result's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Operation {
    pub layer: Option<u32>,
    pub stage: Stage,
}

impl Operation {
    /// Every operation of a model, in canonical order.
    pub fn all(config: &Config) -> Vec<Operation> {
        let sites = config.sites(1).into_iter();
        sites.map(|site| Operation { layer: site.layer, stage: site.stage }).collect()
    }

    /// The site of its result in a step.
    pub fn site(self, step: u32) -> Site {
        Site { step, layer: self.layer, stage: self.stage }
    }

    /// The operation of another stage of the same layer.
    pub fn at(self, stage: Stage) -> Operation {
        Operation { layer: self.layer, stage }
    }

    /// The layer's index; 0 outside of the layers.
    pub fn layer(self) -> usize {
        self.layer.unwrap_or(0) as usize
    }

    /// What makes the hidden vector that enters the layer, or the final norm.
    pub fn hidden(self, config: &Config) -> Operation {
        let before = match self.layer {
            Some(layer) => layer.checked_sub(1),
            None => (config.n_layer as u32).checked_sub(1),
        };
        match before {
            Some(layer) => Operation { layer: Some(layer), stage: Stage::LayerOut },
            None => Operation { layer: None, stage: Stage::Embd },
        }
    }

    /// The operations whose results it reads.
    pub fn inputs(self, config: &Config) -> Vec<Operation> {
        use Stage::*;
        let qk_norm = config.qk_norm;
        let hidden = self.hidden(config);
        let at = |stage| self.at(stage);
        match self.stage {
            Embd => vec![],
            AttnNorm | FinalNorm => vec![hidden],
            Q | K | V => vec![at(AttnNorm)],
            QNorm => vec![at(Q)],
            KNorm => vec![at(K)],
            QRope => vec![at(if qk_norm { QNorm } else { Q })],
            KRope => vec![at(if qk_norm { KNorm } else { K })],
            KCache => vec![at(KRope)],
            VCache => vec![at(V)],
            Scores => vec![at(QRope), at(KCache)],
            Probs => vec![at(Scores)],
            AttnOut => vec![at(Probs), at(VCache)],
            OProj => vec![at(AttnOut)],
            AttnResidual => vec![at(OProj), hidden],
            FfnNorm => vec![at(AttnResidual)],
            FfnGate | FfnUp => vec![at(FfnNorm)],
            FfnAct => vec![at(FfnGate), at(FfnUp)],
            FfnDown => vec![at(FfnAct)],
            LayerOut => vec![at(FfnDown), at(AttnResidual)],
            Logits => vec![at(FinalNorm)],
            Other(_) => vec![],
        }
    }

    /// The GGUF name of a weight of its layer.
    pub fn tensor(self, part: &str) -> String {
        match self.layer {
            Some(layer) => format!("blk.{layer}.{part}"),
            None => part.to_string(),
        }
    }

    /// Its result as a trace names it, such as `blk.3.q_rope`.
    pub fn result(self) -> String {
        self.site(0).tensor_name()
    }

    /// The operation whose result has that name.
    pub fn of_result(name: &str) -> Option<Operation> {
        let site = Site::from_tensor_name(0, name)?;
        Some(Operation { layer: site.layer, stage: site.stage })
    }

    /// The operation in words, without its layer.
    pub fn name(self) -> &'static str {
        name(self.stage)
    }
}

/// The operation that makes a stage, in words.
pub fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Embd => "token embedding",
        Stage::AttnNorm => "attention norm",
        Stage::Q => "q projection",
        Stage::K => "k projection",
        Stage::V => "v projection",
        Stage::QNorm => "q norm",
        Stage::KNorm => "k norm",
        Stage::QRope => "q rotation",
        Stage::KRope => "k rotation",
        Stage::KCache => "k cache append",
        Stage::VCache => "v cache append",
        Stage::Scores => "attention scores",
        Stage::Probs => "softmax",
        Stage::AttnOut => "weighted sum of values",
        Stage::OProj => "output projection",
        Stage::AttnResidual => "attention residual",
        Stage::FfnNorm => "feed-forward norm",
        Stage::FfnGate => "gate projection",
        Stage::FfnUp => "up projection",
        Stage::FfnAct => "SwiGLU",
        Stage::FfnDown => "down projection",
        Stage::LayerOut => "feed-forward residual",
        Stage::FinalNorm => "final norm",
        Stage::Logits => "logits projection",
        Stage::Other(name) => name.as_str(),
    }
}

/// The weight of a stage's projection, and its optional bias, by their parts of a GGUF name.
pub fn projection(stage: Stage) -> Option<(&'static str, &'static str)> {
    Some(match stage {
        Stage::Q => ("attn_q.weight", "attn_q.bias"),
        Stage::K => ("attn_k.weight", "attn_k.bias"),
        Stage::V => ("attn_v.weight", "attn_v.bias"),
        Stage::OProj => ("attn_output.weight", "attn_output.bias"),
        Stage::FfnGate => ("ffn_gate.weight", "ffn_gate.bias"),
        Stage::FfnUp => ("ffn_up.weight", "ffn_up.bias"),
        Stage::FfnDown => ("ffn_down.weight", "ffn_down.bias"),
        Stage::Logits => ("output.weight", "output.bias"),
        _ => return None,
    })
}

/// The weight of a stage's norm, by its part of a GGUF name.
pub fn norm_weight(stage: Stage) -> Option<&'static str> {
    Some(match stage {
        Stage::AttnNorm => "attn_norm.weight",
        Stage::QNorm => "attn_q_norm.weight",
        Stage::KNorm => "attn_k_norm.weight",
        Stage::FfnNorm => "ffn_norm.weight",
        Stage::FinalNorm => "output_norm.weight",
        _ => return None,
    })
}

impl From<Operation> for String {
    fn from(operation: Operation) -> String {
        operation.result()
    }
}

impl TryFrom<String> for Operation {
    type Error = String;

    fn try_from(name: String) -> Result<Operation, String> {
        Operation::of_result(&name).ok_or_else(|| format!("{name:?} is no name of a result"))
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "{}, layer {layer}", self.name()),
            None => f.write_str(self.name()),
        }
    }
}
