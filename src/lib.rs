//! firstdiff finds the first tensor where an LLM inference engine diverges from llama.cpp.
//!
//! The same token ids go through both sides. Each side puts every tensor it computes, under its
//! [site](graph::site), into a [`core::sink::Sink`]; the two are brought together one site at a time
//! and compared against a floor: how far rounding alone moves that site, measured on llama.cpp itself.
//!
//! ```text
//! prompt -> reference (llama.cpp, graph callback) --+
//!       \                                           +-> align -> compare -> verdict -> report
//!        -> engine (CUDA kernels on a device) ------+                ^
//!           or a recorded trace                            baseline: floor, forced tokens
//! ```
//!
//! # The folders, from the ground up
//!
//! A folder imports from those above it in this list, never from one below; `tests/layers.rs` refuses
//! it. The three sides see neither one another nor the comparison.
//!
//! - [`graph::site`]: step, layer, stage: the names of all tensors, and their order
//! - [`core`]: tensors and number formats, arithmetic, floors, the [`core::sink::Sink`] that a side puts
//!   its tensors into, exit codes, the cache folder
//! - [`model`]: a GGUF file opened and checked, its hyperparameters and weights; random models;
//!   llama.cpp's process-wide state
//! - [`graph`]: the forward pass as data: nodes, operations, and the sites that they are
//! - [`mod@reference`]: a side: llama.cpp, its nodes mapped to sites, noise for the floor
//! - [`engine`]: a side: llama.cpp's graph matched to our kernels, the forward pass over a device, kernels
//!   that others wrote, planted faults
//! - [`trace`]: a side: a run recorded to a folder or for the length of a run; dumps of other programs;
//!   checks of a recording by itself
//! - [`compare`]: two sides aligned; distances, tolerance, the verdict on each site
//! - [`diagnosis`]: every operation again in f64 from a side's own inputs, and why a guilty one is wrong; an
//!   engine's weights beside the file's
//! - [`run`]: both sides at the same time, one engine on two devices, the reference's tokens and floor
//! - [`report`]: the answer as data, as text, as JSON, as a page, and in the forms of CI systems
//! - [`doctor`]: what this machine has
//! - [`ci`]: many runs held to a baseline, kernels checked one by one, the commit that broke a site, what
//!   a change fixed
//!
//! The program's commands stand above all of these, in `cli/`.
//!
//! Without the feature `full` there is the writer of traces alone, [`trace::TraceWriter`], for an engine
//! in Rust: it compiles in seconds and needs no C++ compiler.

#[cfg(feature = "full")]
pub mod ci;
#[cfg(feature = "full")]
pub mod compare;
pub mod core;
#[cfg(feature = "full")]
pub mod diagnosis;
#[cfg(feature = "full")]
pub mod doctor;
#[cfg(feature = "full")]
pub mod engine;
pub mod graph;
pub mod model;
#[cfg(feature = "full")]
pub mod reference;
#[cfg(feature = "full")]
pub mod report;
#[cfg(feature = "full")]
pub mod run;
pub mod trace;
