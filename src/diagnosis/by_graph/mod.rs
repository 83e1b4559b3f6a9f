//! Causes for a model of any architecture: each hypothesis is a change of nodes of its graph, which the same
//! replay computes.

mod edit;
mod evidence;
mod hypotheses;

pub use edit::{Change, Edits};
pub use evidence::{Evidence, Moved, StepEvidence, gather};

use super::{
    cause::{Cause, choose},
    replay::ReplayError,
};

/// Tries every hypothesis on a guilty site.
pub fn diagnose(evidence: &Evidence<'_>) -> Result<Cause, ReplayError> {
    let mut tried = Vec::new();
    hypotheses::all(evidence, &mut |hypothesis| tried.extend(hypothesis))?;
    Ok(choose(tried))
}
