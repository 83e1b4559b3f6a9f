//! Our CUDA engine: one forward pass over a [`Device`](crate::device::Device), hooks at every site.

mod buffers;
pub mod forward;
mod hooks;
pub mod variant;
mod weights;
mod wiring;

pub use forward::{Engine, EngineError, EngineOptions};
pub use variant::AttentionVariant;
