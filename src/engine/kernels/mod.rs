//! The CUDA kernels: their sources, and one launcher per operation.

mod embedded;
pub mod launch;
pub mod source;
mod used;

pub use source::{KernelError, KernelSet};
pub use used::Launches;
