//! An engine's trace beside the reference's: a site under another's name, rows of another token,
//! zeros where there are none.

use std::collections::BTreeSet;

use super::notes::Notes;
use crate::{
    core::tensor::Tensor,
    graph::site::{Axis, Site, Stage},
    trace::{TraceError, TraceReader},
};

/// Two tensors this close (relative L2) are one, stored in f16 or better.
const SAME: f64 = 2e-3;
/// Two tensors this far apart are not.
const OTHER: f64 = 0.1;

/// What a look at the first diverged site of each stage says beyond how far it is off.
pub fn beside(
    engine: &TraceReader,
    reference: &TraceReader,
    diverged: &[Site],
) -> Result<Vec<String>, TraceError> {
    let mut notes = Notes::default();
    let mut stages = BTreeSet::new();
    for &site in diverged {
        // A prompt and a decoded token go wrong in different ways.
        if !stages.insert((site.stage, site.step > 0)) {
            continue;
        }
        let (Some(ours), Some(theirs)) = (engine.tensor(site)?, reference.tensor(site)?) else {
            continue;
        };
        if ours.shape != theirs.shape || distance(&ours.data, &theirs.data) < OTHER {
            continue;
        }
        if let Some(what) = replaced(reference.list().axes(site), &ours, &theirs) {
            notes.add(what, site);
        }
        if let Some(what) = other_name(reference, site, &ours)? {
            notes.add(what, site);
        } else if let Some(what) = other_token(reference, site, &ours, &theirs)? {
            notes.add(what, site);
        }
    }
    Ok(notes.lines())
}

/// |a - b| / |b| in L2; 0 / 0 is 0 and NaN is infinitely far.
pub(super) fn distance(a: &[f32], b: &[f32]) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (&a, &b) in a.iter().zip(b) {
        difference += (f64::from(a) - f64::from(b)).powi(2);
        norm += f64::from(b).powi(2);
    }
    match difference {
        0.0 => 0.0,
        difference if difference.is_finite() => (difference / norm).sqrt(),
        _ => f64::INFINITY,
    }
}

/// Exact zeros where the reference has none, in a tensor that is not all zeros.
fn replaced(axes: &[Axis], ours: &Tensor, theirs: &Tensor) -> Option<String> {
    // Masks leave zeros, and one that is wrong is the engine's bug.
    if axes.contains(&Axis::Key) {
        return None;
    }
    let largest = theirs.data.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let pairs = ours.data.iter().zip(&theirs.data);
    let zeros = pairs.filter(|(a, b)| **a == 0.0 && b.abs() > 1e-3 * largest).count();
    let all = ours.data.len();
    let some = zeros * 100 >= all && ours.data.iter().any(|value| *value != 0.0);
    some.then(|| {
        format!(
            "is exactly 0 at {zeros} of {all} elements where the reference is not: never written, or \
             NaN replaced by zeros"
        )
    })
}

/// The stage of the same step and layer whose values in the reference these are.
fn other_name(
    reference: &TraceReader,
    site: Site,
    ours: &Tensor,
) -> Result<Option<String>, TraceError> {
    let same_place = |other: &Site| other.step == site.step && other.layer == site.layer;
    for other in reference.sites().filter(same_place).filter(|other| *other != site) {
        let Some(theirs) = reference.tensor(other)? else { continue };
        if theirs.shape == ours.shape && distance(&ours.data, &theirs.data) < SAME {
            let name = other.stage.name();
            return Ok(Some(format!(
                "has the values of the reference's {name}: recorded at the wrong place, or the \
                 operations between were left out"
            )));
        }
    }
    Ok(None)
}

/// Whether rows are the reference's one token earlier or later, in the step or beside it.
fn other_token(
    reference: &TraceReader,
    site: Site,
    ours: &Tensor,
    theirs: &Tensor,
) -> Result<Option<String>, TraceError> {
    let axes = reference.list().axes(site);
    if axes.contains(&Axis::Key) {
        return Ok(None);
    }
    let width = ours.data.len() / ours.shape[0];
    if ours.shape[0] > 2 {
        let (from_second, to_last) = (width.., ..ours.data.len() - width);
        let axis = axes[0].name();
        let shifts = [
            (&ours.data[from_second.clone()], &theirs.data[to_last], "before"),
            (&ours.data[to_last], &theirs.data[from_second], "after"),
        ];
        let shifted = shifts.into_iter().find(|(a, b, _)| distance(a, b) < SAME);
        return Ok(shifted.map(|(_, _, which)| {
            format!(
                "has at each {axis} the reference's values of the {axis} {which} it: positions are off by one"
            )
        }));
    }
    for (step, which) in [(site.step.wrapping_sub(1), "before"), (site.step + 1, "after")] {
        let Some(other) = reference.tensor(Site { step, ..site })? else { continue };
        let row = &other.data[other.data.len() - width..];
        if axes[0] == Axis::Token && distance(&ours.data, row) < SAME {
            let logits = match site.stage {
                Stage::Logits if which == "before" => {
                    ", or prompt logits were recorded instead of a decoded token's"
                }
                _ => "",
            };
            return Ok(Some(format!(
                "has the reference's values of the token {which} it: positions are off by one{logits}"
            )));
        }
    }
    Ok(None)
}
