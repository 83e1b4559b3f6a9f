//! activation(gate) * up, of two tensors or of the two halves of one.

use super::{
    Argument, Call, Op, Point,
    functions::{Activation, Arithmetic},
    point::in_quadrature,
};
use crate::{diagnosis::replay::Expected, model::gguf::GgufError};

/// What gates, and how gate and up are limited before.
struct Gating {
    activation: Activation,
    /// The gate is cut at it, up at it and at its negative.
    limit: f64,
    /// What is added to up.
    added: f64,
}

impl Gating {
    fn of(call: &Call<'_, '_>) -> Option<Gating> {
        let limit = f64::from(call.params.float(3));
        let alpha = f64::from(call.params.float(2));
        let plain = |activation| Gating { activation, limit: f64::INFINITY, added: 0.0 };
        Some(match call.op {
            Op::Reglu => plain(Activation::Relu),
            Op::Geglu => plain(Activation::Gelu),
            Op::Swiglu => plain(Activation::Silu),
            Op::GegluErf => plain(Activation::GeluErf),
            Op::GegluQuick => plain(Activation::GeluQuick),
            Op::SwigluClamp => Gating { limit, ..plain(Activation::Silu) },
            Op::SwigluOai => Gating { activation: Activation::SiluOf { alpha }, limit, added: 1.0 },
            _ => return None,
        })
    }

    fn at(&self, gate: Point, up: Point, arithmetic: &Arithmetic) -> Point {
        let gate_value = gate.value.min(self.limit);
        let gated = self.activation.at(gate_value, gate.spread, arithmetic);
        let up_value = up.value.min(self.limit).max(-self.limit) + self.added;
        let value = gated.value * up_value;
        Point {
            value,
            spread: in_quadrature(gated.spread * up_value, gated.value * up.spread),
            // The product is rounded, and so is a sum before it.
            single: gated.single * up_value.abs() + 2.0 * arithmetic.rounding.sum * value.abs(),
        }
    }
}

/// The result of a gated function, of (n, rows) and (n, rows), or of (2n, rows); `None` for any
/// other operation.
pub fn compute(call: &Call<'_, '_>) -> Result<Option<Expected<'static>>, GgufError> {
    let Some(gating) = Gating::of(call) else { return Ok(None) };
    let arithmetic = Arithmetic::of(call);
    let (first, second) = (call.argument(0), call.optional(1));
    let width = call.ne[0];
    let is_swapped = call.params.int(1) != 0;
    let values = (first.value()?, second.map(Argument::value).transpose()?);
    let halves = if is_swapped { [width, 0] } else { [0, width] };
    let point = |values: &[f64], of: &Argument<'_, '_>, i: usize| Point {
        value: values[i],
        spread: of.spread_of(i),
        single: 0.0,
    };
    let (arithmetic, gating, values, point) = (&arithmetic, &gating, &values, &point);
    Ok(Some(call.each_row(|start| {
        let of_both = start / width * first.ne[0];
        move |at| {
            let (gate, up) = match (second, &values.1) {
                (Some(second), Some(ups)) => {
                    (point(&values.0, first, start + at), point(ups, second, start + at))
                }
                _ => {
                    let half = |nth: usize| point(&values.0, first, of_both + halves[nth] + at);
                    (half(0), half(1))
                }
            };
            gating.at(gate, up, arithmetic)
        }
    })))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Given, Node, assert_near};
    use crate::graph::Op;

    #[test]
    fn halves_are_gated_as_two_tensors_are() {
        use Op::*;
        let (gate, up) = (Given::random([5, 3, 2, 1], 1), Given::random([5, 3, 2, 1], 2));
        let gate = gate.map(|x| 3.0 * x);
        let joined = |first: &Given, second: &Given| {
            let rows = first.value.chunks(5).zip(second.value.chunks(5));
            Given::of([10, 3, 2, 1], rows.flat_map(|(a, b)| [a, b].concat()).collect())
        };
        for op in [Reglu, Geglu, Swiglu, SwigluOai, SwigluClamp, GegluErf, GegluQuick] {
            let node = Node::new(op, gate.ne).float(2, 1.702).float(3, 0.5);
            let value = node.value(&[gate.clone(), up.clone()]);
            assert_eq!(node.value(&[joined(&gate, &up)]), value, "{}", node.op);
            let swapped = node.clone().int(1, 1);
            assert_eq!(swapped.value(&[joined(&up, &gate)]), value, "{}", node.op);
            node.propagates(&[gate.clone().uncertain(1e-3), up.clone()]);
            node.propagates(&[gate.clone(), up.clone().uncertain(1e-3)]);
        }
    }

    #[test]
    fn a_gated_function_is_the_function_times_up() {
        let (gate, up) = (Given::random([7, 1, 1, 1], 3), Given::random([7, 1, 1, 1], 4));
        let gate = gate.map(|x| 3.0 * x);
        let pairs = [(Op::Swiglu, Op::Silu), (Op::Geglu, Op::Gelu), (Op::GegluErf, Op::GeluErf)];
        for (gated, function) in pairs {
            let product = Node::new(function, gate.ne).given(std::slice::from_ref(&gate));
            let product = Node::new(Op::Mul, gate.ne).value(&[product, up.clone()]);
            assert_near(
                &Node::new(gated, gate.ne).value(&[gate.clone(), up.clone()]),
                &product,
                "",
            );
        }
        let limited = |x: f64, y: f64| {
            let (x, y) = (x.min(0.5), y.clamp(-0.5, 0.5));
            x / (1.0 + (-x).exp()) * y
        };
        let expected: Vec<f64> =
            gate.value.iter().zip(&up.value).map(|(x, y)| limited(*x, *y)).collect();
        let node = Node::new(Op::SwigluClamp, gate.ne).float(3, 0.5);
        assert_near(&node.value(&[gate.clone(), up.clone()]), &expected, "SWIGLU_CLAMP");
        let oai = |x: f64, y: f64| {
            let (x, y) = (x.min(0.5), y.clamp(-0.5, 0.5));
            x / (1.0 + (-1.5 * x).exp()) * (y + 1.0)
        };
        let expected: Vec<f64> =
            gate.value.iter().zip(&up.value).map(|(x, y)| oai(*x, *y)).collect();
        let node = Node::new(Op::SwigluOai, gate.ne).float(2, 1.5).float(3, 0.5);
        assert_near(&node.value(&[gate, up]), &expected, "SWIGLU_OAI");
    }
}
