//! What CI runs: checks held to a baseline, kernel checks, the search for a commit, progress.

pub mod bisect;
pub mod check;
pub mod kernels;
pub mod progress;
