//! How accurate an operation's recorded results are, in units of their rounding bounds.

use rayon::prelude::*;

use crate::{
    diagnosis::replay::{
        forward::{Piece, Recording, Replay, ReplayError},
        operation::Operation,
    },
    model::Model,
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

/// The accuracy of every operation that a side recorded, in canonical order; layers in parallel.
pub fn accuracies(model: &Model, recording: Recording<'_>) -> Result<Vec<Accuracy>, ReplayError> {
    let operations = Operation::all(&model.config);
    let layers: Vec<&[Operation]> = operations.chunk_by(|a, b| a.layer == b.layer).collect();
    let of_layer = |layer: &&[Operation]| {
        let replay = Replay::new(model, recording);
        let of = |&operation: &Operation| accuracy(&replay, operation);
        layer.iter().map(of).collect::<Result<Vec<_>, ReplayError>>()
    };
    let found = layers.par_iter().map(of_layer).collect::<Result<Vec<_>, ReplayError>>()?;
    Ok(found.into_iter().flatten().flatten().collect())
}

/// `None` where no result of the operation was recorded.
fn accuracy(replay: &Replay<'_>, operation: Operation) -> Result<Option<Accuracy>, ReplayError> {
    let pieces = replay.pieces(operation)?;
    let total = pieces.iter().map(sums).fold(Sums::default(), Sums::add);
    let Sums { squared_error, squared_bound, peak } = total;
    let rms = if squared_bound > 0.0 { (squared_error / squared_bound).sqrt() } else { 0.0 };
    Ok((!pieces.is_empty()).then_some(Accuracy { operation, rms, peak }))
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
    if !(piece.counts(index) && value.is_finite()) {
        return Sums::default();
    }
    let error = if actual.is_finite() { (f64::from(actual) - value).abs() } else { f64::INFINITY };
    let bound = piece.expected.most_bound(index);
    Sums { squared_error: error * error, squared_bound: bound * bound, peak: error / bound }
}
