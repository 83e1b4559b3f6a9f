//! The hypotheses by the operations that they may explain.

mod norm;

use super::Evidence;
use crate::diagnosis::{cause::Tried, replay::ReplayError};

/// Takes what was tried.
pub type Visit<'v> = &'v mut dyn FnMut(Option<Tried>);

/// Every hypothesis that applies to a site.
pub fn all(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    norm::norms(evidence, visit)
}
