//! firstdiff finds the first tensor where an LLM inference engine and llama.cpp part.
//!
//! The same token ids go through both sides. Each side puts every tensor it computes, under its
//! [`site`], into a [`capture::Sink`]; the two are brought together one site at a time and compared
//! against a floor: how far rounding alone moves that site, measured on llama.cpp itself.
//!
//! ```text
//! prompt -> reference (llama.cpp, graph callback) --+
//!       \                                           +-> align -> compare -> verdict -> report
//!        -> engine (CUDA kernels on a device) ------+                ^
//!           or a recorded trace                            baseline: floor, forced tokens
//! ```
//!
//! # The modules, in the order of the flow
//!
//! What everything speaks of:
//! - [`site`]: step, layer, stage: the names of all tensors, and their order
//! - [`tensor`]: values on the CPU, number formats
//! - [`arithmetic`]: how a side stores and accumulates each stage
//! - [`recycle`]: the memory of tensors that are done with
//! - [`capture`]: the sink that a side puts its tensors into
//!
//! The model:
//! - [`gguf`]: reads and writes GGUF files
//! - [`model`]: hyperparameters, weights, the ledger of suspicious weights
//! - [`synth`]: random models of any shape, or of any architecture of llama.cpp
//! - [`llama`]: llama.cpp's process-wide state
//!
//! The two sides:
//! - [`reference`]: llama.cpp, its nodes mapped to sites, noise for the floor
//! - [`device`]: allocate, copy, launch, multiply; the host device runs `.cu` files on the CPU
//! - [`kernels`]: the sources of `kernels/`, one launcher an operation, and their check
//! - [`contract`]: kernels that others wrote, called as a file says
//! - [`fault`]: bugs to plant, and where each must be blamed
//! - [`engine`]: the forward pass over a device
//! - [`trace`]: a side recorded to a folder, by firstdiff or by `include/firstdiff.h` in any engine
//! - [`dump`]: arrays of other programs as a trace, and which of them is which site
//! - [`spool`]: a side recorded for the length of a run
//! - [`survey`]: what looks wrong with a recording itself
//!
//! The verdict:
//! - [`baseline`]: the reference's tokens and floor, measured once and cached
//! - [`compare`]: alignment, distances, tolerance, which elements differ
//! - [`verdict`]: equal, diverged, unmeasured or refused, site by site
//! - [`run`]: both sides at the same time
//! - [`cross`]: the same engine on two devices
//! - [`replay`]: every operation again in f64, from a side's own inputs: guilty or cleared
//! - [`diagnosis`]: why a guilty operation is wrong
//! - [`report`]: the answer as text and JSON
//! - [`check`]: many runs as one answer, for CI, and the baseline that they are held to
//! - [`bisect`]: the commit of a kernel folder that made a site diverge
//! - [`progress`]: two reports, before and after a change of the engine
//! - [`snapshot`]: a tensor as a text for snapshot tests
//! - [`exit`]: errors and exit codes
//!
//! Without the feature `full` there is the writer of traces alone, [`trace::TraceWriter`], for an engine
//! in Rust: it compiles in seconds and needs no C++ compiler.
//!
//! Beside the flow: [`cache`], the folder of what can be made again; [`doctor`], what this machine
//! has.

pub mod arithmetic;
#[cfg(feature = "full")]
pub mod baseline;
#[cfg(feature = "full")]
pub mod bisect;
pub mod cache;
pub mod capture;
#[cfg(feature = "full")]
pub mod check;
pub mod compare;
#[cfg(feature = "full")]
pub mod contract;
#[cfg(feature = "full")]
pub mod cross;
#[cfg(feature = "full")]
pub mod device;
#[cfg(feature = "full")]
pub mod diagnosis;
#[cfg(feature = "full")]
pub mod doctor;
#[cfg(feature = "full")]
pub mod dump;
#[cfg(feature = "full")]
pub mod engine;
#[cfg(feature = "full")]
pub mod exit;
#[cfg(feature = "full")]
pub mod fault;
#[cfg(feature = "full")]
pub mod gguf;
#[cfg(feature = "full")]
pub mod kernels;
#[cfg(feature = "full")]
pub mod llama;
pub mod model;
#[cfg(feature = "full")]
pub mod progress;
#[cfg(feature = "full")]
pub mod recycle;
#[cfg(feature = "full")]
pub mod reference;
#[cfg(feature = "full")]
pub mod replay;
#[cfg(feature = "full")]
pub mod report;
#[cfg(feature = "full")]
pub mod run;
pub mod site;
#[cfg(feature = "full")]
pub mod snapshot;
#[cfg(feature = "full")]
pub mod spool;
#[cfg(feature = "full")]
pub mod survey;
#[cfg(feature = "full")]
pub mod synth;
pub mod tensor;
pub mod trace;
#[cfg(feature = "full")]
pub mod verdict;
