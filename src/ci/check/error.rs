//! Why a check ended early.

use std::path::PathBuf;

use crate::{
    ci::check::ConfigError, core::exit::Exit, diagnosis::replay::ReplayError, engine::EngineError,
    model::synth::SynthError, reference::ReferenceError, run::RunError, trace::TraceError,
};

/// What can end a check, and not only one of its cases.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("{path}: prompt {prompt} has no tokens; give it a text")]
    EmptyPrompt { path: PathBuf, prompt: String },
    #[error(
        "{path}: prompt {prompt} needs {wanted} positions, but {model} was trained for {most}; \
         shorten it"
    )]
    LongPrompt { path: PathBuf, prompt: String, wanted: usize, model: String, most: usize },
    #[error("cannot write {path}: {source}; choose a folder you can write to")]
    Write { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Synth(#[from] SynthError),
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error(transparent)]
    Trace(#[from] TraceError),
}

impl CheckError {
    /// The exit code of the error.
    pub fn exit(&self) -> Exit {
        use CheckError::*;
        match self {
            EmptyPrompt { .. } | LongPrompt { .. } | Write { .. } => Exit::BadInput,
            Config(_) | Synth(_) => Exit::BadInput,
            Reference(error) => error.exit(),
            Engine(error) => error.exit(),
            Run(error) => error.exit(),
            Replay(error) => error.exit(),
            Trace(error) => error.exit(),
        }
    }
}
