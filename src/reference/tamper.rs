//! Changes of what llama.cpp computes that are no rounding: faults planted in it.

use crate::{core::tensor::Tensor, graph::NodeId};

/// A step while one of its nodes is changed.
#[derive(Clone, Copy, Debug)]
pub struct StepShape {
    pub step: u32,
    pub tokens: usize,
    /// Positions in the cache after the step.
    pub positions: usize,
}

/// Looks at results of nodes, and may change them before anything reads them.
pub trait Tamper {
    /// Whether it is given a node's result.
    fn wants(&self, node: NodeId) -> bool;

    /// Takes a node's result, all four axes of ggml with the slowest first; true if it has changed it.
    fn change(&self, node: NodeId, shape: StepShape, result: &mut Tensor) -> bool;
}
