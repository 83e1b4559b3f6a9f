//! The arithmetic that an engine declares: how each stage is stored and accumulated.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{core::tensor::DType, graph::site::Stage};

/// How the tensor of one stage is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpArithmetic {
    /// The format its elements are rounded to when stored.
    pub storage: DType,
    /// The format in which sums are kept.
    pub accumulator: DType,
}

/// The arithmetic of a whole engine. A stage that is not named is computed as `default` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arithmetic {
    /// The format matrices are rounded to before use.
    pub weights: DType,
    /// The format that biases and the weights of norms are rounded to; f32 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vectors: Option<DType>,
    /// The format that the steps of a formula pass their results in, such as the normalised vector
    /// before it is multiplied by its weight, where a framework runs a kernel for each; wider than
    /// what is stored where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub between: Option<DType>,
    pub default: OpArithmetic,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stages: BTreeMap<Stage, OpArithmetic>,
}

impl Arithmetic {
    /// Our engine's arithmetic for a storage type: f32 accumulators; scores, probs and logits stay f32.
    pub fn engine(storage: DType) -> Arithmetic {
        let op = |storage| OpArithmetic { storage, accumulator: DType::F32 };
        let wide = [Stage::Scores, Stage::Probs, Stage::Logits];
        let stages = match storage {
            DType::F32 => BTreeMap::new(),
            _ => wide.into_iter().map(|stage| (stage, op(DType::F32))).collect(),
        };
        Arithmetic { weights: storage, vectors: None, between: None, default: op(storage), stages }
    }

    /// Those of our own engines, whose floors every reference's trace has.
    pub fn engines() -> [Arithmetic; 2] {
        [DType::F32, DType::F16].map(Arithmetic::engine)
    }

    /// The arithmetic of a stage.
    pub fn of(&self, stage: Stage) -> OpArithmetic {
        self.stages.get(&stage).copied().unwrap_or(self.default)
    }
}
