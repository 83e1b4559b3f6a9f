//! Why a contract cannot be used. Each message names the contract's file and ends with what to do.

use std::path::PathBuf;

/// A contract that cannot be read, or that does not fit its kernel or the run.
#[derive(Debug, thiserror::Error)]
pub enum ContractError {
    #[error("{given}: --kernel takes OP=FILE.toml, where OP is one of {known}")]
    Flag { given: String, known: String },
    #[error("cannot read {path}: {source}; check the path")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: cannot read its source {file}: {source}; check the path")]
    Source { path: PathBuf, file: PathBuf, source: std::io::Error },
    #[error("{path}: {message}; docs/kernels.md describes contracts")]
    Toml { path: PathBuf, message: String },
    #[error("{path}: {message}")]
    Invalid { path: PathBuf, message: String },
    #[error(
        "{path}: {source_file} has no entry {entry}: no `extern \"C\" __global__ void {entry}(`; \
         it has {known}"
    )]
    NoEntry { path: PathBuf, source_file: PathBuf, entry: String, known: String },
    #[error("{path}: no entry for {dtype}; add one, or run with --dtype {has}")]
    NoDType { path: PathBuf, dtype: String, has: String },
    #[error("{path}: {what} is `{expression}`, but {message}; fix the expression")]
    Expression { path: PathBuf, what: String, expression: String, message: String },
    #[error("{path}: {message}; make contract and kernel agree")]
    Mismatch { path: PathBuf, message: String },
    #[error("{path}: needs {condition}, which does not hold for {model}; use another model")]
    Requires { path: PathBuf, condition: String, model: String },
    #[error("{path}: {message}; fix [launch]")]
    Launch { path: PathBuf, message: String },
}
