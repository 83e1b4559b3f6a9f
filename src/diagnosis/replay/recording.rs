//! What is replayed: one side's run, and a result of it beside what it must be.

use std::ops::Range;

use super::expected::Expected;
use crate::{
    core::{activity, arithmetic::Arithmetic, attending::Attending, exit::Exit},
    model::{ModelError, gguf::GgufError},
    trace::{Removed, TraceError, recording::Recorded},
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
    /// The replay was to go no further.
    #[error("the replay ended early")]
    Ended,
    /// The run was told to end.
    #[error("the replay was interrupted")]
    Interrupted,
}

impl ReplayError {
    /// The exit code of the error.
    pub fn exit(&self) -> Exit {
        match self {
            ReplayError::Trace(error) => error.exit(),
            ReplayError::Model(_) => Exit::BadInput,
            ReplayError::Short { .. } | ReplayError::Ended => Exit::Internal,
            ReplayError::Interrupted => Exit::Interrupted,
        }
    }
}

impl From<GgufError> for ReplayError {
    fn from(error: GgufError) -> ReplayError {
        ReplayError::Model(ModelError::Gguf(error))
    }
}

/// Ends what is replayed once the run was told to end.
pub fn go_on() -> Result<(), ReplayError> {
    activity::interrupted().map_or(Ok(()), |_| Err(ReplayError::Interrupted))
}

/// One side's run.
#[derive(Clone, Copy)]
pub struct Recording<'a> {
    pub tensors: &'a dyn Recorded,
    /// Token ids of each step. Where nothing is removed they are the positions from the tensors' first one on.
    pub steps: &'a [Vec<i32>],
    pub arithmetic: &'a Arithmetic,
    pub attention: Attending,
}

impl Recording<'_> {
    /// The positions of a step's tokens.
    pub fn positions(&self, step: u32) -> Range<usize> {
        let mut own = self.tensors.first_position()..self.tensors.first_position();
        for (at, tokens) in (0..=step).zip(self.steps) {
            let removed = self.tensors.removed(at).map_or(0, |removed| removed.count);
            let start = own.end.saturating_sub(removed);
            own = start..start + tokens.len();
        }
        own
    }

    /// What is removed before a step, where other positions move by it.
    pub fn shift(&self, step: u32) -> Option<Removed> {
        let removed = self.tensors.removed(step)?;
        let before = self.positions(step.checked_sub(1)?).end;
        removed.is_shift(before).then_some(removed)
    }

    /// Where a position of a step is in a later one; else the step before which it was removed.
    pub fn position_in(&self, step: u32, position: usize, later: u32) -> Result<usize, u32> {
        let mut at = position;
        for step in step + 1..=later {
            let Some(removed) = self.tensors.removed(step) else { continue };
            if (removed.first..removed.end()).contains(&at) {
                return Err(step);
            }
            at -= if at >= removed.end() { removed.count } else { 0 };
        }
        Ok(at)
    }
}

/// A step's result of an operation, row-major, beside what was recorded.
pub struct Piece<'a> {
    pub expected: Expected<'a>,
    pub captured: Vec<f32>,
}
