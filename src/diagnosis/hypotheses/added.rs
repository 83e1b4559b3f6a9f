//! What was added to a right result: another tensor, or the same vector to every token.

use super::Visit;
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{Evidence, StepEvidence, cause::Rank},
};

/// Tokens that must share a vector for it to be one.
const LEAST_TOKENS: usize = 8;

/// Everything that may have been added.
pub fn sums(evidence: &Evidence<'_>, visit: Visit<'_>) {
    tensors(evidence, visit);
    vectors(evidence, visit);
}

/// Another recorded tensor of as many elements: what a buffer held before.
fn tensors(evidence: &Evidence<'_>, visit: Visit<'_>) {
    for place in evidence.other_sites(evidence.spec().node) {
        let text = format!("{} is added to the correct result", evidence.site_name(place));
        visit(evidence.predicted(CauseKey::TermSource, text, Rank::Likeness, |step| {
            let right = &step.observed.piece.expected;
            let other = evidence.recorded(step, place)?;
            let sum = |(x, y): (&f64, &f64)| x + y;
            let fits = other.len() == right.value.len();
            fits.then(|| right.with_values(right.value.iter().zip(&other).map(sum).collect(), 0.0))
        }));
    }
}

/// The same vector for every token, which is no bias of the file.
fn vectors(evidence: &Evidence<'_>, visit: Visit<'_>) {
    let Some(width) = width(evidence) else { return };
    let mut sums = vec![(0.0, 0usize); width];
    for step in &evidence.steps {
        let piece = &step.observed.piece;
        for (flat, (right, &x)) in piece.expected.value.iter().zip(&piece.captured).enumerate() {
            let error = f64::from(x) - right;
            if error.is_finite() {
                sums[flat % width].0 += error;
                sums[flat % width].1 += 1;
            }
        }
    }
    if sums.iter().any(|(_, count)| *count < LEAST_TOKENS) || !is_of_columns(evidence, width) {
        return;
    }
    let vector: Vec<f64> = sums.iter().map(|(sum, count)| sum / *count as f64).collect();
    let text = "another bias than the file's: the same vector is added to every token";
    visit(evidence.predicted(CauseKey::BiasOfOther, text, Rank::Likeness, |step| {
        let right = &step.observed.piece.expected;
        let of = |(flat, x): (usize, &f64)| x + vector[flat % width];
        Some(right.with_values(right.value.iter().enumerate().map(of).collect(), 0.0))
    }));
}

/// Whether columns are wrong as a whole: in those that have wrong elements, half of them are.
fn is_of_columns(evidence: &Evidence<'_>, width: usize) -> bool {
    let mut columns = vec![(0, 0); width];
    for (flat, &wrong) in evidence.wrong.iter().flat_map(|wrong| wrong.iter().enumerate()) {
        columns[flat % width].0 += usize::from(wrong);
        columns[flat % width].1 += 1;
    }
    let touched = columns.iter().filter(|(wrong, _)| *wrong > 0);
    let [wrong, all] = touched.fold([0, 0], |[a, b], (wrong, all)| [a + wrong, b + all]);
    2 * wrong > all
}

/// Elements of a token's row, where rows go by tokens alone.
fn width(evidence: &Evidence<'_>) -> Option<usize> {
    use crate::graph::site::Axis;
    let axes = &evidence.spec().axes;
    let is_by_token = axes.first()?.axis == Axis::Token;
    let is_of_keys = axes.iter().any(|axis| axis.axis == Axis::Key);
    let of = |step: &StepEvidence<'_>| step.observed.shape[1..].iter().product::<usize>();
    (is_by_token && !is_of_keys).then(|| of(&evidence.steps[0])).filter(|&width| width > 0)
}
