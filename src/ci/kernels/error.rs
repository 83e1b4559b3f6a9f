//! Why kernels could not be checked.

use std::path::PathBuf;

use crate::{
    core::exit::Exit,
    diagnosis::replay::ReplayError,
    engine::{EngineError, device::DeviceError, kernels::KernelError},
    model::synth::SynthError,
    run::RunError,
    trace::TraceError,
};

/// An error of this machine, or a kernel that does not compile; what is wrong with a kernel that runs
/// is a finding.
#[derive(Debug, thiserror::Error)]
pub enum KernelCheckError {
    #[error("cannot write {path}: {source}; choose a folder you can write to")]
    Write { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Synth(#[from] SynthError),
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error(transparent)]
    Trace(#[from] TraceError),
}

impl KernelCheckError {
    /// The exit code of the error.
    pub fn exit(&self) -> Exit {
        use KernelCheckError::*;
        match self {
            Write { .. } | Kernel(_) | Synth(_) => Exit::BadInput,
            Device(_) => Exit::Device,
            Engine(error) => error.exit(),
            Run(error) => error.exit(),
            Replay(error) => error.exit(),
            Trace(error) => error.exit(),
        }
    }
}
