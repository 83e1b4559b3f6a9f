//! Anything that can end a command, and the exit code that it leads to.

use std::path::PathBuf;

use firstdiff::{
    ci::{
        bisect::HistoryError,
        check::{CheckError, ConfigError, LockError, MergeError, PinnedError},
        kernels::KernelCheckError,
        progress::SavedError,
    },
    compare::{FilterError, QueriesError},
    core::exit::Exit,
    diagnosis::replay::ReplayError,
    engine::{EngineError, contract::ContractError, device::DeviceError, kernels::KernelError},
    model::{CutError, ModelError, gguf::GgufError, synth::SynthError},
    reference::{ReferenceError, ServerError},
    run::RunError,
    trace::{TraceError, import::DumpError, lint::LintError},
};

/// Anything that can end a command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Refused(String),
    #[error("cannot write {path}: {source}; choose a folder you can write to")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot read {path}: {source}; check the path")]
    Read { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Contract(#[from] ContractError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Dump(#[from] DumpError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error(transparent)]
    History(#[from] HistoryError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    KernelCheck(#[from] KernelCheckError),
    #[error(transparent)]
    Lint(#[from] LintError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Merge(#[from] MergeError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Pinned(#[from] PinnedError),
    #[error(transparent)]
    Queries(#[from] QueriesError),
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Saved(#[from] SavedError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Synth(#[from] SynthError),
    #[error(transparent)]
    Cut(#[from] CutError),
    #[error(transparent)]
    Trace(#[from] TraceError),
}

impl Error {
    /// Whether it may be a compiler's or another tool's, which have lines of their own.
    pub fn may_have_lines(&self) -> bool {
        use Error::*;
        match self {
            Check(error) => !matches!(error, CheckError::Config(_)),
            Device(_) | Engine(_) | Kernel(_) | KernelCheck(_) | Replay(_) | Run(_) => true,
            _ => false,
        }
    }

    /// The exit code of the error.
    pub fn exit(&self) -> Exit {
        use Error::*;
        match self {
            Refused(_) => Exit::Refused,
            Device(_) => Exit::Device,
            Check(error) => error.exit(),
            Dump(error) => error.exit(),
            Engine(error) => error.exit(),
            KernelCheck(error) => error.exit(),
            Lint(error) => error.exit(),
            Merge(error) => error.exit(),
            Reference(error) => error.exit(),
            Replay(error) => error.exit(),
            Run(error) => error.exit(),
            Saved(error) => error.exit(),
            Server(error) => error.exit(),
            Trace(error) => error.exit(),
            Usage(_)
            | Write { .. }
            | Read { .. }
            | Config(_)
            | Contract(_)
            | Filter(_)
            | Gguf(_)
            | History(_)
            | Kernel(_)
            | Lock(_)
            | Model(_)
            | Pinned(_)
            | Queries(_)
            | Synth(_)
            | Cut(_) => Exit::BadInput,
        }
    }
}
