//! Mistakes in the softmax of attention: scale, mask, window, sinks, slopes, and the division.

use std::rc::Rc;

use super::{Visit, near::short};
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        Change, Edits, Evidence, Row,
        cause::Rank,
        replay::{
            AsItIs, Machine, ReplayError,
            rules::{Argument, Call, FUNCTION, Values},
        },
    },
    graph::{Extent, Kind, NodeId, Op},
};

/// Where the parameters are among a SOFT_MAX's.
const SCALE: usize = 0;
const MAX_BIAS: usize = 1;
/// Where its sources are.
const MASK: usize = 1;
const SINKS: usize = 2;

/// Every softmax in the cone that has a mask.
pub fn attention(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let masked = evidence.nodes(|node| node.op == Op::SoftMax && node.source(MASK).is_some());
    for id in masked {
        temperatures(evidence, id, visit)?;
        masks(evidence, id, visit)?;
        other_masks(evidence, id, visit)?;
        divisions(evidence, id, visit)?;
        partial_sums(evidence, id, visit)?;
        own_key_twice(evidence, id, visit)?;
        other_axes(evidence, id, visit)?;
        without_maximum(evidence, id, visit)?;
        sinks(evidence, id, visit)?;
        slopes(evidence, id, visit)?;
        evidence.other_inputs(id, 0, &|_| CauseKey::InputOfOther, visit)?;
    }
    Ok(())
}

fn float(evidence: &Evidence<'_>, id: NodeId, index: usize) -> f64 {
    let any = Extent { tokens: 1, cells: 1, is_first: true };
    f64::from(evidence.graph().node(id).params(any).float(index))
}

fn temperatures(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    use std::f64::consts::{LN_2, LOG2_E};
    let own = float(evidence, id, SCALE);
    let mut list = vec![
        (0.5, "scores halved".to_string()),
        (2.0, "scores doubled".to_string()),
        (LN_2, "exp2 instead of exp".to_string()),
        (LOG2_E, "scores multiplied by log2(e) and then exp".to_string()),
    ];
    if own != 1.0 {
        list.push((own, "scores scaled a second time".to_string()));
        list.push((1.0 / own, "scores not scaled".to_string()));
    }
    for dim in evidence.head_dims() {
        let text = format!("scores scaled by 1/sqrt({dim}) too");
        list.push((1.0 / (dim as f64).sqrt(), text));
        list.push(((dim as f64).sqrt(), format!("scores multiplied by sqrt({dim})")));
    }
    if let Some(fitted) = fitted_temperature(evidence).filter(|_| evidence.may_fit()) {
        list.push((fitted, format!("scores times {}", short(fitted))));
    }
    for (factor, text) in list {
        let edit = Edits::one(id, Change::float(SCALE, own * factor));
        visit(evidence.mistake(CauseKey::SoftmaxTemperature, text, &edit)?);
    }
    Ok(())
}

/// What the logarithms of recorded probabilities are times those of the right ones, within a row.
fn fitted_temperature(evidence: &Evidence<'_>) -> Option<f64> {
    const LEAST: f64 = 1e-20;
    let (mut along, mut squares) = (0.0, 0.0);
    for step in &evidence.steps {
        let width = *step.observed.shape.last()?;
        let piece = &step.observed.piece;
        let rows = piece.expected.value.chunks_exact(width).zip(piece.captured.chunks_exact(width));
        for (right, recorded) in rows {
            let logs = right.iter().zip(recorded).map(|(&a, &b)| (a, f64::from(b)));
            let logs: Vec<(f64, f64)> = logs
                .filter(|(a, b)| *a > LEAST && *b > LEAST)
                .map(|(a, b)| (a.ln(), b.ln()))
                .collect();
            let n = logs.len().max(1) as f64;
            let (a, b) = logs.iter().fold((0.0, 0.0), |all, log| (all.0 + log.0, all.1 + log.1));
            for log in &logs {
                along += (log.0 - a / n) * (log.1 - b / n);
                squares += (log.0 - a / n).powi(2);
            }
        }
    }
    let fitted = along / squares;
    (fitted.is_finite() && fitted > 0.0 && (fitted - 1.0).abs() > 1e-6).then_some(fitted)
}

/// Whether a query at a position sees a key.
type Sees = Box<dyn Fn(usize, usize) -> bool>;

/// A mask by which keys are seen; what is added to a key that was seen before stays.
fn seen<'c>(sees: Sees) -> Change<'c> {
    let values = move |machine: &Machine<'_>, mask: &[f64], ne: [usize; 4]| {
        let has_bias = mask.iter().any(|x| x.is_finite() && *x != 0.0);
        let value = |i: usize| {
            let (key, query) = (i % ne[0], machine.first_position + i / ne[0] % ne[1]);
            if !sees(query, key) {
                f64::NEG_INFINITY
            } else if mask[i].is_finite() {
                mask[i]
            } else if has_bias {
                -(query.abs_diff(key) as f64)
            } else {
                0.0
            }
        };
        Some((0..mask.len()).map(value).collect::<Vec<f64>>())
    };
    Change::Values(MASK, Rc::new(values))
}

/// How many keys the last query of the run sees, and its position.
fn last_seen(evidence: &Evidence<'_>, id: NodeId) -> Option<[usize; 2]> {
    let step = evidence.steps.last()?;
    let mask = step.machine.argument(evidence.graph().node(id).source(MASK)?).ok()??;
    let values = mask.value().ok()?;
    let [keys, queries, ..] = mask.ne;
    let row = &values[(queries - 1) * keys..queries * keys];
    let position = step.machine.first_position + queries - 1;
    Some([row.iter().filter(|x| x.is_finite()).count(), position])
}

/// The window that the last recorded row speaks of.
fn recorded_window(evidence: &Evidence<'_>) -> Option<usize> {
    let step = evidence.steps.last()?;
    let width = *step.observed.shape.last()?;
    let row = step.observed.piece.captured.rchunks_exact(width).next()?;
    Some(row.len() - row.iter().position(|&p| p != 0.0)?)
}

fn masks(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let mut list: Vec<(CauseKey, String, Sees)> = Vec::new();
    let mut add = |key, text: &str, sees: Sees| list.push((key, text.to_string(), sees));
    let text = "mask missing: every key of the step is seen";
    add(CauseKey::MaskMissing, text, Box::new(|_, _| true));
    let own = Box::new(|q, k| k < q || q == 0 && k == 0);
    let text = "mask off by one: a query does not see its own key";
    add(CauseKey::MaskOffByOne, text, own);
    let next = Box::new(|q, k| k <= q + 1);
    add(CauseKey::MaskOffByOne, "mask off by one: a query sees the next key", next);
    let [seen_keys, last] = last_seen(evidence, id).unwrap_or([0, 0]);
    let mut windows: Vec<usize> = Vec::new();
    if seen_keys <= last {
        let text = "no window: all keys up to the query's own are seen";
        add(CauseKey::Window, text, Box::new(|q, k| k <= q));
        windows.extend([seen_keys + 1, seen_keys.saturating_sub(1), 2 * seen_keys, seen_keys / 2]);
    }
    windows.extend(recorded_window(evidence));
    windows.extend([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]);
    windows.retain(|&window| 0 < window && window <= last && window != seen_keys);
    windows.sort_unstable();
    windows.dedup();
    for window in windows {
        let text = format!("only the last {window} keys are seen");
        let sees = Box::new(move |q: usize, k| k <= q && k + window > q);
        add(CauseKey::Window, &text, sees);
        let text = format!("only the keys of the query's own {window} are seen");
        let sees = Box::new(move |q: usize, k| k <= q && k / window == q / window);
        add(CauseKey::Window, &text, sees);
    }
    for (key, text, sees) in list {
        visit(evidence.mistake(key, text, &Edits::one(id, seen(sees)))?);
    }
    // A softmax over no key leaves what its memory held: zeros.
    let zeros = |values: &mut [f64], _: [usize; 4]| {
        values.iter_mut().filter(|p| p.is_nan()).for_each(|p| *p = 0.0);
    };
    let edits = vec![(id, seen(Box::new(|q, k| k < q))), (id, Change::Result(Rc::new(zeros)))];
    let text = "mask off by one: a query does not see its own key, and the first one sees none";
    visit(evidence.mistake(CauseKey::MaskOffByOne, text, &Edits(edits))?);
    Ok(())
}

/// The mask of layers of another kind.
fn other_masks(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let graph = evidence.graph();
    let Some(own) = graph.node(id).source(MASK) else { return Ok(()) };
    let mut others: Vec<NodeId> = Vec::new();
    for node in graph.nodes.iter().filter(|node| node.op == Op::SoftMax) {
        let mask = node.source(MASK).map(|mask| graph.root(mask));
        let is_other =
            |&mask: &NodeId| mask != graph.root(own) && graph.node(mask).kind == Kind::Input;
        others.extend(mask.filter(is_other).filter(|mask| !others.contains(mask)));
    }
    for other in others {
        let of_other = move |machine: &Machine<'_>, mask: &[f64], _: [usize; 4]| {
            let (inputs, extent) = (machine.run.inputs, machine.extent);
            let values = inputs.at(machine.graph(), other, extent, machine.first_position)?;
            (values.len() == mask.len()).then_some(values)
        };
        let text = "the mask of the other kind of layer";
        let edit = Edits::one(id, Change::Values(MASK, Rc::new(of_other)));
        visit(evidence.mistake(CauseKey::Window, text, &edit)?);
    }
    Ok(())
}

/// Not divided by the sum, or by another. The largest term is 1, so a row's largest probability is one
/// over the sum, unless a sink is larger.
fn divisions(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let rows = |of: fn(&mut [f64])| -> Change<'static> {
        let each = move |values: &mut [f64], ne: [usize; 4]| {
            values.chunks_exact_mut(ne[0]).for_each(of);
        };
        Change::Result(Rc::new(each))
    };
    let undivided = rows(|row| {
        let largest = row.iter().copied().fold(0.0, f64::max);
        row.iter_mut().for_each(|x| *x /= largest);
    });
    let text = "not divided by the sum";
    let edit = Edits(vec![(id, Change::Without(SINKS)), (id, undivided)]);
    visit(evidence.mistake(CauseKey::SoftmaxUnnormalised, text, &edit)?);
    let by_count = rows(|row| {
        let largest = row.iter().copied().fold(0.0, f64::max);
        let seen = row.iter().filter(|x| **x > 0.0).count() as f64;
        row.iter_mut().for_each(|x| *x /= largest * seen);
    });
    let text = "divided by the number of keys";
    let edit = Edits(vec![(id, Change::Without(SINKS)), (id, by_count)]);
    visit(evidence.mistake(CauseKey::SoftmaxUnnormalised, text, &edit)?);
    Ok(())
}

/// The terms exp(score - maximum) of the keys that a row's query sees, in their order, and the maximum.
struct Terms {
    terms: Vec<f64>,
    maximum: f64,
}

impl Terms {
    /// Of a row of a softmax without sinks: its largest term is 1.
    fn of(row: &Row<'_>, scale: f64) -> Terms {
        let largest = row.result.iter().copied().fold(0.0, f64::max);
        let seen = row.result.iter().filter(|p| **p != 0.0);
        let scores = row.source.iter().zip(row.result).filter(|(_, p)| **p != 0.0);
        let maximum = scores.map(|(score, _)| scale * score).fold(f64::NEG_INFINITY, f64::max);
        Terms { terms: seen.map(|p| p / largest).collect(), maximum }
    }
}

/// What the terms are divided by.
type Divisor = Rc<dyn Fn(&Terms) -> f64>;

fn divisors(longest: usize) -> Vec<(CauseKey, String, Divisor)> {
    let mut list: Vec<(CauseKey, String, Divisor)> = Vec::new();
    let mut partial = |text: &str, seen: Rc<dyn Fn(usize, usize) -> bool>| {
        let sum = move |row: &Terms| -> f64 {
            let n = row.terms.len();
            let kept = row.terms.iter().enumerate().filter(|(j, _)| seen(*j, n));
            kept.map(|(_, term)| term).sum()
        };
        list.push((CauseKey::SoftmaxPartialSum, text.to_string(), Rc::new(sum)));
    };
    for (block, first) in [(32, 1), (64, 32), (128, 32), (256, 32), (512, 32), (1024, 32)] {
        if block >= longest {
            continue;
        }
        let text = match first {
            1 => "each row divided by the terms of one lane".to_string(),
            _ => format!("divided by the terms of the first warp of {block} threads only"),
        };
        partial(&text, Rc::new(move |j, _| j % block < first));
    }
    for first in [1, 16, 32, 64, 128, 256] {
        let text = format!("divided by the terms of the first {first} keys only");
        partial(&text, Rc::new(move |j, _| j < first));
    }
    partial("its own key is left out of the sum", Rc::new(|j, n| j + 1 < n));
    for multiple in [8, 16, 32, 64, 128, 256] {
        let text =
            format!("zero scores as padding to a multiple of {multiple} are included in the sum");
        let padded = move |row: &Terms| -> f64 {
            let padding = row.terms.len().next_multiple_of(multiple) - row.terms.len();
            row.terms.iter().sum::<f64>() + padding as f64 * (-row.maximum).exp()
        };
        list.push((CauseKey::SoftmaxPadding, text, Rc::new(padded)));
    }
    list
}

/// Divided by a part of the terms, or by more than them.
fn partial_sums(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    if evidence.graph().node(id).source(SINKS).is_some() {
        return Ok(());
    }
    let scale = float(evidence, id, SCALE);
    let longest = evidence.steps.last().map_or(0, |step| step.machine.extent.cells);
    for (key, text, divisor) in divisors(longest) {
        let factor = move |row: Row<'_>| {
            let terms = Terms::of(&row, scale);
            terms.terms.iter().sum::<f64>() / divisor(&terms)
        };
        let edit = Edits::one(id, Change::RowTimes(Rc::new(factor)));
        visit(evidence.mistake(key, text, &edit)?);
    }
    Ok(())
}

/// A query's own key, and with it its value, counts twice.
fn own_key_twice(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    if evidence.spec().node == id || float(evidence, id, MAX_BIAS) > 0.0 {
        return Ok(());
    }
    let twice = |machine: &Machine<'_>, mask: &[f64], ne: [usize; 4]| {
        let own = |i: usize| i % ne[0] == machine.first_position + i / ne[0] % ne[1];
        let added = |i: usize| if own(i) { mask[i] + std::f64::consts::LN_2 } else { mask[i] };
        Some((0..mask.len()).map(added).collect::<Vec<f64>>())
    };
    let text = "a query's own key and value count twice";
    let edit = Edits::one(id, Change::Values(MASK, Rc::new(twice)));
    visit(evidence.mistake(CauseKey::KeyTwice, text, &edit)?);
    Ok(())
}

/// A softmax over the tokens of a step, or over the heads, in place of the keys.
fn other_axes(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let scale = float(evidence, id, SCALE);
    for (text, over_tokens) in [
        ("normalised over the step's tokens instead of the keys", true),
        ("normalised over the heads instead of the keys", false),
    ] {
        let edit =
            Edits::one(id, Change::Call(Rc::new(move |call| regroup(call, scale, over_tokens))));
        visit(evidence.mistake(CauseKey::SoftmaxAxis, text, &edit)?);
    }
    Ok(())
}

/// exp of each visible score over the sum of those of all tokens, or of all heads.
fn regroup(call: &mut Call<'_, '_>, scale: f64, over_tokens: bool) {
    let ([keys, tokens, heads, _], u) = (call.ne, call.rounding.sum);
    let (Ok(scores), Some(mask)) = (call.argument(0).value(), call.optional(MASK)) else { return };
    let Ok(mask_values) = mask.value() else { return };
    let plane = keys * tokens;
    let score = |i: usize| {
        let added = mask_values[i % plane % mask_values.len().max(1)];
        if added == f64::NEG_INFINITY { added } else { scale * scores[i] + added }
    };
    let group = |i: usize| if over_tokens { i / plane * keys + i % keys } else { i % plane };
    let n = scores.len();
    let groups = if over_tokens { keys * heads } else { plane };
    let (mut maximum, mut sums) = (vec![f64::NEG_INFINITY; groups], vec![0.0; groups]);
    for i in 0..n {
        maximum[group(i)] = maximum[group(i)].max(score(i));
    }
    let term = |i: usize| {
        let x = score(i);
        if x == f64::NEG_INFINITY { 0.0 } else { (x - maximum[group(i)]).exp() }
    };
    (0..n).for_each(|i| sums[group(i)] += term(i));
    let value: Vec<f64> =
        (0..n).map(|i| if term(i) > 0.0 { term(i) / sums[group(i)] } else { 0.0 }).collect();
    let count = if over_tokens { tokens } else { heads } as f64;
    let off = |i: usize| FUNCTION + 2.0 * (maximum[group(i)].abs() + score(i).abs()) + count.sqrt();
    let of = |i: usize| if value[i] > 0.0 { value[i] * u * off(i) } else { 0.0 };
    let spread: Vec<f64> = (0..n).map(of).collect();
    let values = Values::Dense { value: value.into(), spread: Some(spread.into()) };
    let argument = Argument { ne: call.ne, values };
    call.arguments = vec![Some(argument)];
    call.op = Op::Dup;
}

/// A softmax that takes exp of the scores themselves, which leaves the range of a format.
fn without_maximum(
    evidence: &Evidence<'_>,
    id: NodeId,
    visit: Visit<'_>,
) -> Result<(), ReplayError> {
    let mut recorded = evidence.steps.iter().flat_map(|step| &step.observed.piece.captured);
    if evidence.spec().node != id || recorded.all(|x| x.is_finite()) {
        return Ok(());
    }
    let scale = float(evidence, id, SCALE);
    let Some(source) = evidence.graph().node(id).source(0) else { return Ok(()) };
    // The smallest number, and the largest.
    let f32 = (2f64.powi(-149), f64::from(f32::MAX));
    for (format, (least, most)) in [("f32", f32), ("f16", (2f64.powi(-24), 65504.0))] {
        let text = format!("the maximum is not subtracted: exp leaves the range of {format}");
        visit(evidence.predicted(CauseKey::SoftmaxOverflow, text, Rank::Mistake, |step| {
            let machine = &step.machine;
            let scores = machine.argument(source).ok()??;
            let scores = scores.value().ok()?;
            let right = machine.compute(id, &AsItIs).ok()??;
            let width = evidence.graph().node(id).sizes(machine.extent).ne[0];
            let own = machine.recorded_as(evidence.place, id, lengths(machine, id)).ok()??;
            let mut value = right.value.clone();
            for start in (0..value.len()).step_by(width) {
                let seen = |&i: &usize| right.value[i] != 0.0;
                let terms: Vec<(usize, f64)> = (start..start + width)
                    .filter(seen)
                    .map(|i| (i, (scale * scores[i]).exp()))
                    .collect();
                let sum: f64 = terms.iter().map(|(_, term)| term).sum();
                for (i, term) in terms {
                    // 0 / 0 and inf / inf are no numbers, and anything meets an expectation that is none.
                    let is_number = sum > least / 2.0 && term <= most;
                    match (is_number, own[i].is_finite()) {
                        (false, false) => value[i] = f64::NAN,
                        (true, _) if sum > most => value[i] = 0.0,
                        _ => {}
                    }
                }
            }
            let value = machine.ordered(evidence.place, value)?;
            Some(step.observed.piece.expected.with_values(value, least))
        }));
    }
    Ok(())
}

fn lengths(machine: &Machine<'_>, id: NodeId) -> [usize; 4] {
    machine.graph().node(id).sizes(machine.extent).ne
}

fn sinks(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    if evidence.graph().node(id).source(SINKS).is_none() {
        return Ok(());
    }
    let missing = Edits::one(id, Change::Without(SINKS));
    visit(evidence.mistake(CauseKey::Sinks, "no sinks", &missing)?);
    let changes: [(&str, Change<'_>); 5] = [
        ("all sinks are zero", Change::each(SINKS, |_| 0.0)),
        ("sinks negated", Change::each(SINKS, |x| -x)),
        ("sinks of heads in reverse order", Change::moved(SINKS, |h, ne| Some(ne[0] - 1 - h))),
        ("sinks of the next head", Change::moved(SINKS, |h, ne| Some((h + 1) % ne[0]))),
        ("sinks of neighbouring heads exchanged", Change::moved(SINKS, |h, _| Some(h ^ 1))),
    ];
    for (text, change) in changes {
        visit(evidence.mistake(CauseKey::Sinks, text, &Edits::one(id, change))?);
    }
    let own = float(evidence, id, SCALE);
    let scaled = Edits::one(id, Change::each(SINKS, move |x| x * own));
    visit(evidence.mistake(CauseKey::Sinks, "sinks scaled like scores", &scaled)?);
    evidence.of_other_weights(id, [CauseKey::Sinks; 2], visit)
}

/// ALiBi left out, or with the slopes of other heads.
fn slopes(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let own = float(evidence, id, MAX_BIAS);
    if own <= 0.0 {
        return Ok(());
    }
    let none = |_: &Machine<'_>, mask: &[f64], _: [usize; 4]| {
        Some(mask.iter().map(|x| if x.is_finite() { 0.0 } else { *x }).collect::<Vec<f64>>())
    };
    let edit = Edits::one(id, Change::Values(MASK, Rc::new(none)));
    visit(evidence.mistake(CauseKey::Alibi, "no ALiBi bias", &edit)?);
    let edit = Edits::one(id, Change::float(MAX_BIAS, 0.0));
    visit(evidence.mistake(CauseKey::Alibi, "the slope of every head is 1", &edit)?);
    for other in [own / 2.0, own * 2.0, 8.0, 4.0, 16.0].into_iter().filter(|&other| other != own) {
        let text = format!("slopes of a largest bias of {other} instead of {own}");
        let edit = Edits::one(id, Change::float(MAX_BIAS, other));
        visit(evidence.mistake(CauseKey::Alibi, text, &edit)?);
    }
    type Slope = fn(f64, f64, f64) -> f64;
    let orders: [(&str, Slope); 4] = [
        ("slopes of heads in reverse order", |own, h, n| 2f64.powf(-own * (n - h) / n)),
        ("slopes from exponent 0 on", |own, h, n| 2f64.powf(-own * h / n)),
        ("slopes of n heads, not of a power of two", |own, h, n| 2f64.powf(-own * (h + 1.0) / n)),
        ("slopes negated", |own, h, n| -(2f64.powf(-own * (h + 1.0) / n))),
    ];
    for (text, slope) in orders {
        let edit = Edits::one(id, Change::Call(Rc::new(move |call| sloped(call, own, slope))));
        visit(evidence.mistake(CauseKey::Alibi, text, &edit)?);
    }
    Ok(())
}

/// The mask of each head with its slope in it.
fn sloped(call: &mut Call<'_, '_>, own: f64, slope: fn(f64, f64, f64) -> f64) {
    let heads = call.ne[2];
    let Some(Some(mask)) = call.arguments.get_mut(MASK) else { return };
    let Ok(values) = mask.value() else { return };
    let plane = mask.ne[0] * mask.ne[1];
    let of_head = |h: usize| {
        let slope = slope(own, h as f64, heads as f64);
        values[..plane].iter().map(move |&x| if x == 0.0 { 0.0 } else { slope * x })
    };
    let finite = |x: f64| if x.is_nan() || x == f64::INFINITY { f64::NEG_INFINITY } else { x };
    let value: Vec<f64> = (0..heads).flat_map(of_head).map(finite).collect();
    mask.ne = [mask.ne[0], mask.ne[1], heads, 1];
    mask.values = Values::Dense { value: value.into(), spread: None };
    call.params.set_float(MAX_BIAS, 0.0);
}
