//! Random models of every decoder architecture that llama.cpp knows.
//!
//! llama.cpp itself names the tensors: given metadata alone it builds a model in memory and asks
//! for each tensor by name and shape. A [`table`] holds the keys that each architecture needs
//! beside the defaults. llama.cpp ends the process on metadata that it does not like, so it runs in
//! a [`child`] process, once to plan the file and once to load it and decode with it.

mod child;
mod defaults;
mod log;
mod names;
mod plan;
mod request;
mod table;
mod tensors;
mod trial;
mod value;
mod write;

pub use child::{CHILD_COMMAND, serve};
pub use names::{Architecture, architectures};
pub use plan::Layout;
pub use request::{ArchSpec, Setting, Sizes};
pub use value::Value;
pub use write::ArchModel;
