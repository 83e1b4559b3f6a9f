//! Exit codes, and which error leads to which.

use crate::{
    bisect::HistoryError,
    check::{ConfigError, LockError, MergeError, PinnedError},
    compare::{FilterError, QueriesError},
    contract::ContractError,
    device::DeviceError,
    dump::DumpError,
    engine::EngineError,
    gguf::GgufError,
    gguf::WriteError,
    kernels::KernelError,
    model::ModelError,
    progress::SavedError,
    reference::ReferenceError,
    replay::ReplayError,
    synth::SynthError,
    trace::{Kind, TraceError},
};

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Exit {
    /// Everything that was asked for was compared and is within the floor.
    Equal = 0,
    Diverged = 1,
    /// Usage or bad input.
    BadInput = 2,
    /// The sides cannot be compared.
    Refused = 3,
    /// Nothing, or not all that was asked for, was measured.
    NotMeasured = 4,
    /// The device or the engine failed.
    Device = 5,
    Internal = 70,
}

/// Anything that can end a command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Refused(String),
    #[error("cannot write {path}: {source}; choose a folder you can write to")]
    Write { path: std::path::PathBuf, source: std::io::Error },
    #[error("cannot read {path}: {source}; check the path")]
    Read { path: std::path::PathBuf, source: std::io::Error },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    History(#[from] HistoryError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Pinned(#[from] PinnedError),
    #[error(transparent)]
    Contract(#[from] ContractError),
    #[error(transparent)]
    Merge(#[from] MergeError),
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Queries(#[from] QueriesError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error(transparent)]
    GgufWrite(#[from] WriteError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Dump(#[from] DumpError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error(transparent)]
    Saved(#[from] SavedError),
    #[error(transparent)]
    Synth(#[from] SynthError),
    #[error(transparent)]
    Trace(#[from] TraceError),
}

impl Error {
    /// The exit code of the error.
    pub fn exit(&self) -> Exit {
        match self {
            Error::Refused(_) => Exit::Refused,
            Error::Merge(error) if error.is_refusal() => Exit::Refused,
            Error::Saved(error) if error.is_refusal() => Exit::Refused,
            Error::Device(_) => Exit::Device,
            Error::Engine(
                EngineError::Model(_) | EngineError::Kernel(_) | EngineError::Contract(_),
            ) => Exit::BadInput,
            Error::Engine(EngineError::Token { .. } | EngineError::HeadDim { .. }) => {
                Exit::BadInput
            }
            Error::Engine(_) => Exit::Device,
            Error::Trace(error)
            | Error::Replay(ReplayError::Trace(error))
            | Error::Dump(DumpError::Trace(error)) => match error.kind() {
                Kind::BadInput => Exit::BadInput,
                Kind::Refused => Exit::Refused,
                Kind::Internal => Exit::Internal,
            },
            Error::Reference(ReferenceError::Panic(_)) => Exit::Internal,
            Error::Reference(ReferenceError::Matches { .. } | ReferenceError::Node { .. }) => {
                Exit::NotMeasured
            }
            _ => Exit::BadInput,
        }
    }
}
