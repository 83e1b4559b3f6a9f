//! How accurate an operation's recorded results are, in units of their rounding bounds.

use std::{collections::BTreeMap, sync::Arc};

use rayon::prelude::*;

use super::{
    judge::{judge_found, part_count},
    machine::GraphRun,
    operation::Operation,
    recording::{Piece, ReplayError},
};

/// The error of one operation over all recorded steps. Its inputs are the side's own, so that what
/// other operations lose is no part of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accuracy {
    pub operation: Operation,
    /// sqrt(sum of squared errors / sum of squared bounds).
    pub rms: f64,
    /// The largest error in units of its element's bound.
    pub peak: f64,
}

/// Sums over elements.
#[derive(Clone, Copy, Default)]
struct Sums {
    squared_error: f64,
    squared_bound: f64,
    peak: f64,
}

impl Sums {
    fn add(self, next: Sums) -> Sums {
        Sums {
            squared_error: self.squared_error + next.squared_error,
            squared_bound: self.squared_bound + next.squared_bound,
            peak: self.peak.max(next.peak),
        }
    }
}

/// The accuracy of every operation that a side recorded, in the order of the graph.
pub fn accuracies(run: GraphRun<'_>) -> Result<Vec<Accuracy>, ReplayError> {
    type Totals = BTreeMap<usize, Sums>;
    let kept: Vec<Totals> = vec![Totals::new(); part_count(run)];
    let (_, totals) = judge_found(run, &Arc::default(), kept, &|totals, _, observed| {
        let total = totals.entry(observed.place).or_default();
        *total = total.add(sums(&observed.piece));
        Ok(())
    })?;
    let specs = run.model.sites.specs();
    let of = |(place, total): (usize, Sums)| {
        let operation = Operation { layer: specs[place].layer, stage: specs[place].stage };
        let Sums { squared_error, squared_bound, peak } = total;
        let rms = if squared_bound > 0.0 { (squared_error / squared_bound).sqrt() } else { 0.0 };
        Accuracy { operation, rms, peak }
    };
    Ok(totals.into_iter().flatten().map(of).collect())
}

fn sums(piece: &Piece<'_>) -> Sums {
    /// Elements of one task; sums are added in the order of the tasks.
    const CHUNK: usize = 1 << 14;
    let starts: Vec<usize> = (0..piece.captured.len()).step_by(CHUNK).collect();
    let of_chunk = |&start: &usize| {
        let end = (start + CHUNK).min(piece.captured.len());
        (start..end).fold(Sums::default(), |sums, index| sums.add(of_element(piece, index)))
    };
    let sums: Vec<Sums> = starts.par_iter().map(of_chunk).collect();
    sums.into_iter().fold(Sums::default(), Sums::add)
}

/// By the cheap upper limit of the bound, which varies less than the bound itself where products
/// cancel: this is to be compared with itself, not to be a verdict.
fn of_element(piece: &Piece<'_>, index: usize) -> Sums {
    let (value, actual) = (piece.expected.value[index], piece.captured[index]);
    if !value.is_finite() {
        return Sums::default();
    }
    let error = if actual.is_finite() { (f64::from(actual) - value).abs() } else { f64::INFINITY };
    let bound = piece.expected.most_bound(index);
    Sums { squared_error: error * error, squared_bound: bound * bound, peak: error / bound }
}
