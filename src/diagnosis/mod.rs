//! Why an operation is wrong: it is recomputed under each named mistake, and the one that gives its
//! wrong result within the rounding bound is the cause.
//!
//! [`table`] lists the hypotheses; a new one is a function there.

mod blame;
pub mod by_graph;
mod cause;
mod explain;
mod hypotheses;
mod invariant;
mod probe;
pub mod replay;
mod scene;
pub mod table;
#[cfg(test)]
mod tests;
mod written;

pub use blame::{Diagnosis, Finding, ReferenceReplay, SideReplay, Verdict};
pub use cause::{Cause, Certainty, diagnose};
pub use invariant::{Invariant, invariants};
pub use scene::Scene;
