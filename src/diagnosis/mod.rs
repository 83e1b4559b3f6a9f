//! Why an operation is wrong: it is recomputed under each named mistake, and the one that gives its
//! wrong result within the rounding bound is the cause.
//!
//! What an engine's weights are, as it holds them, is `loaded`.
//!
//! A hypothesis is a change of nodes of the model's graph, which the same replay computes; a new one is a
//! function in `hypotheses`.

pub mod album;
mod blame;
mod cause;
mod common;
mod edit;
mod evidence;
mod explain;
mod gap;
mod group;
mod hypotheses;
mod invariant;
pub mod loaded;
mod prefix;
pub mod reading;
pub mod replay;
mod written;

pub use blame::{Diagnosis, Finding, ReferenceReplay, SideReplay, Verdict};
pub use cause::{Cause, Certainty, diagnose};
pub use edit::{Change, Edits, Row};
pub use evidence::{Evidence, Moved, StepEvidence, gather};
pub use invariant::Invariant;
pub use prefix::CachedPrefix;
