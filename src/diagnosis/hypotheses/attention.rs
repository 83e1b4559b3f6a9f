//! What goes wrong between the caches and the output heads, but for the softmax: scores, weighted
//! sum.

use std::{ops::Range, sync::Arc};

use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        hypotheses::{likeness, projection::other_layers},
        replay::{Operand, Operation, ReplayError, ops},
        scene::{Scene, Visit},
    },
    graph::site::Stage,
};

/// A wrong map from query heads to KV heads.
pub(super) type HeadMap = (String, Box<dyn Fn(usize) -> usize>);

/// Maps from query head to KV head other than h / (Hq / Hk).
pub(super) fn head_maps(scene: &Scene<'_, '_>) -> Vec<HeadMap> {
    let heads = scene.heads();
    let group = heads.query / heads.kv;
    let (kv, mut list) = (heads.kv, Vec::<HeadMap>::new());
    if kv == 1 {
        return list;
    }
    list.push(("query head h reads KV head h % Hk".to_string(), Box::new(move |h| h % kv)));
    if (heads.query - 1) / kv < kv {
        list.push(("query head h reads KV head h / Hk".to_string(), Box::new(move |h| h / kv)));
    }
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

/// The right map: h / (Hq / Hk).
pub fn right_map(scene: &Scene<'_, '_>) -> impl Fn(usize) -> usize + use<> {
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
    let scales = scales(scene);
    let fitted = fitted_scale(scene, &scales);
    let right_scale = (String::new(), scale);
    for (map_text, map) in maps {
        // Fitted to what the right heads give.
        let fitted = fitted.iter().filter(|_| map_text.is_empty());
        for (scale_text, other) in std::iter::once(&right_scale).chain(&scales).chain(fitted) {
            let key = if map_text.is_empty() { CauseKey::ScoreScale } else { CauseKey::HeadMap };
            let texts: Vec<&str> =
                [&*map_text, scale_text].into_iter().filter(|text| !text.is_empty()).collect();
            if !texts.is_empty() {
                let score = score(&*map, *other, 0..heads.dim);
                with(key, &texts.join(", and "), &score, &own, texts.len())?;
            }
        }
    }
    for n in [heads.dim / 2, heads.dim / 4, 32, 64, heads.dim - 1] {
        if 0 < n && n < heads.dim {
            let text = format!("only the first {n} of {} dims are summed", heads.dim);
            with(CauseKey::InnerTruncated, &text, &score(&right, scale, 0..n), &own, 1)?;
        }
    }
    for query in [Stage::QNorm, Stage::Q] {
        if scene.config().stages().contains(&query) {
            let keys = Keys { query, ..own };
            let text = format!("the query is {} instead of q_rope", query.name());
            with(CauseKey::QuerySource, &text, &score(&right, scale, 0..heads.dim), &keys, 1)?;
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

pub(super) fn scales(scene: &Scene<'_, '_>) -> Vec<(String, f64)> {
    let c = scene.config();
    let (right, dim) = (f64::from(c.attention_scale), c.head_dim as f64);
    let group = (c.n_head / c.n_head_kv) as f64;
    let mut list = vec![
        ("scale missing".to_string(), 1.0),
        ("scale applied twice".to_string(), right * right),
        ("scale divided by, not multiplied".to_string(), 1.0 / right),
        ("scale 1/sqrt(hidden size)".to_string(), 1.0 / (c.n_embd as f64).sqrt()),
        ("scale 1/sqrt(number of heads)".to_string(), 1.0 / (c.n_head as f64).sqrt()),
        ("scale 1/sqrt(d/2)".to_string(), 1.0 / (dim / 2.0).sqrt()),
        ("scale 1/sqrt(2d)".to_string(), 1.0 / (2.0 * dim).sqrt()),
        ("scale 1/sqrt(heads of a group)".to_string(), 1.0 / group.sqrt()),
        ("scale 1/sqrt(d + 1)".to_string(), 1.0 / (dim + 1.0).sqrt()),
    ];
    list.retain(|(_, scale)| (scale / right - 1.0).abs() > 1e-9);
    let both = |scale: f64| format!("{} instead of {}", digits(scale), digits(right));
    list.into_iter().map(|(name, scale)| (format!("{name}: {}", both(scale)), scale)).collect()
}

/// The scale that the recorded scores speak of, where it is none of those.
fn fitted_scale(scene: &Scene<'_, '_>, named: &[(String, f64)]) -> Option<(String, f64)> {
    let right = f64::from(scene.config().attention_scale);
    let fitted = likeness::factor(&scene.pairs(false))? * right;
    let is = |scale: f64, within: f64| (fitted / scale - 1.0).abs() < within;
    let is_named = is(right, 1e-6) || named.iter().any(|(_, scale)| is(*scale, 1e-4));
    let text = format!("scale {} instead of {}", digits(fitted), digits(right));
    (!is_named).then_some((text, fitted))
}

/// At most six digits behind the point: 0.25, 0.267261.
fn digits(x: f64) -> String {
    format!("{x:.6}").trim_end_matches('0').trim_end_matches('.').to_string()
}

pub(super) type OtherKeys = Vec<Arc<Operand>>;

/// Keys (or values) that may have been read instead of a cache's own slots, step by step.
pub(super) fn other_keys(
    scene: &Scene<'_, '_>,
    cache: Stage,
) -> Result<Vec<(CauseKey, String, OtherKeys)>, ReplayError> {
    let steps = 0..scene.replay.recording.steps.len() as u32;
    let own = scene.operation.at(cache);
    let mut list: Vec<(CauseKey, String, OtherKeys)> = Vec::new();
    let mut whole = |key, text: String, operation: Operation| -> Result<(), ReplayError> {
        let of = |step| scene.replay.cache(operation, step);
        list.push((key, text, steps.clone().map(of).collect::<Result<_, _>>()?));
        Ok(())
    };
    let (other, what) = match cache {
        Stage::KCache => (Stage::VCache, "the values' cache is read in place of the keys'"),
        _ => (Stage::KCache, "the keys' cache is read in place of the values'"),
    };
    whole(CauseKey::ValuesSource, what.to_string(), scene.operation.at(other))?;
    for layer in other_layers(scene) {
        let operation = Operation { layer: Some(layer), stage: cache };
        if scene.replay.has(operation, 0) {
            whole(
                CauseKey::CacheLayer,
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
    list.push((
        CauseKey::CacheUnwritten,
        "read before this step's last slot is written".into(),
        late,
    ));
    list.push((
        CauseKey::CacheSlot,
        "slots read one too low".into(),
        slots(&|slot, _| slot.checked_sub(1))?,
    ));
    list.push((
        CauseKey::CacheSlot,
        "slots read one too high".into(),
        slots(&|slot, _| Some(slot + 1))?,
    ));
    let dim = scene.heads().dim;
    let reversed = |step: u32| {
        let own = scene.replay.cache(own, step)?;
        let value = own.value.chunks_exact(dim).flat_map(|row| row.iter().rev().copied()).collect();
        Ok::<_, ReplayError>(Arc::new(Operand { width: own.width, value, spread: None }))
    };
    let reversed = steps.clone().map(reversed).collect::<Result<_, _>>()?;
    list.push((CauseKey::DimsReversed, "dims read in reverse order".into(), reversed));
    let transposed = |step: u32| {
        let own = scene.replay.cache(own, step)?;
        let (slots, width) = (own.rows(), own.width);
        // Element (slot, dim) of a head is read where (dim, slot) of its rows would be.
        let from = |index: usize| {
            let (slot, head, d) = (index / width, index % width / dim, index % dim);
            let place = d * slots + slot;
            place / dim * width + head * dim + place % dim
        };
        let value = (0..own.value.len()).map(|index| own.value[from(index)]).collect();
        Ok::<_, ReplayError>(Arc::new(Operand { width, value, spread: None }))
    };
    let transposed = steps.map(transposed).collect::<Result<_, _>>()?;
    let text = "each head's [position][dim] read as [dim][position]";
    list.push((CauseKey::CacheTransposed, text.into(), transposed));
    Ok(list)
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
    // Where the attention is one operation, what follows is tried with the rest of it.
    let fused = scene.steps.iter().all(|&step| scene.replay.is_fused(scene.operation, step));
    for (text, map) in head_maps(scene).into_iter().filter(|_| !fused) {
        with(CauseKey::HeadMap, &format!("values: {text}"), (&*map, 0..usize::MAX), None)?;
    }
    for n in [1, 16, 31, 32, 64, 128, 256] {
        let text = format!("only the first {n} keys are summed");
        with(CauseKey::ValuesTruncated, &text, (&right, 0..n), None)?;
    }
    with(CauseKey::ValuesTruncated, "the first key is left out", (&right, 1..usize::MAX), None)?;
    if fused {
        return Ok(());
    }
    for (key, text, values) in other_keys(scene, Stage::VCache)? {
        with(key, &text, (&right, 0..usize::MAX), Some(&values))?;
    }
    Ok(())
}
