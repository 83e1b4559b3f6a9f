//! What goes wrong between the caches and the output heads: scores, softmax, weighted sum.

use std::{ops::Range, sync::Arc};

use crate::{
    diagnosis::{
        projection::other_layers,
        scene::{Scene, Visit},
    },
    replay::{Operand, Operation, ReplayError, ops},
    site::Stage,
};

/// A wrong map from query heads to KV heads.
type HeadMap = (String, Box<dyn Fn(usize) -> usize>);

/// Maps from query head to KV head other than h / (Hq / Hk).
fn head_maps(scene: &Scene<'_, '_>) -> Vec<HeadMap> {
    let heads = scene.heads();
    let group = heads.query / heads.kv;
    let (kv, mut list) = (heads.kv, Vec::<HeadMap>::new());
    if kv == 1 {
        return list;
    }
    list.push(("query head h reads KV head h % Hk".to_string(), Box::new(move |h| h % kv)));
    list.push(("every query head reads KV head 0".to_string(), Box::new(|_| 0)));
    list.push((
        "query head h reads KV head min(h, Hk - 1)".into(),
        Box::new(move |h| h.min(kv - 1)),
    ));
    for shift in 1..kv.min(4) {
        let text = format!("query heads read the KV head {shift} after theirs");
        list.push((text, Box::new(move |h| (h / group + shift) % kv)));
    }
    list.push(("KV heads in reverse order".to_string(), Box::new(move |h| kv - 1 - h / group)));
    list
}

fn right_map(scene: &Scene<'_, '_>) -> impl Fn(usize) -> usize + use<> {
    let heads = scene.heads();
    move |head| head / (heads.query / heads.kv)
}

/// Wrong scale, wrong heads, both at once, wrong keys, wrong queries, part of the dims.
pub fn scores<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let (heads, right) = (scene.heads(), right_map(scene));
    let scale = f64::from(scene.config().attention_scale);
    let mut with = |key, text: &str, score: &ops::Score<'_>, keys: &Keys<'_>, mistakes| {
        let candidate = scene.candidate(key, text, |piece, rows| {
            let step = scene.steps[piece];
            let q = scene.replay.operand(scene.operation.at(keys.query), &[step])?;
            let q = rows.map_or(q.clone(), |rows| Arc::new(q.select(rows)));
            Ok(ops::scores(&q, &(keys.keys)(step)?, heads, score, scene.rounding()))
        })?;
        visit(candidate.of_mistakes(mistakes))
    };
    let cache = scene.operation.at(Stage::KCache);
    let own = |step| scene.replay.cache(cache, step);
    let own = Keys { query: Stage::QRope, keys: &own };
    let right_map = (String::new(), Box::new(right_map(scene)) as Box<dyn Fn(usize) -> usize>);
    let maps = std::iter::once(right_map).chain(head_maps(scene));
    let right_scale = (String::new(), scale);
    for (map_text, map) in maps {
        for (scale_text, other) in std::iter::once(right_scale.clone()).chain(scales(scene)) {
            let key = if map_text.is_empty() { "score-scale" } else { "head-map" };
            let texts: Vec<&str> =
                [&*map_text, &*scale_text].into_iter().filter(|text| !text.is_empty()).collect();
            if !texts.is_empty() {
                let score = score(&*map, other, 0..heads.dim);
                with(key, &texts.join(", and "), &score, &own, texts.len())?;
            }
        }
    }
    for n in [heads.dim / 2, heads.dim / 4, 32, 64, heads.dim - 1] {
        if 0 < n && n < heads.dim {
            let text = format!("only the first {n} of {} dims are summed", heads.dim);
            with("inner-truncated", &text, &score(&right, scale, 0..n), &own, 1)?;
        }
    }
    for query in [Stage::QNorm, Stage::Q] {
        if scene.config().stages().contains(&query) {
            let keys = Keys { query, ..own };
            let text = format!("the query is {} instead of q_rope", query.name());
            with("query-source", &text, &score(&right, scale, 0..heads.dim), &keys, 1)?;
        }
    }
    for (key, text, keys) in other_keys(scene, Stage::KCache)? {
        let of_step = |step: u32| Ok(Arc::clone(&keys[step as usize]));
        let keys = Keys { query: Stage::QRope, keys: &of_step };
        with(key, &text, &score(&right, scale, 0..heads.dim), &keys, 1)?;
    }
    Ok(())
}

fn score(kv_head: &dyn Fn(usize) -> usize, scale: f64, dims: Range<usize>) -> ops::Score<'_> {
    ops::Score { kv_head, scale, dims }
}

/// Which queries and keys are multiplied.
#[derive(Clone, Copy)]
struct Keys<'f> {
    query: Stage,
    keys: &'f dyn Fn(u32) -> Result<Arc<Operand>, ReplayError>,
}

fn scales(scene: &Scene<'_, '_>) -> Vec<(String, f64)> {
    let c = scene.config();
    let (right, dim) = (f64::from(c.attention_scale), c.head_dim as f64);
    let group = (c.n_head / c.n_head_kv) as f64;
    let mut list = vec![
        ("scale missing".to_string(), 1.0),
        ("scale applied twice".to_string(), right * right),
        ("divided instead of multiplied by the scale".to_string(), 1.0 / right),
        ("scale 1/sqrt(hidden size)".to_string(), 1.0 / (c.n_embd as f64).sqrt()),
        ("scale 1/sqrt(number of heads)".to_string(), 1.0 / (c.n_head as f64).sqrt()),
        ("scale 1/sqrt(d/2)".to_string(), 1.0 / (dim / 2.0).sqrt()),
        ("scale 1/sqrt(2d)".to_string(), 1.0 / (2.0 * dim).sqrt()),
        ("scale 1/sqrt(heads of a group)".to_string(), 1.0 / group.sqrt()),
        ("scale 1/sqrt(d + 1)".to_string(), 1.0 / (dim + 1.0).sqrt()),
    ];
    list.retain(|(_, scale)| (scale / right - 1.0).abs() > 1e-9);
    list
}

type OtherKeys = Vec<Arc<Operand>>;

/// Keys (or values) that may have been read instead of a cache's own slots, step by step.
fn other_keys(
    scene: &Scene<'_, '_>,
    cache: Stage,
) -> Result<Vec<(&'static str, String, OtherKeys)>, ReplayError> {
    let steps = 0..scene.replay.recording.steps.len() as u32;
    let own = scene.operation.at(cache);
    let mut list: Vec<(&'static str, String, OtherKeys)> = Vec::new();
    let mut whole = |key, text: String, operation: Operation| -> Result<(), ReplayError> {
        let of = |step| scene.replay.cache(operation, step);
        list.push((key, text, steps.clone().map(of).collect::<Result<_, _>>()?));
        Ok(())
    };
    let (other, what) = match cache {
        Stage::KCache => (Stage::VCache, "the values' cache is read in place of the keys'"),
        _ => (Stage::KCache, "the keys' cache is read in place of the values'"),
    };
    whole("values-source", what.to_string(), scene.operation.at(other))?;
    for layer in other_layers(scene) {
        let operation = Operation { layer: Some(layer), stage: cache };
        if scene.replay.has(operation, 0) {
            whole(
                "cache-layer",
                format!("reads the cache of {}", scene.layer_name(layer)),
                operation,
            )?;
        }
    }
    let slots = |shift: &dyn Fn(usize, usize) -> Option<usize>| -> Result<OtherKeys, ReplayError> {
        let of = |step: u32| {
            let own = scene.replay.cache(own, step)?;
            let mut value = vec![0.0; own.value.len()];
            for slot in 0..own.rows() {
                let Some(from) = shift(slot, own.rows()).filter(|&from| from < own.rows()) else {
                    continue;
                };
                value[slot * own.width..(slot + 1) * own.width].copy_from_slice(own.row(from));
            }
            Ok(Arc::new(Operand { width: own.width, value, spread: None }))
        };
        steps.clone().map(of).collect()
    };
    let late = slots(&|slot, length| (slot + 1 < length).then_some(slot))?;
    list.push(("cache-unwritten", "read before this step's last slot is written".into(), late));
    list.push((
        "cache-slot",
        "slots read one too low".into(),
        slots(&|slot, _| slot.checked_sub(1))?,
    ));
    list.push(("cache-slot", "slots read one too high".into(), slots(&|slot, _| Some(slot + 1))?));
    let dim = scene.heads().dim;
    let reversed = |step: u32| {
        let own = scene.replay.cache(own, step)?;
        let value = own.value.chunks_exact(dim).flat_map(|row| row.iter().rev().copied()).collect();
        Ok::<_, ReplayError>(Arc::new(Operand { width: own.width, value, spread: None }))
    };
    let reversed = steps.clone().map(reversed).collect::<Result<_, _>>()?;
    list.push(("heads-permuted", "dims read in reverse order".into(), reversed));
    Ok(list)
}

/// The scores of all keys of a step, also those that a right mask hides.
fn unmasked(scene: &Scene<'_, '_>, step: u32) -> Result<Operand, ReplayError> {
    let (heads, right) = (scene.heads(), right_map(scene));
    let q = scene.replay.operand(scene.operation.at(Stage::QRope), &[step])?;
    let k = scene.replay.cache(scene.operation.at(Stage::KCache), step)?;
    let scale = f64::from(scene.config().attention_scale);
    let score = ops::Score { kv_head: &right, scale, dims: 0..heads.dim };
    let positions = scene.replay.recording.positions(step);
    let width = heads.query * positions.end;
    let mut computed = ops::scores(&q, &k, heads, &score, scene.rounding()).into_operand(width);
    // What was recorded is what the softmax saw.
    let recorded = scene.replay.operand(scene.operation.at(Stage::Scores), &[step])?;
    for (index, value) in computed.value.iter_mut().enumerate() {
        let position = positions.start + index / width;
        if index % positions.end <= position {
            *value = recorded.value[index];
            if let Some(spread) = &mut computed.spread {
                spread[index] = recorded.spread_of(index);
            }
        }
    }
    Ok(computed)
}

type Divisor<'f> = &'f dyn Fn(&[f64], f64) -> f64;
type Visible<'f> = &'f dyn Fn(usize, usize) -> Range<usize>;

/// Wrong mask, wrong divisor, scores scaled again.
pub fn softmaxes<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let sum: Divisor<'_> = &|terms, _| terms.iter().sum();
    let causal: Visible<'_> = &|position, _| 0..position + 1;
    let scores = scene.steps.iter().map(|&step| unmasked(scene, step));
    let scores = scores.collect::<Result<Vec<Operand>, ReplayError>>()?;
    let mut with = |key, text: &str, visible: Visible<'_>, divisor: Divisor<'_>, temperature| {
        visit(scene.candidate(key, text, |piece, rows| {
            let positions = scene.replay.recording.positions(scene.steps[piece]);
            let token = |row: usize| rows.map_or(row, |rows| rows[row]);
            let softmax = ops::Softmax {
                keys: positions.end,
                visible: &|row| visible(positions.start + token(row), positions.end),
                temperature,
                divisor,
            };
            let few = rows.map(|rows| scores[piece].select(rows));
            let scores = few.as_ref().unwrap_or(&scores[piece]);
            Ok(ops::softmax(scores, &softmax, scene.rounding()))
        })?)
    };
    with(
        "mask-missing",
        "mask missing: every key of the step is seen",
        &|_, end| 0..end,
        sum,
        1.0,
    )?;
    let before: Visible<'_> = &|position, _| 0..position.max(1);
    with("mask-off-by-one", "mask off by one: a query does not see its own key", before, sum, 1.0)?;
    let after: Visible<'_> = &|position, end| 0..(position + 2).min(end);
    with("mask-off-by-one", "mask off by one: a query sees the next key", after, sum, 1.0)?;
    for window in windows(scene) {
        let text = format!("only the last {window} keys are seen");
        let visible = |position: usize, _| (position + 1).saturating_sub(window)..position + 1;
        with("window", &text, &visible, sum, 1.0)?;
    }
    let longest = scene.positions().last().map_or(0, |last| last + 1);
    for (block, first) in [(32, 1), (64, 32), (128, 32), (256, 32), (512, 32), (1024, 32)] {
        if block >= longest {
            continue;
        }
        let text = match first {
            1 => "each row divided by the terms of one lane".to_string(),
            _ => format!("divided by the terms of the first warp of {block} threads only"),
        };
        let divisor = move |terms: &[f64], _| -> f64 {
            let seen = terms.iter().enumerate().filter(|(j, _)| j % block < first);
            seen.map(|(_, term)| term).sum()
        };
        with("softmax-partial-sum", &text, causal, &divisor, 1.0)?;
    }
    for first in [1, 16, 32, 64, 128, 256] {
        let text = format!("divided by the terms of the first {first} keys only");
        let divisor = move |terms: &[f64], _| -> f64 { terms.iter().take(first).sum() };
        with("softmax-partial-sum", &text, causal, &divisor, 1.0)?;
    }
    for multiple in [8, 16, 32, 64, 128, 256] {
        let text = format!(
            "divided by the terms of zero scores as padding to a multiple of {multiple} too"
        );
        let divisor = move |terms: &[f64], maximum: f64| -> f64 {
            let padding = terms.len().next_multiple_of(multiple) - terms.len();
            terms.iter().sum::<f64>() + padding as f64 * (-maximum).exp()
        };
        with("softmax-padding", &text, causal, &divisor, 1.0)?;
    }
    let unit: Divisor<'_> = &|_, _| 1.0;
    with("softmax-unnormalised", "not divided by the sum", causal, unit, 1.0)?;
    let counted: Divisor<'_> = &|terms, _| terms.len() as f64;
    with("softmax-unnormalised", "divided by the number of keys", causal, counted, 1.0)?;
    let own = f64::from(scene.config().attention_scale);
    for (factor, text) in [
        (0.5, "scores halved".to_string()),
        (2.0, "scores doubled".to_string()),
        (own, "scores scaled a second time".to_string()),
        (1.0 / own, "scores divided by the scale".to_string()),
        (std::f64::consts::LN_2, "exp2 instead of exp".to_string()),
        (std::f64::consts::LOG2_E, "scores multiplied by log2(e) and then exp".to_string()),
    ] {
        with("softmax-temperature", &text, causal, sum, factor)?;
    }
    Ok(())
}

fn windows(scene: &Scene<'_, '_>) -> Vec<usize> {
    let longest = scene.positions().last().map_or(0, |last| last + 1);
    let mut list: Vec<usize> = (1..=64).collect();
    list.extend([96, 127, 128, 255, 256, 511, 512, 1023, 1024, 2048, 4096]);
    // The window that the last recorded row speaks of.
    list.retain(|&window| window < longest);
    let seen = scene.pieces.last().and_then(|piece| {
        let row = piece.captured.rchunks_exact(longest.max(1)).next()?;
        Some(row.iter().filter(|&&p| p != 0.0).count())
    });
    list.retain(|&window| seen == Some(window));
    list
}

/// Wrong values, wrong heads, part of the keys, unnormalised.
pub fn weighted_sums<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let (heads, right) = (scene.heads(), right_map(scene));
    let cache = scene.operation.at(Stage::VCache);
    let mut with = |key,
                    text: &str,
                    (map, keys): (&dyn Fn(usize) -> usize, Range<usize>),
                    values: Option<&OtherKeys>| {
        visit(scene.candidate(key, text, |piece, rows| {
            let step = scene.steps[piece];
            let probs = scene.replay.operand(scene.operation.at(Stage::Probs), &[step])?;
            let probs = rows.map_or(probs.clone(), |rows| Arc::new(probs.select(rows)));
            let v = match values {
                Some(values) => Arc::clone(&values[step as usize]),
                None => scene.replay.cache(cache, step)?,
            };
            let keys = keys.start.min(v.rows())..keys.end.min(v.rows());
            Ok(ops::weighted_sum(&probs, &v, heads, (map, keys), scene.rounding()))
        })?)
    };
    for (text, map) in head_maps(scene) {
        with("head-map", &format!("values: {text}"), (&*map, 0..usize::MAX), None)?;
    }
    for n in [1, 16, 31, 32, 64, 128, 256] {
        let text = format!("only the first {n} keys are summed");
        with("values-truncated", &text, (&right, 0..n), None)?;
    }
    with("values-truncated", "the first key is left out", (&right, 1..usize::MAX), None)?;
    for (key, text, values) in other_keys(scene, Stage::VCache)? {
        with(key, &text, (&right, 0..usize::MAX), Some(&values))?;
    }
    Ok(())
}
