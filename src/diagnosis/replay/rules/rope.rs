//! Pairs of elements turned by an angle that grows with the position.

use std::f64::consts::PI;

use rayon::prelude::*;

use super::{Argument, Call, FUNCTION, Point, Steps};
use crate::{diagnosis::replay::Expected, graph::RopeParams, model::gguf::GgufError};

/// Modes of ggml that have a rule: plain, neox, and with sections, in blocks or taking turns.
const MODES: [i32; 4] = [0, 2, 8, IN_TURN];
const IN_TURN: i32 = 40;

/// The parameters of a rope.
struct Rope {
    params: RopeParams,
    mode: i32,
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
        let (params, original) = (RopeParams::of(call.params), call.params.int(4));
        // The pair that turns `times` times in the original context.
        let dims = params.dims as f64;
        let pair = |times: f64| {
            let wavelength = f64::from(original) / (times * 2.0 * PI);
            dims * wavelength.ln() / (2.0 * params.theta.ln())
        };
        let (extrapolation, mut magnitude) = (float(7), float(8));
        if extrapolation != 0.0 {
            magnitude *= 1.0 + 0.1 * (1.0 / params.scale).ln();
        }
        Rope {
            params,
            mode: call.params.int(2),
            extrapolation,
            magnitude,
            ramp: [pair(float(9)).floor().max(0.0), pair(float(10)).ceil().min(dims - 1.0)],
            sections: [count(11), count(12), count(13), count(14)],
        }
    }

    /// Which of a token's four positions turns a pair.
    fn section(&self, pair: usize) -> usize {
        let [time, height, width, rest] = self.sections;
        let sector = pair % (time + height + width + rest).max(1);
        if self.mode == IN_TURN {
            let of_third = [time, height, width][sector % 3];
            return if sector < 3 * of_third { sector % 3 } else { 3 };
        }
        [time, time + height, time + height + width].iter().filter(|&&end| sector >= end).count()
    }

    /// The angle of pair i at a position, of values that are rounded on the way.
    fn rounded_angle(
        &self,
        position: f64,
        i: usize,
        factor: f64,
        (u, steps): (f64, &Steps),
    ) -> Angle {
        let mut angle = self.angle(position, i, factor, u);
        let rounds = steps.frequencies.or(steps.angles).or(steps.tables).is_some();
        if !rounds {
            return angle;
        }
        let exact = self.exact_angle(position, i, factor);
        let (mut turned, mut off) =
            (exact, angle.off / self.magnitude.abs().max(f64::MIN_POSITIVE));
        if let Some(format) = steps.frequencies
            && position != 0.0
        {
            let frequency = exact / position;
            let rounded = format.number_within(frequency, off / position.abs());
            (turned, off) =
                (position * rounded.value, position.abs() * rounded.slack + u * turned.abs());
        }
        if let Some(format) = steps.angles {
            let rounded = format.number_within(turned, off);
            (turned, off) = (rounded.value, rounded.slack);
        }
        off += FUNCTION * u;
        let (sine, cosine) = turned.sin_cos();
        (angle.sine, angle.cosine) = (sine * self.magnitude, cosine * self.magnitude);
        angle.off = off.min(2.0) * self.magnitude.abs();
        if let Some(format) = steps.tables {
            let [sine, cosine] =
                [angle.sine, angle.cosine].map(|x| format.number_within(x, angle.off));
            (angle.sine, angle.cosine) = (sine.value, cosine.value);
            angle.off = sine.slack.max(cosine.slack) + 2.0 * u;
        }
        angle
    }

    /// The angle of pair i at a position. It is computed as f32 whatever the storage: its error grows
    /// with the angle, and with i where powers of the base are multiplied one by one.
    fn angle(&self, position: f64, i: usize, factor: f64, u: f64) -> Angle {
        let turn = self.turn(position, i, factor);
        let size = match self.extrapolation {
            0.0 => (self.params.scale * turn).abs(),
            _ => turn.abs().max((self.params.scale * turn).abs()),
        };
        let angle = self.exact_angle(position, i, factor);
        let off = (angle.abs() * (2 * i) as f64 + size * FUNCTION + 4.0) * u;
        let (sine, cosine) = angle.sin_cos();
        Angle {
            sine: sine * self.magnitude,
            cosine: cosine * self.magnitude,
            off: off.min(2.0) * self.magnitude.abs(),
        }
    }
}

impl Rope {
    /// The angle of pair i without any scaling.
    fn turn(&self, position: f64, i: usize, factor: f64) -> f64 {
        let RopeParams { theta, dims, .. } = self.params;
        position * theta.powf(-2.0 * i as f64 / dims as f64) / factor
    }

    fn exact_angle(&self, position: f64, i: usize, factor: f64) -> f64 {
        let turn = self.turn(position, i, factor);
        let angle = self.params.scale * turn;
        if self.extrapolation == 0.0 {
            return angle;
        }
        let [low, high] = self.ramp;
        let along = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        let mix = (1.0 - along) * self.extrapolation;
        angle * (1.0 - mix) + turn * mix
    }
}

/// src0 (head_dim, heads, tokens, batches) turned by the positions src1: one of each token, or four.
/// src2 holds what each pair's frequency is divided by. `None` for the rope of vision models.
pub fn compute(call: &Call<'_, '_>) -> Result<Option<Expected<'static>>, GgufError> {
    let rope = Rope::of(call);
    if !MODES.contains(&rope.mode) {
        return Ok(None);
    }
    let (x, positions) = (call.argument(0), call.argument(1).value()?);
    let factors = call.optional(2).map(Argument::value).transpose()?;
    let [dim, heads, tokens, _] = call.ne;
    let rounding = call.rounding;
    let values = x.value()?;
    let pairs = rope.params.dims / 2;
    let angle = |at: usize| {
        let (token, i) = (at / pairs, at % pairs);
        let of_section = if rope.params.has_sections { tokens * rope.section(i) } else { 0 };
        let factor = factors.as_ref().map_or(1.0, |factors| factors[i]);
        let position = positions[token + of_section];
        let angle = rope.rounded_angle(position, i, factor, (rounding.sum, &call.steps));
        Angle { off: angle.off + 2.0 * rounding.between * rope.magnitude.abs(), ..angle }
    };
    let angles: Vec<Angle> = (0..tokens * pairs).into_par_iter().map(angle).collect();
    // Of each element of a head its pair, and both elements of that; none beyond the head.
    let mut turned = vec![None; dim];
    for pair in 0..pairs {
        let (first, second) = rope.params.elements(pair);
        if first.max(second) < dim {
            turned[first] = Some((pair, first, second));
            turned[second] = Some((pair, first, second));
        }
    }
    let (rope, turned, angles, values) = (&rope, &turned, &angles, &values);
    let spread = x.spread();
    // What an element is off by, or a pair together.
    let one = move |i: usize| spread.map_or(0.0, |spread| spread[i]);
    let both = move |i: usize, j: usize| spread.map_or(0.0, |spread| spread[i].hypot(spread[j]));
    Ok(Some(call.each_row(|start| {
        let token = start / dim / heads % tokens;
        move |at| {
            let Some((pair, first, second)) = turned[at] else {
                let (value, spread) = (values[start + at], one(start + at));
                return Point { value, spread, single: 0.0 };
            };
            let Angle { sine, cosine, off } = angles[token * pairs + pair];
            let (a, b) = (values[start + first], values[start + second]);
            let value = if at == first { a * cosine - b * sine } else { a * sine + b * cosine };
            let spread = both(start + first, start + second) * rope.magnitude.abs();
            Point { value, spread, single: (a.abs() + b.abs()) * off }
        }
    })))
}

#[cfg(test)]
mod tests {
    pub(super) const NORMAL: i32 = 0;
    pub(super) const NEOX: i32 = 2;
    const MROPE: i32 = 8;
    const IMROPE: i32 = 40;

    use super::super::testing::{Given, Node, assert_near};
    use crate::graph::Op;

    const NE: [usize; 4] = [12, 2, 3, 1];

    fn node(mode: i32, dims: i32) -> Node {
        let node = Node::new(Op::Rope, NE).int(1, dims).int(2, mode).int(4, 64);
        node.float(5, 100.0).float(6, 1.0).float(8, 1.0).float(9, 32.0).float(10, 1.0)
    }

    fn positions(of: [i32; 3]) -> Given {
        Given::of([3, 1, 1, 1], of.map(f64::from).to_vec())
    }

    #[test]
    fn pairs_turn_by_the_position_times_their_frequency() {
        let x = Given::random(NE, 1);
        for mode in [NORMAL, NEOX] {
            let y = node(mode, 8).int(15, 2).value(&[x.clone(), positions([0, 1, 7])]);
            assert_eq!(y[..24], x.value[..24]);
            for (row, position) in [(2, 1.0), (5, 7.0f64)] {
                let (x, y) = (&x.value[row * 12..], &y[row * 12..]);
                assert_eq!([y[0], y[1], y[10], y[11]], [x[0], x[1], x[10], x[11]]);
                for i in 0..4 {
                    let (a, b) =
                        if mode == NORMAL { (2 + 2 * i, 3 + 2 * i) } else { (2 + i, 6 + i) };
                    let (sine, cosine) = (position * 10f64.powf(-(i as f64) / 2.0)).sin_cos();
                    let turned = [x[a] * cosine - x[b] * sine, x[a] * sine + x[b] * cosine];
                    assert_near(&[y[a], y[b]], &turned, "ROPE");
                }
            }
        }
    }

    #[test]
    fn turning_twice_is_turning_by_the_sum() {
        let x = Given::random(NE, 2);
        for mode in [NORMAL, NEOX] {
            let node = node(mode, 12);
            let once = node.given(&[x.clone(), positions([1, 5, 3])]);
            let twice = node.value(&[once, positions([4, -5, 20])]);
            assert_near(&twice, &node.value(&[x.clone(), positions([5, 0, 23])]), "ROPE");
            node.propagates(&[x.clone().uncertain(1e-3), positions([1, 5, 3])]);
        }
    }

    #[test]
    fn sections_turn_with_their_own_positions() {
        let x = Given::random(NE, 3);
        let given = |of: [f64; 4]| {
            Given::of([12, 1, 1, 1], of.into_iter().flat_map(|p| [p, p + 1.0, p + 2.0]).collect())
        };
        for (mode, sections) in [
            (MROPE, [0, 0, 1, 2, 2, 3]),
            // Each third pair, while its section lasts; then the fourth position.
            (IMROPE, [0, 1, 2, 0, 3, 2]),
        ] {
            let node = node(mode, 12).int(11, 2).int(12, 1).int(13, 2).int(14, 1);
            let plain = |position| {
                let neox = super::tests::node(super::tests::NEOX, 12);
                neox.value(&[x.clone(), positions([position, position + 1, position + 2])])
            };
            assert_near(&node.value(&[x.clone(), given([9.0; 4])]), &plain(9), "equal positions");
            let mixed = node.value(&[x.clone(), given([3.0, 5.0, 7.0, 11.0])]);
            for (i, section) in sections.into_iter().enumerate() {
                let alone = plain([3, 5, 7, 11][section]);
                for row in 0..6 {
                    for element in [row * 12 + i, row * 12 + 6 + i] {
                        assert_eq!(mixed[element], alone[element], "{mode} pair {i}");
                    }
                }
            }
        }
        assert!(node(24, 6).try_compute(&[x, given([0.0; 4])]).is_none());
    }

    #[test]
    fn frequencies_are_divided_scaled_and_mixed() {
        let x = Given::random(NE, 4);
        let (near, far) = (positions([1, 2, 3]), positions([4, 8, 12]));
        let plain = node(NEOX, 12).value(&[x.clone(), near]);
        let scaled = node(NEOX, 12).float(6, 0.25);
        assert_near(&scaled.value(&[x.clone(), far.clone()]), &plain, "linear scaling");
        let factors = Given::of([6, 1, 1, 1], vec![4.0; 6]);
        let divided = node(NEOX, 12).value(&[x.clone(), far.clone(), factors.weight()]);
        assert_near(&divided, &plain, "frequency factors");
        // YaRN: the fastest pair turns as without scaling, the slowest as with; all grow.
        let mixed = scaled.clone().float(7, 1.0).value(&[x.clone(), far.clone()]);
        let grown = 1.0 + 0.1 * 4f64.ln();
        let unscaled = node(NEOX, 12).value(&[x.clone(), far.clone()]);
        for (pair, like) in [(0, unscaled), (5, plain)] {
            for element in [pair, pair + 6] {
                assert!((mixed[element] - grown * like[element]).abs() < 1e-12, "pair {pair}");
            }
        }
        scaled.float(7, 1.0).propagates(&[x.uncertain(1e-3), far]);
    }
}
