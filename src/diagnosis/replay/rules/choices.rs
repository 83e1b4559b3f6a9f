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
    if rows == 0 || !ids.len().is_multiple_of(rows) || ids.len() / rows > logits.width {
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

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Given, Node},
        *,
    };

    const LOGITS: [f64; 5] = [1.0, 3.0, 3.0, -1.0, 2.0];

    fn excess(op: Op, ids: &[f64], spread: Option<&[f64]>) -> f64 {
        let logits = Logits { width: 5, values: &LOGITS, spread };
        is_choice_of(&op, Node::new(op, [1; 4]).int(0, 1).params, logits, ids).unwrap()
    }

    #[test]
    fn the_order_is_that_of_f64_and_is_a_choice() {
        let x = Given::random([17, 3, 1, 1], 1);
        let logits = Logits { width: 17, values: &x.value, spread: None };
        for (op, width) in [(Op::ArgSort, 17), (Op::TopK, 4), (Op::ArgMax, 1)] {
            for order in [0, 1] {
                let ne = if op == Op::ArgMax { [3, 1, 1, 1] } else { [width, 3, 1, 1] };
                let node = Node::new(op, ne).int(0, order);
                let ids = node.value(std::slice::from_ref(&x));
                assert_eq!(is_choice_of(&op, node.params, logits, &ids), Some(0.0));
                let is_ascending = op == Op::ArgSort && order == 0;
                for (row, ids) in ids.chunks(width).enumerate() {
                    let mut sorted = x.value[row * 17..(row + 1) * 17].to_vec();
                    sorted
                        .sort_by(|a, b| if is_ascending { a.total_cmp(b) } else { b.total_cmp(a) });
                    for (id, value) in ids.iter().zip(sorted) {
                        assert_eq!(x.value[row * 17 + *id as usize], value);
                    }
                }
            }
        }
    }

    #[test]
    fn ties_may_be_in_any_order_and_others_in_none() {
        assert_eq!(excess(Op::ArgSort, &[1.0, 2.0, 4.0, 0.0, 3.0], None), 0.0);
        assert_eq!(excess(Op::ArgSort, &[2.0, 1.0, 4.0, 0.0, 3.0], None), 0.0);
        assert_eq!(excess(Op::ArgSort, &[2.0, 1.0, 4.0], None), 0.0);
        assert_eq!(excess(Op::ArgSort, &[2.0, 4.0, 1.0, 0.0, 3.0], None), f64::INFINITY);
        assert_eq!(excess(Op::TopK, &[4.0, 2.0, 1.0], None), 0.0);
        assert_eq!(excess(Op::TopK, &[4.0, 2.0], None), f64::INFINITY);
        assert_eq!(excess(Op::ArgMax, &[2.0], None), 0.0);
        assert_eq!(excess(Op::ArgMax, &[4.0], None), f64::INFINITY);
    }

    #[test]
    fn ids_must_be_of_the_row_and_differ() {
        for ids in [[1.0, 1.0], [1.0, 5.0], [1.0, -1.0], [1.0, 1.5], [1.0, f64::NAN]] {
            assert_eq!(excess(Op::TopK, &ids, None), f64::INFINITY, "{ids:?}");
        }
        assert_eq!(excess(Op::TopK, &[1.0; 6], None), f64::INFINITY);
    }

    #[test]
    fn logits_that_may_be_off_may_be_in_another_order() {
        // 4 and 1 differ by 1: as much as their errors together allow at a spread of 1/12.
        let near =
            |spread: f64| excess(Op::ArgSort, &[2.0, 4.0, 1.0, 0.0, 3.0], Some(&[spread; 5]));
        assert!(near(0.09) < 1.0 && near(0.08) > 1.0);
        let near = |spread: f64| excess(Op::TopK, &[2.0, 4.0], Some(&[spread; 5]));
        assert!(near(0.09) < 1.0 && near(0.08) > 1.0);
        // A logit that may be anything may be anywhere; the others may not.
        let wide = [10.0, 0.0, 0.0, 0.0, 0.0];
        assert!(excess(Op::ArgSort, &[0.0, 1.0, 2.0, 4.0, 3.0], Some(&wide)) < 1.0);
        assert_eq!(excess(Op::ArgSort, &[0.0, 1.0, 4.0, 2.0, 3.0], Some(&wide)), f64::INFINITY);
    }

    #[test]
    fn masked_logits_are_ties() {
        let values = [f64::NEG_INFINITY, 0.5, f64::NEG_INFINITY];
        let logits = Logits { width: 3, values: &values, spread: None };
        let params = Node::new(Op::ArgSort, [1; 4]).int(0, 1).params;
        assert_eq!(is_choice_of(&Op::ArgSort, params, logits, &[1.0, 2.0, 0.0]), Some(0.0));
        assert_eq!(
            is_choice_of(&Op::ArgSort, params, logits, &[2.0, 1.0, 0.0]),
            Some(f64::INFINITY)
        );
        assert_eq!(is_choice_of(&Op::Add, params, logits, &[]), None);
    }
}
