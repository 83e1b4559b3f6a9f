//! The operations of a forward pass: each makes the tensor of one stage.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::graph::site::{Site, Stage};

/// The operation that makes a stage of a layer, in every step; serialised as its result's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Operation {
    pub layer: Option<u32>,
    pub stage: Stage,
}

impl Operation {
    /// The site of its result in a step.
    pub fn site(self, step: u32) -> Site {
        Site { step, layer: self.layer, stage: self.stage }
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
