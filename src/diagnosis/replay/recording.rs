//! What is replayed: one side's run, and a result of it beside what it must be.

use std::ops::Range;

use super::expected::Expected;
use crate::{
    core::{arithmetic::Arithmetic, attending::Attending, exit::Exit},
    model::{ModelError, gguf::GgufError},
    trace::{TraceError, recording::Recorded},
};

/// Why an operation could not be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The graph was read for a shorter run.
    #[error("the run has {needed} positions, and the graph's inputs are known for {known}")]
    Short { known: usize, needed: usize },
}

impl ReplayError {
    /// The exit code of the error.
    pub fn exit(&self) -> Exit {
        match self {
            ReplayError::Trace(error) => error.exit(),
            ReplayError::Model(_) => Exit::BadInput,
            ReplayError::Short { .. } => Exit::Internal,
        }
    }
}

impl From<GgufError> for ReplayError {
    fn from(error: GgufError) -> ReplayError {
        ReplayError::Model(ModelError::Gguf(error))
    }
}

/// One side's run.
#[derive(Clone, Copy)]
pub struct Recording<'a> {
    pub tensors: &'a dyn Recorded,
    /// Token ids of each step; together they are the positions from the tensors' first one on.
    pub steps: &'a [Vec<i32>],
    pub arithmetic: &'a Arithmetic,
    pub attention: Attending,
}

impl Recording<'_> {
    /// The positions of a step's tokens.
    pub fn positions(&self, step: u32) -> Range<usize> {
        let tokens: usize = self.steps[..step as usize].iter().map(Vec::len).sum();
        let before = self.tensors.first_position() + tokens;
        before..before + self.steps[step as usize].len()
    }
}

/// A step's result of an operation, row-major, beside what was recorded.
pub struct Piece<'a> {
    pub expected: Expected<'a>,
    pub captured: Vec<f32>,
}
