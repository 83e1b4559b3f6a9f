//! Faults of attention's results.

use std::collections::BTreeSet;

use firstdiff::graph::{
    NodeId, Op,
    site::{Axis, Stage},
};

use super::{
    Fault, Subject,
    changes::{nodes, of_stage, source, zero_along},
    tamper::{Change, Scene},
};

/// Rows of probabilities, each changed by itself.
fn of_rows(of: impl Fn(&mut [f32]) + 'static) -> Change {
    Box::new(move |scene| scene.rows().for_each(&of))
}

fn normalise(row: &mut [f32]) {
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= sum);
}

/// The softmax over all keys that `sees` allows, by the position of a query and of a key.
fn masked_by(sees: impl Fn(usize, usize) -> bool + 'static) -> Change {
    Box::new(move |scene: &mut Scene<'_>| {
        let Some(scores) = scene.source(0).cloned() else { return };
        let (scale, first, [cells, tokens, ..]) =
            (scene.params.float(0), scene.first_position(), scene.ne);
        let positions = scene.shape.positions;
        for (index, row) in scene.rows().enumerate() {
            let query = first + index % tokens;
            let score = |key: usize| scale * scores[index * cells + key];
            let keys: Vec<usize> = (0..positions).filter(|&key| sees(query, key)).collect();
            let most = keys.iter().map(|&key| score(key)).fold(f32::NEG_INFINITY, f32::max);
            row.fill(0.0);
            keys.iter().for_each(|&key| row[key] = (score(key) - most).exp());
            normalise(row);
        }
    })
}

/// Attention's softmaxes whose rows are nothing but scores and a mask.
fn plain(subject: &Subject) -> BTreeSet<NodeId> {
    let graph = &subject.model.graph;
    let any = firstdiff::graph::Extent { tokens: 1, cells: 1, is_first: false };
    let is_plain = |id: &NodeId| {
        let node = graph.node(*id);
        node.source(1).is_some() && node.source(2).is_none() && node.params(any).float(1) == 0.0
    };
    of_stage(subject, Stage::Probs).into_iter().filter(is_plain).collect()
}

/// The rows of a cache that a decode step writes stay empty.
fn unwritten() -> Change {
    Box::new(|scene: &mut Scene<'_>| {
        if scene.shape.tokens == 1 {
            let row = scene.first_position();
            if let Some(row) = scene.rows().nth(row) {
                row.fill(0.0);
            }
        }
    })
}

/// A decode step's rows of a cache are those of the position before.
fn of_slot_before() -> Change {
    Box::new(|scene: &mut Scene<'_>| {
        let (row, width) = (scene.first_position(), scene.ne[0]);
        if scene.shape.tokens == 1 && row > 0 {
            scene.values.copy_within((row - 1) * width..row * width, row * width);
        }
    })
}

/// Writes into a cache of keys or values, whose rows are positions.
fn cache_writes(subject: &Subject, name: &str) -> BTreeSet<NodeId> {
    let graph = &subject.model.graph;
    nodes(subject, |node| {
        let root = node.window.map(|window| graph.node(window.root));
        let is_cache = root.is_some_and(|root| root.name.starts_with(name));
        node.op == Op::SetRows && is_cache && node.ne[0].fixed > 1
    })
}

pub fn all(subject: &Subject) -> Vec<Fault> {
    let mut faults = softmaxes(subject);
    faults.extend(heads_and_caches(subject));
    faults
}

fn softmaxes(subject: &Subject) -> Vec<Fault> {
    let unnormalised = |row: &mut [f32]| {
        let most = row.iter().copied().fold(0.0, f32::max);
        row.iter_mut().for_each(|x| *x /= most);
    };
    let warm = |row: &mut [f32]| {
        row.iter_mut().for_each(|x| *x = x.sqrt());
        normalise(row);
    };
    let has_window = subject.number("attention.sliding_window").is_some_and(|n| n < 40.0);
    let windowed = if has_window { plain(subject) } else { BTreeSet::new() };
    let (probs, plain) = (of_stage(subject, Stage::Probs), plain(subject));
    let one_short = masked_by(|query, key| key < query || query == 0 && key == 0);
    let causal = masked_by(|query, key| key <= query);
    let of = Fault::of_results;
    vec![
        of("softmax-unnormalised", probs, &["softmax-unnormalised"], of_rows(unnormalised)),
        of("softmax-warm", plain.clone(), &["softmax-temperature"], of_rows(warm)),
        of("mask-ignored", plain.clone(), &["mask-missing"], masked_by(|_, _| true)),
        of("mask-one-short", plain, &["mask-off-by-one", "window"], one_short),
        of("window-ignored", windowed, &["window", "mask-missing"], causal),
    ]
}

fn heads_and_caches(subject: &Subject) -> Vec<Fault> {
    let stage = |stage| of_stage(subject, stage);
    let keys = cache_writes(subject, "cache_k");
    let missing: &[&str] = &["rope-missing"];
    let slot: &[&str] = &["cache-slot", "cache-stale"];
    let head_zero = zero_along(subject, Axis::Head);
    let of = Fault::of_results;
    vec![
        of("head-zero", stage(Stage::AttnOut), &["zero"], head_zero),
        of("q-not-rotated", stage(Stage::QRope), missing, source(0)),
        of("k-not-rotated", stage(Stage::KRope), missing, source(0)),
        of("q-heads-reversed", stage(Stage::QRope), &["heads-permuted"], heads_reversed()),
        of("k-unwritten", keys.clone(), &["cache-unwritten"], unwritten()),
        of("k-slot-before", keys, slot, of_slot_before()),
    ]
}

/// The last head first, and so on.
fn heads_reversed() -> Change {
    Box::new(|scene: &mut Scene<'_>| {
        let [width, heads, ..] = scene.ne;
        for token in scene.values.chunks_mut(width * heads) {
            let right = token.to_vec();
            let heads = token.chunks_mut(width).zip(right.chunks(width).rev());
            heads.for_each(|(to, from)| to.copy_from_slice(from));
        }
    })
}
