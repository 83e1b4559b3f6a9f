//! What every side of a comparison does: put (site, tensor) pairs into a [`Sink`].

use crate::{site::Site, tensor::Tensor};

/// The receiver wants no more tensors; the side ends its run early and reports no error of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped by the receiver")]
pub struct Stopped;

/// Receives one side's tensors as it computes them.
///
/// Within a layer a side may put its sites in any order; layers and steps come in order.
pub trait Sink: Send {
    /// Whether the tensor of this site is wanted; an unwanted one is never copied.
    fn wants(&self, site: Site) -> bool;

    /// Takes the tensor of a wanted site, in the shape of the stage's definition.
    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped>;
}

/// Wants nothing: a run without hooks.
pub struct NoSink;

impl Sink for NoSink {
    fn wants(&self, _site: Site) -> bool {
        false
    }

    fn put(&mut self, _site: Site, _tensor: Tensor) -> Result<(), Stopped> {
        Ok(())
    }
}
