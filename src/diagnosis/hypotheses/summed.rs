//! Which inputs a product sums, and how often, read off its errors.

use std::rc::Rc;

use super::{
    Visit,
    least_squares::{solve, whole},
};
use crate::{
    compare::axis_phrase,
    core::cause_key::CauseKey,
    diagnosis::{
        Change, Edits, Evidence,
        replay::{Machine, ReplayError, rules::Values},
    },
    graph::{NodeId, Op, site::Axis},
};

/// At most so many coefficients are solved for at once.
const MOST: usize = 128;
/// How near to a whole number a coefficient is: where inputs are solved for in blocks, and one by one.
const NEAR: f64 = 0.02;
const ROUGH: f64 = 0.3;
/// Errors for each coefficient.
const ERRORS: usize = 4;

/// Products in which some inputs do not count, or count more than once.
pub fn inputs(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    for product in evidence.nodes(|node| node.op == Op::MulMat) {
        if evidence.weight_source(product).is_none_or(|weight| weight.source != 0) {
            continue;
        }
        let Some(counts) = solved(evidence, product)? else { continue };
        let text = described(&counts);
        let times: Vec<f64> = counts.iter().map(|&count| count as f64).collect();
        let values = move |_: &Machine<'_>, x: &[f64], ne: [usize; 4]| {
            let of = |(i, x): (usize, &f64)| x * times[i % ne[0]];
            (ne[0] == times.len()).then(|| x.iter().enumerate().map(of).collect::<Vec<f64>>())
        };
        let edits = Edits::one(product, Change::Values(1, Rc::new(values)));
        visit(evidence.mistake(CauseKey::PartialSum, text, &edits)?);
    }
    Ok(())
}

/// An error, and what it is made of.
struct Sample {
    input: Vec<f64>,
    weight: Vec<f32>,
    error: f64,
}

/// How often each input counts; `None` where that is as it should be, or no whole number.
fn solved(evidence: &Evidence<'_>, product: NodeId) -> Result<Option<Vec<i64>>, ReplayError> {
    let samples = samples(evidence, product)?;
    let Some(width) = samples.first().map(|sample| sample.weight.len()) else { return Ok(None) };
    if let Some(counts) = few(&samples, width) {
        return Ok(Some(counts));
    }
    let mut block = 1;
    while width.div_ceil(block) > MOST {
        block *= 2;
    }
    // Whole blocks first, then each input of those that count in part.
    let mut groups: Vec<std::ops::Range<usize>> =
        (0..width).step_by(block).map(|from| from..(from + block).min(width)).collect();
    for is_last in [false, true] {
        let Some(coefficients) = coefficients(&samples, &groups) else { return Ok(None) };
        // What is rounded too boldly is refuted by the elements.
        let near = if is_last { ROUGH } else { NEAR };
        if let Some(counts) = whole(&coefficients, near) {
            let mut all = vec![1; width];
            for (group, count) in groups.iter().zip(counts) {
                all[group.clone()].fill(1 + count);
            }
            // One count for all is a factor.
            return Ok(all.iter().any(|&count| count != all[0]).then_some(all));
        }
        let split = |(group, c): (&std::ops::Range<usize>, &f64)| {
            let is_whole = whole(&[*c], NEAR).is_some();
            let step = if is_whole { group.len() } else { 1 };
            group.clone().step_by(step).map(move |from| from..from + step).collect::<Vec<_>>()
        };
        groups = groups.iter().zip(&coefficients).flat_map(split).collect();
        if groups.len() > 2 * MOST {
            return Ok(None);
        }
    }
    Ok(None)
}

/// The counts where only a few inputs have another: the one that takes most of what is left is added, until
/// nothing is.
fn few(samples: &[Sample], width: usize) -> Option<Vec<i64>> {
    const FEW: usize = 12;
    /// Of the squared errors, what rounding leaves.
    const LEFT: f64 = 1e-8;
    let column = |i: usize| {
        let term = |sample: &Sample| sample.input[i] * f64::from(sample.weight[i]);
        samples.iter().map(term).collect::<Vec<f64>>()
    };
    let columns: Vec<Vec<f64>> = (0..width).map(column).collect();
    let errors: Vec<f64> = samples.iter().map(|sample| sample.error).collect();
    let squares = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>();
    let (mut left, mut chosen) = (errors.clone(), Vec::new());
    while squares(&left) > LEFT * squares(&errors) {
        let gain = |&i: &usize| {
            let along: f64 = columns[i].iter().zip(&left).map(|(x, y)| x * y).sum();
            along * along / squares(&columns[i]).max(f64::MIN_POSITIVE)
        };
        let best = (0..width).max_by(|a, b| gain(a).total_cmp(&gain(b)))?;
        if chosen.contains(&best) || chosen.len() == FEW {
            return None;
        }
        chosen.push(best);
        let row = |at: usize| chosen.iter().map(|&i| columns[i][at]).collect::<Vec<f64>>();
        let rows: Vec<Vec<f64>> = (0..errors.len()).map(row).collect();
        let found = solve(&rows, &errors)?;
        let sum = |row: &Vec<f64>| row.iter().zip(&found).map(|(x, c)| x * c).sum::<f64>();
        left = rows.iter().zip(&errors).map(|(row, error)| error - sum(row)).collect();
        if squares(&left) <= LEFT * squares(&errors) {
            let mut counts = vec![1; width];
            for (&i, count) in chosen.iter().zip(whole(&found, ROUGH)?) {
                counts[i] += count;
            }
            return counts.iter().any(|&count| count != counts[0]).then_some(counts);
        }
    }
    None
}

fn coefficients(samples: &[Sample], groups: &[std::ops::Range<usize>]) -> Option<Vec<f64>> {
    let term = |sample: &Sample, i: usize| sample.input[i] * f64::from(sample.weight[i]);
    let row = |sample: &Sample| {
        let of = |group: &std::ops::Range<usize>| group.clone().map(|i| term(sample, i)).sum();
        groups.iter().map(of).collect::<Vec<f64>>()
    };
    let rows: Vec<Vec<f64>> = samples.iter().map(row).collect();
    let errors: Vec<f64> = samples.iter().map(|sample| sample.error).collect();
    solve(&rows, &errors)
}

/// Errors of some wrong elements, of as many tokens and outputs as there are.
fn samples(evidence: &Evidence<'_>, product: NodeId) -> Result<Vec<Sample>, ReplayError> {
    let node = evidence.graph().node(product);
    let (Some(weight), Some(input)) = (node.source(0), node.source(1)) else {
        return Ok(Vec::new());
    };
    let every = (evidence.count_wrong() / (ERRORS * 2 * MOST)).max(1);
    // An odd step visits every output.
    let every = every | 1;
    let (mut samples, mut nth) = (Vec::new(), 0);
    for (step, wrong) in evidence.steps.iter().zip(&evidence.wrong) {
        let machine = &step.machine;
        let (Some(matrix), Some(x)) = (machine.argument(weight)?, machine.argument(input)?) else {
            return Ok(Vec::new());
        };
        let (Values::Weight(matrix), x_width) = (&matrix.values, x.ne[0]) else {
            return Ok(Vec::new());
        };
        let values = x.value()?;
        let piece = &step.observed.piece;
        let fits = matrix.inputs == x_width
            && piece.captured.len() == values.len() / x_width.max(1) * matrix.outputs;
        if !fits {
            return Ok(Vec::new());
        }
        for (flat, _) in wrong.iter().enumerate().filter(|(_, wrong)| **wrong) {
            nth += 1;
            let error = f64::from(piece.captured[flat]) - piece.expected.value[flat];
            if (nth - 1) % every != 0 || !error.is_finite() {
                continue;
            }
            let (token, output) = (flat / matrix.outputs, flat % matrix.outputs);
            let input = values[token * x_width..(token + 1) * x_width].to_vec();
            samples.push(Sample { input, weight: matrix.row(output)?, error });
        }
    }
    Ok(samples)
}

/// `inputs 64-95 are left out of the sum`.
fn described(counts: &[i64]) -> String {
    let mut kinds: Vec<i64> = counts.iter().copied().filter(|&count| count != 1).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let part = |&kind: &i64| {
        let marks: Vec<bool> = counts.iter().map(|&count| count == kind).collect();
        let which = axis_phrase(Axis::Element, &marks);
        let which = which.map_or("all inputs".to_string(), |of| format!("input {of}"));
        match kind {
            0 => format!("{which} left out of the sum"),
            2 => format!("{which} summed twice"),
            kind => format!("{which} summed {kind} times"),
        }
    };
    kinds.iter().map(part).collect::<Vec<_>>().join("; ")
}
