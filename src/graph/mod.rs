//! The forward pass as data: llama.cpp's own graph of a model, read once, for any architecture.

pub mod node;
pub mod op;
mod order;
mod roles;
pub mod site;
mod sites;
pub mod size;

pub use node::{Format, Graph, Kind, Node, NodeId, Params, Sizes, Window};
pub use op::Op;
pub use sites::{SiteAxis, SiteSpec, Sites};
pub use size::{Extent, Sample, Size};
