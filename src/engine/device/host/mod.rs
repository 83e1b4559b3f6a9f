//! The host device: the same `.cu` files, compiled for this CPU: the program's own when it was built, others at
//! run time.

mod assembly;
mod compile;
mod compiler;
mod device;
mod gemm;
mod lines;
mod module;
mod prebuilt;
mod recipe;
mod regions;

use super::source;
pub use compiler::{Compiler, CompilerCall, compiler, compiler_names};
pub use device::{HostDevice, HostOptions};
pub use module::ThreadOrder;
pub use prebuilt::HAS_PREBUILT;
pub(crate) use recipe::has_header;
