//! The keys that each query weighed, read off its probabilities, and what else its sum held.

use std::{collections::BTreeMap, rc::Rc};

use super::Visit;
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        Change, Edits, Evidence, Row, StepEvidence,
        cause::Tried,
        reading::{Cells, Reading, Shown},
        replay::{Machine, ReplayError},
    },
    graph::{NodeId, Op},
};

/// Where the mask and the sinks are among a SOFT_MAX's sources.
const MASK: usize = 1;
const SINKS: usize = 2;

/// Whether the query of a step and a position weighed each key, by position; keys of all heads alike.
type Weighed = BTreeMap<Query, Vec<bool>>;

/// A query: its step, the position of the step's first, and its own.
type Query = (u32, usize, usize);

/// A softmax over the keys that its results tell, and with further terms in its sum.
pub fn weighed(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    for id in evidence.nodes(|node| node.op == Op::SoftMax && node.source(MASK).is_some()) {
        if evidence.spec().node != id || !evidence.may_fit() {
            continue;
        }
        if let Some(seen) = sets(evidence) {
            let text = described(&seen);
            let edits = Edits::one(id, masked(seen));
            let tried = evidence.mistake(CauseKey::KeysWeighed, text, &edits)?;
            // A set is more numbers than a window is.
            visit(tried.map(|tried| Tried { mistakes: 2, ..tried }));
        }
        zeros(evidence, id, visit)?;
    }
    Ok(())
}

/// What each query weighed, where that is not what it should; `None` where heads differ.
fn sets(evidence: &Evidence<'_>) -> Option<Weighed> {
    let (mut all, mut differs) = (Weighed::new(), false);
    for step in &evidence.steps {
        let [tokens, heads, keys] = step.observed.shape[..] else { return None };
        let piece = &step.observed.piece;
        for token in 0..tokens {
            let mut seen = vec![false; keys];
            for head in 0..heads {
                let row = (token * heads + head) * keys;
                for (key, seen) in seen.iter_mut().enumerate() {
                    *seen |= piece.captured[row + key] != 0.0;
                    let right = piece.expected.value[row + key];
                    differs |= (right == 0.0) != (piece.captured[row + key] == 0.0);
                }
            }
            let first = step.machine.first_position;
            all.insert((step.observed.step, first, first + token), seen);
        }
    }
    differs.then_some(all)
}

/// Which keys each query weighed in the first step where that is not what it should; `None` where it is.
pub fn read_off(evidence: &Evidence<'_>) -> Option<Reading> {
    let is_softmax = evidence.graph().node(evidence.spec().node).op == Op::SoftMax;
    let differs = |step: &&StepEvidence<'_>| {
        let piece = &step.observed.piece;
        let mut pairs = piece.expected.value.iter().zip(&piece.captured);
        pairs.any(|(&right, &x)| right.is_finite() && (right == 0.0) != (x == 0.0))
    };
    let step = evidence.steps.iter().find(differs).filter(|_| is_softmax)?;
    let ([tokens, heads, keys], piece) =
        (<[usize; 3]>::try_from(step.observed.shape.clone()).ok()?, &step.observed.piece);
    let mut of = Vec::with_capacity(tokens * keys);
    for token in 0..tokens {
        for key in 0..keys {
            let all = (0..heads).map(|head| (token * heads + head) * keys + key);
            let (mut must, mut does) = (false, false);
            for at in all {
                must |= piece.expected.value[at] != 0.0;
                does |= piece.captured[at] != 0.0;
            }
            of.push(match (must, does) {
                (true, true) => 0,
                (false, false) => 1,
                (false, true) => 2,
                (true, false) => 3,
            });
        }
    }
    let kinds = [
        "attended to",
        "not attended to, correctly",
        "attended to, but must not be",
        "not attended to, but must be",
    ];
    let kinds = kinds.map(str::to_string).to_vec();
    let cells = Cells::new(["position", "key"], step.machine.first_position, keys, kinds, &of);
    Some(Reading {
        title: "The keys each query attended to",
        step: step.observed.step,
        shown: Shown::Cells(cells),
    })
}

/// A mask by which the query of each position sees these keys.
fn masked(seen: Weighed) -> Change<'static> {
    let values = move |machine: &Machine<'_>, mask: &[f64], ne: [usize; 4]| {
        let value = |i: usize| {
            let first = machine.first_position;
            let query = (machine.step, first, first + i / ne[0] % ne[1]);
            let own = seen.get(&query).and_then(|keys| keys.get(i % ne[0]));
            if own.copied().unwrap_or(false) { 0.0 } else { f64::NEG_INFINITY }
        };
        Some((0..mask.len()).map(value).collect::<Vec<f64>>())
    };
    Change::Values(MASK, Rc::new(values))
}

/// The first and the last key of a set without gaps.
fn range(keys: &[bool]) -> Option<[usize; 2]> {
    let first = keys.iter().position(|&seen| seen)?;
    let last = keys.iter().rposition(|&seen| seen)?;
    keys[first..=last].iter().all(|&seen| seen).then_some([first, last])
}

/// The sets in the shortest words that are true of all of them.
fn described(seen: &Weighed) -> String {
    if let Some(text) = of_steps(seen) {
        return text.to_string();
    }
    let other: Vec<(usize, &Vec<bool>)> = seen
        .iter()
        .map(|(&(_, _, query), keys)| (query, keys))
        .filter(|(query, keys)| range(keys) != Some([0, *query]))
        .collect();
    let ranges: Option<Vec<(usize, [usize; 2])>> =
        other.iter().map(|(query, keys)| Some((*query, range(keys)?))).collect();
    let (Some(ranges), Some(&(first, _))) = (ranges, other.first()) else {
        if let Some(keys) = missing(&other) {
            let behind = seen.keys().filter(|(_, _, query)| *query >= keys[0]).count();
            let which = if other.len() == behind {
                "no query attends to".to_string()
            } else {
                format!("{} queries do not attend to", other.len())
            };
            return match keys[..] {
                [key] => format!("{which} key {key}"),
                [first, .., last] if last - first + 1 == keys.len() => {
                    format!("{which} keys {first} to {last}")
                }
                _ => {
                    let list: Vec<String> = keys.iter().take(8).map(usize::to_string).collect();
                    let more = if keys.len() > 8 { ", ..." } else { "" };
                    format!("{which} keys {}{more}", list.join(" "))
                }
            };
        }
        let rows = other.iter().take(3).map(|(query, keys)| {
            let list: Vec<String> = (0..keys.len())
                .filter(|&key| keys[key])
                .map(|key| key.to_string())
                .take(8)
                .collect();
            format!("the query of position {query} attends to keys {}", list.join(" "))
        });
        let text = rows.collect::<Vec<String>>().join("; ");
        return format!("{text}, ... of {} queries", other.len());
    };
    let last = ranges.last().map_or(first, |(query, _)| *query);
    let which = match ranges.len() == last - first + 1 {
        _ if first == last => format!("the query of position {first} attends to"),
        _ if seen.keys().next_back().is_some_and(|&(_, _, query)| query == last) => {
            format!("queries from position {first} on attend to")
        }
        _ => format!("queries of {} positions from {first} to {last} attend to", ranges.len()),
    };
    let all = |test: &dyn Fn(usize, [usize; 2]) -> bool| ranges.iter().all(|(q, r)| test(*q, *r));
    let [a, b] = ranges[0].1;
    if all(&|_, [start, end]| [start, end] == [a, b]) {
        return format!("{which} keys {a} to {b} only");
    }
    if all(&|q, [start, end]| start == 0 && q - end.min(q) == first - b.min(first) && end <= q) {
        return format!("{which} the keys up to {} before their own", first - b.min(first));
    }
    if all(&|q, [start, end]| end == q && q - start == first - a.min(first)) {
        return format!("{which} the last {} keys only", first - a.min(first) + 1);
    }
    let rows = ranges.iter().take(3).map(|(q, [start, end])| format!("{q} keys {start} to {end}"));
    format!("{which} other keys: position {}", rows.collect::<Vec<String>>().join(", position "))
}

/// The keys before a query that none of these weighs, where they are the same for all and nothing later is weighed.
fn missing(other: &[(usize, &Vec<bool>)]) -> Option<Vec<usize>> {
    let of = |(query, keys): &(usize, &Vec<bool>)| {
        let is_later = keys.iter().skip(query + 1).any(|&seen| seen);
        let own = (0..=*query).filter(|&key| !keys.get(key).copied().unwrap_or(false));
        (!is_later).then(|| own.collect::<Vec<usize>>())
    };
    let first = of(other.first()?)?;
    (!first.is_empty() && other.iter().all(|one| of(one).as_ref() == Some(&first))).then_some(first)
}

/// What follows from the division into steps, where it does.
fn of_steps(seen: &Weighed) -> Option<&'static str> {
    let is = |sees: fn(usize, usize, usize) -> bool| {
        seen.iter().all(|(&(_, first, query), keys)| {
            (0..keys.len()).all(|key| keys[key] == sees(first, query, key))
        })
    };
    // In a step of one token the place is 0, whatever it means.
    let has_later = seen.keys().any(|&(_, first, query)| first > 0 && query > first);
    match () {
        () if !has_later => None,
        () if is(|first, query, key| (first..=query).contains(&key)) => {
            Some("queries attend only to the keys of their own step")
        }
        () if is(|first, query, key| key + first <= query) => {
            Some("queries attend to keys by place in the step, not by position")
        }
        () if is(|first, query, key| key <= query && key + 1 != first) => {
            Some("the key before their own step is not seen")
        }
        () if is(|first, query, key| key < first || first == 0 && key <= query) => {
            Some("queries of later steps attend only to earlier steps, not to their own")
        }
        () => None,
    }
}

/// How many terms of a score of 0 were in the sum beside its own, by the position of the query.
fn zeros(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    if evidence.graph().node(id).source(SINKS).is_some() {
        return Ok(());
    }
    let any = crate::graph::Extent { tokens: 1, cells: 1, is_first: true };
    let scale = f64::from(evidence.graph().node(id).params(any).float(0));
    let mut more: BTreeMap<usize, f64> = BTreeMap::new();
    for step in &evidence.steps {
        let Some(of_step) = zeros_of(evidence, id, scale, step)? else { return Ok(()) };
        more.extend(of_step);
    }
    let rows: Vec<usize> = more.iter().filter(|(_, n)| **n > 0.0).map(|(&q, _)| q).collect();
    let Some(&most) = rows.first() else { return Ok(()) };
    let (n, is_same) = (more[&most], rows.iter().all(|q| more[q] == more[&most]));
    let count = if is_same { format!("{n}") } else { "some".to_string() };
    let which = if rows.len() == more.len() { String::new() } else { of_rows(&rows, &more) };
    let text = format!("{count} extra keys with score 0 are included in the sum{which}");
    let factor = move |row: Row<'_>| {
        let n = more.get(&row.position).copied().unwrap_or(0.0);
        let largest = row.result.iter().copied().fold(0.0, f64::max);
        let at = row.result.iter().position(|&p| p == largest).unwrap_or(0);
        let maximum = scale * row.source[at];
        // The largest term is 1, and the sum one over its probability.
        1.0 / (1.0 + n * (-maximum).exp() * largest)
    };
    let edits = Edits::one(id, Change::RowTimes(Rc::new(factor)));
    let tried = evidence.mistake(CauseKey::SoftmaxPadding, text, &edits)?;
    visit(tried.map(|tried| Tried { mistakes: 2, ..tried }));
    Ok(())
}

/// The number of such terms in each query's sums, where they are whole and alike in all heads.
fn zeros_of(
    evidence: &Evidence<'_>,
    id: NodeId,
    scale: f64,
    step: &StepEvidence<'_>,
) -> Result<Option<Vec<(usize, f64)>>, ReplayError> {
    /// A number of keys is only told where it is that near to a whole one.
    const OFF: f64 = 0.02;
    /// Roundings of a probability, relative to it: what they come to in keys may be no key at all.
    const ROUNDINGS: f64 = 16.0 * f32::EPSILON as f64;
    let [tokens, heads, keys] = step.observed.shape[..] else { return Ok(None) };
    let machine = &step.machine;
    let Some(source) = evidence.graph().node(id).source(0) else { return Ok(None) };
    let Some(scores) = machine.argument(source)? else { return Ok(None) };
    let (scores, piece) = (scores.value()?, &step.observed.piece);
    let mut list = Vec::new();
    for token in 0..tokens {
        // In the head where a term of 1 tells most.
        let mut best: Option<(f64, f64)> = None;
        for head in 0..heads {
            let row = (token * heads + head) * keys;
            let right = &piece.expected.value[row..row + keys];
            let recorded = &piece.captured[row..row + keys];
            let largest = right.iter().copied().fold(0.0, f64::max);
            let Some(at) = right.iter().position(|&p| p == largest && p > 0.0) else { continue };
            // Scores lie (key, token, head).
            let maximum = scale * scores[(head * tokens + token) * keys + at];
            let share = (-maximum).exp() * largest;
            let n = (largest / f64::from(recorded[at]) - 1.0) / share;
            if share.is_finite() && best.is_none_or(|(known, _)| share > known) {
                best = Some((share, n));
            }
        }
        let Some((share, n)) = best else { return Ok(None) };
        if n.abs() <= ROUNDINGS / share {
            list.push((machine.first_position + token, 0.0));
            continue;
        }
        if !n.is_finite() || (n - n.round()).abs() > OFF * n.abs().max(1.0) || n.round() < 0.0 {
            return Ok(None);
        }
        list.push((machine.first_position + token, n.round()));
    }
    Ok(Some(list))
}

/// Which queries they are: by their number of keys, if all of a multiple are.
fn of_rows(rows: &[usize], all: &BTreeMap<usize, f64>) -> String {
    let is = |n: usize, of: usize| (of + 1).is_multiple_of(n);
    let multiple = [128, 64, 32, 16, 8, 4, 2].into_iter().find(|&n| {
        let wanted: Vec<usize> = all.keys().copied().filter(|&query| is(n, query)).collect();
        wanted == rows
    });
    if let Some(n) = multiple {
        return format!(", where the number of keys is a multiple of {n}");
    }
    let shown: Vec<String> = rows.iter().take(6).map(usize::to_string).collect();
    let more = rows.len().saturating_sub(6);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(", at positions {}{rest}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(n: usize, sees: impl Fn(usize, usize) -> bool) -> String {
        let row = |q: usize| ((0, 0, q), (0..n).map(|k| sees(q, k)).collect());
        described(&(0..n).map(row).collect())
    }

    #[test]
    fn sets_of_keys_are_said_in_the_shortest_words() {
        let text = of(24, |q, k| if q < 20 { k <= q } else { k == 0 });
        assert_eq!(text, "queries from position 20 on attend to keys 0 to 0 only");
        let text = of(24, |q, k| if q < 20 { k <= q } else { k < 20 });
        assert_eq!(text, "queries from position 20 on attend to keys 0 to 19 only");
        let text = of(24, |q, k| k <= q && k + 5 > q);
        assert_eq!(text, "queries from position 5 on attend to the last 5 keys only");
        let text = of(24, |q, k| if q == 7 { k == 2 || k == 5 } else { k <= q });
        assert_eq!(text, "1 queries do not attend to keys 0 1 3 4 6 7");
        let text = of(24, |q, k| k <= q && k != 5);
        assert_eq!(text, "no query attends to key 5");
    }

    #[test]
    fn sets_that_follow_the_steps_are_said_by_them() {
        let of = |sees: fn(usize, usize, usize) -> bool| {
            let row = |q: usize| {
                let (step, first) = ((q / 7) as u32, q / 7 * 7);
                ((step, first, q), (0..21).map(|k| sees(first, q, k)).collect())
            };
            described(&(0..21).map(row).collect())
        };
        let text = of(|first, q, k| first <= k && k <= q);
        assert_eq!(text, "queries attend only to the keys of their own step");
        let text = of(|first, q, k| k + first <= q);
        assert_eq!(text, "queries attend to keys by place in the step, not by position");
        let text = of(|first, q, k| k <= q && k + 1 != first);
        assert_eq!(text, "the key before their own step is not seen");
        let text = of(|first, q, k| k < first || first == 0 && k <= q);
        assert_eq!(text, "queries of later steps attend only to earlier steps, not to their own");
    }

    #[test]
    fn rows_are_told_by_the_number_of_their_keys() {
        let all: BTreeMap<usize, f64> = (0..40).map(|q| (q, 0.0)).collect();
        let text = of_rows(&[15, 31], &all);
        assert_eq!(text, ", where the number of keys is a multiple of 16");
        assert_eq!(of_rows(&[3, 9], &all), ", at positions 3, 9");
    }
}
