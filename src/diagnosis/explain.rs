//! How much of a wrong result a candidate explains.

use rayon::prelude::*;

use crate::{
    compare::axis_phrase,
    diagnosis::replay::{self, Piece},
    graph::site::Axis,
};

/// What a candidate makes of a guilty operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Explained {
    /// Elements that are beyond their bound when computed right.
    pub wrong: u64,
    /// Those among them that the candidate gives, within its own bound.
    pub explained: u64,
    /// Elements that are right, and would not be under the candidate.
    pub contradicted: u64,
    /// Where the candidate holds, if not everywhere: one axis divides what follows the candidate
    /// from what is right.
    pub region: Option<String>,
    /// Root mean square of the remaining error in units of the bound.
    pub residual: f64,
    /// Whether its bounds are so much wider than those of the right result that they explain anything.
    pub is_wide: bool,
}

impl Explained {
    /// Whether every element is explained: wrong ones by the candidate, and right ones by it or by
    /// lying outside of its region. A few elements lie in some region of any candidate.
    pub fn is_proof(&self) -> bool {
        const LEAST_IN_REGION: u64 = 8;
        let in_region = self.region.is_some() && self.wrong >= LEAST_IN_REGION;
        !self.is_wide
            && self.wrong > 0
            && self.explained == self.wrong
            && (self.contradicted == 0 || in_region)
    }

    /// Whether every element is explained, though its bounds may be wide.
    pub fn is_whole(&self) -> bool {
        self.wrong > 0
            && self.explained == self.wrong
            && self.contradicted == 0
            && self.region.is_none()
    }

    /// The share of the elements in question that the candidate accounts for.
    pub fn share(&self) -> f64 {
        let contradicted = if self.region.is_some() { 0 } else { self.contradicted };
        self.explained as f64 / (self.wrong + contradicted).max(1) as f64
    }
}

/// One element: wrong as computed right, and not given by the candidate.
#[derive(Clone, Copy)]
struct Mark {
    wrong: bool,
    missed: bool,
    times_bound: f64,
}

/// An element's step, the position of the step's first token, and its index on each axis.
pub struct Place {
    pub step: u32,
    pub first_position: usize,
    pub index: Vec<usize>,
}

/// What a candidate is tried on: the elements of pieces, which of them are wrong, and where they lie.
pub struct Trial<'t> {
    pub axes: &'t [Axis],
    /// Piece after piece.
    pub wrong: &'t [Vec<bool>],
    /// The place of an element of a piece.
    pub place: &'t dyn Fn(usize, usize) -> Place,
}

impl Trial<'_> {
    /// How much of the recorded result the predicted one explains; pieces as those that are wrong. Whether it
    /// may explain what is no number.
    pub fn explained(&self, predicted: &[Piece<'_>], gives_none: bool) -> Explained {
        let right = self.wrong.iter().flatten();
        let mark = |(&wrong, (times_bound, is_number)): (&bool, (Option<f64>, bool))| Mark {
            wrong,
            // Where a candidate gives no number, it does not give a wrong number either.
            missed: times_bound.map_or(wrong && (is_number || !gives_none), |times| times > 1.0),
            times_bound: times_bound.unwrap_or(0.0),
        };
        let marks: Vec<Mark> = right.zip(flat(predicted)).map(mark).collect();
        let count =
            |test: &dyn Fn(&Mark) -> bool| marks.iter().filter(|mark| test(mark)).count() as u64;
        let mut wrong = count(&|mark| mark.wrong);
        let mut explained = count(&|mark| mark.wrong && !mark.missed);
        let contradicted = count(&|mark| !mark.wrong && mark.missed);
        let drifts = replay::drift(predicted) > 1.0;
        if wrong == 0 {
            // Guilty by drift: small errors of one direction, which all elements share.
            (wrong, explained) = (marks.len() as u64, marks.len() as u64);
        }
        if drifts {
            explained = 0;
        }
        let is_divided = explained == wrong && contradicted > 0 && wrong > 0;
        let region = if is_divided { self.region(&marks) } else { None };
        let mut squares = 0.0;
        for mark in marks.iter().filter(|mark| mark.wrong && !mark.missed) {
            squares += mark.times_bound.powi(2);
        }
        let residual = (squares / explained.max(1) as f64).sqrt();
        Explained { wrong, explained, contradicted, region, residual, is_wide: false }
    }

    /// The one axis that divides wrong elements from contradicted ones, in words.
    fn region(&self, marks: &[Mark]) -> Option<String> {
        // Steps, and then the axes of the stage: whether an index has wrong elements, and contradicted.
        let mut hits: Vec<Vec<(bool, bool)>> = vec![Vec::new(); self.axes.len() + 1];
        let mut base = 0;
        for (at, wrong) in self.wrong.iter().enumerate() {
            for flat in 0..wrong.len() {
                let mark = marks[base + flat];
                let contradicted = !mark.wrong && mark.missed;
                if !(mark.wrong || contradicted) {
                    continue;
                }
                let Place { step, first_position, mut index } = (self.place)(at, flat);
                if self.axes.first() == Some(&Axis::Token) {
                    index[0] += first_position;
                }
                for (axis, index) in std::iter::once(step as usize).chain(index).enumerate() {
                    if hits[axis].len() <= index {
                        hits[axis].resize(index + 1, (false, false));
                    }
                    hits[axis][index].0 |= mark.wrong;
                    hits[axis][index].1 |= contradicted;
                }
            }
            base += wrong.len();
        }
        let divides = |hits: &[(bool, bool)]| hits.iter().all(|&(wrong, kept)| !(wrong && kept));
        let marked =
            |hits: &[(bool, bool)]| hits.iter().map(|&(wrong, _)| wrong).collect::<Vec<bool>>();
        if divides(&hits[0]) {
            let steps = marked(&hits[0]);
            return Some(match steps.iter().position(|&wrong| wrong) {
                Some(0) => "in the prefill only".to_string(),
                Some(1) => "in decode steps only".to_string(),
                first => format!("from step {} on", first.unwrap_or(0)),
            });
        }
        self.axes.iter().zip(&hits[1..]).find(|(_, hits)| divides(hits)).map(|(&axis, hits)| {
            let axis = if axis == Axis::Token { Axis::Position } else { axis };
            let phrase = axis_phrase(axis, &marked(hits));
            phrase.map_or(String::new(), |phrase| format!("{phrase} only"))
        })
    }
}

/// |recorded - expected| in units of the bound, piece after piece, `None` where no number is expected;
/// and whether the recorded one is a number.
fn flat(pieces: &[Piece<'_>]) -> Vec<(Option<f64>, bool)> {
    let of_piece = |piece: &Piece<'_>| {
        let of = |index: usize| {
            let actual = piece.captured[index];
            (piece.expected.times_bound(index, actual), actual.is_finite())
        };
        (0..piece.captured.len()).into_par_iter().map(of).collect::<Vec<_>>()
    };
    pieces.iter().flat_map(of_piece).collect()
}
