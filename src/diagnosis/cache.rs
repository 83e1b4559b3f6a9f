//! What goes wrong in a cache append: which slots are written, with what, and where they are read.

use std::sync::Arc;

use crate::{
    diagnosis::{
        projection::other_layers,
        scene::{Candidate, Scene, Visit},
    },
    replay::{Operand, Operation, ReplayError, appended, ops},
    site::Stage,
};

/// A cache as memory, [kv_head][position][dim], that the steps write into one after another.
struct Memory {
    heads: usize,
    dim: usize,
    /// Positions between two heads, as the cache is read.
    capacity: usize,
    values: Vec<f64>,
}

/// How an append goes wrong: where (head, position) of a step of `length` positions is written, as a
/// linear slot; `None` where it is not.
type Slot<'f> = &'f dyn Fn(usize, usize, Step) -> Option<usize>;

/// A step that appends.
#[derive(Clone, Copy)]
struct Step {
    index: u32,
    /// Position of its first token, and positions in the cache after it.
    first: usize,
    length: usize,
}

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

    /// The slots 0..length as an attention reads them: (P, Hk D).
    fn read(&self, length: usize) -> Operand {
        let mut value = vec![0.0; length * self.heads * self.dim];
        for head in 0..self.heads {
            for position in 0..length {
                let from = (head * self.capacity + position) * self.dim;
                let to = (position * self.heads + head) * self.dim;
                value[to..to + self.dim].copy_from_slice(&self.values[from..from + self.dim]);
            }
        }
        Operand { width: self.heads * self.dim, value, spread: None }
    }
}

/// Appends from another tensor, of another layer, to other slots, with another stride, or not at all.
pub fn appends<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let heads = scene.heads();
    let positions = scene.replay.recording.rows(&all_steps(scene)).len();
    let roomy = (positions + 2).next_multiple_of(64);
    let straight = move |head: usize, position: usize, _: Step| Some(head * roomy + position);
    for (key, text, source) in sources(scene)? {
        simulate(scene, (key, text), &source, roomy, &straight, visit)?;
    }
    let own = own_source(scene)?;
    let mut slots = |key, text: &str, slot: Slot<'_>| {
        simulate(scene, (key, text.to_string()), &own, roomy, slot, visit)
    };
    slots("cache-unwritten", "never written", &|_, _, _| None)?;
    slots("cache-unwritten", "decode steps are never appended", &|h, p, step| {
        (step.index == 0).then_some(h * roomy + p)
    })?;
    slots("cache-unwritten", "the prompt is never appended", &|h, p, step| {
        (step.index > 0).then_some(h * roomy + p)
    })?;
    slots("cache-unwritten", "a step's last token is not appended", &|h, p, step| {
        (p + 1 < step.length).then_some(h * roomy + p)
    })?;
    slots("cache-slot", "written one slot late", &|h, p, _| Some(h * roomy + p + 1))?;
    slots("cache-slot", "written one slot early", &|h, p, _| Some(h * roomy + p.checked_sub(1)?))?;
    slots("cache-slot", "decode steps overwrite the slot before", &|h, p, step| {
        Some(h * roomy + if step.index > 0 { p - 1 } else { p })
    })?;
    slots("cache-slot", "decode steps are written one slot late", &|h, p, step| {
        Some(h * roomy + if step.index > 0 { p + 1 } else { p })
    })?;
    slots("cache-slot", "every step is written from slot 0 on", &|h, p, step| {
        Some(h * roomy + p - step.first)
    })?;
    slots("cache-head", "KV heads in reverse order", &|h, p, _| {
        Some((heads.kv - 1 - h) * roomy + p)
    })?;
    slots("cache-head", "every KV head shifted by one", &|h, p, _| {
        Some((h + 1) % heads.kv * roomy + p)
    })?;
    for unwritten in 0..heads.kv {
        let text = format!("KV head {unwritten} never written");
        slots("cache-unwritten", &text, &|h, p, _| (h != unwritten).then_some(h * roomy + p))?;
    }
    slots("cache-unwritten", "only KV head 0 is written", &|h, p, _| (h == 0).then_some(p))?;
    for capacity in capacities(scene, positions) {
        let text = "KV heads strided by the cache's length instead of its capacity";
        let by_length = |h: usize, p: usize, step: Step| Some(h * step.length + p);
        simulate(scene, ("cache-stride", text.into()), &own, capacity, &by_length, visit)?;
    }
    let text = "laid out as [position][head] and read as [head][position]";
    let interleaved = |h: usize, p: usize, _: Step| Some(p * heads.kv + h);
    simulate(scene, ("cache-stride", text.into()), &own, positions, &interleaved, visit)
}

fn all_steps(scene: &Scene<'_, '_>) -> Vec<u32> {
    (0..scene.replay.recording.steps.len() as u32).collect()
}

/// What the cache should be appended from, in every step.
fn own_source(scene: &Scene<'_, '_>) -> Result<Vec<Arc<Operand>>, ReplayError> {
    source(scene, scene.operation.at(appended(scene.stage())))
}

fn source(scene: &Scene<'_, '_>, operation: Operation) -> Result<Vec<Arc<Operand>>, ReplayError> {
    all_steps(scene).iter().map(|&step| scene.replay.operand(operation, &[step])).collect()
}

type Source = (&'static str, String, Vec<Arc<Operand>>);

/// What else may have been appended.
fn sources(scene: &Scene<'_, '_>) -> Result<Vec<Source>, ReplayError> {
    let mut list = Vec::new();
    let right = scene.operation.at(appended(scene.stage()));
    for layer in other_layers(scene) {
        let operation = Operation { layer: Some(layer), ..right };
        if scene.replay.has(operation, 0) {
            let text = format!("holds {} of {}", right.stage.name(), scene.layer_name(layer));
            list.push(("cache-layer", text, source(scene, operation)?));
        }
    }
    for stage in [Stage::KNorm, Stage::K, Stage::KRope, Stage::V] {
        let operation = scene.operation.at(stage);
        if stage == right.stage || !scene.config().stages().contains(&stage) {
            continue;
        }
        let (key, text) = match (scene.stage(), stage) {
            (Stage::KCache, Stage::V) => ("cache-source", "holds the values".to_string()),
            (Stage::KCache, _) => ("cache-before-rope", "appended before the rotation".to_string()),
            _ => ("cache-source", format!("appended from {}", stage.name())),
        };
        list.push((key, text, source(scene, operation)?));
    }
    Ok(list)
}

/// Capacities that a stride mistake is tried with: those that decide where a head's data shows up.
fn capacities(scene: &Scene<'_, '_>, positions: usize) -> Vec<usize> {
    let trained = scene.config().n_ctx_train;
    let mut list: Vec<usize> = (positions..=2 * positions + 64).collect();
    list.extend([128, 256, 512, 1024, 2048, 4096, trained]);
    list.retain(|&capacity| capacity >= positions && capacity <= 1 << 17);
    list.sort_unstable();
    list.dedup();
    list
}

/// Runs the appends of all steps through a memory and offers what each recorded step would read.
fn simulate<'a>(
    scene: &Scene<'_, 'a>,
    (key, text): (&'static str, String),
    source: &[Arc<Operand>],
    capacity: usize,
    slot: Slot<'_>,
    visit: Visit<'_, 'a>,
) -> Result<(), ReplayError> {
    let heads = scene.heads();
    if heads.kv == 1 && matches!(key, "cache-head" | "cache-stride") {
        return Ok(());
    }
    // Room for what is written past the last head's slots.
    let slots = heads.kv * capacity + capacity;
    let values = vec![0.0; slots * heads.dim];
    let mut memory = Memory { heads: heads.kv, dim: heads.dim, capacity, values };
    let mut read = Vec::new();
    for (index, source) in source.iter().enumerate() {
        let positions = scene.replay.recording.positions(index as u32);
        let step = Step { index: index as u32, first: positions.start, length: positions.end };
        memory.append(source, step, slot);
        read.push(memory.read(positions.end));
    }
    let parts = scene.by_step(|step| Ok(ops::copy(&read[step as usize], scene.rounding())))?;
    visit(Candidate::mistake(key, text, parts))
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
        visit(Candidate::mistake("cache-layer", text, parts))?;
    }
    Ok(())
}
