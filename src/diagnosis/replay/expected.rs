//! What an operation must give, computed in f64, and how far rounding may take each element.
//!
//! An element may differ from its exact value by at most
//!
//! ```text
//! lambda * spread + single + u_storage * |y|          lambda = 6
//! ```
//!
//! `spread` is sqrt(n) u_sum (|a| . |b|) for a sum of n products (Higham and Mary, "A new approach to
//! probabilistic rounding error analysis", 2019); `single` bounds what is rounded once on the way.
//! `docs/diagnosis.md` derives it.

use std::ops::Range;

use crate::{
    core::{arithmetic::Arithmetic, tensor::DType},
    graph::site::Stage,
};

/// How many standard deviations a random walk of rounding errors may go: it goes further once in
/// some 10^7 sums.
pub const LAMBDA: f64 = 6.0;

/// The roundings of one operation.
#[derive(Clone, Copy, Debug)]
pub struct Rounding {
    /// Unit roundoff of sums and functions.
    pub sum: f64,
    /// Unit roundoff of the stored result.
    pub storage: f64,
    /// What a stored result may lose below its format's normal range.
    pub smallest: f64,
    /// Unit roundoff of results between the steps of a formula; 0 where they are not stored.
    pub between: f64,
}

impl Rounding {
    /// The roundings that an engine declares for a stage.
    pub fn of(arithmetic: &Arithmetic, stage: Stage) -> Rounding {
        let op = arithmetic.of(stage);
        let between = arithmetic.between.filter(|_| has_steps(stage));
        let between = between.map_or(0.0, DType::unit_roundoff);
        Rounding { between, ..Rounding::new(op.accumulator, op.storage) }
    }

    /// Sums in one format, results in another.
    pub fn new(accumulator: DType, storage: DType) -> Rounding {
        let smallest = match storage {
            DType::F64 => f64::MIN_POSITIVE,
            DType::F16 => 2f64.powi(-24),
            DType::F32 | DType::Tf32 | DType::Bf16 => f64::from(f32::MIN_POSITIVE),
        };
        let (sum, storage) = (accumulator.unit_roundoff(), storage.unit_roundoff());
        Rounding { sum, storage, smallest, between: 0.0 }
    }
}

/// Whether a stage's formula has a step whose result a framework may store.
fn has_steps(stage: Stage) -> bool {
    use Stage::*;
    let norm = matches!(stage, AttnNorm | QNorm | KNorm | FfnNorm | FinalNorm);
    norm || matches!(stage, QRope | KRope | Scores | FfnAct)
}

/// An input of an operation: what a side captured, or what the replay computed in its place.
pub struct Operand {
    /// Elements of a row.
    pub width: usize,
    pub value: Vec<f64>,
    /// How far rounding may have taken each element, in standard deviations; `None` where the
    /// side's own values are known.
    pub spread: Option<Vec<f64>>,
}

impl Operand {
    /// An input as captured, in rows of `width`.
    pub fn captured(width: usize, values: &[f32]) -> Operand {
        Operand { width, value: values.iter().map(|&x| f64::from(x)).collect(), spread: None }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.value.len() / self.width.max(1)
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f64] {
        &self.value[row * self.width..(row + 1) * self.width]
    }

    /// Some of the rows, in that order.
    pub fn select(&self, rows: &[usize]) -> Operand {
        self.part(rows, 0..self.width)
    }

    /// Some columns of some of the rows.
    pub fn part(&self, rows: &[usize], columns: Range<usize>) -> Operand {
        let of = |values: &[f64]| {
            let at = |row: usize| row * self.width;
            let row = |&row: &usize| &values[at(row) + columns.start..at(row) + columns.end];
            rows.iter().flat_map(row).copied().collect::<Vec<f64>>()
        };
        Operand {
            width: columns.len(),
            value: of(&self.value),
            spread: self.spread.as_deref().map(of),
        }
    }

    /// The spread of one element.
    pub fn spread_of(&self, index: usize) -> f64 {
        self.spread.as_ref().map_or(0.0, |spread| spread[index])
    }
}

type PerElement<'a> = Box<dyn Fn(usize) -> f64 + Send + Sync + 'a>;

/// The standard deviation of the rounding errors that a sum gathers.
pub enum Spread<'a> {
    None,
    Each(Vec<f64>),
    /// For sums of products, whose |a| . |b| would cost as much as the product itself: it lies
    /// between |a . b| and ||a|| ||b||, and is only computed where that does not decide.
    Product {
        /// sqrt(n) u: what |a| . |b| is multiplied by.
        factor: f64,
        /// ||a|| ||b||.
        most: PerElement<'a>,
        /// |a| . |b|.
        exact: PerElement<'a>,
        /// What uncertain inputs add.
        inherited: Option<Vec<f64>>,
    },
}

/// The elements an operation must give, row-major.
pub struct Expected<'a> {
    pub value: Vec<f64>,
    pub spread: Spread<'a>,
    /// Bounds of single roundings on the way, without the last; empty where there are none.
    pub single: Vec<f64>,
    pub rounding: Rounding,
}

impl<'a> Expected<'a> {
    /// The bound of an element's single roundings on the way.
    #[inline]
    pub fn single_of(&self, index: usize) -> f64 {
        self.single.get(index).copied().unwrap_or(0.0)
    }

    /// The part of an element's bound that needs no sum.
    #[inline]
    pub fn fixed(&self, index: usize) -> f64 {
        let Rounding { storage, smallest, .. } = self.rounding;
        self.single_of(index) + storage * self.value[index].abs() + smallest
    }

    #[inline]
    fn least_spread(&self, index: usize) -> f64 {
        match &self.spread {
            Spread::None => 0.0,
            Spread::Each(each) => each[index],
            Spread::Product { factor, inherited, .. } => {
                let own = factor * self.value[index].abs();
                own + inherited.as_ref().map_or(0.0, |inherited| inherited[index])
            }
        }
    }

    /// An upper limit of an element's spread, cheaply.
    pub fn most_spread(&self, index: usize) -> f64 {
        match &self.spread {
            Spread::Product { factor, most, inherited, .. } => {
                factor * most(index) + inherited.as_ref().map_or(0.0, |inherited| inherited[index])
            }
            _ => self.least_spread(index),
        }
    }

    /// An upper limit of the element's bound, cheaply.
    pub fn most_bound(&self, index: usize) -> f64 {
        LAMBDA * self.most_spread(index) + self.fixed(index)
    }

    /// How far the element may be from its value.
    pub fn bound(&self, index: usize) -> f64 {
        let spread = match &self.spread {
            Spread::Product { factor, exact, inherited, .. } => {
                factor * exact(index) + inherited.as_ref().map_or(0.0, |inherited| inherited[index])
            }
            _ => self.least_spread(index),
        };
        LAMBDA * spread + self.fixed(index)
    }

    /// |actual - value| in units of the bound. `None` where the inputs are no numbers, so that
    /// nothing is expected. Far from 1 it is only known to be on that side of 1.
    #[inline]
    pub fn times_bound(&self, index: usize, actual: f32) -> Option<f64> {
        let value = self.value[index];
        if !value.is_finite() {
            return None;
        }
        if !actual.is_finite() {
            return Some(f64::INFINITY);
        }
        let error = (f64::from(actual) - value).abs();
        let fixed = self.fixed(index);
        let least = LAMBDA * self.least_spread(index) + fixed;
        if error <= least {
            return Some(error / least);
        }
        let most = self.most_bound(index);
        Some(if error > most { error / most } else { error / self.bound(index) })
    }

    /// |actual - value| in units of the bound, exactly.
    pub fn exact_times_bound(&self, index: usize, actual: f32) -> f64 {
        (f64::from(actual) - self.value[index]).abs() / self.bound(index)
    }

    /// The same elements in another order, each taken from the place listed, times a factor.
    pub fn rearranged(self, from: Vec<usize>, factor: f64) -> Expected<'a> {
        let in_order = from.len() == self.value.len() && from.iter().copied().eq(0..from.len());
        if in_order && factor == 1.0 {
            return self;
        }
        let size = factor.abs();
        let Expected { value, spread, single, rounding } = self;
        let taken = |values: &[f64], factor: f64| -> Vec<f64> {
            from.iter().map(|&at| values[at] * factor).collect()
        };
        let (value, single) =
            (taken(&value, factor), if single.is_empty() { single } else { taken(&single, size) });
        let spread = match spread {
            Spread::None => Spread::None,
            Spread::Each(each) => Spread::Each(taken(&each, size)),
            Spread::Product { factor, most, exact, inherited } => {
                let inherited = inherited.map(|inherited| taken(&inherited, size));
                let places = std::sync::Arc::new(from);
                let (of_most, of_exact) = (std::sync::Arc::clone(&places), places);
                Spread::Product {
                    factor,
                    most: Box::new(move |i| size * most(of_most[i])),
                    exact: Box::new(move |i| size * exact(of_exact[i])),
                    inherited,
                }
            }
        };
        Expected { value, spread, single, rounding }
    }

    /// Other values with the bounds of these, in proportion, and room for the operation that changed them.
    pub fn replaced(&self, value: Vec<f64>) -> Expected<'static> {
        const CHANGE: f64 = 4.0;
        let ratio = |i: usize| match self.value[i].abs() {
            0.0 => 1.0,
            size => (value[i].abs() / size).clamp(0.0, 1e6),
        };
        let rounding = self.rounding;
        let spread = (0..value.len()).map(|i| self.most_spread(i) * ratio(i)).collect();
        let change = |i: usize| CHANGE * rounding.sum * value[i].abs();
        let single = (0..value.len()).map(|i| self.single_of(i) * ratio(i) + change(i)).collect();
        Expected { value, spread: Spread::Each(spread), single, rounding }
    }

    /// The result as the input of another operation.
    pub fn into_operand(self, width: usize) -> Operand {
        let spread = (0..self.value.len()).map(|i| self.most_spread(i) + self.fixed(i));
        let spread = Some(spread.collect());
        Operand { width, value: self.value, spread }
    }
}
