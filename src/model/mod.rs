//! The model: a GGUF file of architecture llama, qwen2 or qwen3, opened and checked.

mod config;
mod ledger;
mod weights;

pub use config::{Arch, Config, MAX_LAYERS, RopePairs};
pub use ledger::Ledger;
pub use weights::{Model, ModelError};
