//! Operations of one rounding an element, and those of none.

use std::borrow::Cow;

use super::{
    Argument, Call, LAMBDA, Op, Point,
    place::{place, repeated, row_of},
    point::in_quadrature,
};
use crate::{diagnosis::replay::Expected, model::gguf::GgufError};

/// The result of an operation of one rounding at most; `None` for any other.
pub fn compute(call: &Call<'_, '_>) -> Result<Option<Expected<'static>>, GgufError> {
    let u = call.rounding.sum;
    let float = |param: usize| f64::from(call.params.float(param));
    let (first, second) = (float(0), float(1));
    Ok(Some(match call.op {
        Op::Add | Op::Add1 => {
            pairs(call, |a, b| rounded(u, a.value + b.value, a.spread, b.spread))?
        }
        Op::Sub => pairs(call, |a, b| rounded(u, a.value - b.value, a.spread, b.spread))?,
        Op::Mul => pairs(call, |a, b| {
            rounded(u, a.value * b.value, a.spread * b.value, b.spread * a.value)
        })?,
        Op::Div => pairs(call, |a, b| {
            let y = a.value / b.value;
            rounded(u, y, a.spread / b.value, b.spread * y / b.value)
        })?,
        Op::AddId => added_by_id(call)?,
        Op::Scale => map(call, |x, spread| {
            let y = first * x + second;
            let product = if second == 0.0 { 0.0 } else { u * (first * x).abs() };
            Point { single: u * y.abs() + product, ..rounded(u, y, first * spread, 0.0) }
        })?,
        Op::Sqr => map(call, |x, spread| rounded(u, x * x, 2.0 * x * spread, 0.0))?,
        Op::Sqrt => map(call, |x, spread| {
            // A root is steep at zero, but no steeper than that of the error itself.
            let steep = if spread == 0.0 { 0.0 } else { 0.5 * spread / x.max(0.0).sqrt() };
            rounded(u, x.sqrt(), steep.min(spread.sqrt()), 0.0)
        })?,
        Op::Clamp => map(call, |x, spread| passed(x.min(second).max(first), spread))?,
        Op::Abs => map(call, |x, spread| passed(x.abs(), spread))?,
        Op::Neg => map(call, |x, spread| passed(-x, spread))?,
        Op::Relu => map(call, |x, spread| passed(relu(x), spread))?,
        Op::LeakyRelu => map(call, |x, spread| {
            let y = if x > 0.0 { x } else { first * x };
            rounded(u, y, spread * first.abs().max(1.0), 0.0)
        })?,
        Op::Sgn => map(call, |x, spread| stepped(sign, x, spread))?,
        Op::Step => map(call, |x, spread| stepped(|x| f64::from(u8::from(x > 0.0)), x, spread))?,
        Op::Floor => map(call, |x, spread| stepped(f64::floor, x, spread))?,
        Op::Ceil => map(call, |x, spread| stepped(f64::ceil, x, spread))?,
        Op::Round => map(call, |x, spread| stepped(f64::round, x, spread))?,
        Op::Trunc => map(call, |x, spread| stepped(f64::trunc, x, spread))?,
        _ => return Ok(None),
    }))
}

/// max(x, 0).
pub fn relu(x: f64) -> f64 {
    if x > 0.0 { x } else { 0.0 }
}

fn sign(x: f64) -> f64 {
    if x == 0.0 { 0.0 } else { x.signum() }
}

/// Each element of the only source, given with its spread.
pub fn map(
    call: &Call<'_, '_>,
    of: impl Fn(f64, f64) -> Point + Send + Sync,
) -> Result<Expected<'static>, GgufError> {
    let x = call.argument(0);
    let values = x.value()?;
    let spread = x.spread();
    Ok(call.each(|i| of(values[i], spread.map_or(0.0, |spread| spread[i]))))
}

/// A value that is rounded once, of two inputs whose errors are independent.
fn rounded(u: f64, value: f64, first: f64, second: f64) -> Point {
    Point { value, spread: in_quadrature(first, second), single: u * value.abs() }
}

/// A value that is not rounded.
fn passed(value: f64, spread: f64) -> Point {
    Point { value, spread, single: 0.0 }
}

/// A step function: an uncertain input may be on either side of a step.
fn stepped(step: impl Fn(f64) -> f64, x: f64, spread: f64) -> Point {
    if spread == 0.0 {
        return Point::exact(step(x));
    }
    let (below, above) = (step(x - LAMBDA * spread), step(x + LAMBDA * spread));
    Point { value: step(x), spread: 0.0, single: (above - below).abs() }
}

/// A source that is repeated to fill the result.
struct Filling<'f> {
    argument: &'f Argument<'f, 'f>,
    values: Cow<'f, [f64]>,
    ne: [usize; 4],
}

impl<'f> Filling<'f> {
    fn of(argument: &'f Argument<'f, 'f>, ne: [usize; 4]) -> Result<Filling<'f>, GgufError> {
        Ok(Filling { argument, values: argument.value()?, ne })
    }

    /// The elements that fill the row which begins at an element.
    fn row(&self, first: usize) -> impl Fn(usize) -> Point + '_ {
        let (start, width) = (repeated(self.ne, self.argument.ne, first), self.argument.ne[0]);
        let (is_whole, spread) = (width == self.ne[0], self.argument.spread());
        move |at| {
            let element = start + if is_whole { at } else { at % width };
            passed(self.values[element], spread.map_or(0.0, |spread| spread[element]))
        }
    }
}

/// Each element of both sources.
fn pairs(
    call: &Call<'_, '_>,
    of: impl Fn(Point, Point) -> Point + Send + Sync,
) -> Result<Expected<'static>, GgufError> {
    let first = Filling::of(call.argument(0), call.ne)?;
    let second = Filling::of(call.argument(1), call.ne)?;
    Ok(call.each_row(|start| {
        let (first, second, of) = (first.row(start), second.row(start), &of);
        move |at| of(first(at), second(at))
    }))
}

/// src0 (n, slots, tokens) plus the rows of src1 (n, experts) that src2 (slots, tokens) names.
fn added_by_id(call: &Call<'_, '_>) -> Result<Expected<'static>, GgufError> {
    let (x, rows, ids) = (call.argument(0), call.argument(1), call.argument(2));
    let (values, added, names) = (x.value()?, rows.value()?, ids.value()?);
    Ok(call.each(|i| {
        let [column, slot, token, _] = place(call.ne, i);
        let Some(row) = row_of(names[token * ids.ne[0] + slot], rows.ne[1]) else {
            return Point::exact(f64::NAN);
        };
        let at = row * rows.ne[0] + column;
        rounded(call.rounding.sum, values[i] + added[at], x.spread_of(i), rows.spread_of(at))
    }))
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Given, Node, assert_near},
        *,
    };

    #[test]
    fn the_second_source_is_repeated() {
        let (ne, of) = ([6, 5, 2, 3], [3, 1, 2, 1]);
        let sources = [Given::random(ne, 1), Given::random(of, 2).map(|x| x + 2.0)];
        type Binary = fn(f64, f64) -> f64;
        let ops: [(Op, Binary); 4] = [
            (Op::Add, |a, b| a + b),
            (Op::Sub, |a, b| a - b),
            (Op::Mul, |a, b| a * b),
            (Op::Div, |a, b| a / b),
        ];
        for (op, of_both) in ops {
            let mut expected = Vec::new();
            for i in 0..ne.iter().product() {
                let (i0, i2) = (i % 6, i / 30 % 2);
                expected.push(of_both(sources[0].value[i], sources[1].value[i2 * 3 + i0 % 3]));
            }
            let node = Node::new(op, ne);
            assert_near(&node.value(&sources), &expected, node.op.name());
            node.propagates(&[sources[0].clone().uncertain(1e-3), sources[1].clone()]);
            node.propagates(&[sources[0].clone(), sources[1].clone().uncertain(1e-3)]);
        }
        let one = [sources[0].clone(), Given::of([1; 4], vec![2.5])];
        let expected: Vec<f64> = sources[0].value.iter().map(|x| x + 2.5).collect();
        assert_near(&Node::new(Op::Add1, ne).value(&one), &expected, "ADD1");
    }

    #[test]
    fn each_slot_of_a_token_is_added_the_row_that_its_id_names() {
        let (x, rows) = (Given::random([3, 2, 2, 1], 1), Given::random([3, 5, 1, 1], 2));
        let ids = Given::of([2, 2, 1, 1], vec![4.0, 0.0, 2.0, 9.0]);
        let node = Node::new(Op::AddId, x.ne);
        let value = node.value(&[x.clone(), rows.clone(), ids.clone()]);
        for (i, value) in value[..9].iter().enumerate() {
            let row = ids.value[i / 3] as usize;
            assert_eq!(*value, x.value[i] + rows.value[row * 3 + i % 3]);
        }
        assert!(value[9..].iter().all(|x| x.is_nan()));
    }

    #[test]
    fn functions_of_one_rounding_are_what_they_are_called() {
        let x = Given::random([11, 3, 1, 1], 3).map(|x| 3.0 * x);
        let node = |op| Node::new(op, x.ne).float(0, -1.5).float(1, 0.75);
        type Unary = fn(f64) -> f64;
        let ops: [(Op, Unary); 12] = [
            (Op::Scale, |x| -1.5 * x + 0.75),
            (Op::Sqr, |x| x * x),
            (Op::Clamp, |x| x.clamp(-1.5, 0.75)),
            (Op::Abs, f64::abs),
            (Op::Neg, |x| -x),
            (Op::Relu, |x| x.max(0.0)),
            (Op::LeakyRelu, |x| if x > 0.0 { x } else { -1.5 * x }),
            (Op::Sgn, f64::signum),
            (Op::Step, |x| f64::from(x > 0.0)),
            (Op::Floor, f64::floor),
            (Op::Round, f64::round),
            (Op::Trunc, f64::trunc),
        ];
        for (op, of) in ops {
            let expected: Vec<f64> = x.value.iter().map(|&x| of(x)).collect();
            let is_stepped = matches!(op, Op::Sgn | Op::Step | Op::Floor | Op::Round | Op::Trunc);
            let node = node(op);
            assert_near(&node.value(std::slice::from_ref(&x)), &expected, node.op.name());
            if !is_stepped {
                node.propagates(&[x.clone().uncertain(1e-3)]);
            }
        }
        let roots = Given::random([7, 1, 1, 1], 4).map(|x| x * x);
        Node::new(Op::Sqrt, roots.ne).propagates(&[roots.uncertain(1e-6)]);
    }

    #[test]
    fn an_uncertain_input_may_be_on_either_side_of_a_step() {
        let x = Given { spread: Some(vec![1e-3; 2]), ..Given::of([2, 1, 1, 1], vec![0.001, 0.5]) };
        for op in [Op::Step, Op::Sgn, Op::Floor] {
            let expected = Node::new(op, x.ne).compute(std::slice::from_ref(&x));
            assert!(expected.bound(0) >= 1.0 && expected.bound(1) < 1e-6);
        }
    }
}
