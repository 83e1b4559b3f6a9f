//! What goes wrong in a cache append: which slots are written, with what, and where they are read.

use std::sync::Arc;

use crate::{
    core::{
        attending::{Attending, Calls, Current},
        cause_key::CauseKey,
    },
    diagnosis::{
        cause::{Cause, Certainty},
        explain::explain,
        hypotheses::projection::other_layers,
        probe::Agreement,
        replay::{Operand, Operation, Parts, ReplayError, appended, ops},
        scene::{Candidate, Scene, Visit},
        written::{Slot, Step, When, Written},
    },
    graph::site::Stage,
};

/// A cache as memory, [kv_head][position][dim], that the steps write into one after another.
struct Memory {
    heads: usize,
    dim: usize,
    /// Positions between two heads, as the cache is read.
    capacity: usize,
    values: Vec<f64>,
}

type BoxedSlot = Box<dyn Fn(usize, usize, Step) -> Option<usize>>;

impl Memory {
    fn append(&mut self, source: &Operand, step: Step, slot: Slot<'_>) {
        for (token, position) in (step.first..step.length).enumerate() {
            for head in 0..self.heads {
                let Some(slot) = slot(head, position, step) else { continue };
                let from = token * source.width + head * self.dim;
                let to = slot * self.dim;
                if to + self.dim <= self.values.len() {
                    let row = &source.value[from..from + self.dim];
                    self.values[to..to + self.dim].copy_from_slice(row);
                }
            }
        }
    }

    /// Slots as an attention reads them: (P, Hk D).
    fn read(&self, positions: impl Iterator<Item = usize>) -> Operand {
        let mut value = Vec::new();
        for position in positions {
            for head in 0..self.heads {
                let from = (head * self.capacity + position) * self.dim;
                value.extend_from_slice(&self.values[from..from + self.dim]);
            }
        }
        Operand { width: self.heads * self.dim, value, spread: None }
    }
}

/// Appends from another tensor, of another layer, to other slots, with another stride, or not at all.
pub fn appends<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let (mut nth, mut proven, mut nearest) = (0, false, None);
    each_append(scene, &mut |named, append| {
        let agreement = probed(scene, append);
        if !append.is_swept {
            return offer(scene, named, append, agreement.is_enough(), visit);
        }
        // Of one mistake at many capacities the first that is proven counts, or the nearest.
        nth += 1;
        if proven {
            return Ok(());
        }
        if agreement.is_whole() {
            proven = is_proven(scene, append)?;
            return offer(scene, named, append, true, visit);
        }
        if nearest.is_none_or(|(explained, _)| agreement.explained() > explained) {
            nearest = Some((agreement.explained(), nth));
        }
        offer(scene, named, append, false, visit)
    })?;
    let Some((_, nearest)) = nearest.filter(|_| !proven) else { return Ok(()) };
    let mut nth = 0;
    each_append(scene, &mut |named, append| {
        nth += usize::from(append.is_swept);
        if append.is_swept && nth == nearest {
            offer(scene, named, append, probed(scene, append).is_enough(), visit)
        } else {
            Ok(())
        }
    })
}

/// What the tokens of each step find in a cache, by their positions and those in the cache after the step,
/// where they were appended one by one and a cause of what is wrong with that is proven: what was written
/// over later, the end of a step does not show.
pub fn found(
    scene: &Scene<'_, '_>,
    cause: &Cause,
) -> Result<Option<impl Fn(usize, usize) -> Operand + 'static>, ReplayError> {
    let Attending { calls, current } = scene.replay.recording.attention;
    if calls != Calls::Token || cause.certainty != Certainty::Proven {
        return Ok(None);
    }
    let mut found = None;
    each_append(scene, &mut |named, append| {
        let tried = found.is_none() && !append.is_late && named.1 == cause.text;
        if tried && probed(scene, append).is_whole() && is_proven(scene, append)? {
            found = Some((Written::new(scene, append.source, append.slot), append.capacity));
        }
        Ok(())
    })?;
    // The blocks of one launch append and read in no order.
    let when = if current == Current::Cache { When::After } else { When::During };
    Ok(found.map(|(written, capacity)| {
        move |position, length| {
            let at = |head, slot| head * capacity + slot;
            written.read((position, when), length, &at)
        }
    }))
}

/// Takes appends one by one, each with its key, its text and how many mistakes it takes.
type Take<'f> = &'f mut dyn FnMut(Named, &Append<'_>) -> Result<(), ReplayError>;

type Named = (CauseKey, String, usize);

fn each_append(scene: &Scene<'_, '_>, take: Take<'_>) -> Result<(), ReplayError> {
    let heads = scene.heads();
    let positions = scene.replay.recording.rows(&all_steps(scene)).len();
    let roomy = (positions + 2).next_multiple_of(64);
    let straight = move |head: usize, position: usize, _: Step| Some(head * roomy + position);
    for (key, text, source) in sources(scene)? {
        take((key, text, 1), &Append::of(&source, roomy, &straight))?;
    }
    let own = own_source(scene, scene.stage())?;
    let stale = stale(&own);
    let text = "decode steps append the row of the step before".to_string();
    take((CauseKey::CacheStale, text, 1), &Append::of(&stale, roomy, &straight))?;
    let text = "read before the step's own slots are written".to_string();
    let late = Append { is_late: true, ..Append::of(&own, roomy, &straight) };
    take((CauseKey::CacheLate, text, 1), &late)?;
    let slots = slots(heads.kv, roomy);
    for (key, text, slot) in &slots {
        take((*key, text.clone(), 1), &Append::of(&own, roomy, slot))?;
    }
    let heads_apart = if heads.kv > 1 { heads.kv } else { 0 };
    for unwritten in 0..heads_apart {
        let lost = format!("KV head {unwritten} never written");
        let straight = (CauseKey::CacheUnwritten, String::new(), Box::new(straight) as BoxedSlot);
        for (key, text, slot) in std::iter::once(&straight).chain(&slots) {
            let only =
                |h: usize, p: usize, step: Step| (h != unwritten).then(|| slot(h, p, step))?;
            let texts: Vec<&str> =
                [&*lost, text].into_iter().filter(|text| !text.is_empty()).collect();
            let named = (*key, texts.join(", and "), texts.len());
            take(named, &Append::of(&own, roomy, &only))?;
        }
    }
    if heads.kv == 1 {
        return Ok(());
    }
    for capacity in capacities(scene, positions) {
        let text = "KV heads strided by the cache's length instead of its capacity";
        let by_length = |h: usize, p: usize, step: Step| Some(h * step.length + p);
        // The length as it is for one token after another, with the token and without it.
        let with = |h: usize, p: usize, _: Step| Some(h * (p + 1) + p);
        let without = |h: usize, p: usize, _: Step| Some(h * p + p);
        let slots = [&by_length as Slot<'_>, &with, &without];
        let one_by_one = scene.replay.recording.attention.calls == Calls::Token;
        for slot in slots.into_iter().take(if one_by_one { 3 } else { 1 }) {
            let append = Append { is_swept: true, ..Append::of(&own, capacity, slot) };
            take((CauseKey::CacheStride, text.into(), 1), &append)?;
        }
    }
    let text = "laid out as [position][head] and read as [head][position]";
    let interleaved = |h: usize, p: usize, _: Step| Some(p * heads.kv + h);
    let append = Append::of(&own, positions, &interleaved);
    take((CauseKey::CacheStride, text.into(), 1), &append)
}

/// Slots that an append may go to by mistake, in a memory of `roomy` positions a head.
fn slots(kv_heads: usize, roomy: usize) -> Vec<(CauseKey, String, BoxedSlot)> {
    let mut list: Vec<(CauseKey, String, BoxedSlot)> = Vec::new();
    let mut add = |key, text: &str, slot: BoxedSlot| list.push((key, text.to_string(), slot));
    add(CauseKey::CacheUnwritten, "never written", Box::new(|_, _, _| None));
    let prompt = move |h, p, step: Step| (step.index == 0).then_some(h * roomy + p);
    add(CauseKey::CacheUnwritten, "decode steps are never appended", Box::new(prompt));
    let decode = move |h, p, step: Step| (step.index > 0).then_some(h * roomy + p);
    add(CauseKey::CacheUnwritten, "the prompt is never appended", Box::new(decode));
    let not_last = move |h, p, step: Step| (p + 1 < step.length).then_some(h * roomy + p);
    add(CauseKey::CacheUnwritten, "a step's last token is not appended", Box::new(not_last));
    if kv_heads > 2 {
        let only_first = |h, p, _: Step| (h == 0).then_some(p);
        add(CauseKey::CacheUnwritten, "only KV head 0 is written", Box::new(only_first));
    }
    let late = move |h, p, _: Step| Some(h * roomy + p + 1);
    add(CauseKey::CacheSlot, "written one slot late", Box::new(late));
    let early = move |h, p: usize, _: Step| Some(h * roomy + p.checked_sub(1)?);
    add(CauseKey::CacheSlot, "written one slot early", Box::new(early));
    let before = move |h, p, step: Step| Some(h * roomy + p - usize::from(step.index > 0));
    add(CauseKey::CacheSlot, "decode steps overwrite the slot before", Box::new(before));
    let after = move |h, p, step: Step| Some(h * roomy + p + usize::from(step.index > 0));
    add(CauseKey::CacheSlot, "decode steps are written one slot late", Box::new(after));
    let again = move |h, p, step: Step| Some(h * roomy + p - step.first);
    add(CauseKey::CacheSlot, "every step is written from slot 0 on", Box::new(again));
    if kv_heads > 1 {
        let reverse = move |h, p, _: Step| Some((kv_heads - 1 - h) * roomy + p);
        add(CauseKey::CacheHead, "KV heads in reverse order", Box::new(reverse));
        let shifted = move |h: usize, p, _: Step| Some((h + 1) % kv_heads * roomy + p);
        add(CauseKey::CacheHead, "every KV head shifted by one", Box::new(shifted));
    }
    list
}

fn all_steps(scene: &Scene<'_, '_>) -> Vec<u32> {
    (0..scene.replay.recording.steps.len() as u32).collect()
}

/// What a cache should be appended from, in every step.
pub(super) fn own_source(
    scene: &Scene<'_, '_>,
    cache: Stage,
) -> Result<Vec<Arc<Operand>>, ReplayError> {
    source(scene, scene.operation.at(appended(cache)))
}

fn source(scene: &Scene<'_, '_>, operation: Operation) -> Result<Vec<Arc<Operand>>, ReplayError> {
    all_steps(scene).iter().map(|&step| scene.replay.operand(operation, &[step])).collect()
}

type Source = (CauseKey, String, Vec<Arc<Operand>>);

/// What else may have been appended.
fn sources(scene: &Scene<'_, '_>) -> Result<Vec<Source>, ReplayError> {
    let mut list = Vec::new();
    let right = scene.operation.at(appended(scene.stage()));
    for layer in other_layers(scene) {
        let operation = Operation { layer: Some(layer), ..right };
        if scene.replay.has(operation, 0) {
            let text = format!("holds {} of {}", right.stage.name(), scene.layer_name(layer));
            list.push((CauseKey::CacheLayer, text, source(scene, operation)?));
        }
    }
    for stage in [Stage::KNorm, Stage::K, Stage::KRope, Stage::V] {
        let operation = scene.operation.at(stage);
        if stage == right.stage || !scene.config().stages().contains(&stage) {
            continue;
        }
        let (key, text) = match (scene.stage(), stage) {
            (Stage::KCache, Stage::V) => (CauseKey::CacheSource, "holds the values".to_string()),
            (Stage::KCache, _) => {
                (CauseKey::CacheBeforeRope, "appended before the rotation".to_string())
            }
            _ => (CauseKey::CacheSource, format!("appended from {}", stage.name())),
        };
        list.push((key, text, source(scene, operation)?));
    }
    Ok(list)
}

/// Capacities that a stride mistake is tried with: those that decide where a head's data shows up.
fn capacities(scene: &Scene<'_, '_>, positions: usize) -> Vec<usize> {
    let trained = scene.trained_positions();
    let mut list: Vec<usize> = (positions..=2 * positions + 64).collect();
    list.extend([128, 256, 512, 1024, 2048, 4096, trained]);
    list.retain(|&capacity| capacity >= positions && capacity <= 1 << 17);
    list.sort_unstable();
    list.dedup();
    list
}

/// How the steps append.
struct Append<'f> {
    source: &'f [Arc<Operand>],
    /// Positions between two heads.
    capacity: usize,
    slot: Slot<'f>,
    /// Whether a step reads before it writes.
    is_late: bool,
    /// Whether it is one of many that differ in their capacity.
    is_swept: bool,
}

impl<'f> Append<'f> {
    fn of(source: &'f [Arc<Operand>], capacity: usize, slot: Slot<'f>) -> Append<'f> {
        Append { source, capacity, slot, is_late: false, is_swept: false }
    }
}

/// The rows of a source, but in each decode step the last one of the step before.
fn stale(source: &[Arc<Operand>]) -> Vec<Arc<Operand>> {
    let of = |(step, own): (usize, &Arc<Operand>)| match step.checked_sub(1) {
        Some(before) if own.rows() == 1 => {
            let before = &source[before];
            Arc::new(before.select(&[before.rows() - 1]))
        }
        _ => Arc::clone(own),
    };
    source.iter().enumerate().map(of).collect()
}

/// Runs the appends of all steps through a memory, and shows it as each step reads it: the step, the
/// positions in the cache after it, and the memory.
fn simulate(
    scene: &Scene<'_, '_>,
    append: &Append<'_>,
    of_step: &mut dyn FnMut(u32, usize, &Memory),
) {
    let (capacity, heads) = (append.capacity, scene.heads());
    // Room for what is written past the last head's slots.
    let slots = heads.kv * capacity + capacity;
    let values = vec![0.0; slots * heads.dim];
    let mut memory = Memory { heads: heads.kv, dim: heads.dim, capacity, values };
    for (index, source) in append.source.iter().enumerate() {
        let positions = scene.replay.recording.positions(index as u32);
        let step = Step { index: index as u32, first: positions.start, length: positions.end };
        if append.is_late {
            of_step(step.index, step.length, &memory);
        }
        memory.append(source, step, append.slot);
        if !append.is_late {
            of_step(step.index, step.length, &memory);
        }
    }
}

/// How many of the probed elements an append gives.
fn probed(scene: &Scene<'_, '_>, append: &Append<'_>) -> Agreement {
    let mut agreement = Agreement::default();
    simulate(scene, append, &mut |step, _, memory| {
        for grid in scene.probe.rows.iter().filter(|grid| scene.steps[grid.piece] == step) {
            let read = memory.read(grid.rows.iter().copied());
            let expected = ops::copy(&read, scene.rounding());
            agreement = agreement.add(scene.agreement(grid, &expected));
        }
    });
    agreement
}

/// What each recorded step would read.
fn parts<'a>(scene: &Scene<'_, 'a>, append: &Append<'_>) -> Result<Parts<'a>, ReplayError> {
    let mut read = Vec::new();
    simulate(scene, append, &mut |_, length, memory| read.push(memory.read(0..length)));
    scene.by_step(|step| Ok(ops::copy(&read[step as usize], scene.rounding())))
}

/// Whether an append gives every element, everywhere.
fn is_proven(scene: &Scene<'_, '_>, append: &Append<'_>) -> Result<bool, ReplayError> {
    let explained = explain(scene, parts(scene, append)?)?;
    Ok(explained.is_proof() && explained.region.is_none())
}

/// Offers what an append gives, or that the probe refutes it.
fn offer<'a>(
    scene: &Scene<'_, 'a>,
    (key, text, mistakes): Named,
    append: &Append<'_>,
    explains: bool,
    visit: Visit<'_, 'a>,
) -> Result<(), ReplayError> {
    let candidate = if explains || scene.probe.rows.is_empty() {
        Candidate::mistake(key, text, parts(scene, append)?)
    } else {
        Candidate::refuted(key, text)
    };
    visit(candidate.of_mistakes(mistakes))
}

/// Attention that reads another layer's cache: the cache itself is what another layer holds.
pub fn other_layers_cache<'a>(
    scene: &Scene<'_, 'a>,
    visit: Visit<'_, 'a>,
) -> Result<(), ReplayError> {
    for layer in other_layers(scene) {
        let operation = Operation { layer: Some(layer), stage: scene.stage() };
        if !scene.steps.iter().all(|&step| scene.replay.has(operation, step)) {
            continue;
        }
        let parts = scene.by_step(|step| {
            Ok(ops::copy(&*scene.replay.cache(operation, step)?, scene.rounding()))
        })?;
        let text = format!("reads the cache of {}", scene.layer_name(layer));
        visit(Candidate::mistake(CauseKey::CacheLayer, text, parts))?;
    }
    Ok(())
}
