//! The host device: the same `.cu` files, compiled for this CPU at run time.

mod assembly;
mod compile;
mod compiler;
mod device;
mod gemm;
mod lines;
mod module;
mod regions;

pub use compiler::{Compiler, CompilerCall, compiler, compiler_names};
pub use device::{HostDevice, HostOptions};
pub use module::ThreadOrder;
