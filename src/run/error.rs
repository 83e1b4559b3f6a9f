//! Why a run ended early.

use crate::{
    compare::FilterError,
    core::exit::Exit,
    diagnosis::replay::ReplayError,
    engine::{EngineError, PlanError, device::DeviceError},
    model::ModelError,
    reference::ReferenceError,
    trace::TraceError,
};

/// What can end a run of both sides.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error(transparent)]
    Trace(#[from] TraceError),
}

impl RunError {
    /// The exit code of the error.
    pub fn exit(&self) -> Exit {
        match self {
            RunError::Filter(_) | RunError::Model(_) | RunError::Plan(_) => Exit::BadInput,
            RunError::Device(_) => Exit::Device,
            RunError::Engine(error) => error.exit(),
            RunError::Reference(error) => error.exit(),
            RunError::Replay(error) => error.exit(),
            RunError::Trace(error) => error.exit(),
        }
    }
}
