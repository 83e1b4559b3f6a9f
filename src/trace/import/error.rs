//! Why a dump or its mapping cannot be read.

use std::{io, path::PathBuf};

use super::files::MAX_ARRAYS;
use crate::{core::exit::Exit, trace::TraceError};

#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    #[error("cannot read {path}: {source}; check the path")]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{path} holds no .npy, .npz or .safetensors file; name the folder of the dump, or convert \
         .pt files with python/firstdiff_pt.py"
    )]
    Empty { path: PathBuf },
    #[error("{path} is not a readable array: {reason}; write it again as f16, f32 or f64")]
    Array { path: PathBuf, reason: String },
    #[error("{path} holds more than {MAX_ARRAYS} files or arrays; dump fewer steps or layers")]
    TooMany { path: PathBuf },
    #[error("{path}: {reason}; docs/trace-format.md describes mapping files")]
    Mapping { path: PathBuf, reason: String },
    #[error("{name} {reason}; change its line in the mapping file")]
    Line { name: String, reason: String },
    #[error("the mapping matches no tensor of the dump; `firstdiff align` writes one that does")]
    Nothing,
    #[error(transparent)]
    Trace(#[from] TraceError),
}

impl DumpError {
    /// The exit code of the error.
    pub fn exit(&self) -> Exit {
        match self {
            DumpError::Trace(error) => error.exit(),
            _ => Exit::BadInput,
        }
    }
}
