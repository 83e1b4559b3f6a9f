//! What this machine has of the things firstdiff uses, each looked for under guard.
//!
//! A probe never stops the others: it runs on a thread of its own, a panic in it (cudarc's way of
//! saying that a library is absent) and a deadline passed are findings like any other.

mod cuda;
mod guard;
mod probes;
mod system;
mod tools;

pub use probes::{Need, Probe, Status, healthy, probes, render};
pub use system::{in_words, llama_cpp_version};
