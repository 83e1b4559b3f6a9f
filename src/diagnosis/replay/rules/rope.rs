//! Pairs of elements turned by an angle that grows with the position.

use std::f64::consts::PI;

use super::{Argument, Call, FUNCTION, Point};
use crate::{diagnosis::replay::Expected, model::gguf::GgufError};

const NORMAL: i32 = 0;
const NEOX: i32 = 2;
const MROPE: i32 = 8;
const IMROPE: i32 = 40;

/// The parameters of a rope.
struct Rope {
    mode: i32,
    /// Elements of a head that turn.
    dims: usize,
    /// The first of them.
    offset: usize,
    base: f64,
    /// What positions are multiplied by.
    scale: f64,
    /// How much of the YaRN interpolation is mixed in; none at 0.
    extrapolation: f64,
    /// Factor of sine and cosine.
    magnitude: f64,
    /// Between these pairs YaRN goes from the one frequency to the other.
    ramp: [f64; 2],
    /// Pairs that turn with each of the four positions of a token.
    sections: [usize; 4],
}

/// A pair's angle.
#[derive(Clone, Copy)]
struct Angle {
    sine: f64,
    cosine: f64,
    /// The bound of the errors of both.
    off: f64,
}

impl Rope {
    fn of(call: &Call<'_, '_>) -> Rope {
        let float = |param: usize| f64::from(call.params.float(param));
        let count = |param: usize| call.params.int(param).max(0) as usize;
        let (dims, original, base) = (count(1), call.params.int(4), float(5));
        // The pair that turns `times` times in the original context.
        let pair = |times: f64| {
            let wavelength = f64::from(original) / (times * 2.0 * PI);
            dims as f64 * wavelength.ln() / (2.0 * base.ln())
        };
        let (scale, extrapolation) = (float(6), float(7));
        let mut magnitude = float(8);
        if extrapolation != 0.0 {
            magnitude *= 1.0 + 0.1 * (1.0 / scale).ln();
        }
        Rope {
            mode: call.params.int(2),
            dims,
            offset: count(15),
            base,
            scale,
            extrapolation,
            magnitude,
            ramp: [pair(float(9)).floor().max(0.0), pair(float(10)).ceil().min(dims as f64 - 1.0)],
            sections: [count(11), count(12), count(13), count(14)],
        }
    }

    /// Which of a token's four positions turns a pair.
    fn section(&self, pair: usize) -> usize {
        let [time, height, width, rest] = self.sections;
        let sector = pair % (time + height + width + rest).max(1);
        if self.mode == IMROPE {
            let of_third = [time, height, width][sector % 3];
            return if sector < 3 * of_third { sector % 3 } else { 3 };
        }
        [time, time + height, time + height + width].iter().filter(|&&end| sector >= end).count()
    }

    /// The angle of pair i at a position. It is computed as f32 whatever the storage: its error grows
    /// with the angle, and with i where powers of the base are multiplied one by one.
    fn angle(&self, position: f64, i: usize, factor: f64, u: f64) -> Angle {
        let turn = position * self.base.powf(-2.0 * i as f64 / self.dims as f64) / factor;
        let (mut angle, mut size) = (self.scale * turn, (self.scale * turn).abs());
        if self.extrapolation != 0.0 {
            let [low, high] = self.ramp;
            let along = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            let mix = (1.0 - along) * self.extrapolation;
            angle = angle * (1.0 - mix) + turn * mix;
            size = size.max(turn.abs());
        }
        let off = (angle.abs() * (2 * i) as f64 + size * FUNCTION + 4.0) * u;
        let (sine, cosine) = angle.sin_cos();
        Angle {
            sine: sine * self.magnitude,
            cosine: cosine * self.magnitude,
            off: off.min(2.0) * self.magnitude.abs(),
        }
    }

    /// The two elements of a head that make pair i.
    fn pair(&self, i: usize) -> [usize; 2] {
        if self.mode == NORMAL {
            return [self.offset + 2 * i, self.offset + 2 * i + 1];
        }
        [self.offset + i, self.offset + i + self.dims / 2]
    }
}

/// src0 (head_dim, heads, tokens, batches) turned by the positions src1: one of each token, or four.
/// src2 holds what each pair's frequency is divided by. `None` for the rope of vision models.
pub fn compute(call: &Call<'_, '_>) -> Result<Option<Expected<'static>>, GgufError> {
    let rope = Rope::of(call);
    if ![NORMAL, NEOX, MROPE, IMROPE].contains(&rope.mode) {
        return Ok(None);
    }
    let (x, positions) = (call.argument(0), call.argument(1).value()?);
    let factors = call.optional(2).map(Argument::value).transpose()?;
    let [dim, heads, tokens, batches] = call.ne;
    let rounding = call.rounding;
    let values = x.value()?;
    let point = |i| Point { value: values[i], spread: x.spread_of(i), single: 0.0 };
    let mut points: Vec<Point> = (0..call.elements()).map(point).collect();
    for token in 0..tokens {
        for i in 0..rope.dims / 2 {
            let of_section = if rope.mode & MROPE != 0 { tokens * rope.section(i) } else { 0 };
            let factor = factors.as_ref().map_or(1.0, |factors| factors[i]);
            let angle = rope.angle(positions[token + of_section], i, factor, rounding.sum);
            let off = angle.off + 2.0 * rounding.between * rope.magnitude.abs();
            for head in 0..heads * batches {
                let (batch, head) = (head / heads, head % heads);
                let start = ((batch * tokens + token) * heads + head) * dim;
                let [first, second] = rope.pair(i).map(|element| start + element);
                let (a, b) = (points[first], points[second]);
                let spread = a.spread.hypot(b.spread) * rope.magnitude.abs();
                let turned =
                    |value| Point { value, spread, single: (a.value.abs() + b.value.abs()) * off };
                points[first] = turned(a.value * angle.cosine - b.value * angle.sine);
                points[second] = turned(a.value * angle.sine + b.value * angle.cosine);
            }
        }
    }
    Ok(Some(call.expected(&points)))
}
