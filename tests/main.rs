//! The integration tests: one binary, one module a topic.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

// scripts/setup.sh, with a made-up machine around it.
mod setup;
