//! Results on a grid of one step, cut off at its ends: integers of 8 bits whose scale is not made for each row. The
//! step and the ends are read off what was recorded.

use super::Visit;
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        Evidence, StepEvidence,
        cause::Rank,
        replay::{Expected, Spread},
    },
};

/// Levels of an integer of 8 bits.
const MOST_LEVELS: f64 = 256.0;
/// A grid of fewer levels is met by chance.
const LEAST_LEVELS: f64 = 8.0;
/// Elements that a grid is read off.
const LEAST_ELEMENTS: usize = 64;
/// A recorded number is so near to a level, in steps.
const NEAR: f64 = 1e-3;

/// Levels from `low` to `high`, `step` apart.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Grid {
    step: f64,
    low: f64,
    high: f64,
}

/// One grid for all, and one for each head.
pub fn grids(evidence: &Evidence<'_>, visit: Visit<'_>) {
    one_for(evidence, "all", |_| (0, 1), visit);
    if let Some(heads) = evidence.heads().filter(|heads| heads.count > 1) {
        let of_head = |flat: usize| (flat / heads.dim % heads.count, heads.count);
        one_for(evidence, "each head", of_head, visit);
    }
}

/// A grid for each group; `group` gives that of an element, and how many there are.
fn one_for(
    evidence: &Evidence<'_>,
    whose: &str,
    group: impl Fn(usize) -> (usize, usize),
    visit: Visit<'_>,
) {
    let (_, groups) = group(0);
    let mut recorded: Vec<Vec<f64>> = vec![Vec::new(); groups];
    for step in &evidence.steps {
        for (flat, &x) in step.observed.piece.captured.iter().enumerate() {
            recorded[group(flat).0].push(f64::from(x));
        }
    }
    let Some(grids) = recorded.iter().map(|values| read_off(values)).collect::<Option<Vec<_>>>()
    else {
        return;
    };
    let cut_off = |step: &StepEvidence<'_>| {
        let right = step.observed.piece.expected.value.iter().enumerate();
        let is_beyond = |(flat, &x): (usize, &f64)| {
            let Grid { step, low, high } = grids[group(flat).0];
            x > high + step || x < low - step
        };
        right.filter(|&(flat, x)| is_beyond((flat, x))).count()
    };
    let beyond: usize = evidence.steps.iter().map(cut_off).sum();
    let Grid { step, low, high } = grids[0];
    let of_first = if groups > 1 { ", that of the first" } else { "" };
    let ends = match beyond {
        0 => String::new(),
        _ => format!(", and clipped at {low:.4} and {high:.4}"),
    };
    let text =
        format!("rounded to integers with one scale for {whose} ({step:.4}{of_first}){ends}");
    let (key, rank) = match beyond {
        0 => (CauseKey::StoredCoarser, Rank::Likeness),
        _ => (CauseKey::Clamp, Rank::Mistake),
    };
    visit(evidence.predicted(key, text, rank, |step| {
        let right = &step.observed.piece.expected;
        let rounded =
            |(flat, &x): (usize, &f64)| grids[group(flat).0].rounded(x, right.most_bound(flat));
        let (value, slack) = right.value.iter().enumerate().map(rounded).unzip();
        let single = vec![0.0; right.value.len()];
        let (spread, rounding) = (Spread::Each(slack), right.rounding);
        Some(Expected { value, spread, single, rounding })
    }));
}

/// The grid that numbers lie on.
fn read_off(values: &[f64]) -> Option<Grid> {
    if values.len() < LEAST_ELEMENTS || values.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let (low, high) = values.iter().fold((0f64, 0f64), |(low, high), &x| (low.min(x), high.max(x)));
    let largest = high.max(-low);
    let least = values.iter().map(|x| x.abs()).filter(|&x| x > 0.0).fold(f64::INFINITY, f64::min);
    let levels = (largest / least).round();
    if !(LEAST_LEVELS..=MOST_LEVELS).contains(&levels) {
        return None;
    }
    let step = largest / levels;
    let is_level = |x: &f64| (x / step - (x / step).round()).abs() <= NEAR;
    values.iter().all(is_level).then_some(Grid { step, low, high })
}

impl Grid {
    /// A number on the grid, and how far off it may be where it lies near a middle.
    fn rounded(self, x: f64, error: f64) -> (f64, f64) {
        const ULPS: f64 = 8.0;
        let scaled = x / self.step;
        let off = ULPS * f64::from(f32::EPSILON) * scaled.abs() + error / self.step;
        let level = |scaled: f64| (scaled.round() * self.step).clamp(self.low, self.high);
        let [a, b] = [level(scaled - off), level(scaled + off)];
        (0.5 * (a + b), 0.5 * (b - a).abs() + f64::from(f32::EPSILON) * x.abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::random::splitmix64;

    fn random(n: usize) -> Vec<f64> {
        (0..n as u64).map(|i| splitmix64(3, i) as f64 / u64::MAX as f64 * 12.0 - 6.0).collect()
    }

    #[test]
    fn a_grid_is_read_off_and_gives_its_own_numbers_again() {
        let right = random(4000);
        let kept = |x: &f64| (x / 0.03).round().clamp(-127.0, 127.0) * 0.03;
        let kept: Vec<f64> = right.iter().map(kept).map(|x| f64::from(x as f32)).collect();
        let grid = read_off(&kept).unwrap();
        assert!((grid.step - 0.03).abs() < 1e-6 && (grid.high - 3.81).abs() < 1e-6);
        for (x, y) in right.iter().zip(&kept) {
            let (value, slack) = grid.rounded(*x, 0.0);
            assert!((value - y).abs() <= slack + 1e-6, "{x} {y} {value}");
        }
    }

    #[test]
    fn numbers_that_are_on_no_grid_have_none() {
        assert_eq!(read_off(&random(4000)), None);
        assert_eq!(read_off(&[0.0; 4000]), None);
        assert_eq!(read_off(&[1.0; 10]), None);
    }
}
