//! Guilty or cleared: an operation's recorded result against its bound.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    compare::Pattern,
    core::tensor::Tensor,
    diagnosis::replay::{
        expected::LAMBDA,
        forward::{Piece, Recording, Replay, ReplayError},
        operation::Operation,
    },
    graph::site::Axis,
    model::Model,
};

/// What the replay says of one operation, over all recorded steps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Judged {
    pub operation: Operation,
    /// Elements that were checked. Those whose inputs are no numbers cannot be.
    pub elements: u64,
    /// Elements further from their value than rounding can take them.
    pub beyond: u64,
    /// The element that is furthest.
    pub worst: Option<Worst>,
    /// The part of the result that lies along the right one, against what independent roundings
    /// may add up to: above 1, many small errors share a direction. 0 where that tells no more
    /// than single elements do.
    pub drift: f64,
    /// Which elements are beyond, in the first step that has any.
    pub pattern: Option<String>,
    /// Operations between the recorded inputs and this one whose own results were not recorded:
    /// the verdict is on all of them together.
    pub spanned: Vec<Operation>,
}

/// One element of an operation's result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Worst {
    pub step: u32,
    /// Index on each axis of the stage.
    pub index: Vec<usize>,
    #[serde(deserialize_with = "crate::core::tensor::nan_from_null")]
    pub recorded: f32,
    #[serde(deserialize_with = "crate::core::tensor::nan_from_null")]
    pub expected: f64,
    /// |recorded - expected| in units of the bound.
    #[serde(deserialize_with = "crate::core::tensor::nan_from_null")]
    pub times_bound: f64,
}

impl Judged {
    /// Whether no rounding explains the result.
    pub fn is_guilty(&self) -> bool {
        self.beyond > 0 || self.drift > 1.0
    }

    /// How far beyond its bound the result is at worst; below 1 where it is within.
    pub fn times_bound(&self) -> f64 {
        self.worst.as_ref().map_or(0.0, |worst| worst.times_bound).max(self.drift)
    }
}

/// Sums over the elements of a piece.
#[derive(Clone, Copy, Default)]
struct Tally {
    elements: u64,
    beyond: u64,
    worst: Option<(usize, f64)>,
    /// sum of error * value. This and the sums below are only formed where a drift tells more.
    along: f64,
    /// sum of (u |y| * y)^2, and of all other bounds times |y|.
    independent: f64,
    common: f64,
}

impl Tally {
    fn drift(&self) -> f64 {
        let bound = LAMBDA * self.independent.sqrt() + self.common;
        if bound > 0.0 { self.along.abs() / bound } else { 0.0 }
    }

    /// Adds an element of a piece, if it counts.
    fn count(&mut self, piece: &Piece<'_>, index: usize, drifts: bool) {
        let Some(times_bound) = piece.times_bound(index) else { return };
        self.elements += 1;
        self.beyond += u64::from(times_bound > 1.0);
        if self.worst.is_none_or(|(_, worst)| times_bound > worst) {
            self.worst = Some((index, times_bound));
        }
        if !drifts {
            return;
        }
        let (expected, actual) = (&piece.expected, piece.captured[index]);
        let (value, rounding) = (expected.value[index], expected.rounding);
        let own = rounding.storage * value.abs();
        if actual.is_finite() {
            self.along += (f64::from(actual) - value) * value;
        }
        // A bias is added to a product that is stored, and rounded, too.
        self.independent += (own * value).powi(2) + (expected.single_of(index) * value).powi(2);
        self.common += (LAMBDA * expected.most_spread(index) + rounding.smallest) * value.abs();
    }

    fn add(mut self, next: Tally) -> Tally {
        self.elements += next.elements;
        self.beyond += next.beyond;
        self.worst = match (self.worst, next.worst) {
            (Some(a), Some(b)) => Some(if b.1 > a.1 { b } else { a }),
            (a, b) => a.or(b),
        };
        self.along += next.along;
        self.independent += next.independent;
        self.common += next.common;
        self
    }
}

/// Whether a drift tells more than single elements do. Where sums are as coarse as storage, an element's
/// own bound is as sharp. What is rounded between steps is not independent: silu of bf16 values has as
/// many results as bf16 has.
fn tells_more(pieces: &[Piece<'_>]) -> bool {
    let sharper = |piece: &Piece<'_>| {
        let rounding = piece.expected.rounding;
        rounding.storage > 2.0 * rounding.sum.max(rounding.between)
    };
    pieces.iter().any(sharper)
}

/// The drift of a whole result, as in [`Judged::drift`].
pub fn drift(pieces: &[Piece<'_>]) -> f64 {
    if !tells_more(pieces) {
        return 0.0;
    }
    let tallies = pieces.iter().map(|piece| tally(piece, true));
    tallies.fold(Tally::default(), Tally::add).drift()
}

/// Judges every operation that a side recorded, in canonical order; layers in parallel.
pub fn judge_all(model: &Model, recording: Recording<'_>) -> Result<Vec<Judged>, ReplayError> {
    let operations = Operation::all(&model.config);
    let layers: Vec<&[Operation]> = operations.chunk_by(|a, b| a.layer == b.layer).collect();
    let of_layer = |layer: &&[Operation]| {
        let replay = Replay::new(model, recording);
        let judged = layer.iter().map(|&operation| judge(&replay, operation));
        judged.collect::<Result<Vec<_>, ReplayError>>()
    };
    let judged = layers.par_iter().map(of_layer).collect::<Result<Vec<_>, ReplayError>>()?;
    Ok(judged.into_iter().flatten().flatten().collect())
}

/// Judges an operation of a recorded side.
pub fn judge(replay: &Replay<'_>, operation: Operation) -> Result<Option<Judged>, ReplayError> {
    replay.take_spanned();
    let pieces = replay.pieces(operation)?;
    if pieces.is_empty() {
        return Ok(None);
    }
    let spanned = replay.take_spanned();
    let axes = operation.stage.axes();
    let mut trial = Trial::new(operation);
    for piece in &pieces {
        trial.add(piece, replay.recording, axes, &|step| shape(replay, operation, step));
    }
    Ok(Some(Judged { spanned, ..trial.verdict() }))
}

/// Which elements of a piece are beyond their bounds.
pub fn wrong_elements(piece: &Piece<'_>) -> Vec<bool> {
    let is_wrong = |index: usize| {
        let times_bound = || piece.expected.times_bound(index, piece.captured[index]);
        piece.counts(index) && times_bound().is_some_and(|times| times > 1.0)
    };
    (0..piece.captured.len()).into_par_iter().map(is_wrong).collect()
}

/// The verdict on an operation as its pieces come in.
pub struct Trial {
    operation: Operation,
    total: Tally,
    worst: Option<Worst>,
    pattern: Option<String>,
    drifts: bool,
}

impl Trial {
    pub fn new(operation: Operation) -> Trial {
        let (total, worst, pattern) = (Tally::default(), None, None);
        Trial { operation, total, worst, pattern, drifts: false }
    }

    /// Judges one piece; whether any of it is beyond its bound.
    pub fn add(
        &mut self,
        piece: &Piece<'_>,
        recording: Recording<'_>,
        axes: &[Axis],
        shape: &dyn Fn(u32) -> Vec<usize>,
    ) -> bool {
        self.drifts |= tells_more(std::slice::from_ref(piece));
        let tally = tally(piece, self.drifts);
        if let Some((flat, _)) = tally.worst {
            let found = locate(recording, shape, piece, flat);
            let is_worse = |worst: &Worst| found.times_bound > worst.times_bound;
            if self.worst.as_ref().is_none_or(is_worse) {
                self.worst = Some(found);
            }
        }
        if tally.beyond > 0 && self.pattern.is_none() {
            self.pattern = Some(pattern_of(recording, axes, shape, piece));
        }
        self.total = self.total.add(tally);
        tally.beyond > 0
    }

    /// The verdict on all pieces.
    pub fn verdict(self) -> Judged {
        let Trial { operation, total, worst, pattern, drifts } = self;
        let drift = if drifts { total.drift() } else { 0.0 };
        let (elements, beyond) = (total.elements, total.beyond);
        Judged { operation, elements, beyond, worst, drift, pattern, spanned: Vec::new() }
    }
}

fn tally(piece: &Piece<'_>, drifts: bool) -> Tally {
    /// Elements of one task; sums are added in the order of the tasks.
    const CHUNK: usize = 1 << 14;
    let starts: Vec<usize> = (0..piece.captured.len()).step_by(CHUNK).collect();
    let of_chunk = |&start: &usize| {
        let end = (start + CHUNK).min(piece.captured.len());
        let mut tally = Tally::default();
        (start..end).for_each(|index| tally.count(piece, index, drifts));
        tally
    };
    let tallies: Vec<Tally> = starts.par_iter().map(of_chunk).collect();
    tallies.into_iter().fold(Tally::default(), Tally::add)
}

impl Piece<'_> {
    /// Whether the element counts: a score of a key after the query's position does not.
    pub fn counts(&self, index: usize) -> bool {
        match self.keys {
            Some(keys) => index % keys <= self.positions[index / self.width],
            None => true,
        }
    }

    /// What was recorded of an element, in units of its bound; `None` where it does not count.
    fn times_bound(&self, index: usize) -> Option<f64> {
        if self.counts(index) {
            self.expected.times_bound(index, self.captured[index])
        } else {
            None
        }
    }

    /// The step and flat index within its tensor of an element.
    pub fn place(&self, recording: Recording<'_>, index: usize) -> (u32, usize) {
        let mut rest = index;
        for &step in &self.steps[..self.steps.len() - 1] {
            let length = recording.positions(step).len() * self.width;
            if rest < length {
                return (step, rest);
            }
            rest -= length;
        }
        (*self.steps.last().expect("a piece has steps"), rest)
    }
}

fn locate(
    recording: Recording<'_>,
    shape: &dyn Fn(u32) -> Vec<usize>,
    piece: &Piece<'_>,
    flat: usize,
) -> Worst {
    let (step, within) = piece.place(recording, flat);
    let shape = shape(step);
    let recorded = piece.captured[flat];
    let times_bound = if recorded.is_finite() {
        piece.expected.exact_times_bound(flat, recorded)
    } else {
        f64::INFINITY
    };
    let expected = piece.expected.value[flat];
    Worst { step, index: Tensor::unravel(within, &shape), recorded, expected, times_bound }
}

fn shape(replay: &Replay<'_>, operation: Operation, step: u32) -> Vec<usize> {
    let positions = replay.recording.positions(step);
    replay.model.config.shape(operation.stage, positions.len(), positions.end)
}

/// Which elements are beyond their bound, in the piece's first step that has any.
fn pattern_of(
    recording: Recording<'_>,
    axes: &[Axis],
    shape: &dyn Fn(u32) -> Vec<usize>,
    piece: &Piece<'_>,
) -> String {
    let beyond: Vec<(u32, usize)> = (0..piece.captured.len())
        .into_par_iter()
        .filter(|&index| piece.times_bound(index).is_some_and(|times| times > 1.0))
        .map(|index| piece.place(recording, index))
        .collect();
    let step = beyond[0].0;
    let shape = shape(step);
    let first = recording.positions(step).start;
    let pattern = Pattern::of(axes, &shape, first, |mark| {
        for (_, flat) in beyond.iter().filter(|(of_step, _)| *of_step == step) {
            mark(&Tensor::unravel(*flat, &shape));
        }
    });
    pattern.text
}
