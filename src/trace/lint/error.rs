//! Why a recording cannot be looked at.

use crate::{core::exit::Exit, model::ModelError, trace::TraceError};

/// The trace, or the model beside it, cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LintError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl LintError {
    /// The exit code of the error.
    pub fn exit(&self) -> Exit {
        match self {
            LintError::Trace(error) => error.exit(),
            LintError::Model(_) => Exit::BadInput,
        }
    }
}
