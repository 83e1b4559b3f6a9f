//! Sums, means, convolutions, and systems of equations.

use rayon::prelude::*;

use super::{
    Call, Op, Point,
    place::{index, place},
};
use crate::{diagnosis::replay::Expected, model::gguf::GgufError};

/// The result of a sum; `None` for any other operation.
pub fn compute(call: &Call<'_, '_>) -> Result<Option<Expected<'static>>, GgufError> {
    let x = call.argument(0);
    Ok(Some(match call.op {
        Op::Sum => reduced(call, x.elements(), 1.0)?,
        Op::SumRows => reduced(call, x.ne[0], 1.0)?,
        Op::Mean => reduced(call, x.ne[0], 1.0 / x.ne[0] as f64)?,
        Op::CumSum => running(call)?,
        Op::SsmConv => convolution(call)?,
        Op::SolveTri => solution(call)?,
        _ => return Ok(None),
    }))
}

/// A sum, term by term.
#[derive(Clone, Copy, Debug, Default)]
struct Terms {
    count: usize,
    sum: f64,
    magnitude: f64,
    /// Variance of what came with the inputs.
    variance: f64,
}

impl Terms {
    fn add(&mut self, term: f64, spread: f64) {
        self.count += 1;
        self.sum += term;
        self.magnitude += term.abs();
        self.variance += spread * spread;
    }

    /// The sum times a factor.
    fn point(&self, u: f64, factor: f64) -> Point {
        let value = factor * self.sum;
        let own = (self.count as f64).sqrt() * u * self.magnitude;
        let spread = factor.abs() * own.hypot(self.variance.sqrt());
        // The last sum is rounded, and so is a division.
        Point { value, spread, single: 2.0 * u * value.abs() }
    }
}

/// The sums of each `group` elements times `factor`.
fn reduced(call: &Call<'_, '_>, group: usize, factor: f64) -> Result<Expected<'static>, GgufError> {
    let x = call.argument(0);
    let values = x.value()?;
    let point = |(at, values): (usize, &[f64])| {
        let mut terms = Terms::default();
        for (i, &value) in values.iter().enumerate() {
            terms.add(value, x.spread_of(at * group + i));
        }
        terms.point(call.rounding.sum, factor)
    };
    let points = values.par_chunks(group).enumerate().map(point);
    Ok(call.expected(&points.collect::<Vec<_>>()))
}

/// The sum of each row up to each element.
fn running(call: &Call<'_, '_>) -> Result<Expected<'static>, GgufError> {
    let x = call.argument(0);
    let (values, width) = (x.value()?, call.ne[0]);
    let mut terms = Terms::default();
    let point = |(i, &value): (usize, &f64)| {
        if i % width == 0 {
            terms = Terms::default();
        }
        terms.add(value, x.spread_of(i));
        terms.point(call.rounding.sum, 1.0)
    };
    let points: Vec<Point> = values.iter().enumerate().map(point).collect();
    Ok(call.expected(&points))
}

/// src0 (k - 1 + tokens, channels, sequences) with src1 (k, channels): (channels, tokens, sequences).
fn convolution(call: &Call<'_, '_>) -> Result<Expected<'static>, GgufError> {
    let (x, kernel) = (call.argument(0), call.argument(1));
    let (values, weights, k) = (x.value()?, kernel.value()?, kernel.ne[0]);
    Ok(call.each(|i| {
        let [channel, token, sequence, _] = place(call.ne, i);
        let from = index(x.ne, [token, channel, sequence, 0]);
        let mut terms = Terms::default();
        for tap in 0..k {
            let (at, weight) = (from + tap, channel * k + tap);
            let of_x = x.spread_of(at) * weights[weight];
            let of_weight = kernel.spread_of(weight) * values[at];
            terms.add(values[at] * weights[weight], of_x.hypot(of_weight));
        }
        terms.point(call.rounding.sum, 1.0)
    }))
}

/// X of A X = B: A (n, n, b2, b3), of which what is above the diagonal is not read, and B
/// (columns, n, b2, b3). Errors of the unknowns before are added up without regard to their signs.
fn solution(call: &Call<'_, '_>) -> Result<Expected<'static>, GgufError> {
    let (a, b) = (call.argument(0), call.argument(1));
    let (matrix, right) = (a.value()?, b.value()?);
    let (n, columns) = (a.ne[0], b.ne[0]);
    let u = call.rounding.sum;
    let column = |at: usize| {
        let (batch, column) = (at / columns, at % columns);
        let mut unknowns: Vec<Point> = Vec::with_capacity(n);
        for row in 0..n {
            let first = (batch * n + row) * n;
            let place = (batch * n + row) * columns + column;
            let (mut terms, mut earlier) = (Terms::default(), 0.0);
            terms.add(right[place], b.spread_of(place));
            for (t, unknown) in unknowns.iter().enumerate() {
                let factor = matrix[first + t];
                terms.add(-factor * unknown.value, a.spread_of(first + t) * unknown.value);
                earlier += factor.abs() * (unknown.spread + u * unknown.value.abs());
            }
            let diagonal = matrix[first + row];
            let mut point = terms.point(u, 1.0 / diagonal);
            let of_diagonal = a.spread_of(first + row) * point.value / diagonal;
            point.spread = point.spread.hypot(of_diagonal) + earlier / diagonal.abs();
            unknowns.push(point);
        }
        unknowns
    };
    let solved: Vec<Vec<Point>> =
        (0..columns * call.ne[2] * call.ne[3]).into_par_iter().map(column).collect();
    let element = |i: usize| {
        let [column, row, i2, i3] = place(call.ne, i);
        solved[(i3 * call.ne[2] + i2) * columns + column][row]
    };
    Ok(call.expected(&(0..call.elements()).map(element).collect::<Vec<_>>()))
}
