//! Random models of any shape, so that every shape can be tested without a download.
//!
//! A [`Spec`] is checked, laid out as a list of tensors, and written as a GGUF file a few rows at a
//! time. The weights of f32 and f16 files are the same on every machine; for quantised files ggml
//! chooses the scales, and its sums may round differently on another CPU.
//!
//! Models of other architectures than the engine's are planned by llama.cpp itself: [`arch`].

pub mod arch;
mod error;
mod layout;
mod preset;
mod spec;
mod tokenizer;
mod values;
mod write;

pub use error::SynthError;
pub use preset::PRESETS;
pub use spec::{Arch, MAX_SIZE, MIN_VOCAB, Spec, WeightType};
pub use write::{data_bytes, write};
