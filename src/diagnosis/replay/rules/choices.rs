//! Orders of logits: which comes first is no number, and may be decided by a rounding.

use super::{Call, LAMBDA, Op, Params};
use crate::{diagnosis::replay::Expected, model::gguf::GgufError};

/// The ids in f64's order, the lower first where logits are equal. Another order may be as right:
/// [`is_choice_of`] judges one.
pub fn compute(call: &Call<'_, '_>) -> Result<Expected<'static>, GgufError> {
    let x = call.argument(0);
    let values = x.value()?;
    let width = x.ne[0];
    let count = if call.op == Op::ArgMax { 1 } else { call.ne[0] };
    let is_ascending = is_ascending(&call.op, call.params);
    let order = |row: &[f64]| {
        let mut ids: Vec<usize> = (0..width).collect();
        let largest_first = |a: &usize, b: &usize| row[*b].total_cmp(&row[*a]);
        if is_ascending {
            ids.sort_by(|a, b| row[*a].total_cmp(&row[*b]));
        } else if count < width {
            ids.select_nth_unstable_by(count, |a, b| largest_first(a, b).then(a.cmp(b)));
            ids.truncate(count);
            ids.sort_by(|a, b| largest_first(a, b).then(a.cmp(b)));
        } else {
            ids.sort_by(largest_first);
        }
        ids.into_iter().take(count).map(|id| id as f64).collect::<Vec<f64>>()
    };
    let value: Vec<f64> = values.chunks_exact(width).flat_map(order).collect();
    Ok(call.exact(value, None))
}

fn is_ascending(op: &Op, params: Params) -> bool {
    *op == Op::ArgSort && params.int(0) == 0
}

/// What was chosen among: rows of `width` logits, each with the standard deviation of its error.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'l> {
    pub width: usize,
    pub values: &'l [f64],
    pub spread: Option<&'l [f64]>,
}

/// How far recorded ids are from a right choice, in units of what the logits' errors allow: at most
/// 1 where they are one, of any that ties and near ties leave open.
///
/// `ids` holds as many of each row as the side recorded: an ARGSORT's first, all of a TOP_K or an
/// ARGMAX. Ids must be of the row and differ. Those of an ARGSORT must be in order; none that was
/// left out may come before one that was chosen. `None` for any other operation.
pub fn is_choice_of(op: &Op, params: Params, logits: Logits<'_>, ids: &[f64]) -> Option<f64> {
    if !matches!(op, Op::ArgSort | Op::TopK | Op::ArgMax) {
        return None;
    }
    let rows = logits.values.len() / logits.width.max(1);
    if rows == 0 || ids.len() % rows != 0 || ids.len() / rows > logits.width {
        return Some(if rows == 0 && ids.is_empty() { 0.0 } else { f64::INFINITY });
    }
    let chosen = ids.len() / rows;
    let sign = if is_ascending(op, params) { -1.0 } else { 1.0 };
    let ranked = |row: usize| {
        let ids = &ids[row * chosen..(row + 1) * chosen];
        let at = row * logits.width..(row + 1) * logits.width;
        let spread = logits.spread.map(|spread| &spread[at.clone()]);
        let ranking = Ranking { values: &logits.values[at], spread, sign };
        ranking.excess(ids, *op == Op::ArgSort)
    };
    Some((0..rows).map(ranked).fold(0.0, f64::max))
}

/// A row of logits; the larger times `sign` come first.
struct Ranking<'r> {
    values: &'r [f64],
    spread: Option<&'r [f64]>,
    sign: f64,
}

impl Ranking<'_> {
    fn value(&self, id: usize) -> f64 {
        self.sign * self.values[id]
    }

    /// How far the logit may be off.
    fn error(&self, id: usize) -> f64 {
        LAMBDA * self.spread.map_or(0.0, |spread| spread[id])
    }

    /// By how much `later` should have come before `earlier`, in units of their errors.
    fn between(&self, earlier: usize, later: usize) -> f64 {
        let gap = self.value(later) - self.value(earlier);
        if gap > 0.0 { gap / (self.error(later) + self.error(earlier)) } else { 0.0 }
    }

    /// The one of two ids that may least of all come before others.
    fn lower(&self, a: Option<usize>, b: usize) -> Option<usize> {
        let most = |id: usize| self.value(id) + self.error(id);
        Some(a.filter(|&a| most(a) <= most(b)).unwrap_or(b))
    }

    /// See [`is_choice_of`].
    fn excess(&self, ids: &[f64], is_sorted: bool) -> f64 {
        let mut is_left = vec![true; self.values.len()];
        let mut lowest: Option<usize> = None;
        let mut worst: f64 = 0.0;
        for &id in ids {
            let is_id = id.fract() == 0.0 && (0.0..self.values.len() as f64).contains(&id);
            if !is_id || !is_left[id as usize] {
                return f64::INFINITY;
            }
            let id = id as usize;
            is_left[id] = false;
            if let Some(earlier) = lowest.filter(|_| is_sorted) {
                worst = worst.max(self.between(earlier, id));
            }
            lowest = self.lower(lowest, id);
        }
        let left = (0..self.values.len()).filter(|&id| is_left[id]);
        let Some(lowest) = lowest else { return 0.0 };
        left.map(|id| self.between(lowest, id)).fold(worst, f64::max)
    }
}
