//! What goes wrong in a rotation: pairs, theta, positions, and how many dims rotate.

use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        replay::{ReplayError, ops},
        scene::{Scene, Visit},
    },
    model::{RopePairs, rope_angle, rope_pair},
};

/// Bases in use.
const THETAS: [f64; 7] = [1e4, 2.5e5, 5e5, 1e6, 5e6, 1e7, 1e5];

/// One way to rotate.
#[derive(Clone)]
struct Way {
    /// `None` of the right one.
    key: Option<CauseKey>,
    texts: Vec<String>,
    pairs: RopePairs,
    /// The pairs are of transformers' order of a llama's rows, in which i and i + d/2 belong together.
    unpermuted: bool,
    theta: f64,
    /// Position of each row.
    positions: Vec<f64>,
    /// Dims that rotate, and the number that the exponent is divided by.
    rotated: usize,
    exponent: usize,
    direction: f64,
    factors: Factors,
}

#[derive(Clone, Copy, PartialEq)]
enum Factors {
    Right,
    Ignored,
    Multiplied,
}

impl Way {
    /// The way with one mistake more.
    fn with(&self, key: CauseKey, text: impl Into<String>, change: impl FnOnce(&mut Way)) -> Way {
        let mut way = self.clone();
        way.key = self.key.or(Some(key));
        way.texts.push(text.into());
        change(&mut way);
        way
    }
}

/// Each mistake alone, and wrong pairs together with each other mistake.
pub fn rotations<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let c = scene.config();
    let right = Way {
        key: None,
        texts: Vec::new(),
        pairs: c.rope_pairs,
        unpermuted: false,
        theta: f64::from(c.rope_theta),
        positions: scene.positions().into_iter().map(|p| p as f64).collect(),
        rotated: c.head_dim,
        exponent: c.head_dim,
        direction: 1.0,
        factors: Factors::Right,
    };
    let (other, text) = match c.rope_pairs {
        RopePairs::Neox => (RopePairs::Norm, "pairs (2i, 2i+1) instead of (i, i+d/2)"),
        RopePairs::Norm => (RopePairs::Neox, "pairs (i, i+d/2) instead of (2i, 2i+1)"),
    };
    let swapped = right.with(CauseKey::RopePairs, text, |way| way.pairs = other);
    try_way(scene, &swapped, visit)?;
    if c.rope_pairs == RopePairs::Norm {
        let text = "pairs (2i, 2i+1) instead of (i, i+d/2) in transformers' order of rows";
        try_way(scene, &right.with(CauseKey::RopePairs, text, |way| way.unpermuted = true), visit)?;
    }
    for base in [right, swapped] {
        for way in mistakes(scene, &base) {
            try_way(scene, &way, visit)?;
        }
    }
    Ok(())
}

fn mistakes(scene: &Scene<'_, '_>, base: &Way) -> Vec<Way> {
    let dim = scene.config().head_dim;
    let mut ways = Vec::new();
    let fitted = fitted_thetas(scene, base);
    for theta in THETAS.into_iter().chain(fitted).filter(|&theta| theta != base.theta) {
        let text = format!("theta {theta} instead of {}", base.theta);
        ways.push(base.with(CauseKey::RopeTheta, text, |way| way.theta = theta));
    }
    let halved = base
        .with(CauseKey::RopeTheta, "exponent i/d instead of 2i/d", |way| way.exponent = 2 * dim);
    ways.push(halved);
    let positions = |ways: &mut Vec<Way>, key, text: String, of: &dyn Fn(f64) -> f64| {
        ways.push(base.with(key, text, |way| way.positions.iter_mut().for_each(|p| *p = of(*p))));
    };
    if base.key.is_none() {
        let text = "not rotated (as if every position were 0)".to_string();
        positions(&mut ways, CauseKey::RopeMissing, text, &|_| 0.0);
    }
    for offset in [-2.0, -1.0, 1.0, 2.0] {
        let text = format!("positions off by {offset:+}");
        positions(&mut ways, CauseKey::RopePosition, text, &|p| p + offset);
    }
    for factor in [2.0, 4.0, 8.0, 0.5, 0.25, 0.125] {
        let text = format!("positions times {factor}");
        positions(&mut ways, CauseKey::RopePosition, text, &|p| p * factor);
    }
    // A decode step's tokens counted from 0 (or 1), and the prompt's right.
    let prompt = scene.replay.recording.steps[0].len() as f64;
    for first in [0.0, 1.0] {
        let text = format!("positions of decode steps count from {first}");
        let of = |p: f64| if p < prompt { p } else { p - prompt + first };
        positions(&mut ways, CauseKey::RopePosition, text, &of);
        let text = format!("every decode step rotates at position {first}");
        let of = |p: f64| if p < prompt { p } else { first };
        positions(&mut ways, CauseKey::RopePosition, text, &of);
    }
    for offset in [-1.0, 1.0] {
        let text = format!("positions of decode steps off by {offset:+}");
        let of = |p: f64| if p < prompt { p } else { p + offset };
        positions(&mut ways, CauseKey::RopePosition, text, &of);
    }
    let backwards = "rotated backwards (sine negated)";
    ways.push(base.with(CauseKey::RopeDirection, backwards, |way| way.direction = -1.0));
    // Whole pairs.
    let mut parts = [dim / 4, dim / 2, 3 * dim / 4, dim - 2].map(|n| n / 2 * 2).to_vec();
    parts.dedup();
    for rotated in parts.into_iter().filter(|&n| n > 0) {
        for exponent in [dim, rotated] {
            let of = if exponent == dim { "" } else { ", at the angles of a head of that size" };
            let text = format!("only {rotated} of {dim} dims rotate{of}");
            ways.push(base.with(CauseKey::RopePartial, text, |way| {
                (way.rotated, way.exponent) = (rotated, exponent);
            }));
        }
    }
    if scene.replay.model.has("rope_freqs.weight") {
        for (factors, text) in [
            (Factors::Ignored, "frequency factors ignored"),
            (Factors::Multiplied, "multiplied by the frequency factors instead of divided"),
        ] {
            ways.push(base.with(CauseKey::RopeFactors, text, |way| way.factors = factors));
        }
    }
    ways
}

fn try_way<'a>(scene: &Scene<'_, 'a>, way: &Way, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let Some(key) = way.key else { return Ok(()) };
    let x = scene.input()?;
    let dim = scene.config().head_dim;
    let factors = scene.replay.rope_factors()?;
    let angle = |position: f64, pair: usize| {
        if 2 * pair >= way.rotated {
            return None;
        }
        let angle = rope_angle(way.theta, position, pair, way.exponent);
        let factor = factors.as_ref().map_or(1.0, |factors| f64::from(factors[pair]));
        Some(
            way.direction
                * match way.factors {
                    Factors::Right => angle / factor,
                    Factors::Ignored => angle,
                    Factors::Multiplied => angle * factor,
                },
        )
    };
    // With (i, i + d/2), the first pairs of a partial rotation may also be those of the rotated part.
    for inner in [dim, way.rotated] {
        let of_order = rope_pair(way.pairs, inner);
        let place = |element: usize| {
            if way.unpermuted { element % (dim / 2) * 2 + element / (dim / 2) } else { element }
        };
        let pair = |i: usize| {
            let (first, second) = of_order(i);
            (place(first), place(second))
        };
        let within = inner < dim && way.pairs == RopePairs::Neox;
        let of_inner = if within { ", in pairs among themselves" } else { "" };
        let text = way.texts.join(", and ") + of_inner;
        let candidate = scene.candidate(key, text, |_, rows| {
            let position = |row: usize| way.positions[rows.map_or(row, |rows| rows[row])];
            let angle = |row: usize, pair: usize| angle(position(row), pair);
            let rotation = ops::Rotation { head_dim: dim, pair: &pair, angle: &angle };
            let few = rows.map(|rows| x.select(rows));
            Ok(ops::rotate(few.as_ref().unwrap_or(&x), &rotation, scene.rounding()))
        })?;
        visit(candidate.of_mistakes(way.texts.len()))?;
        if way.rotated == dim || way.pairs == RopePairs::Norm {
            break;
        }
    }
    Ok(())
}

/// Thetas that the recorded values speak of, to three, five and seven digits: what the angle of pair
/// 1 gives, from row to row. The angle of a row is only known up to whole turns; the one before says
/// how many there are.
fn fitted_thetas(scene: &Scene<'_, '_>, way: &Way) -> Vec<f64> {
    let Ok(x) = scene.input() else { return Vec::new() };
    let dim = scene.config().head_dim;
    if dim < 4 {
        return Vec::new();
    }
    let recorded: Vec<f32> = scene.recorded().collect();
    let at = |index: usize| f64::from(recorded[index]);
    let (a, b) = rope_pair(way.pairs, dim)(1);
    let turn = std::f64::consts::TAU;
    let mut rows: Vec<(f64, usize)> =
        way.positions.iter().copied().zip(0..).filter(|(position, _)| *position > 0.0).collect();
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    // The angle at position 1, below one turn; then better and better known.
    let mut unit = None;
    for (position, row) in rows {
        let (mut cosine, mut sine) = (0.0, 0.0);
        for head in (row * x.width..(row + 1) * x.width).step_by(dim) {
            let (before, after) =
                ((x.value[head + a], x.value[head + b]), (at(head + a), at(head + b)));
            cosine += before.0 * after.0 + before.1 * after.1;
            sine += before.0 * after.1 - before.1 * after.0;
        }
        let angle = sine.atan2(cosine).rem_euclid(turn);
        unit = match unit {
            None if position == 1.0 => Some(angle),
            None => return Vec::new(),
            Some(unit) => {
                Some((((position * unit - angle) / turn).round() * turn + angle) / position)
            }
        };
    }
    let factors = scene.replay.rope_factors().ok().flatten();
    let factor = factors.map_or(1.0, |factors| f64::from(factors[1]));
    let theta = unit.map_or(f64::NAN, |unit: f64| (unit * factor).powf(-(dim as f64) / 2.0));
    if !(10.0..1e9).contains(&theta) {
        return Vec::new();
    }
    let rounded = [2, 4, 6].map(|digits| format!("{theta:.digits$e}").parse().unwrap_or(theta));
    let mut list = rounded.to_vec();
    // Closer than f32 can tell.
    list.dedup_by(|finer, coarser| (*finer / *coarser - 1.0).abs() < 1e-6);
    list
}
