//! The integration tests: one binary, one module a topic.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

// Recording a run to a folder, reading it back, and refusing what is not it.
mod trace;
