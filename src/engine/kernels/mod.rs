//! The CUDA kernels: their sources, and one launcher per operation.

pub mod launch;
pub mod source;

pub use source::{KernelError, KernelSet};
