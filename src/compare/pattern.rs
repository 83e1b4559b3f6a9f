//! Which elements differ, in words an engineer would use: "heads 7-13, positions >= 1".

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::graph::site::Axis;

/// Of a set this full, the share is not worth a word.
const FULL: f64 = 0.9;
/// On an axis longer than this, a set that is `FULL` counts as all of it; never on an axis of
/// positions, where one exception is the finding.
const LONG_AXIS: usize = 64;
/// At most this many indices or ranges are named.
const MAX_NAMED: usize = 8;
/// At most this many indices are named as exceptions.
const MAX_EXCEPTIONS: usize = 4;

/// The set of elements beyond tolerance: per axis the indices that occur, and how much of their
/// product they fill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pattern {
    /// The whole pattern as one phrase.
    pub text: String,
    pub axes: Vec<AxisSet>,
    /// Elements beyond tolerance / elements of the product of the axes' sets.
    pub share: f64,
}

/// The indices of one axis at which an element differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AxisSet {
    /// What the axis counts, such as `head`; token axes are given as `position`.
    pub axis: String,
    /// First and last index of each run.
    pub ranges: Vec<(usize, usize)>,
    /// First index and length of the axis.
    pub first: usize,
    pub length: usize,
}

impl Pattern {
    /// The pattern of the elements that `each` marks by their index, on axes that count `own`.
    /// `first_position` is the
    /// position of token 0.
    pub fn of(
        own: &[Axis],
        shape: &[usize],
        first_position: usize,
        each: impl FnOnce(&mut dyn FnMut(&[usize])),
    ) -> Pattern {
        let mut hit: Vec<Vec<bool>> = shape.iter().map(|&n| vec![false; n]).collect();
        let mut marked = 0u64;
        each(&mut |index: &[usize]| {
            marked += 1;
            for (axis, &i) in index.iter().enumerate() {
                hit[axis][i] = true;
            }
        });
        let share = marked as f64 / product(own, &hit, first_position).max(1) as f64;
        let axes: Vec<AxisSet> = (own.iter().zip(&hit))
            .map(|(&axis, hit)| AxisSet::new(axis, hit, first_position))
            .collect();
        let text = phrase(&axes, share);
        Pattern { text, axes, share }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Elements in the product of the axes' sets; keys after a query's position do not count.
fn product(axes: &[Axis], hit: &[Vec<bool>], first_position: usize) -> u64 {
    let count = |hit: &[bool]| hit.iter().filter(|&&hit| hit).count() as u64;
    let ([Axis::Token, .., Axis::Key], [tokens, heads @ .., keys]) = (axes, hit) else {
        return hit.iter().map(|hit| count(hit)).product();
    };
    let seen_by = |token: usize| count(&keys[..(first_position + token + 1).min(keys.len())]);
    let hit_tokens = (0..tokens.len()).filter(|&token| tokens[token]);
    hit_tokens.map(seen_by).sum::<u64>() * heads.iter().map(|heads| count(heads)).product::<u64>()
}

fn phrase(axes: &[AxisSet], share: f64) -> String {
    let parts: Vec<String> = axes.iter().filter_map(AxisSet::phrase).collect();
    let percent = format!("{:.0} %", (100.0 * share).clamp(1.0, 99.0));
    match (parts.is_empty(), share >= FULL) {
        (true, true) => "all elements".to_string(),
        (true, false) => format!("{percent} of all elements"),
        (false, true) => parts.join(", "),
        (false, false) => format!("{} ({percent} of these)", parts.join(", ")),
    }
}

/// The marked indices of an axis in words; `None` where all are marked.
pub fn axis_phrase(axis: Axis, marked: &[bool]) -> Option<String> {
    AxisSet::new(axis, marked, 0).phrase()
}

impl AxisSet {
    fn new(axis: Axis, hit: &[bool], first_position: usize) -> AxisSet {
        let (axis, first) = match axis {
            Axis::Token => (Axis::Position, first_position),
            axis => (axis, 0),
        };
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for i in (0..hit.len()).filter(|&i| hit[i]) {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == first + i => *last += 1,
                _ => ranges.push((first + i, first + i)),
            }
        }
        AxisSet { axis: axis.name().to_string(), ranges, first, length: hit.len() }
    }

    fn count(&self) -> usize {
        self.ranges.iter().map(|(a, b)| b - a + 1).sum()
    }

    /// The indices in words; `None` where they are all of the axis.
    fn phrase(&self) -> Option<String> {
        let (count, length) = (self.count(), self.length);
        let (axis, end) = (&self.axis, self.first + length - 1);
        let ordered = matches!(axis.as_str(), "position" | "key");
        let long = length > LONG_AXIS && !ordered;
        if count == length || long && count as f64 >= FULL * length as f64 {
            return None;
        }
        if let [(a, b)] = self.ranges[..] {
            return Some(match () {
                () if ordered && b == end => format!("{axis}s >= {a}"),
                () if a == b => format!("{axis} {a}"),
                () => format!("{axis}s {a}-{b}"),
            });
        }
        let exceptions = self.exceptions();
        if exceptions.len() <= MAX_EXCEPTIONS && 2 * count > length {
            let names: Vec<String> = exceptions.iter().map(usize::to_string).collect();
            return Some(format!("{axis}s except {}", enumerated(&names)));
        }
        if let Some(stride) = self.stride() {
            return Some(stride);
        }
        let range =
            |&(a, b): &(usize, usize)| if a == b { a.to_string() } else { format!("{a}-{b}") };
        let named: Vec<String> = self.ranges.iter().take(MAX_NAMED).map(range).collect();
        if self.ranges.len() <= MAX_NAMED {
            return Some(format!("{axis}s {}", named.join(", ")));
        }
        Some(format!("{count} of {length} {axis}s ({}, ...)", named[..3].join(", ")))
    }

    /// The indices between the ranges and at the ends of the axis, up to one more than are named.
    fn exceptions(&self) -> Vec<usize> {
        let mut next = self.first;
        let mut outside = Vec::new();
        for &(a, b) in &self.ranges {
            outside.extend((next..a).take(MAX_EXCEPTIONS + 1));
            next = b + 1;
        }
        outside.extend((next..self.first + self.length).take(MAX_EXCEPTIONS + 1));
        outside
    }

    /// "odd heads", "every 3rd dim from 1": single indices at equal distances over the whole axis.
    fn stride(&self) -> Option<String> {
        let [(first, _), (second, _), ..] = self.ranges[..] else { return None };
        let step = second - first;
        let regular =
            self.ranges.iter().enumerate().all(|(i, &(a, b))| a == b && a == first + i * step);
        let end = self.first + self.length;
        let (last, _) = *self.ranges.last()?;
        let reaches_both_ends = first < self.first + step && last + step >= end;
        if !regular || !reaches_both_ends || self.ranges.len() < 3 {
            return None;
        }
        Some(match (step, first % 2) {
            (2, 0) => format!("even {}s", self.axis),
            (2, _) => format!("odd {}s", self.axis),
            (3, _) => format!("every 3rd {} from {first}", self.axis),
            _ => format!("every {step}th {} from {first}", self.axis),
        })
    }
}

fn enumerated(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::site::Stage;

    /// The pattern of the elements of (10 tokens, 14 heads, 16 dims) that `differs` picks.
    fn pattern(differs: impl Fn(usize, usize, usize) -> bool) -> String {
        let pattern = Pattern::of(Stage::QRope.axes(), &[10, 14, 16], 0, |mark| {
            for token in 0..10 {
                for head in 0..14 {
                    for dim in (0..16).filter(|&dim| differs(token, head, dim)) {
                        mark(&[token, head, dim]);
                    }
                }
            }
        });
        pattern.text
    }

    #[test]
    fn patterns_are_named_as_an_engineer_would() {
        assert_eq!(pattern(|_, _, _| true), "all elements");
        assert_eq!(pattern(|_, h, _| h >= 7), "heads 7-13");
        assert_eq!(pattern(|_, h, _| h == 3), "head 3");
        assert_eq!(pattern(|t, _, _| t >= 1), "positions >= 1");
        assert_eq!(pattern(|_, _, d| d % 8 != 0), "dims except 0 and 8");
        assert_eq!(pattern(|t, _, d| t > 0 && d % 8 != 0), "positions >= 1, dims except 0 and 8");
        assert_eq!(pattern(|_, h, _| h % 2 == 1), "odd heads");
        assert_eq!(pattern(|_, _, d| d % 3 == 1), "every 3rd dim from 1");
        assert_eq!(pattern(|_, h, _| [1, 3, 5, 8, 10].contains(&h)), "heads 1, 3, 5, 8, 10");
        assert_eq!(pattern(|t, h, d| (t, h, d) == (3, 0, 5)), "position 3, head 0, dim 5");
        assert_eq!(pattern(|t, _, _| (2..5).contains(&t)), "positions 2-4");
        assert_eq!(pattern(|t, h, d| (t + h + d) % 2 == 0), "50 % of all elements");
        assert_eq!(pattern(|t, h, d| h < 2 && (t + d) % 2 == 0), "heads 0-1 (50 % of these)");
    }

    #[test]
    fn a_long_axis_that_differs_nearly_everywhere_is_not_mentioned() {
        let pattern = Pattern::of(Stage::Logits.axes(), &[2, 1000], 7, |mark| {
            (0..1000).filter(|id| id % 40 != 0).for_each(|id| mark(&[1, id]));
        });
        assert_eq!(pattern.text, "positions >= 8");
        assert_eq!(pattern.axes[0].ranges, [(8, 8)]);
    }

    #[test]
    fn keys_that_a_query_does_not_see_are_not_missed_in_the_share() {
        let pattern = Pattern::of(Stage::Probs.axes(), &[4, 2, 6], 2, |mark| {
            for token in 0..4 {
                (0..=token + 2).for_each(|key| mark(&[token, 1, key]));
            }
        });
        assert_eq!((pattern.text.as_str(), pattern.share), ("head 1", 1.0));
    }
}
