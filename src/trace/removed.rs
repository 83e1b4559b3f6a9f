//! Positions that a cache gives up between two steps: rejected drafts at its end, or the oldest of a context shift.

use serde::{Deserialize, Serialize};

/// Positions that are removed before a step. Those behind them move down to where the first was, and their keys are
/// turned to their new positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Removed {
    pub first: usize,
    pub count: usize,
}

impl Removed {
    /// The position after the last of them.
    pub fn end(self) -> usize {
        self.first.saturating_add(self.count)
    }

    /// Whether they are not the last of so many positions, so that others move.
    pub fn is_shift(self, positions: usize) -> bool {
        self.end() < positions
    }

    /// Positions that are left of so many.
    ///
    /// # Errors
    /// In words, where the positions are not there.
    pub(super) fn left_of(self, positions: usize) -> Result<usize, String> {
        let Removed { first, count } = self;
        if count == 0 {
            return Err("has a count of 0".into());
        }
        if self.end() > positions {
            let found = format!("is {count} positions from {first} on");
            return Err(format!("{found}, and the cache has {positions}"));
        }
        Ok(positions - count)
    }
}

/// Where each position's token was run: the step and the token's place in it.
#[cfg(feature = "full")]
type TokenPlace = (usize, usize);

/// How many tokens of each step stay, as far as no position moves: `None` from the step of a context shift on. The
/// tokens of `steps` are given as their number and what is removed before them.
#[cfg(feature = "full")]
pub(super) fn settled(first: usize, steps: &[(usize, Option<Removed>)]) -> Vec<Option<usize>> {
    let mut tokens: Vec<TokenPlace> = Vec::new();
    let mut known = steps.len();
    for (step, &(length, removed)) in steps.iter().enumerate() {
        if let Some(removed) = removed {
            if removed.is_shift(first + tokens.len()) || removed.first < first {
                known = step;
                break;
            }
            tokens.truncate(removed.first - first);
        }
        tokens.extend((0..length).map(|token| (step, token)));
    }
    let left = |step: usize| tokens.iter().filter(|(own, _)| *own == step).count();
    (0..steps.len()).map(|step| (step < known).then(|| left(step))).collect()
}

#[cfg(all(test, feature = "full"))]
mod tests {
    use super::*;

    #[test]
    fn rejected_tokens_are_those_that_a_later_step_removes() {
        let removed = |first, count| Some(Removed { first, count });
        let steps = [(4, None), (5, None), (2, removed(6, 3)), (1, removed(7, 1)), (1, None)];
        let all = [Some(4), Some(2), Some(1), Some(1), Some(1)];
        assert_eq!(settled(0, &steps), all);
        let shifted = [(4, None), (3, removed(2, 2)), (1, removed(1, 2)), (1, None)];
        assert_eq!(settled(0, &shifted), [Some(2), Some(3), None, None]);
        assert_eq!(settled(8, &[(4, None), (1, removed(6, 6))]), [Some(4), None]);
    }

    #[test]
    fn positions_that_are_not_there_are_refused() {
        let left = |first, count| Removed { first, count }.left_of(9);
        assert_eq!(left(4, 5), Ok(4));
        assert!(left(4, 0).unwrap_err().contains("count of 0"));
        assert!(left(4, 6).unwrap_err().contains("6 positions from 4 on, and the cache has 9"));
        assert!(left(usize::MAX, 2).is_err());
    }
}
