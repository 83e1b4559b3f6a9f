//! Mistakes in what a cache holds: which slots are written, with what, and where they are read.

use super::{Order, Visit};
use crate::{
    core::{
        attending::{Attending, Calls, Current},
        cause_key::CauseKey,
    },
    diagnosis::{
        Evidence, StepEvidence,
        cause::Rank,
        cause::{Cause, Certainty, Tried},
        replay::Found,
        written::{Slot, Step, When, Written},
    },
    graph::{Kind, NodeId, Op, site::Axis},
};

/// Rows of tokens that are appended step by step.
pub struct Rows {
    /// Elements of a row.
    pub width: usize,
    /// Each step's new rows.
    pub steps: Vec<Vec<f64>>,
}

impl Rows {
    fn row(&self, step: usize, token: usize) -> &[f64] {
        &self.steps[step][token * self.width..(token + 1) * self.width]
    }
}

/// KV heads and their dims.
#[derive(Clone, Copy)]
pub struct Shape {
    pub heads: usize,
    pub dim: usize,
}

/// A cache as memory, [kv_head][position][dim], that the steps write into one after another.
struct Memory {
    shape: Shape,
    /// Positions between two heads, as the cache is read.
    capacity: usize,
    values: Vec<f64>,
}

type BoxedSlot = Box<dyn Fn(usize, usize, Step) -> Option<usize>>;

impl Memory {
    fn append(&mut self, rows: &[f64], step: Step, slot: Slot<'_>) {
        let Shape { heads, dim } = self.shape;
        for (token, position) in (step.first..step.length).enumerate() {
            for head in 0..heads {
                let Some(slot) = slot(head, position, step) else { continue };
                let from = (token * heads + head) * dim;
                if let Some(place) = self.values.get_mut(slot * dim..(slot + 1) * dim) {
                    place.copy_from_slice(&rows[from..from + dim]);
                }
            }
        }
    }

    /// An element of the slots as an attention reads them: (P, Hk, D).
    fn read(&self, flat: usize) -> f64 {
        let Shape { heads, dim } = self.shape;
        let (position, head) = (flat / dim / heads, flat / dim % heads);
        self.values[(head * self.capacity + position) * dim + flat % dim]
    }
}

/// How the steps append.
struct Append<'f> {
    source: &'f Rows,
    /// Positions between two heads.
    capacity: usize,
    slot: Slot<'f>,
    /// Whether a step reads before it writes.
    is_late: bool,
    /// Whether it is one of many that differ in their capacity.
    is_swept: bool,
}

impl<'f> Append<'f> {
    fn of(source: &'f Rows, capacity: usize, slot: Slot<'f>) -> Append<'f> {
        Append { source, capacity, slot, is_late: false, is_swept: false }
    }
}

/// Caches that are read: their slots, what was appended, and the order of heads.
pub fn caches(evidence: &Evidence<'_>, visit: Visit<'_>) {
    if !is_cache(evidence) {
        return;
    }
    let recording = &evidence.run.recording;
    if (0..recording.steps.len() as u32).all(|step| recording.shift(step).is_none()) {
        appends(evidence, visit);
    }
    // What the side itself held before the step, but for the step's own rows.
    let Some(own) = own_rows(evidence) else { return };
    let unwritten = |step: &StepEvidence<'_>| {
        let mut value = step.observed.piece.expected.value.clone();
        value[step.machine.first_position * own.width..].fill(0.0);
        Some(value)
    };
    let text = "a step's own rows are not written";
    visit(evidence.copied(CauseKey::CacheUnwritten, text, Rank::Mistake, unwritten));
    let before = |step: &StepEvidence<'_>| {
        let mut value = step.observed.piece.expected.value.clone();
        let first = step.machine.first_position;
        if step.machine.extent.tokens == 1 && first > 0 {
            value.copy_within((first - 1) * own.width..first * own.width, first * own.width);
        }
        Some(value)
    };
    let text = "decode steps hold the previous slot's row";
    visit(evidence.copied(CauseKey::CacheStale, text, Rank::Mistake, before));
    heads(evidence, visit);
    other_layers(evidence, visit);
}

/// What the steps append, simulated one after another: no position moves between them.
fn appends(evidence: &Evidence<'_>, visit: Visit<'_>) {
    let (mut nth, mut proven, mut nearest) = (0, false, None);
    each_append(evidence, &mut |named, append| {
        let agreement = probed(evidence, append);
        if !append.is_swept {
            visit(offered(evidence, named, append, agreement.is_enough()));
            return;
        }
        // Of one mistake at many capacities the first that is proven counts, or the nearest.
        nth += 1;
        if proven {
            return;
        }
        if agreement.is_whole() {
            let tried = offered(evidence, named, append, true);
            proven = tried.as_ref().is_some_and(proves_everywhere);
            visit(tried);
            return;
        }
        if nearest.is_none_or(|(explained, _)| agreement.explained > explained) {
            nearest = Some((agreement.explained, nth));
        }
    });
    if let Some((_, nearest)) = nearest.filter(|_| !proven) {
        let mut nth = 0;
        each_append(evidence, &mut |named, append| {
            nth += usize::from(append.is_swept);
            if append.is_swept && nth == nearest {
                let explains = probed(evidence, append).is_enough();
                visit(offered(evidence, named, append, explains));
            }
        });
    }
}

/// What the tokens of each step find in a cache, where they were appended one by one and a cause of what is
/// wrong with that is proven: what was written over later, the end of a step does not show.
pub fn found(evidence: &Evidence<'_>, cause: &Cause) -> Option<Found> {
    let Attending { calls, current } = evidence.run.recording.attention;
    if !is_cache(evidence) || calls != Calls::Token || cause.certainty != Certainty::Proven {
        return None;
    }
    let shape = shape(evidence)?;
    let mut found = None;
    each_append(evidence, &mut |named, append| {
        let is_tried = found.is_none() && !append.is_late && named.1 == cause.text;
        if is_tried && probed(evidence, append).is_whole() {
            let tried = offered(evidence, named, append, true);
            if tried.as_ref().is_some_and(proves_everywhere) {
                let rows = &append.source.steps;
                let written =
                    Written::new((shape.heads, shape.dim), rows, &steps(evidence), append.slot);
                found = Some((written, append.capacity));
            }
        }
    });
    // The blocks of one launch append and read in no order.
    let when = if current == Current::Cache { When::After } else { When::During };
    let (written, capacity) = found?;
    Some(Box::new(move |position, length| {
        let at = |head, slot| head * capacity + slot;
        written.read((position, when), length, &at)
    }))
}

fn proves_everywhere(tried: &Tried) -> bool {
    tried.explained.is_proof() && tried.explained.region.is_none()
}

pub(super) fn is_cache(evidence: &Evidence<'_>) -> bool {
    let spec = evidence.spec();
    let graph = evidence.graph();
    let is_state = graph.node(graph.root(spec.node)).kind == Kind::State;
    is_state && spec.axes.first().is_some_and(|axis| axis.axis == Axis::Position)
}

pub(super) fn shape(evidence: &Evidence<'_>) -> Option<Shape> {
    let width = evidence.steps.first()?.observed.shape[1..].iter().product::<usize>();
    let heads = evidence.heads().map(|heads| Shape { heads: heads.count, dim: heads.dim });
    Some(heads.unwrap_or(Shape { heads: 1, dim: width }))
}

/// The steps that were recorded.
fn steps(evidence: &Evidence<'_>) -> Vec<Step> {
    let of = |step: &StepEvidence<'_>| Step {
        index: step.observed.step,
        first: step.machine.first_position,
        length: step.machine.extent.cells,
    };
    evidence.steps.iter().map(of).collect()
}

/// The rows that each step must append.
pub(super) fn own_rows(evidence: &Evidence<'_>) -> Option<Rows> {
    let width = evidence.steps.first()?.observed.shape[1..].iter().product::<usize>();
    let rows = |step: &StepEvidence<'_>| {
        let from = step.machine.first_position * width;
        step.observed.piece.expected.value.get(from..).map(<[f64]>::to_vec)
    };
    Some(Rows { width, steps: evidence.steps.iter().map(rows).collect::<Option<_>>()? })
}

/// The rows of a source, but in each decode step the last one of the step before.
fn stale(own: &Rows) -> Rows {
    let of = |(step, rows): (usize, &Vec<f64>)| match step.checked_sub(1) {
        Some(before) if rows.len() == own.width => {
            let tokens = own.steps[before].len() / own.width;
            own.row(before, tokens - 1).to_vec()
        }
        _ => rows.clone(),
    };
    Rows { width: own.width, steps: own.steps.iter().enumerate().map(of).collect() }
}

type Named = (CauseKey, String, u8);

/// Gives appends one by one, each with its key, its text and how many mistakes it takes: from another tensor,
/// of another layer, to other slots, with another stride, or none at all.
fn each_append(evidence: &Evidence<'_>, take: &mut dyn FnMut(Named, &Append<'_>)) {
    let (Some(own), Some(shape)) = (own_rows(evidence), shape(evidence)) else { return };
    let lengths = evidence.steps.iter().map(|step| step.machine.extent.cells);
    let positions = lengths.max().unwrap_or(0);
    let roomy = (positions + 2).next_multiple_of(64);
    let straight = move |head: usize, position: usize, _: Step| Some(head * roomy + position);
    for (key, text, source) in sources(evidence, &own) {
        take((key, text, 1), &Append::of(&source, roomy, &straight));
    }
    let stale = stale(&own);
    let text = "decode steps append the previous step's row".to_string();
    take((CauseKey::CacheStale, text, 1), &Append::of(&stale, roomy, &straight));
    let text = "read before the step's own slots are written".to_string();
    let late = Append { is_late: true, ..Append::of(&own, roomy, &straight) };
    take((CauseKey::CacheLate, text, 1), &late);
    let slots = slots(shape.heads, roomy);
    for (key, text, slot) in &slots {
        take((*key, text.clone(), 1), &Append::of(&own, roomy, slot));
    }
    if shape.heads == 1 {
        return;
    }
    for unwritten in 0..shape.heads {
        let lost = format!("KV head {unwritten} never written");
        let straight = (CauseKey::CacheUnwritten, String::new(), Box::new(straight) as BoxedSlot);
        for (key, text, slot) in std::iter::once(&straight).chain(&slots) {
            let only =
                |h: usize, p: usize, step: Step| (h != unwritten).then(|| slot(h, p, step))?;
            let texts: Vec<&str> =
                [&*lost, text].into_iter().filter(|text| !text.is_empty()).collect();
            let named = (*key, texts.join(", and "), texts.len() as u8);
            take(named, &Append::of(&own, roomy, &only));
        }
    }
    let one_by_one = evidence.run.recording.attention.calls == Calls::Token;
    for capacity in capacities(evidence, positions) {
        let text = "KV heads strided by the cache's length instead of its capacity";
        let by_length = |h: usize, p: usize, step: Step| Some(h * step.length + p);
        // The length as it is for one token after another, with the token and without it.
        let with = |h: usize, p: usize, _: Step| Some(h * (p + 1) + p);
        let without = |h: usize, p: usize, _: Step| Some(h * p + p);
        let slots = [&by_length as Slot<'_>, &with, &without];
        for slot in slots.into_iter().take(if one_by_one { 3 } else { 1 }) {
            let append = Append { is_swept: true, ..Append::of(&own, capacity, slot) };
            take((CauseKey::CacheStride, text.into(), 1), &append);
        }
    }
    let text = "laid out as [position][head] and read as [head][position]";
    let heads = shape.heads;
    let interleaved = move |h: usize, p: usize, _: Step| Some(p * heads + h);
    let append = Append::of(&own, positions, &interleaved);
    take((CauseKey::CacheStride, text.into(), 1), &append);
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
    add(CauseKey::CacheSlot, "decode steps overwrite the previous slot", Box::new(before));
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

/// Capacities that a stride mistake is tried with: those that decide where a head's data shows up.
fn capacities(evidence: &Evidence<'_>, positions: usize) -> Vec<usize> {
    let trained = evidence.run.file.trained_positions().unwrap_or(usize::MAX);
    let mut list: Vec<usize> = (positions..=2 * positions + 64).collect();
    list.extend([128, 256, 512, 1024, 2048, 4096, trained]);
    list.retain(|&capacity| capacity >= positions && capacity <= 1 << 17);
    list.sort_unstable();
    list.dedup();
    list
}

/// Runs the appends of all steps through a memory, and shows it as each step reads it, by its place.
fn simulate(evidence: &Evidence<'_>, append: &Append<'_>, of_step: &mut dyn FnMut(usize, &Memory)) {
    let (capacity, Some(shape)) = (append.capacity, shape(evidence)) else { return };
    // Room for what is written past the last head's slots.
    let slots = shape.heads * capacity + capacity;
    let mut memory = Memory { shape, capacity, values: vec![0.0; slots * shape.dim] };
    for (at, step) in steps(evidence).into_iter().enumerate() {
        if append.is_late {
            of_step(at, &memory);
        }
        memory.append(&append.source.steps[at], step, append.slot);
        if !append.is_late {
            of_step(at, &memory);
        }
    }
}

/// How many of the elements that were looked at an append gives.
#[derive(Clone, Copy, Default)]
struct Agreement {
    all: usize,
    explained: usize,
}

impl Agreement {
    /// Whether they are more than agree by luck.
    fn is_enough(self) -> bool {
        const LUCKY: usize = 20;
        self.explained > 0 && self.explained * LUCKY >= self.all
    }

    fn is_whole(self) -> bool {
        self.explained == self.all
    }
}

/// How many of some wrong elements an append gives.
fn probed(evidence: &Evidence<'_>, append: &Append<'_>) -> Agreement {
    const PROBED: usize = 32;
    let every = evidence.count_wrong().div_ceil(PROBED).max(1);
    let (mut agreement, mut nth) = (Agreement::default(), 0);
    simulate(evidence, append, &mut |at, memory| {
        let piece = &evidence.steps[at].observed.piece;
        let rounding = piece.expected.rounding;
        for (flat, _) in evidence.wrong[at].iter().enumerate().filter(|(_, wrong)| **wrong) {
            nth += 1;
            if (nth - 1) % every != 0 {
                continue;
            }
            let value = memory.read(flat);
            let error = (f64::from(piece.captured[flat]) - value).abs();
            let bound = (rounding.storage + 4.0 * rounding.sum) * value.abs() + rounding.smallest;
            agreement.all += 1;
            agreement.explained += usize::from(error <= bound);
        }
    });
    agreement
}

/// What an append gives, or that the elements that were looked at refute it.
fn offered(
    evidence: &Evidence<'_>,
    (key, text, mistakes): Named,
    append: &Append<'_>,
    explains: bool,
) -> Option<Tried> {
    let tried = if explains {
        let mut read: Vec<Vec<f64>> = vec![Vec::new(); evidence.steps.len()];
        simulate(evidence, append, &mut |at, memory| {
            let n = evidence.steps[at].observed.piece.captured.len();
            read[at] = (0..n).map(|flat| memory.read(flat)).collect();
        });
        let read_in = |step: &StepEvidence<'_>| Some(read[evidence.index_of(step)].clone());
        let tried = evidence.copied(key, text.clone(), Rank::Mistake, read_in);
        // How a cache is filled is known step by step: what holds in some steps only is another mistake.
        let of_steps = |region: &String| region.contains("step") || region.contains("prefill");
        let is_of_steps = |tried: &Tried| tried.explained.region.as_ref().is_some_and(of_steps);
        match tried {
            Some(tried) if is_of_steps(&tried) => Some(evidence.refuted(key, text, Rank::Mistake)),
            tried => tried,
        }
    } else {
        Some(evidence.refuted(key, text, Rank::Mistake))
    };
    tried.map(|tried| Tried { mistakes, ..tried })
}

/// Heads of the rows in another order.
fn heads(evidence: &Evidence<'_>, visit: Visit<'_>) {
    let Some(heads) = evidence.heads() else { return };
    let orders: [(&str, Order); 1] =
        [("neighbouring KV heads exchanged", |h, n| if (h ^ 1) < n { h ^ 1 } else { h })];
    for (text, order) in orders {
        let moved = |step: &StepEvidence<'_>| {
            let value = &step.observed.piece.expected.value;
            let from = step.machine.first_position * heads.count * heads.dim;
            let of = |i: usize| {
                let (row, head) = (i / heads.dim / heads.count, i / heads.dim % heads.count);
                let moved =
                    (row * heads.count + order(head, heads.count)) * heads.dim + i % heads.dim;
                // What was recorded of earlier steps is as it is.
                if i < from { value[i] } else { value[moved] }
            };
            Some((0..value.len()).map(of).collect())
        };
        visit(evidence.copied(CauseKey::CacheHead, text, Rank::Mistake, moved));
    }
}

/// The node whose rows are written into the cache.
pub(super) fn written(evidence: &Evidence<'_>) -> Option<NodeId> {
    let graph = evidence.graph();
    let root = graph.root(evidence.spec().node);
    let writer = graph.nodes.iter().find(|node| {
        node.op == Op::SetRows && node.window.is_some_and(|window| window.root == root)
    });
    writer?.source(0)
}

/// Rows of another tensor of the layer, or of another layer.
pub(super) fn sources(evidence: &Evidence<'_>, own: &Rows) -> Vec<(CauseKey, String, Rows)> {
    let Some(written) = written(evidence) else { return Vec::new() };
    let graph = evidence.graph();
    let is_rotated = graph.node(graph.root(written)).op == Op::Rope;
    let specs = evidence.run.model.sites.specs();
    let mut list = Vec::new();
    for place in evidence.other_sites(written) {
        let (other, name) = (&specs[place], evidence.site_name(place));
        let (key, text) = if other.layer != evidence.spec().layer {
            (CauseKey::CacheLayer, format!("holds {name}"))
        } else if is_rotated && is_upstream(evidence, place, written) {
            (CauseKey::CacheBeforeRope, format!("appended before the rotation, from {name}"))
        } else {
            (CauseKey::CacheSource, format!("appended from {name}"))
        };
        let rows = |step: &StepEvidence<'_>| {
            let tokens = step.machine.extent.tokens;
            evidence.recorded(step, place).filter(|rows| rows.len() == tokens * own.width)
        };
        let steps: Option<Vec<Vec<f64>>> = evidence.steps.iter().map(rows).collect();
        list.extend(steps.map(|steps| (key, text, Rows { width: own.width, steps })));
    }
    list
}

/// Attention that reads another layer's cache: the cache itself is what another layer holds.
fn other_layers(evidence: &Evidence<'_>, visit: Visit<'_>) {
    let (specs, own) = (evidence.run.model.sites.specs(), evidence.spec());
    for place in evidence.other_sites(own.node) {
        let Some(layer) = specs[place].layer.filter(|_| specs[place].stage == own.stage) else {
            continue;
        };
        let text = format!("reads the cache of {}", evidence.layer_name(layer));
        visit(evidence.copied(CauseKey::CacheLayer, text, Rank::Mistake, |step| {
            evidence.recorded(step, place)
        }));
    }
}

/// Whether a tensor is computed from a site within its layer.
fn is_upstream(evidence: &Evidence<'_>, place: usize, from: NodeId) -> bool {
    const MAX_CHAIN: usize = 24;
    let graph = evidence.graph();
    let wanted = evidence.run.model.sites.specs()[place].node;
    let mut at = graph.root(from);
    for _ in 0..MAX_CHAIN {
        if at == graph.root(wanted) {
            return true;
        }
        match graph.node(at).source(0) {
            Some(source) => at = graph.root(source),
            None => return false,
        }
    }
    false
}
