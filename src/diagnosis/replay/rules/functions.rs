//! Functions of one number that are more than one rounding off.

use half::f16;

use super::{Call, FUNCTION, LAMBDA, Op, Point, Steps, elementwise::map};
use crate::{
    diagnosis::replay::{Expected, Rounding},
    model::gguf::GgufError,
};

/// x * sigmoid(x).
fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// The steepest slope of an activation function in use.
pub const STEEPEST: f64 = 1.13;

/// The result of a function; `None` for any other operation.
pub fn compute(call: &Call<'_, '_>) -> Result<Option<Expected<'static>>, GgufError> {
    let u = call.rounding.sum;
    let xielu = Xielu::of(call);
    Ok(Some(match call.op {
        Op::Exp => map(call, |x, spread| {
            let y = x.exp();
            off(y, y * spread, u * y * (FUNCTION + 2.0 * x.abs()))
        })?,
        Op::Expm1 => map(call, |x, spread| {
            // May be exp(x) - 1.
            off(x.exp_m1(), x.exp() * spread, u * (FUNCTION * x.exp() + 2.0))
        })?,
        Op::Log => map(call, |x, spread| {
            let y = x.ln();
            off(y, spread / x.abs(), u * FUNCTION * y.abs())
        })?,
        // The argument's distance from a zero is only known to a rounding of the argument.
        Op::Sin => map(call, |x, spread| off(x.sin(), spread, turned(u, x.sin(), x)))?,
        Op::Cos => map(call, |x, spread| off(x.cos(), spread, turned(u, x.cos(), x)))?,
        Op::Tanh => map(call, |x, spread| off(x.tanh(), spread, u * FUNCTION * x.tanh().abs()))?,
        Op::Elu => map(call, |x, spread| {
            let y = if x > 0.0 { x } else { x.exp_m1() };
            off(y, spread, if x > 0.0 { 0.0 } else { u * (FUNCTION * x.exp() + 2.0) })
        })?,
        Op::Sigmoid => map(call, |x, spread| {
            let y = sigmoid(x);
            off(y, sigmoid_slope(x, spread) * spread, u * y * (FUNCTION + 2.0 * (-x).max(0.0)))
        })?,
        Op::HardSwish => map(call, |x, spread| {
            let single = if x.abs() <= 3.0 { 4.0 } else { 1.0 };
            off(x * hard_sigmoid(x), 1.5 * spread, single * u * x.abs())
        })?,
        Op::HardSigmoid => map(call, |x, spread| {
            off(hard_sigmoid(x), spread / 6.0, if x.abs() <= 3.0 { 4.0 * u } else { 0.0 })
        })?,
        Op::Softplus => map(call, |x, spread| {
            // log(1 + exp(x)) loses what is below a rounding of 1.
            let y = softplus(x);
            let slope = (x + LAMBDA * spread).exp().min(1.0);
            off(y, slope * spread, u * (FUNCTION * y + 4.0))
        })?,
        Op::Xielu => map(call, |x, spread| xielu.at(x, spread, u))?,
        Op::Silu => activated(call, Activation::Silu)?,
        Op::Gelu => activated(call, Activation::Gelu)?,
        Op::GeluQuick => activated(call, Activation::GeluQuick)?,
        Op::GeluErf => activated(call, Activation::GeluErf)?,
        _ => return Ok(None),
    }))
}

/// A value with the spread that came with its input, and the bound of the function's own error.
fn off(value: f64, spread: f64, single: f64) -> Point {
    Point { value, spread, single }
}

fn turned(u: f64, value: f64, angle: f64) -> f64 {
    u * (FUNCTION * value.abs() + 2.0 * angle.abs())
}

/// 1 / (1 + exp(-x)).
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The steepest slope of the sigmoid where an uncertain x may be.
fn sigmoid_slope(x: f64, spread: f64) -> f64 {
    let y = sigmoid((x.abs() - LAMBDA * spread).max(0.0));
    y * (1.0 - y)
}

fn hard_sigmoid(x: f64) -> f64 {
    ((x + 3.0) / 6.0).clamp(0.0, 1.0)
}

/// log(1 + exp(x)).
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// The parameters of an xIELU.
struct Xielu {
    negative: f64,
    positive: f64,
    beta: f64,
    eps: f64,
}

impl Xielu {
    fn of(call: &Call<'_, '_>) -> Xielu {
        let float = |param: usize| f64::from(call.params.float(param));
        Xielu { negative: float(1), positive: float(2), beta: float(3), eps: float(4) }
    }

    fn at(&self, x: f64, spread: f64, u: f64) -> Point {
        let Xielu { negative, positive, beta, eps } = *self;
        let linear = beta * x;
        if x > 0.0 {
            let square = positive * x * x;
            let slope = (2.0 * positive * x + beta).abs();
            return off(square + linear, slope * spread, 4.0 * u * (square.abs() + linear.abs()));
        }
        let power = x.min(eps);
        let slope = (negative * (power.exp() - 1.0) + beta).abs().max(beta.abs());
        let terms = negative.abs() * (FUNCTION + 4.0 * x.abs()) + 4.0 * linear.abs();
        off((power.exp_m1() - x) * negative + linear, slope * spread, u * terms)
    }
}

/// An activation function that also gates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    Relu,
    Silu,
    /// x sigmoid(alpha x).
    SiluOf {
        alpha: f64,
    },
    Gelu,
    GeluQuick,
    GeluErf,
}

impl Activation {
    /// The function exactly.
    pub fn value(self, x: f64) -> f64 {
        match self {
            Activation::Relu => super::elementwise::relu(x),
            Activation::Silu => silu(x),
            Activation::SiluOf { alpha } => x * sigmoid(alpha * x),
            Activation::Gelu => gelu(x),
            Activation::GeluQuick => x * sigmoid(1.702 * x),
            Activation::GeluErf => 0.5 * x * erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
        }
    }

    /// Whether it is written as x times a sum, which may lose its small values to cancellation, down
    /// to roundings of x itself.
    fn cancels(self) -> bool {
        matches!(self, Activation::Gelu | Activation::GeluErf)
    }

    /// Whether ggml's CPU backend reads it from a table of f16 values.
    fn is_tabled(self) -> bool {
        matches!(self, Activation::Gelu | Activation::GeluQuick)
    }

    /// The function of an x of that spread, with its error.
    pub fn at(self, x: f64, spread: f64, arithmetic: &Arithmetic) -> Point {
        if self == Activation::Relu {
            return off(self.value(x), spread, 0.0);
        }
        if arithmetic.has_tables && self.is_tabled() {
            return self.tabled(x, spread, arithmetic.rounding.sum);
        }
        let Rounding { sum: u, between, smallest, .. } = arithmetic.rounding;
        let y = self.value(x);
        let scale = if self.cancels() { x.abs() } else { y.abs() };
        let argument = match self {
            Activation::SiluOf { alpha } => (alpha * x).abs(),
            Activation::GeluQuick => 1.702 * x.abs(),
            _ => x.abs(),
        };
        // exp(-x) overflows before x exp(x) is too small to be stored.
        let single = scale * (u * (FUNCTION + argument) + between) + x.abs() * smallest;
        arithmetic.steps.activation(x, off(y, STEEPEST * spread, single), u)
    }

    /// The same as a table over f16 gives it: x is rounded to f16, and so is the result. Where the
    /// result is near the middle of two values of f16 either may be in the table.
    fn tabled(self, x: f64, spread: f64, u: f64) -> Point {
        if self == Activation::Gelu && x.abs() >= 10.0 {
            return off(x.max(0.0), spread, 0.0);
        }
        let near = half(x);
        let y = self.value(near);
        let error = u * (FUNCTION * y.abs() + 4.0 * near.abs());
        let mut single = (half(y + error) - half(y - error)).abs();
        if spread > 0.0 {
            // An uncertain x may have another neighbour in f16.
            single += STEEPEST * half_step(x) + half_step(y);
        }
        off(half(y), STEEPEST * spread, single)
    }
}

impl Steps {
    /// x sigmoid(x), rounded on the way.
    #[inline]
    fn activation(&self, x: f64, exact: Point, u: f64) -> Point {
        match (self.sigmoid, self.activated) {
            (None, None) => exact,
            _ => self.rounded_activation(x, exact, u),
        }
    }

    fn rounded_activation(&self, x: f64, exact: Point, u: f64) -> Point {
        let mut point = exact;
        if let Some(format) = self.sigmoid {
            let mut y = sigmoid(x);
            let mut error = LAMBDA * sigmoid_slope(x, exact.spread) * exact.spread;
            if self.is_complement && x < 0.0 {
                let other = format.number_within(sigmoid(-x), error + u * FUNCTION);
                (y, error) = (1.0 - other.value, other.slack);
            }
            let rounded = format.number_within(y, error + u * y * (FUNCTION + 2.0 * (-x).max(0.0)));
            let value = x * rounded.value;
            point = off(value, exact.spread, x.abs() * rounded.slack + u * value.abs());
        }
        if let Some(format) = self.activated {
            let rounded = format.number_within(point.value, LAMBDA * point.spread + point.single);
            point = off(rounded.value, 0.0, rounded.slack);
        }
        point
    }
}

/// How a side computes functions.
#[derive(Clone, Copy, Debug)]
pub struct Arithmetic {
    pub rounding: Rounding,
    /// As in [`Call::has_tables`].
    pub has_tables: bool,
    pub steps: Steps,
}

impl Arithmetic {
    pub fn of(call: &Call<'_, '_>) -> Arithmetic {
        Arithmetic { rounding: call.rounding, has_tables: call.has_tables, steps: call.steps }
    }
}

fn activated(call: &Call<'_, '_>, activation: Activation) -> Result<Expected<'static>, GgufError> {
    let arithmetic = Arithmetic::of(call);
    map(call, |x, spread| activation.at(x, spread, &arithmetic))
}

/// Rounded to f16 as ggml does: by way of f32.
fn half(x: f64) -> f64 {
    f64::from(f16::from_f32(x as f32))
}

/// The distance of values of f16 near x, at most.
fn half_step(x: f64) -> f64 {
    x.abs().max(2f64.powi(-14)) * 2f64.powi(-10)
}

/// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
fn gelu(x: f64) -> f64 {
    let root = (2.0 / std::f64::consts::PI).sqrt();
    // 1 + tanh(z) = 2 sigmoid(2 z), without cancellation.
    x * sigmoid(2.0 * root * x * (1.0 + 0.044715 * x * x))
}

/// 1 - erf(x) in f64.
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    let gauss = (-x * x).exp();
    if x < 2.0 {
        // erf(x) = 2/sqrt(pi) exp(-x^2) sum of 2^n x^(2n+1) / (1 3 5 .. (2n+1)): all terms positive.
        let (mut term, mut sum) = (x, x);
        for n in 1..80 {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        return 1.0 - std::f64::consts::FRAC_2_SQRT_PI * gauss * sum;
    }
    // The continued fraction x + (1/2)/(x + 1/(x + (3/2)/(x + ..))), from its far end.
    let tail = (1..=80).rev().fold(x, |tail, n| x + 0.5 * f64::from(n) / tail);
    0.5 * std::f64::consts::FRAC_2_SQRT_PI * gauss / tail
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Given, Node},
        *,
    };

    /// In f64, as their definitions are written.
    fn naive(op: &Op, x: f64) -> f64 {
        match op {
            Op::Exp => x.exp(),
            Op::Expm1 => x.exp() - 1.0,
            Op::Log => x.ln(),
            Op::Sin => x.sin(),
            Op::Cos => x.cos(),
            Op::Tanh => x.tanh(),
            Op::Elu => {
                if x > 0.0 {
                    x
                } else {
                    x.exp() - 1.0
                }
            }
            Op::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Op::Silu => x / (1.0 + (-x).exp()),
            Op::Gelu => {
                let inner = 0.797_884_560_802_865_4 * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            Op::GeluQuick => x / (1.0 + (-1.702 * x).exp()),
            Op::HardSwish => x * ((x + 3.0) / 6.0).clamp(0.0, 1.0),
            Op::HardSigmoid => ((x + 3.0) / 6.0).clamp(0.0, 1.0),
            Op::Softplus => (1.0 + x.exp()).ln(),
            Op::Xielu if x > 0.0 => 0.8 * x * x + 0.5 * x,
            _ => ((x.min(-1e-6)).exp_m1() - x) * 1.25 + 0.5 * x,
        }
    }

    #[test]
    fn functions_are_what_they_are_called_and_pass_errors_on() {
        use Op::*;
        let x = Given::random([13, 3, 1, 1], 5).map(|x| 4.0 * x);
        for op in [
            Exp,
            Expm1,
            Log,
            Sin,
            Cos,
            Tanh,
            Elu,
            Sigmoid,
            Silu,
            Gelu,
            GeluQuick,
            HardSwish,
            HardSigmoid,
            Softplus,
            Xielu,
        ] {
            let x = if op == Log { x.clone().map(|x| x.abs() + 0.1) } else { x.clone() };
            let node = Node::new(op, x.ne);
            let node = node.float(1, 1.25).float(2, 0.8).float(3, 0.5).float(4, -1e-6);
            let expected = node.compute(std::slice::from_ref(&x));
            for (i, &x) in x.value.iter().enumerate() {
                // Far sharper than f32, as the parameters of xIELU are f32.
                let error = (expected.value[i] - naive(&op, x)).abs();
                assert!(error <= expected.bound(i), "{op} of {x}: {error}");
                assert!(error <= 1e-6, "{op} of {x}: {error}");
                assert!(expected.bound(i) <= 1e-4 * (1.0 + x.abs().exp()), "{op} of {x}");
            }
            node.propagates(&[x.uncertain(1e-3)]);
        }
    }

    #[test]
    fn erfc_is_erfc() {
        // To 16 digits.
        let known = [
            (-1.0, 1.842_700_792_949_715),
            (0.0, 1.0),
            (0.5, 0.479_500_122_186_953_5),
            (1.9, 0.007_209_570_764_742_5),
            (2.5, 4.069_520_174_449_589e-4),
            (5.0, 1.537_459_794_428_035e-12),
        ];
        for (x, value) in known {
            assert!((erfc(x) - value).abs() <= 1e-13 * value.max(1e-3), "{x}: {}", erfc(x));
        }
        assert!((erfc(2.0 - 1e-12) - erfc(2.0)).abs() < 1e-13);
    }

    #[test]
    fn a_table_holds_values_of_f16() {
        let x = Given::of([4, 1, 1, 1], vec![1.000_1, -0.3, 12.3, -11.0]);
        let tabled = Node { has_tables: true, ..Node::new(Op::Gelu, x.ne) };
        let exact = Node::new(Op::Gelu, x.ne).compute(std::slice::from_ref(&x));
        let expected = tabled.compute(std::slice::from_ref(&x));
        for i in 0..2 {
            let value = expected.value[i];
            assert_eq!(half(value), value);
            assert!((value - exact.value[i]).abs() > 2.0 * exact.bound(i));
            assert!((value - exact.value[i]).abs() < 1e-3);
        }
        assert_eq!(expected.value[2..], [12.3, 0.0]);
        tabled.propagates(&[Given::random([50, 1, 1, 1], 6).uncertain(1e-3)]);
    }

    #[test]
    fn nothing_is_lost_at_infinity() {
        let x = Given::of([2, 1, 1, 1], vec![f64::NEG_INFINITY, -200.0]);
        for op in [Op::Exp, Op::Sigmoid, Op::Softplus, Op::Tanh] {
            let expected = Node::new(op, x.ne).compute(std::slice::from_ref(&x));
            let y = naive(&op, f64::NEG_INFINITY) as f32;
            assert!(expected.times_bound(0, y).is_some_and(|times| times <= 1.0), "{op}");
        }
    }
}
