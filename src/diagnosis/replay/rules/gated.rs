//! activation(gate) * up, of two tensors or of the two halves of one.

use super::{
    Argument, Call, Op, Point,
    functions::{Activation, Arithmetic},
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
            spread: (gated.spread * up_value).hypot(gated.value * up.spread),
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
    let of_first = |i: usize| Point { value: values.0[i], spread: first.spread_of(i), single: 0.0 };
    Ok(Some(call.each(|i| {
        let (gate, up) = match (second, &values.1) {
            (Some(second), Some(ups)) => {
                let up = Point { value: ups[i], spread: second.spread_of(i), single: 0.0 };
                (of_first(i), up)
            }
            _ => {
                let start = i / width * first.ne[0] + i % width;
                (of_first(start + halves[0]), of_first(start + halves[1]))
            }
        };
        gating.at(gate, up, &arithmetic)
    })))
}
