//! Properties of a forward pass that hold whatever the weights are.

use serde::{Deserialize, Serialize};

use crate::{
    core::{
        arithmetic::{Convention, Value},
        format::Format,
    },
    diagnosis::{
        Evidence,
        replay::{LAMBDA, Machine, Observed, ReplayError},
    },
    graph::{
        Op, RopeParams,
        site::{Axis, Site, Stage},
    },
};

/// A property that a side breaks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Invariant {
    /// The property.
    pub property: String,
    /// Where it is broken first, with the numbers.
    pub broken_at: String,
}

impl Invariant {
    /// Each property once: where it is broken first, and in how many more results.
    pub fn by_property(broken: Vec<Invariant>) -> Vec<Invariant> {
        let mut list: Vec<(Invariant, usize)> = Vec::new();
        for one in broken {
            match list.iter_mut().find(|(first, _)| first.property == one.property) {
                Some((_, more)) => *more += 1,
                None => list.push((one, 0)),
            }
        }
        let with_more = |(mut first, more): (Invariant, usize)| {
            if more > 0 {
                first.broken_at += &format!("; and in {more} more results");
            }
            first
        };
        list.into_iter().map(with_more).collect()
    }
}

/// The invariant that a recorded result breaks.
pub fn broken(
    machine: &Machine<'_>,
    observed: &Observed<'_>,
) -> Result<Option<Invariant>, ReplayError> {
    if observed.is_partly {
        return Ok(None);
    }
    let spec = &machine.run.model.sites.specs()[observed.place];
    let is_rotation = spec.op == Op::Rope;
    let found = match spec.stage {
        Stage::AttnOut => first_token(machine, observed)?,
        Stage::Probs => distribution(machine, observed),
        Stage::Q | Stage::LayerOut | Stage::Logits => different_rows(machine, observed),
        _ if is_rotation => rotation(machine, observed)?,
        _ => None,
    };
    Ok(found.map(|(property, detail)| {
        let broken_at = format!("{}: {detail}", spec.site(observed.step));
        Invariant { property: property.to_string(), broken_at }
    }))
}

type Broken = Option<(&'static str, String)>;

/// The softmax of a layer's attention, if it has no sinks: those take a share.
fn has_sinks(machine: &Machine<'_>, layer: Option<u32>) -> bool {
    let probs = machine.run.model.sites.get(Site { step: 0, layer, stage: Stage::Probs });
    probs.is_none_or(|spec| machine.graph().node(spec.node).source(2).is_some())
}

/// Token 0 sees itself alone: its attention is 1, and its output its own value.
fn first_token(machine: &Machine<'_>, observed: &Observed<'_>) -> Result<Broken, ReplayError> {
    let spec = &machine.run.model.sites.specs()[observed.place];
    let [_, heads, dim] = observed.shape[..] else { return Ok(None) };
    if observed.step > 0 || machine.first_position > 0 || has_sinks(machine, spec.layer) {
        return Ok(None);
    }
    let values = Site { step: 0, layer: spec.layer, stage: Stage::V };
    let tensors = machine.run.recording.tensors;
    let Some(v) = tensors.tensor(values)?.filter(|_| tensors.rows(values).is_none()) else {
        return Ok(None);
    };
    let [_, kv_heads, kv_dim] = v.shape[..] else { return Ok(None) };
    if kv_dim != dim || kv_heads == 0 || heads % kv_heads != 0 {
        return Ok(None);
    }
    // The value may be rounded where it is kept, or where it is read.
    let roundings = machine.run.recording.arithmetic.roundings.iter();
    let is_of_values = |one: &&Convention| matches!(one.value, Value::Caches | Value::Values);
    let kept: Vec<Format> = roundings.filter(is_of_values).map(|one| one.format).collect();
    if kept.iter().any(|format| !format.is_of_numbers()) {
        return Ok(None);
    }
    let more = kept.iter().map(|format| 2.0 * format.unit_roundoff()).sum::<f64>();
    let tolerance = tolerance(observed) + more;
    for (i, &out) in observed.piece.captured[..heads * dim].iter().enumerate() {
        let kv_head = i / dim / (heads / kv_heads);
        let (out, value) = (f64::from(out), f64::from(v.data[kv_head * dim + i % dim]));
        if (out - value).abs() > tolerance * value.abs() + f64::from(f32::MIN_POSITIVE) {
            let detail =
                format!("head {} dim {} is {out:.6}, its value {value:.6}", i / dim, i % dim);
            return Ok(Some(("token 0's attention output is its own value", detail)));
        }
    }
    Ok(None)
}

/// Rotation keeps the length of each head and of each pair that rotates, and position 0 as it is.
fn rotation(machine: &Machine<'_>, observed: &Observed<'_>) -> Result<Broken, ReplayError> {
    let spec = &machine.run.model.sites.specs()[observed.place];
    let node = machine.graph().node(machine.graph().root(spec.node));
    let Some(x) = node.source(0).map(|source| machine.argument(source)).transpose()?.flatten()
    else {
        return Ok(None);
    };
    let (values, params) = (x.value()?, node.params(machine.extent));
    let [dim, heads, ..] = x.ne;
    let rope = RopeParams::of(params);
    let is_plain = params.float(8) == 1.0 && params.float(7) == 0.0 && !rope.has_sections;
    if x.spread().is_some() || !is_plain || values.len() != observed.piece.captured.len() {
        return Ok(None);
    }
    let tolerance = tolerance(observed);
    let length = |head: &[f64]| head.iter().map(|x| x * x).sum::<f64>().sqrt();
    let recorded: Vec<f64> = observed.piece.captured.iter().map(|&x| f64::from(x)).collect();
    let all = values.chunks_exact(dim).zip(recorded.chunks_exact(dim));
    for (index, (before, after)) in all.enumerate() {
        let position = machine.first_position + index / heads;
        let place = format!("position {position}, head {}", index % heads);
        let (a, b) = (length(before), length(after));
        if (a - b).abs() > tolerance * a {
            let detail = format!("{place} had length {a:.4} and has {b:.4}");
            return Ok(Some(("rotation keeps the length of a head", detail)));
        }
        let lengths =
            |(i, j): (usize, usize)| (before[i].hypot(before[j]), after[i].hypot(after[j]));
        let longer = |&pair: &(usize, usize)| {
            let (of_before, of_after) = lengths(pair);
            (of_before - of_after).abs() > tolerance * a
        };
        let mut pairs = (0..rope.dims / 2).map(|pair| rope.elements(pair));
        if let Some((i, j)) = pairs.find(longer) {
            let (a, b) = lengths((i, j));
            let detail = format!("{place}, dims {i} and {j} had length {a:.4} and have {b:.4}");
            return Ok(Some(("rotation keeps the length of a pair", detail)));
        }
        let is_moved = |(x, y): (&f64, &f64)| (x - y).abs() > tolerance * a;
        if position == 0 && before.iter().zip(after).any(is_moved) {
            let detail = format!("{place} is rotated");
            return Ok(Some(("rotation is the identity at position 0", detail)));
        }
    }
    Ok(None)
}

/// Rows of a softmax sum to 1, and have nothing after the query's position.
fn distribution(machine: &Machine<'_>, observed: &Observed<'_>) -> Broken {
    let [_, heads, keys] = observed.shape[..] else { return None };
    let spec = &machine.run.model.sites.specs()[observed.place];
    if has_sinks(machine, spec.layer) {
        return None;
    }
    let piece = &observed.piece;
    let rows = piece.captured.chunks_exact(keys).zip(piece.expected.value.chunks_exact(keys));
    for (index, (row, right)) in rows.enumerate() {
        let position = machine.first_position + index / heads;
        let place = format!("position {position}, head {}", index % heads);
        let sum: f64 = row.iter().map(|&p| f64::from(p)).sum();
        let tolerance = LAMBDA * (keys as f64).sqrt() * 2f64.powi(-11);
        if (sum - 1.0).abs() > tolerance.min(0.01) {
            return Some(("a softmax row sums to 1", format!("{place} sums to {sum:.6}")));
        }
        let unseen = |key: &usize| *key > position && right[*key] == 0.0 && row[*key] != 0.0;
        if let Some(key) = (0..keys).find(unseen) {
            let detail = format!("{place} gives {} to key {key}", row[key]);
            return Some(("a softmax row is 0 after its query", detail));
        }
    }
    None
}

/// Different tokens have different rows.
fn different_rows(machine: &Machine<'_>, observed: &Observed<'_>) -> Broken {
    let tokens = &machine.run.recording.steps[observed.step as usize];
    let width = observed.shape[1..].iter().product::<usize>().max(1);
    if observed.shape[0] != tokens.len() || tokens.windows(2).all(|pair| pair[0] == pair[1]) {
        return None;
    }
    let mut rows = observed.piece.captured.chunks_exact(width);
    let first = rows.next();
    rows.all(|row| Some(row) == first).then(|| {
        ("different tokens have different rows", format!("all {} rows are equal", tokens.len()))
    })
}

/// What holds of all errors of a guilty result.
pub fn signs(evidence: &Evidence<'_>) -> Vec<String> {
    let spec = evidence.spec();
    let is_of_tokens = spec.axes.first().is_some_and(|axis| axis.axis == Axis::Token)
        && spec.axes.iter().skip(1).all(|axis| axis.size.is_fixed());
    let Some(first) = evidence.steps.first().filter(|_| is_of_tokens) else { return Vec::new() };
    let width = first.observed.shape[1..].iter().product::<usize>().max(1);
    let error = |step: usize, index: usize| {
        let piece = &evidence.steps[step].observed.piece;
        f64::from(piece.captured[index]) - piece.expected.value[index]
    };
    let bound =
        |step: usize, index: usize| evidence.steps[step].observed.piece.expected.most_bound(index);
    let mut rows = 0;
    for (step, of_step) in evidence.steps.iter().enumerate() {
        let n = of_step.observed.piece.captured.len();
        rows += n / width;
        let is_of_first_row = |index: usize| {
            let one = index % width;
            (error(0, one) - error(step, index)).abs() <= bound(0, one) + bound(step, index)
        };
        if !(0..n).all(is_of_first_row) {
            return Vec::new();
        }
    }
    let is_constant = evidence.count_wrong() > 0 && rows > 1;
    is_constant.then(|| "the error is the same for every token".to_string()).into_iter().collect()
}

/// Some roundings of the coarser of an operation's formats.
fn tolerance(observed: &Observed<'_>) -> f64 {
    let rounding = observed.piece.expected.rounding;
    4.0 * LAMBDA * rounding.storage.max(rounding.sum)
}
