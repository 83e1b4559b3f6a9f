//! Dumps that exist already: tensors in files of numpy or safetensors, under names of their own.
//!
//! A mapping file says which is which; `align` writes it by comparing values with a reference.

mod align;
mod axes;
mod convert;
mod error;
mod files;
mod fused;
mod map;
mod map_text;
mod npz;
mod placement;
mod rows;
mod signature;
mod slice;
mod tokens;

pub use align::{Alignment, Confidence, Match, align};
pub use axes::Order;
pub use convert::{Imported, import};
pub use error::DumpError;
pub use files::{Array, Dump};
pub use map::Mapping;
pub use slice::Slice;
