//! Engines as they serve: a right one is green however it divides its work, and each mistake of that is named.

mod against;
mod bugs;
pub mod engine;
mod right;
mod rows;
pub mod schedules;

use engine::{StepPlan, record};

use crate::{
    cli::{outcome, path},
    common::fixture,
};

/// What `explain` says of steps of the fixture's model, the first few of which were not recorded.
fn explained(steps: &[StepPlan], unrecorded: usize, more: &[&str]) -> (i32, String) {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    record(&trace, steps, unrecorded);
    let model = fixture();
    let command = ["explain", path(&trace), "-m", path(&model)];
    let (exit, out, err) = outcome(&[&command[..], more].concat());
    (exit, out + &err)
}
