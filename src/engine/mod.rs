//! Our CUDA engine: one forward pass over a [`Device`](crate::engine::device::Device), hooks at every site.

mod attention;
mod buffers;
mod captures;
pub mod contract;
mod contracts;
pub mod device;
pub mod fault;
pub mod forward;
mod hooks;
pub mod kernels;
mod operations;
mod plan;
mod reads;
mod spec;
mod step;
pub mod variant;
mod weights;
mod wiring;

pub use forward::{Engine, EngineError, EngineOptions};
pub use plan::{Plan, PlanError};
pub use spec::{DeviceKind, EngineSpec};
pub use variant::AttentionVariant;
