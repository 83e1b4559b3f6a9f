//! Causes for a model of any architecture: each hypothesis is a change of nodes of its graph, which the same
//! replay computes.

mod edit;
mod evidence;
mod hypotheses;

pub use edit::{Change, Edits};
pub use evidence::{Evidence, Moved, StepEvidence, gather};

use crate::core::cause_key::CauseKey;

use super::{
    cause::{Cause, Certainty, choose},
    replay::ReplayError,
};

/// Tries every hypothesis on a guilty site.
pub fn diagnose(evidence: &Evidence<'_>) -> Result<Cause, ReplayError> {
    let mut tried = Vec::new();
    hypotheses::all(evidence, &mut |hypothesis| tried.extend(hypothesis))?;
    Ok(held_back(choose(tried)))
}

/// Sums in a coarser format cannot be simulated: any small error is within their bound, so that proves
/// nothing. They are no more than what the errors are consistent with.
fn held_back(cause: Cause) -> Cause {
    if cause.key != CauseKey::F16Accumulation {
        return cause;
    }
    Cause {
        key: CauseKey::Unknown,
        text: format!("unknown; consistent with: {}", cause.text),
        certainty: Certainty::Unknown,
        ..cause
    }
}
