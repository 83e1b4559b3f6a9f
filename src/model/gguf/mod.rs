//! GGUF files: read through ggml's own parser, written as a stream.

mod read;
mod write;

pub use read::{Gguf, GgufError, TensorInfo, type_name};
pub use write::{Header, WriteError};
