//! The integration tests: one binary, one module a topic.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

// The engine on the host device against llama.cpp.
mod engine;
// llama.cpp's tensors are the ones that the site table means.
mod reference;
// Recording a run to a folder, reading it back, and refusing what is not it.
mod trace;
