//! What lies in each slot of a cache, read off: the row of which position and head, zero, a constant, a row
//! that was turned again; and how that follows the slot.

mod shown;

use std::collections::{BTreeMap, HashMap};

pub use shown::contents_of_slots;

use super::{
    Visit,
    cache::{Rows, Shape, is_cache, own_rows, shape, sources, written},
};
use crate::{
    compare::axis_phrase,
    core::{cause_key::CauseKey, format::Format},
    diagnosis::{Evidence, StepEvidence, cause::Rank, replay},
    graph::{Extent, Op, RopeParams, site::Axis},
    trace::{NeighbourRow, Removed},
};

/// Rows that are turned are sought up to so many positions away.
const FAR: i32 = 256;
/// After so many rows that nothing explains, turned ones are not sought any more.
const MOST_UNKNOWN: usize = 64;
/// At most this many kinds of content are told apart.
const MAX_KINDS: usize = 3;
/// Formats that a row may be kept in.
const FORMATS: [Format; 7] = [
    Format::F16,
    Format::Bf16,
    Format::E4m3,
    Format::Q8_0,
    Format::Int8Blocks,
    Format::Int8Rows,
    Format::Q4_0,
];
/// So many slots are named where no rule says what lies in them.
const NAMED: usize = 3;

/// A place in a cache: a row of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot {
    pub step: usize,
    pub position: usize,
    pub head: usize,
}

/// What lies in a slot that should hold something else.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    Zero,
    Constant(f32),
    /// The row of a position and a head.
    Row {
        position: usize,
        head: usize,
    },
    /// The row of a position that was removed before, as it was then.
    Removed {
        position: usize,
        head: usize,
        is_rejected: bool,
    },
    /// The row of another tensor, by its name, at a position and a head.
    Other {
        name: usize,
        position: usize,
        head: usize,
    },
    /// The row of another sequence of the batch.
    Neighbour {
        sequence: u32,
        position: usize,
        head: usize,
    },
    /// Its own row, turned on by so many positions.
    Turned(i32),
    /// Integers of 8 bits: a row that was not multiplied by its scale.
    Integers,
    /// Its own row in a coarser format.
    Rounded(Format),
    /// A row of padding before the sequence.
    Padding,
    /// A row past the last position, in the same page.
    PageEnd,
    /// A row of nothing that is known.
    Foreign,
}

/// A cache's slots.
struct Found {
    shape: Shape,
    slots: Vec<(Slot, Content)>,
    /// Names of other tensors.
    names: Vec<String>,
    /// Positions of the last step.
    positions: usize,
    /// The numbers of the steps.
    steps: Vec<u32>,
    /// What each step's context shift removes.
    shifts: Vec<Option<Removed>>,
}

/// A row of a cache that is known, and the step that wrote it.
#[derive(Clone)]
struct KnownRow {
    step: u32,
    content: Content,
}

impl KnownRow {
    /// What it is in the caches of a step; `None` of a key that was to be turned since.
    fn seen_in(&self, evidence: &Evidence<'_>, step: u32, is_turned: bool) -> Option<Content> {
        let recording = &evidence.run.recording;
        match self.content {
            Content::Row { position, head } if self.step <= step => {
                match recording.position_in(self.step, position, step) {
                    Ok(now) if is_turned && now != position => None,
                    Ok(position) => Some(Content::Row { position, head }),
                    Err(before) => {
                        let is_rejected = recording.shift(before).is_none();
                        Some(Content::Removed { position, head, is_rejected })
                    }
                }
            }
            _ => Some(self.content.clone()),
        }
    }
}

/// The slots that do not hold what they must, by what lies in them.
pub fn contents(evidence: &Evidence<'_>, visit: Visit<'_>) {
    if !is_cache(evidence) {
        return;
    }
    let Some(found) = read_off(evidence).filter(|found| !found.has_unknown()) else { return };
    let (key, text) = (key_of(&found), described(&found));
    let mut wrong: BTreeMap<usize, Vec<Slot>> = BTreeMap::new();
    for (slot, _) in &found.slots {
        wrong.entry(slot.step).or_default().push(*slot);
    }
    let Shape { heads, dim } = found.shape;
    visit(evidence.predicted(key, text, Rank::Likeness, |step| {
        let piece = &step.observed.piece;
        let mut value = piece.expected.value.clone();
        for slot in wrong.get(&evidence.index_of(step)).into_iter().flatten() {
            // What a slot holds was compared with what it is said to hold.
            let own = (slot.position * heads + slot.head) * dim;
            let recorded = piece.captured[own..own + dim].iter();
            value[own..own + dim].iter_mut().zip(recorded).for_each(|(x, &y)| *x = f64::from(y));
        }
        Some(piece.expected.copied(value))
    }));
}

/// Which rows are read in place of those of each position, in words.
pub(super) fn read_as(
    evidence: &Evidence<'_>,
    shape: Shape,
    slots: Vec<(Slot, Content)>,
) -> String {
    let steps: Vec<u32> = evidence.steps.iter().map(|step| step.observed.step).collect();
    let positions = evidence.steps.iter().map(|step| step.machine.extent.cells).max().unwrap_or(0);
    let shifts = vec![None; steps.len()];
    let found = Found { shape, slots, names: Vec::new(), positions, steps, shifts };
    described(&found)
        .replace("slots of", "reads of")
        .replace("all slots", "all reads")
        .replace(" hold ", " get ")
}

/// What lies in the slots of a cache, where some hold what is not known.
pub fn read_off_unknown(evidence: &Evidence<'_>) -> Option<String> {
    let found = if is_cache(evidence) { read_off(evidence) } else { None };
    found.filter(Found::has_unknown).map(|found| described(&found))
}

impl Found {
    /// Whether a context shift moves the row of a slot.
    fn is_moved(&self, slot: Slot) -> bool {
        self.shifts[slot.step].is_some_and(|removed| slot.position >= removed.first)
    }

    fn has_unknown(&self) -> bool {
        self.slots.iter().any(|(_, content)| *content == Content::Foreign)
    }
}

/// The content of every slot that is wrong; `None` where its rows are not known.
fn read_off(evidence: &Evidence<'_>) -> Option<Found> {
    let (shape, own) = (shape(evidence)?, own_rows(evidence)?);
    let Shape { heads, dim } = shape;
    let others = sources(evidence, &own);
    let rows = others.iter().map(|(_, _, rows)| rows).collect::<Vec<_>>();
    let mut known = known_rows(evidence, shape, &own, &rows);
    add_neighbours(evidence, shape, &mut known);
    let names = others.into_iter().map(|(_, text, _)| text).collect();
    let rope = rotation(evidence);
    let (mut slots, mut unclear, mut unknown) = (Vec::new(), Vec::new(), 0);
    for (step, one) in evidence.steps.iter().enumerate() {
        let piece = &one.observed.piece;
        let rows = piece.captured.chunks_exact(dim).zip(piece.expected.value.chunks_exact(dim));
        for (row, (recorded, right)) in rows.enumerate() {
            let wrong = &evidence.wrong[step][row * dim..(row + 1) * dim];
            if !wrong.iter().any(|&wrong| wrong) {
                continue;
            }
            let slot = Slot { step, position: row / heads, head: row % heads };
            let rows = known.get(&bits(recorded)).into_iter().flatten();
            let in_step = |row: &KnownRow| row.seen_in(evidence, one.observed.step, rope.is_some());
            let rows: Vec<Content> = rows.filter_map(in_step).collect();
            if !rows.is_empty() {
                unclear.push((slot, rows));
                continue;
            }
            let turned = || {
                let rope = rope.filter(|_| unknown < MOST_UNKNOWN)?;
                let own = turned(rope, recorded, right).map(Content::Turned);
                own.or_else(|| moved(evidence, shape, slot, rope))
            };
            let content = plain(recorded, right).or_else(turned);
            unknown += usize::from(content.is_none());
            slots.push((slot, content.unwrap_or(Content::Foreign)));
        }
    }
    slots.extend(cleared(&unclear));
    slots.sort_by_key(|(slot, _)| *slot);
    let positions = evidence.steps.iter().map(|step| step.machine.extent.cells).max()?;
    let steps: Vec<u32> = evidence.steps.iter().map(|step| step.observed.step).collect();
    let shifts = steps.iter().map(|&step| evidence.run.recording.shift(step)).collect();
    Some(Found { shape, slots, names, positions, steps, shifts })
}

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|x| x.to_bits()).collect()
}

/// Where each row is known from; zeros are none.
fn known_rows(
    evidence: &Evidence<'_>,
    shape: Shape,
    own: &Rows,
    others: &[&Rows],
) -> HashMap<Vec<u32>, Vec<KnownRow>> {
    let Shape { heads, dim } = shape;
    let mut known: HashMap<Vec<u32>, Vec<KnownRow>> = HashMap::new();
    for (source, rows) in std::iter::once(own).chain(others.iter().copied()).enumerate() {
        for (step, rows) in evidence.steps.iter().zip(&rows.steps) {
            let all = rows.iter().map(|&x| x as f32).collect::<Vec<f32>>();
            for (at, row) in all.chunks_exact(dim).enumerate().filter(|(_, row)| varies(row)) {
                let (position, head) = (step.machine.first_position + at / heads, at % heads);
                let content = match source.checked_sub(1) {
                    None => Content::Row { position, head },
                    Some(name) => Content::Other { name, position, head },
                };
                let row_of = KnownRow { step: step.observed.step, content };
                known.entry(bits(row)).or_default().push(row_of);
            }
        }
    }
    known
}

/// Whose row of the step before a slot holds after a context shift: turned by as far as it moved, or by as many
/// positions as were removed.
fn moved(evidence: &Evidence<'_>, shape: Shape, slot: Slot, rope: RopeParams) -> Option<Content> {
    let Shape { heads, dim } = shape;
    let [before, own] = [slot.step.checked_sub(1)?, slot.step].map(|at| &evidence.steps[at]);
    let removed = evidence.run.recording.shift(own.observed.step)?;
    let row = |of: &StepEvidence<'_>, position: usize| -> Vec<f32> {
        let from = (position * heads + slot.head) * dim;
        of.observed.piece.captured[from..from + dim].to_vec()
    };
    let recorded = row(own, slot.position);
    let is_of = |&position: &usize| {
        let row: Vec<f64> = row(before, position).into_iter().map(f64::from).collect();
        let size = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        let way = slot.position as i64 - position as i64;
        let is_turned = |by: i64| is_turned_by(rope, &recorded, &row, size, by as i32);
        is_turned(way) || is_turned(-(removed.count as i64))
    };
    let position = (0..before.machine.extent.cells).find(is_of)?;
    let head = slot.head;
    Some(match position {
        at if at < removed.first => Content::Row { position, head },
        at if at < removed.end() => Content::Removed { position, head, is_rejected: false },
        at => Content::Row { position: at - removed.count, head },
    })
}

/// Adds what the other sequences of a batch append.
fn add_neighbours(
    evidence: &Evidence<'_>,
    shape: Shape,
    known: &mut HashMap<Vec<u32>, Vec<KnownRow>>,
) -> Option<()> {
    let (graph, last) = (evidence.graph(), evidence.steps.last()?);
    let root = graph.root(written(evidence)?);
    let mut specs = evidence.run.model.sites.specs().iter();
    let source = specs.find(|spec| graph.root(spec.node) == root)?;
    let recording = &evidence.run.recording;
    let rows = recording.tensors.neighbours(source.site(last.observed.step)).ok()?;
    for NeighbourRow { sequence, position, mut values } in rows {
        if values.len() != shape.heads * shape.dim {
            return None;
        }
        replay::round(recording.arithmetic.default.storage, &mut values);
        for (head, row) in values.chunks_exact(shape.dim).enumerate().filter(|(_, row)| varies(row))
        {
            let content = Content::Neighbour { sequence, position, head };
            let row_of = KnownRow { step: 0, content };
            known.entry(bits(row)).or_default().push(row_of);
        }
    }
    Some(())
}

fn varies(row: &[f32]) -> bool {
    row.iter().any(|x| x.to_bits() != row[0].to_bits())
}

/// Of several rows that are alike the one that most slots hold in the same relation to themselves.
fn cleared(unclear: &[(Slot, Vec<Content>)]) -> Vec<(Slot, Content)> {
    let relation = |slot: &Slot, content: &Content| match *content {
        Content::Row { position, head } => {
            (0, position as i64 - slot.position as i64, head as i64 - slot.head as i64)
        }
        Content::Other { name, position, head } => {
            (1 + name, position as i64 - slot.position as i64, head as i64 - slot.head as i64)
        }
        Content::Removed { position, head, .. } => (
            usize::MAX / 2 - 1,
            position as i64 - slot.position as i64,
            head as i64 - slot.head as i64,
        ),
        Content::Neighbour { sequence, position, head } => (
            usize::MAX / 2 + sequence as usize,
            position as i64 - slot.position as i64,
            head as i64 - slot.head as i64,
        ),
        _ => (usize::MAX, 0, 0),
    };
    let mut counts: HashMap<(usize, i64, i64), usize> = HashMap::new();
    for (slot, rows) in unclear {
        rows.iter().for_each(|row| *counts.entry(relation(slot, row)).or_default() += 1);
    }
    let best = |(slot, rows): &(Slot, Vec<Content>)| {
        let standing = |row: &&Content| {
            let relation = relation(slot, row);
            (counts[&relation], std::cmp::Reverse((relation.0, relation.1.abs(), relation.2.abs())))
        };
        let row = rows.iter().max_by_key(standing).expect("a row is known from somewhere");
        (*slot, row.clone())
    };
    unclear.iter().map(best).collect()
}

/// A content that no other row is needed for.
fn plain(recorded: &[f32], right: &[f64]) -> Option<Content> {
    if recorded.iter().all(|&x| x == 0.0) {
        return Some(Content::Zero);
    }
    if !varies(recorded) && recorded[0].is_finite() {
        return Some(Content::Constant(recorded[0]));
    }
    let is_integer = |x: &f32| x.fract() == 0.0 && x.abs() <= 127.0;
    let most = right.iter().fold(0f64, |most, x| most.max(x.abs()));
    let near = |(&x, right): (&f32, &f64)| (f64::from(x) - right * 127.0 / most).abs() <= 1.0;
    let is_scaled = most > 0.0 && recorded.iter().zip(right).all(near);
    if recorded.iter().all(is_integer) && is_scaled {
        return Some(Content::Integers);
    }
    let is_rounded = |format: &Format| {
        let row = || replay::rounded_rows(right, None, right.len(), *format).0;
        let is_it = |(x, &y): (&f64, &f32)| (x - f64::from(y)).abs() <= 1e-6 * most;
        format.divides(right.len()) && row().iter().zip(recorded).all(is_it)
    };
    FORMATS.into_iter().find(is_rounded).map(Content::Rounded)
}

/// The rotation that the rows of a cache come from.
fn rotation(evidence: &Evidence<'_>) -> Option<RopeParams> {
    let graph = evidence.graph();
    let node = graph.node(graph.root(written(evidence)?));
    let params = node.params(Extent { tokens: 1, cells: 1, is_first: true });
    let rope = (node.op == Op::Rope).then(|| RopeParams::of(params))?;
    (!rope.has_sections && params.float(7) == 0.0 && rope.dims >= 4).then_some(rope)
}

/// By how many positions a row was turned on.
fn turned(rope: RopeParams, recorded: &[f32], right: &[f64]) -> Option<i32> {
    let size = right.iter().map(|x| x * x).sum::<f64>().sqrt();
    let is_it = |&by: &i32| is_turned_by(rope, recorded, right, size, by);
    (1..=FAR).flat_map(|by| [by, -by]).find(is_it)
}

/// Whether a row is another of that length, turned on by so many positions.
fn is_turned_by(rope: RopeParams, recorded: &[f32], row: &[f64], size: f64, by: i32) -> bool {
    const NEAR: f64 = 1e-5;
    let near = NEAR * size * f64::from(by.abs().max(1)).sqrt();
    let is_near = |expected: f64, at: usize| (expected - f64::from(recorded[at])).abs() <= near;
    let mut is_rotated = vec![false; row.len()];
    let pairs = (0..rope.dims / 2).all(|pair| {
        let (a, b) = rope.elements(pair);
        let (sine, cosine) = rope.angle(f64::from(by), pair).sin_cos();
        (is_rotated[a], is_rotated[b]) = (true, true);
        is_near(row[a] * cosine - row[b] * sine, a) && is_near(row[a] * sine + row[b] * cosine, b)
    });
    pairs && (0..row.len()).all(|at| is_rotated[at] || is_near(row[at], at))
}

fn key_of(found: &Found) -> CauseKey {
    let all = |test: fn(&Content) -> bool| found.slots.iter().all(|(_, content)| test(content));
    match () {
        () if all(|content| matches!(content, Content::Zero)) => CauseKey::CacheUnwritten,
        () if all(|content| matches!(content, Content::Other { .. })) => CauseKey::CacheSource,
        () if all(|content| matches!(content, Content::Turned(_))) => CauseKey::RopePosition,
        () if all(|content| matches!(content, Content::Integers)) => CauseKey::Scaled,
        () => CauseKey::CacheSlot,
    }
}

/// What lies where, in the shortest words that are true of every slot.
fn described(found: &Found) -> String {
    let mut kinds: Vec<(String, Vec<Slot>)> = Vec::new();
    for (slot, content) in &found.slots {
        let kind = kind(found, *slot, content);
        match kinds.iter_mut().find(|(own, _)| *own == kind) {
            Some((_, slots)) => slots.push(*slot),
            None => kinds.push((kind, vec![*slot])),
        }
    }
    if kinds.len() <= MAX_KINDS {
        let parts = kinds.iter().map(|(kind, slots)| format!("{}{kind}", places(found, slots)));
        return parts.collect::<Vec<_>>().join("; ");
    }
    if let Some([from, to]) = strides(found) {
        let all: Vec<Slot> = found.slots.iter().map(|(slot, _)| *slot).collect();
        let places = places(found, &all);
        return format!(
            "{places}rows are stored {from} positions per head apart but read {to} apart"
        );
    }
    if let Some((page, pages)) = pages(found) {
        let all: Vec<Slot> = found.slots.iter().map(|(slot, _)| *slot).collect();
        let named = pages.iter().take(NAMED).map(|(at, holds)| format!("{at} holds {holds}"));
        let named = named.collect::<Vec<_>>().join(", ");
        let places = places(found, &all);
        return format!("{places}pages of {page} positions exchanged: page {named}");
    }
    let named = found.slots.iter().take(NAMED).map(|(slot, content)| {
        let Slot { position, head, .. } = slot;
        let kind = kind(found, *slot, content);
        // Of one slot.
        let kind = kind.strip_prefix("hold ").map_or(kind.clone(), |rest| format!("holds {rest}"));
        let kind = kind.strip_prefix("are ").map_or(kind.clone(), |rest| format!("is {rest}"));
        format!("position {position} of KV head {head} {kind}")
    });
    let more = found.slots.len().saturating_sub(NAMED);
    let rest = if more == 0 { String::new() } else { format!("; {more} more slots") };
    format!("slots hold other rows: {}{rest}", named.collect::<Vec<_>>().join(", "))
}

/// A slot's content relative to the slot.
fn kind(found: &Found, slot: Slot, content: &Content) -> String {
    let row = |position: usize, head: usize| {
        let by = position as i64 - slot.position as i64;
        let of_head = if head == slot.head { String::new() } else { format!(" of KV head {head}") };
        match by {
            0 if head == slot.head => "hold their own row".to_string(),
            0 => format!("hold the row{of_head}"),
            by if by > 0 => format!("hold the row from {by} positions later{of_head}"),
            by => format!("hold the row from {} positions earlier{of_head}", -by),
        }
    };
    match *content {
        Content::Zero => "are zero".to_string(),
        Content::Constant(value) => format!("are all {value}"),
        Content::Row { position, head } => row(position, head),
        Content::Other { name, position, head } => {
            let at = row(position, head);
            let name = &found.names[name];
            if at.starts_with("hold their own") {
                name.clone()
            } else {
                format!("{name}, and {at}")
            }
        }
        Content::Neighbour { sequence, position, head } => {
            let at = row(position, head);
            let from = at.strip_prefix("hold the row").unwrap_or_default();
            let by = from.strip_prefix(" of ").or_else(|| from.strip_prefix(" from "));
            let from = by.map_or(from.to_string(), |by| format!(", {by}"));
            format!("hold the row of sequence {sequence}{from}")
        }
        Content::Removed { position, head, is_rejected } => {
            let at = row(position, head);
            let by = at.strip_prefix("hold the row ").map(|by| by.trim_start_matches("from "));
            let of = by.map_or(String::new(), |by| format!(", {}", by.trim_start_matches("of ")));
            match (is_rejected, of.is_empty()) {
                (true, true) => "hold the rejected row of their position".to_string(),
                (true, false) => format!("hold a rejected row{of}"),
                (false, true) => "hold the row that was removed from their position".to_string(),
                (false, false) => format!("hold a row that was removed{of}"),
            }
        }
        Content::Turned(by) if found.is_moved(slot) => {
            let wanted = found.shifts[slot.step].map_or(0, |removed| removed.count as i32);
            match wanted - by {
                0 => format!("are not rotated back by the {wanted} positions that were removed"),
                back if back > 0 => {
                    format!("are rotated back by {back} positions instead of {wanted}")
                }
                on => {
                    format!("are rotated forward by {} positions instead of back by {wanted}", -on)
                }
            }
        }
        Content::Turned(by) if by > 0 => format!("are rotated forward by {by} positions"),
        Content::Turned(by) => format!("are rotated back by {} positions", -by),
        Content::Rounded(format) => format!("hold their row in {format}"),
        Content::Padding => "hold a row of padding".to_string(),
        Content::PageEnd => "hold a row past the last position".to_string(),
        Content::Foreign => "hold no row that this run computed".to_string(),
        Content::Integers => "hold 8-bit integers without their scale".to_string(),
    }
}

/// `from step 2 on slots of positions 16-31 `; empty where they are all.
fn places(found: &Found, slots: &[Slot]) -> String {
    let marks = |length: usize, of: &dyn Fn(&Slot) -> usize| {
        let mut marked = vec![false; length];
        slots.iter().for_each(|slot| marked[of(slot)] = true);
        marked
    };
    let first = slots.iter().map(|slot| slot.step).min().unwrap_or(0);
    let in_steps = match first {
        0 => String::new(),
        first => format!("from step {} on ", found.steps[first]),
    };
    let of_positions = axis_phrase(Axis::Position, &marks(found.positions, &|slot| slot.position));
    let heads = found.shape.heads;
    let of_heads = axis_phrase(Axis::Head, &marks(heads, &|slot| slot.head)).filter(|_| heads > 1);
    let named: Vec<String> = of_positions.into_iter().chain(of_heads).collect();
    match &named[..] {
        [] => format!("{in_steps}all slots "),
        named => format!("{in_steps}slots of {} ", named.join(" and ")),
    }
}

/// The rows of a slot, where all of them are rows of the cache itself.
fn rows(found: &Found) -> Option<Vec<(Slot, usize, usize)>> {
    let row = |(slot, content): &(Slot, Content)| match *content {
        Content::Row { position, head } => Some((*slot, position, head)),
        _ => None,
    };
    found.slots.iter().filter(|(_, content)| *content != Content::Zero).map(row).collect()
}

/// Positions between two heads as the rows lie and as they are read, where one memory explains all.
fn strides(found: &Found) -> Option<[usize; 2]> {
    let rows = rows(found).filter(|rows| rows.len() > 1)?;
    let lies =
        |stride: usize| move |&(_, position, head): &(Slot, usize, usize)| head * stride + position;
    let most = 4 * found.positions + 64;
    let strides = |from: usize| {
        let of_slot = |(slot, ..): &(Slot, usize, usize)| (slot.head, slot.position);
        let other = rows.iter().find(|row| of_slot(row).0 > 0)?;
        let (head, position) = of_slot(other);
        let to = lies(from)(other).checked_sub(position)?;
        let to = to.is_multiple_of(head).then_some(to / head)?;
        let fits = |row: &(Slot, usize, usize)| {
            let (head, position) = of_slot(row);
            lies(from)(row) == head * to + position
        };
        (to != from && rows.iter().all(fits)).then_some([from, to])
    };
    (1..=most).find_map(strides)
}

/// The length of pages that were exchanged, and which page holds which.
fn pages(found: &Found) -> Option<(usize, BTreeMap<usize, usize>)> {
    let rows = rows(found)?;
    let of_length = |page: usize| {
        let mut pages = BTreeMap::new();
        for (slot, position, head) in &rows {
            let is_straight = *head == slot.head && slot.position % page == position % page;
            let holds = *pages.entry(slot.position / page).or_insert(position / page);
            if !is_straight || holds != position / page {
                return None;
            }
        }
        Some((page, pages))
    };
    [256, 128, 64, 32, 16, 8, 4].into_iter().find_map(of_length)
}
