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

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Given, Node, assert_near},
        *,
    };

    #[test]
    fn rows_and_all_are_summed() {
        let x = Given::random([7, 3, 2, 1], 1);
        let rows: Vec<f64> = x.value.chunks(7).map(|row| row.iter().sum()).collect();
        let means: Vec<f64> = rows.iter().map(|sum| sum / 7.0).collect();
        let nodes = [
            (Node::new(Op::SumRows, [1, 3, 2, 1]), rows.clone()),
            (Node::new(Op::Mean, [1, 3, 2, 1]), means),
            (Node::new(Op::Sum, [1, 1, 1, 1]), vec![rows.iter().sum()]),
        ];
        for (node, expected) in nodes {
            assert_near(&node.value(std::slice::from_ref(&x)), &expected, node.op.name());
            node.propagates(&[x.clone().uncertain(1e-3)]);
        }
        let running = Node::new(Op::CumSum, x.ne);
        let sums = running.value(std::slice::from_ref(&x));
        for (row, sums) in x.value.chunks(7).zip(sums.chunks(7)) {
            assert_eq!(sums[0], row[0]);
            assert_near(&sums[6..], &[row.iter().sum()], "CUMSUM");
        }
        running.propagates(&[x.uncertain(1e-3)]);
    }

    #[test]
    fn a_kernel_slides_over_the_tokens_of_its_channel() {
        let (k, tokens, channels, sequences) = (4, 5, 3, 2);
        let x = Given::random([k - 1 + tokens, channels, sequences, 1], 1);
        let kernel = Given::random([k, channels, 1, 1], 2);
        let node = Node::new(Op::SsmConv, [channels, tokens, sequences, 1]);
        let mut expected = Vec::new();
        for sequence in 0..sequences {
            for token in 0..tokens {
                for channel in 0..channels {
                    let row = &x.value[(sequence * channels + channel) * 8 + token..];
                    let taps = &kernel.value[channel * k..(channel + 1) * k];
                    expected.push(row.iter().zip(taps).map(|(x, w)| x * w).sum());
                }
            }
        }
        assert_near(&node.value(&[x.clone(), kernel.clone().weight()]), &expected, "SSM_CONV");
        node.propagates(&[x.uncertain(1e-3), kernel]);
    }

    #[test]
    fn a_solution_solves_its_system() {
        let (n, columns) = (7, 3);
        let shapes = ([n, n, 2, 1], [columns, n, 2, 1]);
        let mut a = Given::random(shapes.0, 1).map(|x| 0.5 * x);
        (0..2 * n).for_each(|row| a.value[row * n + row % n] += 2.0);
        let b = Given::random(shapes.1, 2);
        let node = Node::new(Op::SolveTri, b.ne);
        let x = node.value(&[a.clone(), b.clone()]);
        for (i, b) in b.value.iter().enumerate() {
            let [column, row, batch, _] = place(node.ne, i);
            let term = |t: usize| {
                a.value[(batch * n + row) * n + t] * x[(batch * n + t) * columns + column]
            };
            assert!(((0..=row).map(term).sum::<f64>() - b).abs() < 1e-12);
        }
        node.propagates(&[a.clone().uncertain(1e-4), b.clone()]);
        node.propagates(&[a, b.uncertain(1e-4)]);
    }
}
