//! The forward pass as data: llama.cpp's own graph of a model, read once, for any architecture.

mod inputs;
mod model_graph;
mod needed;
pub mod node;
pub mod op;
mod order;
mod roles;
mod rope;
mod seen;
pub mod site;
mod site_list;
mod sites;
pub mod size;
mod size_text;
mod values;

pub use inputs::SequenceInputs;
pub use model_graph::ModelGraph;
pub use node::{Format, Graph, Kind, Node, NodeId, Params, Sizes, Window};
pub use op::Op;
pub use rope::RopeParams;
pub use seen::{StepSpan, seen_keys};
pub use site_list::{ListedSite, SiteList};
pub use sites::{SiteAxis, SiteSpec, Sites};
pub use size::{Extent, Sample, Size};
pub use size_text::SizeError;
