//! What an operation must give, computed in f64, and how far rounding may take each element.
//!
//! An element may differ from its exact value by at most
//!
//! ```text
//! lambda * spread + single + u_storage * |y|          lambda = 6
//! ```
//!
//! `spread` is the standard deviation of the errors of a sum ([`SumRounding`]; after Higham and Mary, "A new
//! approach to probabilistic rounding error analysis", 2019); `single` bounds what is rounded once on the
//! way. `docs/diagnosis.md` derives it.

use std::ops::Range;

use rayon::prelude::*;

use crate::{
    core::{arithmetic::Arithmetic, tensor::DType},
    graph::{Op, SiteSpec, site::Stage},
};

/// Roundings of the operations that change a right value to a wrong one.
const CHANGE: f64 = 4.0;

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
    /// The roundings that an engine declares for a site.
    pub fn of(arithmetic: &Arithmetic, spec: &SiteSpec) -> Rounding {
        let op = arithmetic.of(spec.stage);
        let between = arithmetic.between.filter(|_| has_steps(spec));
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

    /// Whether what the errors have in common tells more than single elements do. Where sums are as coarse as
    /// storage, an element's own bound is as sharp. What is rounded between steps is not independent: silu of bf16
    /// values has as many results as bf16 has.
    pub fn tells_more(self) -> bool {
        self.storage > 2.0 * self.sum.max(self.between)
    }
}

/// Whether a site's formula has a step whose result a framework may store.
fn has_steps(spec: &SiteSpec) -> bool {
    let op = &spec.op;
    let is_function = op.is_norm() || op.is_gated() || op.is_activation();
    is_function || matches!(op, Op::Rope | Op::SoftMax) || spec.stage == Stage::Scores
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

type PerElement<'a, T> = Box<dyn Fn(usize) -> T + Send + Sync + 'a>;

/// What is known of the terms of a sum of products.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// sum (a b)^2.
    pub squares: f64,
    /// The sum of the squares of the partial sums, in the order of the terms.
    pub walk: f64,
}

/// How a sum of n products is rounded.
#[derive(Clone, Copy, Debug)]
pub struct SumRounding {
    pub n: usize,
    /// Unit roundoff.
    pub u: f64,
    /// Roundings of each term beside those of the sum, in unit roundoffs.
    pub of_terms: f64,
    /// The least deviation of a sum of 1.
    least: f64,
}

impl SumRounding {
    /// Of sums of n products in a unit roundoff, with roundings of each term beside those of the sum.
    pub fn new(n: usize, u: f64, of_terms: f64) -> SumRounding {
        let mut rounding = SumRounding { n, u, of_terms, least: 0.0 };
        // No terms have less than those that are all alike.
        let alike = Terms { squares: 1.0 / n.max(1) as f64, walk: 0.0 };
        rounding.least = rounding.deviation(1.0, alike);
        rounding
    }

    /// The standard deviation of the error of a sum y: each partial sum s is rounded by at most u |s|, evenly.
    /// Of n terms in any order the squares of the partial sums are together n (y^2 / 3 + sum (a b)^2 / 2) on
    /// average: those of a drift to y, and those of a random walk.
    pub fn deviation(self, y: f64, terms: Terms) -> f64 {
        let n = self.n as f64;
        let any_order = n * (y * y / 9.0 + terms.squares / 6.0);
        let of_sums = any_order.max(terms.walk / 3.0).sqrt();
        self.u * (of_sums + self.of_terms * (terms.squares.sqrt() + y.abs()))
    }

    /// The least that the deviation of a sum y is, whatever its terms.
    fn least_deviation(self, y: f64) -> f64 {
        self.least * y.abs()
    }
}

/// The standard deviation of the rounding errors that a sum gathers.
pub enum Spread<'a> {
    None,
    Each(Vec<f64>),
    /// For sums of products, whose squares would cost as much as the product itself: their sum lies
    /// between y^2 / n and ||a||_4^2 ||b||_4^2, and is only computed where that does not decide.
    Product {
        rounding: SumRounding,
        /// ||a||_4^2 ||b||_4^2.
        most: PerElement<'a, f64>,
        exact: PerElement<'a, Terms>,
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
            Spread::Product { rounding, inherited, .. } => {
                let own = rounding.least_deviation(self.value[index]);
                own + inherited.as_ref().map_or(0.0, |inherited| inherited[index])
            }
        }
    }

    /// An upper limit of an element's spread, cheaply.
    pub fn most_spread(&self, index: usize) -> f64 {
        match &self.spread {
            Spread::Product { rounding, most, inherited, .. } => {
                let terms = Terms { squares: most(index), walk: 0.0 };
                let own = rounding.deviation(self.value[index], terms);
                own + inherited.as_ref().map_or(0.0, |inherited| inherited[index])
            }
            _ => self.least_spread(index),
        }
    }

    /// An upper limit of the element's bound, cheaply.
    pub fn most_bound(&self, index: usize) -> f64 {
        LAMBDA * self.most_spread(index) + self.fixed(index)
    }

    /// The spread of an element, as sharp as it can be computed.
    pub fn spread_of(&self, index: usize) -> f64 {
        match &self.spread {
            Spread::Product { rounding, exact, inherited, .. } => {
                let own = rounding.deviation(self.value[index], exact(index));
                own + inherited.as_ref().map_or(0.0, |inherited| inherited[index])
            }
            _ => self.least_spread(index),
        }
    }

    /// How far the element may be from its value.
    pub fn bound(&self, index: usize) -> f64 {
        LAMBDA * self.spread_of(index) + self.fixed(index)
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
        Some(if error > most * self.order_matters() {
            error / most
        } else {
            error / self.bound(index)
        })
    }

    /// How many times the cheap limit of a bound the order of a sum's terms may make it: the partial sums of n
    /// terms are at most sqrt(n) times as large as those of a random walk.
    fn order_matters(&self) -> f64 {
        match &self.spread {
            Spread::Product { rounding, .. } => (2.0 * rounding.n as f64).sqrt(),
            _ => 1.0,
        }
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
            Spread::Product { rounding, most, exact, inherited } => {
                let inherited = inherited.map(|inherited| taken(&inherited, size));
                let places = std::sync::Arc::new(from);
                let (of_most, of_exact) = (std::sync::Arc::clone(&places), places);
                let square = size * size;
                let exact = move |i: usize| {
                    let Terms { squares, walk } = exact(of_exact[i]);
                    Terms { squares: square * squares, walk: square * walk }
                };
                let most = Box::new(move |i: usize| square * most(of_most[i]));
                Spread::Product { rounding, most, exact: Box::new(exact), inherited }
            }
        };
        Expected { value, spread, single, rounding }
    }

    /// Values that are known as they are, and were copied.
    pub fn copied(&self, value: Vec<f64>) -> Expected<'static> {
        let rounding = self.rounding;
        let single = value.iter().map(|x| CHANGE * rounding.sum * x.abs()).collect();
        Expected { value, spread: Spread::None, single, rounding }
    }

    /// Each element times a factor of its own, its error too.
    pub fn times(&self, factors: &[f64]) -> Expected<'static> {
        let rounding = self.rounding;
        let value: Vec<f64> =
            self.value.iter().zip(factors).map(|(x, factor)| x * factor).collect();
        let size = |i: usize| factors[i].abs();
        let spread = (0..value.len()).map(|i| size(i) * self.most_spread(i)).collect();
        let own = |i: usize| size(i) * self.single_of(i) + CHANGE * rounding.sum * value[i].abs();
        let single = (0..value.len()).map(own).collect();
        Expected { value, spread: Spread::Each(spread), single, rounding }
    }

    /// Other values with the errors of these, and one more that all have in common.
    pub fn with_values(&self, value: Vec<f64>, more: f64) -> Expected<'static> {
        let rounding = self.rounding;
        let spread = (0..value.len()).map(|i| self.most_spread(i)).collect();
        let own = |i: usize| self.single_of(i) + CHANGE * rounding.sum * value[i].abs() + more;
        let single = (0..value.len()).map(own).collect();
        Expected { value, spread: Spread::Each(spread), single, rounding }
    }

    /// The same with each element's bound computed, where that takes at most so many terms.
    pub fn sharpened(mut self, most_terms: usize) -> Expected<'a> {
        if let Spread::Product { rounding, .. } = &self.spread
            && rounding.n.saturating_mul(self.value.len()) <= most_terms
        {
            let spread = (0..self.value.len()).into_par_iter().map(|i| self.spread_of(i)).collect();
            self.spread = Spread::Each(spread);
        }
        self
    }
}
