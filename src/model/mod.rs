//! The model: a GGUF file, opened and checked.

mod config;
#[cfg(feature = "full")]
mod cut;
#[cfg(feature = "full")]
pub mod gguf;
#[cfg(feature = "full")]
mod ledger;
#[cfg(feature = "full")]
pub mod llama;
#[cfg(feature = "full")]
mod names;
#[cfg(feature = "full")]
pub mod synth;
#[cfg(feature = "full")]
mod weights;

pub use config::{Config, RopePairs, rope_angle, rope_pair};
#[cfg(feature = "full")]
pub use cut::{Cut, CutError};
#[cfg(feature = "full")]
pub use ledger::Ledger;
#[cfg(feature = "full")]
pub use names::{LayerNames, LinearNames, WeightNames};
#[cfg(feature = "full")]
pub use weights::{MAX_LAYERS, Model, ModelError, ModelFile};
