//! Elements with their errors, and how results are made of them.

use std::borrow::Cow;

use rayon::prelude::*;

use super::{Argument, Call, FUNCTION};
use crate::{
    diagnosis::replay::{Expected, Operand, Spread},
    model::gguf::GgufError,
};

/// Elements that a task computes at least.
const TASK: usize = 1 << 12;

/// An element of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    pub value: f64,
    /// The standard deviation of the errors that a sum gathers, and of those that came with the inputs.
    pub spread: f64,
    /// The bound of what is rounded once.
    pub single: f64,
}

impl Point {
    pub fn exact(value: f64) -> Point {
        Point { value, ..Point::default() }
    }
}

/// Chains of operations: errors are added up without regard to their signs, so that it does not matter
/// which of them are the same error.
impl Point {
    pub fn times(self, other: Point) -> Point {
        let (a, b) = (self.value.abs(), other.value.abs());
        Point {
            value: self.value * other.value,
            spread: a * other.spread + b * self.spread,
            single: a * other.single + b * self.single,
        }
    }

    pub fn plus(self, other: Point) -> Point {
        Point {
            value: self.value + other.value,
            spread: self.spread + other.spread,
            single: self.single + other.single,
        }
    }

    /// Rounded, by so many unit roundoffs.
    pub fn rounded(self, u: f64) -> Point {
        Point { single: self.single + u * self.value.abs(), ..self }
    }
}

/// The spread of what two independent errors do together. Neither is so large or small that its square is not.
pub fn in_quadrature(first: f64, second: f64) -> f64 {
    (first * first + second * second).sqrt()
}

/// exp(x) of an x that has errors.
pub fn exponential(x: Point, u: f64) -> Point {
    let value = x.value.exp();
    let own = u * (FUNCTION + 2.0 * x.value.abs());
    Point { value, spread: value * x.spread, single: value * (x.single + own) }
}

/// A sum of products that are not rounded on their own, in any order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dot {
    sum: Point,
    magnitude: f64,
    count: usize,
}

impl Dot {
    pub fn add(&mut self, term: Point) {
        self.sum = self.sum.plus(term);
        self.magnitude += term.value.abs();
        self.count += 1;
    }

    pub fn point(self, u: f64) -> Point {
        let own = (self.count as f64).sqrt() * u * self.magnitude;
        Point { spread: self.sum.spread.hypot(own), ..self.sum }
    }
}

/// A source whose elements are read one by one.
pub struct Source<'f> {
    pub ne: [usize; 4],
    pub values: Cow<'f, [f64]>,
    pub spread: Option<&'f [f64]>,
}

impl Source<'_> {
    pub fn at(&self, index: usize) -> Point {
        let spread = self.spread.map_or(0.0, |spread| spread[index]);
        Point { value: self.values[index], spread, single: 0.0 }
    }

    /// Some elements from one on.
    pub fn row(&self, first: usize, count: usize) -> Vec<Point> {
        (first..first + count).map(|index| self.at(index)).collect()
    }
}

impl Argument<'_, '_> {
    pub fn source(&self) -> Result<Source<'_>, GgufError> {
        Ok(Source { ne: self.ne, values: self.value()?, spread: self.spread() })
    }

    /// The standard deviation of an element's error.
    pub fn spread_of(&self, index: usize) -> f64 {
        self.spread().map_or(0.0, |spread| spread[index])
    }

    /// Rows of ne[0] elements.
    pub fn operand(&self) -> Result<Operand, GgufError> {
        let spread = self.spread().map(<[f64]>::to_vec);
        Ok(Operand { width: self.ne[0], value: self.value()?.into_owned(), spread })
    }
}

impl Call<'_, '_> {
    /// Whether an input's errors go on into the result.
    pub fn is_uncertain(&self) -> bool {
        self.arguments.iter().flatten().any(|argument| argument.spread().is_some())
    }

    /// The result as it is without roundings of its own.
    pub fn exact(&self, value: Vec<f64>, spread: Option<Vec<f64>>) -> Expected<'static> {
        let spread = spread.map_or(Spread::None, Spread::Each);
        Expected { value, spread, single: Vec::new(), rounding: self.rounding }
    }

    /// The result of its elements.
    pub fn expected(&self, points: &[Point]) -> Expected<'static> {
        self.each(|index| points[index])
    }

    /// The result, each element on its own.
    pub fn each(&self, point: impl Fn(usize) -> Point + Send + Sync) -> Expected<'static> {
        let point = &point;
        self.rows_of(TASK, |first| move |at| point(first + at))
    }

    /// The result, row by row of ne[0] elements: `row` is given a row's first element, and gives the elements of it.
    pub fn each_row<P: Fn(usize) -> Point>(
        &self,
        row: impl Fn(usize) -> P + Send + Sync,
    ) -> Expected<'static> {
        self.rows_of(self.ne[0], row)
    }

    /// The same of rows of any width.
    fn rows_of<P: Fn(usize) -> Point>(
        &self,
        width: usize,
        row: impl Fn(usize) -> P + Send + Sync,
    ) -> Expected<'static> {
        let zeros = || vec![0.0; self.elements()];
        let (mut value, mut spread, mut single) = (zeros(), zeros(), zeros());
        let task = TASK.next_multiple_of(width);
        let tasks = value.par_chunks_mut(task).zip(spread.par_chunks_mut(task));
        let tasks = tasks.zip(single.par_chunks_mut(task)).enumerate();
        let has_errors = tasks.map(|(at, ((value, spread), single))| {
            let (mut has_spread, mut has_single) = (false, false);
            let rows = value.chunks_mut(width).zip(spread.chunks_mut(width));
            for (nth, ((value, spread), single)) in rows.zip(single.chunks_mut(width)).enumerate() {
                let point = row(at * task + nth * width);
                for i in 0..value.len() {
                    let point = point(i);
                    value[i] = point.value;
                    // An infinite input may have a finite result, exactly: exp(-inf).
                    if point.spread != 0.0 && !point.spread.is_nan() {
                        spread[i] = point.spread;
                        has_spread = true;
                    }
                    if point.single != 0.0 && !point.single.is_nan() {
                        single[i] = point.single;
                        has_single = true;
                    }
                }
            }
            [has_spread, has_single]
        });
        let [has_spread, has_single] =
            has_errors.reduce(|| [false; 2], |a, b| [a[0] || b[0], a[1] || b[1]]);
        let single = if has_single { single } else { Vec::new() };
        Expected { single, ..self.exact(value, has_spread.then_some(spread)) }
    }
}
