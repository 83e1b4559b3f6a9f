//! Kernels that others wrote: a contract says what each parameter stands for and how the cache is laid
//! out, and the engine calls the kernel so, with no line of Rust for it.
//!
//! `docs/kernels.md` describes the file.

mod call;
mod error;
mod expression;
pub mod layout;
mod op;
mod read;
mod signature;

pub use call::{Bound, Call, CallError};
pub use error::ContractError;
pub use expression::{Dims, Expression};
pub use op::{Access, Axis, Op, Role};
pub use read::{Append, Contract, Parameter, Positions, ScaleAt, Stands, Type};
