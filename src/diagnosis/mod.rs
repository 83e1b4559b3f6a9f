//! Why an operation is wrong: it is recomputed under each named mistake, and the one that gives its
//! wrong result within the rounding bound is the cause.
//!
//! [`table`] lists the hypotheses; a new one is a function there.

mod attention;
mod blame;
mod cache;
mod cause;
mod elementwise;
mod explain;
mod fused;
mod invariant;
mod likeness;
mod norm;
mod probe;
mod projection;
mod rope;
mod scene;
mod softmax;
mod split;
pub mod table;
#[cfg(test)]
mod tests;
mod written;

pub use blame::{Diagnosis, Finding, ReferenceReplay, SideReplay, Verdict};
pub use cause::{Cause, Certainty, diagnose};
pub use invariant::{Invariant, invariants};
pub use scene::Scene;
