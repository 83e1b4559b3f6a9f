//! GGUF files: read through ggml's own parser, written as a stream.

mod check;
mod read;
mod unpack;
mod write;

pub use read::{Gguf, GgufError, TensorInfo, input_format, type_name};
pub use unpack::{Bits, Field, Layout, MOST_BYTES, Packing, Scales, random_blocks};
pub use write::{Header, WriteError};
