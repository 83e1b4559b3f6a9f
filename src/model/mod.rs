//! The model: a GGUF file, opened and checked.

mod config;
#[cfg(feature = "full")]
pub mod gguf;
#[cfg(feature = "full")]
mod keys;
#[cfg(feature = "full")]
mod ledger;
#[cfg(feature = "full")]
pub mod llama;
#[cfg(feature = "full")]
pub mod synth;
#[cfg(feature = "full")]
mod weights;

pub use config::{Arch, Config, RopePairs, rope_angle, rope_pair};
#[cfg(feature = "full")]
pub use keys::MAX_LAYERS;
#[cfg(feature = "full")]
pub use ledger::Ledger;
#[cfg(feature = "full")]
pub use weights::{Model, ModelError, ModelFile};
