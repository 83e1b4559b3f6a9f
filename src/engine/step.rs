//! What a step of the engine is described by.

use crate::{core::tensor::DType, engine::device::Device, model::Config};

/// Where a step runs, and of what model.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub device: &'a dyn Device,
    pub config: &'a Config,
}

/// How large a step is.
#[derive(Clone, Copy)]
pub struct StepShape {
    /// T.
    pub tokens: usize,
    /// P, the positions in the cache after it.
    pub positions: usize,
}

/// How a layer's keys or values lie in memory: (Hk, capacity, D).
#[derive(Clone, Copy)]
pub struct CacheLayout {
    pub capacity: usize,
    pub dtype: DType,
}
