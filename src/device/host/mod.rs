//! The host device: the same `.cu` files, compiled for this CPU at run time.

mod compile;
mod device;
mod gemm;
mod module;

pub use compile::{Compiler, compiler};
pub use device::{HostDevice, HostOptions};
pub use module::ThreadOrder;
