//! What goes wrong in an attention that is one kernel: nothing is known between its inputs and its
//! output, so each mistake is carried through to the output.

use std::{collections::HashMap, sync::Arc};

use crate::{
    core::{
        attending::{Calls, Current},
        cause_key::CauseKey,
    },
    diagnosis::{
        hypotheses::{
            attention::{head_maps, other_keys, right_map, scales},
            cache::own_source,
            softmax,
        },
        probe::Grid,
        replay::{Operand, Reading, Readings, ReplayError, Way, attend, ops::Score},
        scene::{Candidate, Scene, Visit},
        written::{Step, When, Written},
    },
    graph::site::Stage,
};

/// What makes a wrong reading of a right one, for the query of a position.
type Misread<'f> = &'f dyn Fn(Reading, usize) -> Reading;

/// A whole attention, and what a mistake changes of it.
#[derive(Clone, Copy)]
struct Mistake<'f> {
    query: Stage,
    map: &'f dyn Fn(usize) -> usize,
    value_map: &'f dyn Fn(usize) -> usize,
    scale: f64,
    dims: usize,
    temperature: f64,
    divisor: &'f dyn Fn(&[f64], f64) -> f64,
    misread: Misread<'f>,
}

/// Every mistake that changes scores, softmax, weighted sum, or what is read.
pub fn attentions<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let fused = |&step: &u32| scene.replay.is_fused(scene.operation, step);
    if !scene.steps.iter().all(fused) {
        return Ok(());
    }
    let tried = Tried::new(scene)?;
    let map = right_map(scene);
    let right = Mistake {
        query: Stage::QRope,
        map: &map,
        value_map: &map,
        scale: f64::from(scene.config().attention_scale),
        dims: scene.heads().dim,
        temperature: 1.0,
        divisor: &|terms, _| terms.iter().sum(),
        misread: &|reading, _| reading,
    };
    of_scores(&tried, right, visit)?;
    for way in softmax::ways(scene) {
        let sees = |reading: Reading, position: usize| {
            let visible = (way.visible)(position, reading.keys.rows());
            Reading { visible, ..reading }
        };
        let (temperature, divisor) = (way.temperature, &*way.divisor);
        let mistake = Mistake { temperature, divisor, misread: &sees, ..right };
        visit(tried.candidate(way.key, &way.text, &mistake)?)?;
    }
    of_single_keys(&tried, right, visit)?;
    of_caches(&tried, right, visit)?;
    of_strides(&tried, right, visit)
}

/// A scene, and what its tokens read.
struct Tried<'s, 'r, 'a> {
    scene: &'s Scene<'r, 'a>,
    /// Piece after piece.
    readings: Vec<Readings>,
    /// Those that are probed again and again, by piece and token.
    probed: HashMap<(usize, usize), Reading>,
    /// What is probed: of a row only the heads in question, for each costs a softmax.
    grids: Vec<Grid>,
}

impl<'s, 'r, 'a> Tried<'s, 'r, 'a> {
    fn new(scene: &'s Scene<'r, 'a>) -> Result<Tried<'s, 'r, 'a>, ReplayError> {
        let readings = scene.steps.iter().map(|&step| scene.replay.readings(scene.operation, step));
        let readings = readings.collect::<Result<Vec<Readings>, ReplayError>>()?;
        let grids = scene.probe.heads(&scene.pieces, scene.heads().dim);
        let mut probed = HashMap::new();
        for grid in &grids {
            for &row in &grid.rows {
                probed.entry((grid.piece, row)).or_insert_with(|| readings[grid.piece].of(row));
            }
        }
        Ok(Tried { scene, readings, probed, grids })
    }

    fn reading(&self, piece: usize, row: usize) -> Reading {
        let probed = self.probed.get(&(piece, row)).cloned();
        probed.unwrap_or_else(|| self.readings[piece].of(row))
    }

    fn candidate(
        &self,
        key: CauseKey,
        text: &str,
        mistake: &Mistake<'_>,
    ) -> Result<Candidate<'a>, ReplayError> {
        let scene = self.scene;
        let roundings = scene.replay.attention_roundings(scene.operation, scene.rounding());
        scene.candidate_of(key, text, &self.grids, |piece, grid| {
            let step = scene.steps[piece];
            let q = scene.replay.operand(scene.operation.at(mistake.query), &[step])?;
            let all: Vec<usize> = (0..q.rows()).collect();
            let rows = grid.map_or(&*all, |grid| &grid.rows);
            // Of a grid the only head, of a piece all.
            let (mut heads, mut first_head, mut columns) = (scene.heads(), 0, 0..q.width);
            if let Some(grid) = grid {
                columns = grid.columns[0]..grid.columns[0] + heads.dim;
                (heads.query, first_head) = (1, columns.start / heads.dim);
            }
            let map = |head| (mistake.map)(first_head + head);
            let value_map = |head| (mistake.value_map)(first_head + head);
            let way = Way {
                score: Score { kv_head: &map, scale: mistake.scale, dims: 0..mistake.dims },
                value_head: &value_map,
                temperature: mistake.temperature,
                divisor: mistake.divisor,
            };
            let first = scene.replay.recording.positions(step).start;
            let reading = |index: usize| {
                let row = rows[index];
                (mistake.misread)(self.reading(piece, row), first + row)
            };
            Ok(attend(&q.part(rows, columns), &reading, heads, &way, roundings))
        })
    }
}

/// Wrong scale, wrong heads, both at once, part of the dims, the wrong query.
fn of_scores<'a>(
    tried: &Tried<'_, '_, 'a>,
    right: Mistake<'_>,
    visit: Visit<'_, 'a>,
) -> Result<(), ReplayError> {
    let scene = tried.scene;
    let (scales, maps) = (scales(scene), head_maps(scene));
    for (text, scale) in &scales {
        let mistake = Mistake { scale: *scale, ..right };
        visit(tried.candidate(CauseKey::ScoreScale, text, &mistake)?)?;
    }
    for (text, map) in &maps {
        let both = Mistake { map, value_map: map, ..right };
        visit(tried.candidate(CauseKey::HeadMap, text, &both)?)?;
        for (name, mistake) in
            [("keys", Mistake { map, ..right }), ("values", Mistake { value_map: map, ..right })]
        {
            visit(tried.candidate(CauseKey::HeadMap, &format!("{name}: {text}"), &mistake)?)?;
        }
        for (scale_text, scale) in &scales {
            let text = format!("{text}, and {scale_text}");
            let mistake = Mistake { scale: *scale, ..both };
            visit(tried.candidate(CauseKey::HeadMap, &text, &mistake)?.of_mistakes(2))?;
        }
    }
    let dim = scene.heads().dim;
    for n in [dim / 2, dim / 4, 32, 64, dim - 1] {
        if 0 < n && n < dim {
            let text = format!("only the first {n} of {dim} dims are summed");
            visit(tried.candidate(
                CauseKey::InnerTruncated,
                &text,
                &Mistake { dims: n, ..right },
            )?)?;
        }
    }
    for query in [Stage::QNorm, Stage::Q] {
        if scene.config().stages().contains(&query) {
            let text = format!("the query is {} instead of q_rope", query.name());
            visit(tried.candidate(CauseKey::QuerySource, &text, &Mistake { query, ..right })?)?;
        }
    }
    Ok(())
}

/// Keys that count once too often, or only in the dims of one thread.
fn of_single_keys<'a>(
    tried: &Tried<'_, '_, 'a>,
    right: Mistake<'_>,
    visit: Visit<'_, 'a>,
) -> Result<(), ReplayError> {
    let twice = |reading: Reading, position: usize| {
        let keys = position + 1;
        let with = |operand: &Operand| {
            let rows: Vec<usize> = (0..keys).chain([position]).collect();
            Arc::new(operand.select(&rows))
        };
        let (keys_too, values_too) = (with(&reading.keys), with(&reading.values));
        Reading { keys: keys_too, values: values_too, visible: 0..keys + 1 }
    };
    let text = "a query's own key and value count twice";
    visit(tried.candidate(CauseKey::KeyTwice, text, &Mistake { misread: &twice, ..right })?)?;
    let dim = tried.scene.heads().dim;
    let longest = tried.scene.positions().last().map_or(0, |last| last + 1);
    for block in [1024, 512, 256, 128, 64, 32] {
        // Shorter rows than the block look the same for any.
        if block < longest || block == 1024 {
            let own = |reading: Reading, _: usize| {
                let keys = keys_of_threads(&reading.keys, block, dim);
                Reading { keys: Arc::new(keys), ..reading }
            };
            let text = if block < longest {
                format!(
                    "q lies in registers, not in shared memory: of key j only the dims of thread j % \
                 {block} count"
                )
            } else {
                "q lies in registers, not in shared memory: of key j only dim j counts".into()
            };
            let mistake = Mistake { misread: &own, ..right };
            visit(tried.candidate(CauseKey::QueryInRegisters, &text, &mistake)?)?;
        }
    }
    Ok(())
}

/// The keys, each 0 but in the dims that its thread of a block has loaded.
fn keys_of_threads(keys: &Operand, block: usize, dim: usize) -> Operand {
    let keep = |(index, value): (usize, &f64)| {
        let (key, d) = (index / keys.width, index % keys.width % dim);
        if d % block == key % block { *value } else { 0.0 }
    };
    let value = keys.value.iter().enumerate().map(keep).collect();
    Operand { width: keys.width, value, spread: keys.spread.clone() }
}

/// Other keys, other values, or both for one reason.
fn of_caches<'a>(
    tried: &Tried<'_, '_, 'a>,
    right: Mistake<'_>,
    visit: Visit<'_, 'a>,
) -> Result<(), ReplayError> {
    let scene = tried.scene;
    let keys = other_keys(scene, Stage::KCache)?;
    let values = other_keys(scene, Stage::VCache)?;
    let step_of = |position: usize| {
        let steps = 0..scene.replay.recording.steps.len() as u32;
        let holds = |&step: &u32| scene.replay.recording.positions(step).contains(&position);
        steps.into_iter().find(holds).unwrap_or(0) as usize
    };
    for ((key, text, keys), (_, values_text, values)) in keys.iter().zip(&values) {
        let of_keys = |reading: Reading, position: usize| Reading {
            keys: Arc::clone(&keys[step_of(position)]),
            ..reading
        };
        let of_values = |reading: Reading, position: usize| Reading {
            values: Arc::clone(&values[step_of(position)]),
            ..reading
        };
        let both = |reading, position| of_values(of_keys(reading, position), position);
        let alike = text == values_text;
        let named = |what: &str, text: &str| {
            if alike { format!("{what}: {text}") } else { text.to_string() }
        };
        let swapped = "keys and values are swapped".to_string();
        for (text, misread) in [
            (if alike { text.clone() } else { swapped }, &both as Misread<'_>),
            (named("keys", text), &of_keys),
            (named("values", values_text), &of_values),
        ] {
            visit(tried.candidate(*key, &text, &Mistake { misread, ..right })?)?;
        }
    }
    Ok(())
}

/// What a stride between KV heads depends on, given the query's position and the step's last length.
type Stride = fn(usize, usize) -> usize;

/// Positions in the cache with the query's own token, without it, and after the whole step.
const LENGTHS: [Stride; 3] = [|p, _| p + 1, |p, _| p, |_, length| length];

/// KV heads found by the cache's length instead of its capacity: when read only, and when written too.
fn of_strides<'a>(
    tried: &Tried<'_, '_, 'a>,
    right: Mistake<'_>,
    visit: Visit<'_, 'a>,
) -> Result<(), ReplayError> {
    let (scene, heads) = (tried.scene, tried.scene.heads());
    if heads.kv == 1 {
        return Ok(());
    }
    let attention = scene.replay.recording.attention;
    let steps = scene.replay.recording.steps.len() as u32;
    let positions = scene.replay.recording.positions(steps - 1).end;
    let trained = scene.trained_positions();
    let capacities = [(positions + 1).next_multiple_of(64), trained, usize::MAX];
    let what = "KV heads strided by the cache's length instead of its capacity";
    for stride in LENGTHS {
        for capacity in capacities {
            let misread = |reading: Reading, position: usize| {
                let length = reading.keys.rows();
                let stride = stride(position, length);
                // What a later token of the step writes is not there yet.
                let written = match (attention.calls, attention.current) {
                    (Calls::Step, _) => length,
                    (Calls::Token, Current::Cache) => position + 1,
                    (Calls::Token, Current::Argument) => position,
                };
                let own = (attention.current == Current::Argument).then_some(position);
                let read = |operand: &Operand| {
                    let from = |head: usize, slot: usize| {
                        if own == Some(slot) {
                            Some((head, slot))
                        } else {
                            let flat = head * stride + slot;
                            (flat % capacity < written)
                                .then_some((flat / capacity, flat % capacity))
                        }
                    };
                    Arc::new(reordered(operand, heads.dim, &from))
                };
                let (keys, values) = (read(&reading.keys), read(&reading.values));
                Reading { keys, values, ..reading }
            };
            let text = format!("{what} when read");
            let mistake = Mistake { misread: &misread, ..right };
            visit(tried.candidate(CauseKey::CacheStride, &text, &mistake)?)?;
        }
        let slot =
            |head, position, step: Step| Some(head * stride(position, step.length) + position);
        let keys = Written::new(scene, &own_source(scene, Stage::KCache)?, &slot);
        let values = Written::new(scene, &own_source(scene, Stage::VCache)?, &slot);
        let misread = |reading: Reading, position: usize| {
            let length = reading.keys.rows();
            let at = |head, slot| head * stride(position, length) + slot;
            let own = (position, When::Before);
            let read = |written: &Written| Arc::new(written.read(own, length, &at));
            Reading { keys: read(&keys), values: read(&values), ..reading }
        };
        let text = format!("{what}, written and read");
        let mistake = Mistake { misread: &misread, ..right };
        visit(tried.candidate(CauseKey::CacheStride, &text, &mistake)?)?;
    }
    Ok(())
}

/// The head and slot of a cache that are read for a head and slot; `None` where nothing was written.
type Place<'f> = &'f dyn Fn(usize, usize) -> Option<(usize, usize)>;

/// A cache with its slots read from elsewhere in it.
fn reordered(own: &Operand, dim: usize, from: Place<'_>) -> Operand {
    let mut value = vec![0.0; own.value.len()];
    for (slot, row) in value.chunks_exact_mut(own.width).enumerate() {
        for (head, to) in row.chunks_exact_mut(dim).enumerate() {
            let Some((head, slot)) = from(head, slot) else { continue };
            if slot < own.rows() && head * dim < own.width {
                to.copy_from_slice(&own.row(slot)[head * dim..(head + 1) * dim]);
            }
        }
    }
    Operand { width: own.width, value, spread: None }
}
