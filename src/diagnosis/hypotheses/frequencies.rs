//! The frequencies that a rotation used, read off what it did to each pair as positions grow.

use std::{borrow::Cow, f64::consts::TAU, rc::Rc};

use super::{
    Visit,
    near::short,
    positions::{Turn, plain, turns},
};
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        Change, Edits, Evidence,
        cause::Rank,
        replay::{
            ReplayError,
            rules::{Argument, Values},
        },
    },
    graph::{Op, RopeParams},
};

/// Tokens that tell a frequency.
const LEAST_TOKENS: usize = 4;
/// How far from its own a frequency is at least, relative to it, to be another.
const OTHER: f64 = 1e-5;

/// Rotations by the frequencies that their results tell, where these are others.
pub fn used(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    for id in evidence.nodes(|node| node.op == Op::Rope) {
        let Some(rope) = plain(evidence, id).filter(|_| evidence.spec().node == id) else {
            continue;
        };
        let mut tokens: Vec<(usize, Vec<Turn>)> = Vec::new();
        for step in &evidence.steps {
            let Some(of_step) = turns(evidence, id, rope, step)? else { return Ok(()) };
            tokens.extend((step.machine.first_position..).zip(of_step));
        }
        let Some(found) = frequencies(&tokens) else { continue };
        let own: Vec<f64> = tokens[0].1.iter().map(|turn| turn.unit).collect();
        let is_other = |(found, own): (&f64, &f64)| (found / own - 1.0).abs() > OTHER;
        if !found.iter().zip(&own).any(is_other) {
            continue;
        }
        let most = tokens.iter().map(|(position, _)| *position).max().unwrap_or(1);
        let (key, text) = described(&found, &own, rope, most as f64);
        // ggml divides each frequency by a factor.
        let exact = |pair: usize| rope.angle(1.0, pair);
        let factors: Vec<f64> = found.iter().enumerate().map(|(i, f)| exact(i) / f).collect();
        let by_factors = Change::Call(Rc::new(move |call| {
            let (ne, value) = ([factors.len(), 1, 1, 1], Cow::Owned(factors.clone()));
            call.arguments.resize(3, None);
            call.arguments[2] =
                Some(Argument { ne, values: Values::Dense { value, spread: None } });
        }));
        visit(evidence.edited(key, text, Rank::Likeness, &Edits::one(id, by_factors))?);
    }
    Ok(())
}

/// The frequency of every pair: a small position tells it roughly, a larger one more exactly.
fn frequencies(tokens: &[(usize, Vec<Turn>)]) -> Option<Vec<f64>> {
    let mut at: Vec<&(usize, Vec<Turn>)> = tokens.iter().filter(|(p, _)| *p > 0).collect();
    at.sort_by_key(|(position, _)| *position);
    let is_dense = at.first().is_some_and(|(position, _)| *position == 1);
    if at.len() < LEAST_TOKENS || !is_dense {
        return None;
    }
    let pairs = at[0].1.len();
    (0..pairs).map(|pair| frequency(&at, pair)).collect()
}

fn frequency(tokens: &[&(usize, Vec<Turn>)], pair: usize) -> Option<f64> {
    /// Of a turn: what f16 results and angles in f32 leave.
    const OFF: f64 = 0.05;
    let mut frequency = tokens[0].1[pair].angle;
    for (position, turns) in &tokens[1..] {
        let (position, turn) = (*position as f64, turns[pair]);
        if turn.weight == 0.0 {
            continue;
        }
        let expected = frequency * position;
        let off = (turn.angle - expected + TAU / 2.0).rem_euclid(TAU) - TAU / 2.0;
        if off.abs() > OFF * TAU {
            return None;
        }
        frequency = (expected + off) / position;
    }
    (frequency.is_finite() && frequency != 0.0).then_some(frequency)
}

/// The frequencies in the shortest words that are true of them.
fn described(found: &[f64], own: &[f64], rope: RopeParams, most: f64) -> (CauseKey, String) {
    /// Of a frequency, and of an angle at the last position.
    const NEAR: f64 = 1e-3;
    const NEAR_ANGLE: f64 = 1e-4;
    let factor = found[0] / own[0];
    let is_near =
        |(a, b): (f64, f64)| (a - b).abs() < NEAR * b.abs() || (a - b).abs() * most < NEAR_ANGLE;
    if found.iter().zip(own).all(|(f, own)| is_near((*f, factor * own))) {
        return (CauseKey::RopeScaling, format!("frequencies times {}", short(factor)));
    }
    let slope = (found[1] / found[0]).abs().ln();
    let falls = |(i, f): (usize, &f64)| is_near((*f, found[0] * (slope * i as f64).exp()));
    if found.iter().enumerate().all(falls) {
        let theta = (-slope * rope.dims as f64 / 2.0).exp();
        let first = if is_near((found[0], rope.scale)) {
            String::new()
        } else {
            format!(" from {}", short(found[0]))
        };
        let text = format!(
            "frequencies{first} follow theta {} instead of {}",
            short(theta),
            short(rope.theta)
        );
        return (CauseKey::RopeTheta, text);
    }
    let others: Vec<String> = found
        .iter()
        .zip(own)
        .enumerate()
        .filter(|(_, (f, own))| !is_near((**f, **own)))
        .map(|(i, (f, own))| format!("{i} at {} instead of {}", short(*f), short(*own)))
        .collect();
    let more = others.len().saturating_sub(4);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    let text = format!(
        "pairs rotate at other frequencies: {}{rest}",
        others[..others.len() - more].join(", ")
    );
    (CauseKey::RopeScaling, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope() -> RopeParams {
        RopeParams {
            dims: 16,
            offset: 0,
            is_neox: false,
            has_sections: false,
            theta: 1e4,
            scale: 1.0,
        }
    }

    #[test]
    fn frequencies_are_told_by_the_angles_of_many_positions() {
        let own = |i: usize| 1e8f64.powf(-(i as f64) / 8.0);
        let turn = |position: usize, i: usize| {
            let angle = position as f64 * own(i);
            Turn { angle: angle.sin().atan2(angle.cos()), unit: 1.0, weight: 1.0 }
        };
        let tokens: Vec<(usize, Vec<Turn>)> =
            (0..40).map(|p| (p, (0..8).map(|i| turn(p, i)).collect())).collect();
        let found = frequencies(&tokens).unwrap();
        assert!(
            found.iter().enumerate().all(|(i, f)| (f / own(i) - 1.0).abs() < 1e-6),
            "{found:?}"
        );
        let right: Vec<f64> = (0..8).map(|i| rope().angle(1.0, i)).collect();
        let (key, text) = described(&found, &right, rope(), 39.0);
        assert_eq!(key, CauseKey::RopeTheta);
        assert!(text.contains("theta 1.0000e8 instead of 10000"), "{text}");
        let halved: Vec<f64> = right.iter().map(|f| 0.5 * f).collect();
        assert_eq!(described(&halved, &right, rope(), 39.0).1, "frequencies times 0.5");
        assert_eq!(frequencies(&tokens[5..]), None);
    }
}
