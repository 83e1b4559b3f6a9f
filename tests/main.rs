//! The integration tests: one binary, one module a topic.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

// What the machine has, whatever it has.
mod doctor;
// scripts/setup.sh, with a made-up machine around it.
mod setup;
