//! Mistakes in the softmax of attention: scale, mask, window, sinks, slopes, and the division.

use super::{Visit, near::short};
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        by_graph::{Change, Edits, Evidence},
        replay::{
            Machine, ReplayError,
            rules::{Call, Values},
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
    Change::Values(MASK, Box::new(values))
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
    add(CauseKey::MaskMissing, "not masked: every key in the cache is seen", Box::new(|_, _| true));
    let own = Box::new(|q, k| k < q || q == 0 && k == 0);
    add(CauseKey::MaskOffByOne, "a query does not see its own key", own);
    let next = Box::new(|q, k| k <= q + 1);
    add(CauseKey::MaskOffByOne, "a query sees the key after its own", next);
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
        let text = "the mask of layers of the other kind";
        let edit = Edits::one(id, Change::Values(MASK, Box::new(of_other)));
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
        Change::Result(Box::new(each))
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
    visit(evidence.mistake(CauseKey::Sinks, "sinks scaled as scores are", &scaled)?);
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
    let edit = Edits::one(id, Change::Values(MASK, Box::new(none)));
    visit(evidence.mistake(CauseKey::Alibi, "no bias by distance", &edit)?);
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
        let edit = Edits::one(id, Change::Call(Box::new(move |call| sloped(call, own, slope))));
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
