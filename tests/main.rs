//! One integration binary: a module a topic.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod common;
mod engine;
mod reference; // llama.cpp's tensors are the ones the design's table means
