//! Our CUDA engine: one forward pass over a [`Device`](crate::device::Device), hooks at every site.

mod attention;
mod buffers;
mod captures;
mod contracts;
pub mod forward;
mod hooks;
mod operations;
mod reads;
mod spec;
pub mod variant;
mod weights;
mod wiring;

pub use forward::{Engine, EngineError, EngineOptions};
pub use spec::{DeviceKind, EngineSpec};
pub use variant::AttentionVariant;
