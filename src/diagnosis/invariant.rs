//! Properties of a forward pass that hold whatever the weights are.

use serde::{Deserialize, Serialize};

use crate::{
    diagnosis::{
        replay::{LAMBDA, Operand, Operation, Replay, ReplayError},
        scene::Scene,
    },
    graph::site::Stage,
    model::rope_pair,
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

/// The invariants that the operations of a layer break.
pub fn invariants(
    replay: &Replay<'_>,
    operations: &[Operation],
) -> Result<Vec<Invariant>, ReplayError> {
    let mut broken = Vec::new();
    for &operation in operations {
        for step in replay.steps_of(operation) {
            let operand = || replay.operand(operation, &[step]);
            let found = match operation.stage {
                Stage::AttnOut => first_token(replay, operation, step, &*operand()?)?,
                Stage::QRope | Stage::KRope => rotation(replay, operation, step, &*operand()?)?,
                Stage::Probs => distribution(replay, step, &*operand()?),
                Stage::Q | Stage::LayerOut | Stage::Logits => {
                    different_rows(replay, operation, step)?
                }
                _ => None,
            };
            if let Some((property, detail)) = found {
                let broken_at = format!("{}: {detail}", operation.site(step));
                broken.push(Invariant { property: property.to_string(), broken_at });
                break;
            }
        }
    }
    Ok(broken)
}

type Broken = Option<(&'static str, String)>;

/// Token 0 sees itself alone: its attention is 1, and its output its own value.
fn first_token(
    replay: &Replay<'_>,
    operation: Operation,
    step: u32,
    out: &Operand,
) -> Result<Broken, ReplayError> {
    if step > 0 || !replay.has(operation.at(Stage::V), 0) {
        return Ok(None);
    }
    let v = replay.operand(operation.at(Stage::V), &[0])?;
    let heads = replay.heads();
    let tolerance = tolerance(replay, operation);
    for (i, &out) in out.row(0).iter().enumerate() {
        let kv_head = i / heads.dim / (heads.query / heads.kv);
        let value = v.row(0)[kv_head * heads.dim + i % heads.dim];
        if (out - value).abs() > tolerance * value.abs() + f64::from(f32::MIN_POSITIVE) {
            let (head, dim) = (i / heads.dim, i % heads.dim);
            let detail = format!("head {head} dim {dim} is {out:.6}, its value {value:.6}");
            return Ok(Some(("token 0's attention output is its own value", detail)));
        }
    }
    Ok(None)
}

/// Rotation keeps the length of each head and of each pair that rotates, and position 0 as it is.
fn rotation(
    replay: &Replay<'_>,
    operation: Operation,
    step: u32,
    rotated: &Operand,
) -> Result<Broken, ReplayError> {
    let input = replay.input(operation);
    if !replay.has(input, step) {
        return Ok(None);
    }
    let (x, dim) = (replay.operand(input, &[step])?, replay.heads().dim);
    let tolerance = tolerance(replay, operation);
    let length = |head: &[f64]| head.iter().map(|x| x * x).sum::<f64>().sqrt();
    let first = replay.recording.positions(step).start;
    let pair = rope_pair(replay.model.config.rope_pairs, dim);
    let heads = x.value.chunks_exact(dim).zip(rotated.value.chunks_exact(dim));
    for (index, (before, after)) in heads.enumerate() {
        let (row, head) = (index / (x.width / dim), index % (x.width / dim));
        let place = format!("position {}, head {head}", first + row);
        let (a, b) = (length(before), length(after));
        if (a - b).abs() > tolerance * a {
            let detail = format!("{place} had length {a:.4} and has {b:.4}");
            return Ok(Some(("rotation keeps the length of a head", detail)));
        }
        let lengths =
            |(i, j): (usize, usize)| (before[i].hypot(before[j]), after[i].hypot(after[j]));
        let longer = |&pair: &(usize, usize)| {
            let (a, b) = lengths(pair);
            (a - b).abs() > tolerance * length(before)
        };
        if let Some((i, j)) = (0..dim / 2).map(&pair).find(longer) {
            let (a, b) = lengths((i, j));
            let detail = format!("{place}, dims {i} and {j} had length {a:.4} and have {b:.4}");
            return Ok(Some(("rotation keeps the length of a pair", detail)));
        }
        let moved =
            before.iter().zip(after).any(|(a, b)| (a - b).abs() > tolerance * length(before));
        if first + row == 0 && moved {
            let detail = format!("{place} is rotated");
            return Ok(Some(("rotation leaves position 0 as it is", detail)));
        }
    }
    Ok(None)
}

/// Rows of a softmax sum to 1, and have nothing after the query's position.
fn distribution(replay: &Replay<'_>, step: u32, probs: &Operand) -> Broken {
    let positions = replay.recording.positions(step);
    let keys = positions.end;
    let heads = probs.width / keys;
    for (index, row) in probs.value.chunks_exact(keys).enumerate() {
        let position = positions.start + index / heads;
        let place = format!("position {position}, head {}", index % heads);
        let sum: f64 = row.iter().sum();
        let tolerance = LAMBDA * (keys as f64).sqrt() * 2f64.powi(-11);
        if (sum - 1.0).abs() > tolerance.min(0.01) {
            return Some(("a softmax's row sums to 1", format!("{place} sums to {sum:.6}")));
        }
        if let Some(key) = row[position + 1..].iter().position(|&p| p != 0.0) {
            let detail =
                format!("{place} gives {} to key {}", row[position + 1 + key], position + 1 + key);
            return Some(("a softmax sees nothing after the query", detail));
        }
    }
    None
}

/// Different tokens have different rows.
fn different_rows(
    replay: &Replay<'_>,
    operation: Operation,
    step: u32,
) -> Result<Broken, ReplayError> {
    let tokens = &replay.recording.steps[step as usize];
    if tokens.windows(2).all(|pair| pair[0] == pair[1]) {
        return Ok(None);
    }
    let Some(tensor) = replay.tensor(operation, step)? else { return Ok(None) };
    let mut rows = tensor.data.chunks_exact(tensor.shape[1..].iter().product());
    let first = rows.next();
    let same = rows.all(|row| Some(row) == first);
    Ok(same.then(|| {
        ("different tokens have different rows", format!("all {} rows are equal", tokens.len()))
    }))
}

/// What holds of all errors of a guilty result.
pub fn signs(scene: &Scene<'_, '_>) -> Vec<String> {
    let ragged =
        matches!(scene.stage(), Stage::KCache | Stage::VCache | Stage::Scores | Stage::Probs);
    let [piece] = &scene.pieces[..] else { return Vec::new() };
    let error = |index: usize| f64::from(piece.captured[index]) - piece.expected.value[index];
    let is_of_first_row = |index: usize| {
        let (one, own) = (index % piece.width, index);
        let bound = piece.expected.most_bound(one) + piece.expected.most_bound(own);
        (error(one) - error(own)).abs() <= bound
    };
    let any_wrong = scene.wrong[0].contains(&true);
    let constant = any_wrong
        && !ragged
        && piece.positions.len() > 1
        && (piece.width..piece.captured.len()).all(is_of_first_row);
    constant.then(|| "the error is the same for every token".to_string()).into_iter().collect()
}

/// Some roundings of the coarser of an operation's formats.
fn tolerance(replay: &Replay<'_>, operation: Operation) -> f64 {
    let rounding = replay.rounding(operation);
    4.0 * LAMBDA * rounding.storage.max(rounding.sum)
}
