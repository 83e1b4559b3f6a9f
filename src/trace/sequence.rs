//! A part of a trace as a trace of its own: one sequence of several, or the tokens that stay.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    batch::{Batch, BatchedSequence},
    error::TraceError,
    header::ByteOrder,
    layout::RowKind,
    manifest::{Manifest, Step},
    read::TraceReader,
    removed,
    stitch::Whole,
};
use crate::{
    core::tensor::Tensor,
    graph::site::{Axis, Site},
};

/// What a reader shows of another trace: a sequence of a batch, or the tokens that stay.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    pub whole: TraceReader,
    sequence: Option<u32>,
    parts: Vec<StepPart>,
}

/// What is shown of a step.
#[derive(Clone, Debug)]
struct StepPart {
    step: u32,
    /// Rows of its tensors, slots of its caches and keys, in the order of the positions.
    rows: Vec<usize>,
    slots: Vec<usize>,
    keys: Vec<usize>,
    /// Of tensors that have the sequences one after another: which of how many.
    place: Option<[usize; 2]>,
    /// Whether it is all that the step has.
    is_whole: bool,
}

/// A row of a site that another sequence of the batch has.
#[derive(Clone, Debug)]
pub struct NeighbourRow {
    pub sequence: u32,
    pub position: usize,
    pub values: Vec<f32>,
}

/// Whose a row of a cache is that holds none of a sequence's positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outside {
    /// Of padding before the sequence.
    Padding,
    /// Behind its last position, in the same page.
    Page,
    /// Of a draft that was rejected.
    Rejected,
    /// Of another sequence.
    Sequence(u32),
}

/// Such a row.
#[derive(Clone, Debug)]
pub struct OutsideRow {
    pub of: Outside,
    /// The position that it holds, or that it would have.
    pub position: usize,
    pub values: Vec<f32>,
}

impl TraceReader {
    /// The sequences of a batch, ascending; none where the trace is one sequence.
    pub fn sequences(&self) -> Vec<u32> {
        self.manifest().sequences()
    }

    /// Which sequence of a batch this is.
    pub fn selected(&self) -> Option<u32> {
        self.selection.as_ref().and_then(|selection| selection.sequence())
    }

    /// The trace of one sequence: its rows in the order of its positions, its cache and its keys. Without a
    /// number the only one.
    ///
    /// # Errors
    /// The trace has several sequences and none is named, or it has not that one.
    pub fn sequence(self, number: Option<u32>) -> Result<TraceReader, TraceError> {
        let all = self.sequences();
        let sequence = match (&all[..], number) {
            ([], None) => return Ok(self),
            ([only], None) => *only,
            (_, Some(number)) if all.contains(&number) => number,
            _ => return Err(TraceError::Sequences { path: self.folder().into(), all, number }),
        };
        let (mut parts, mut own) = (Vec::new(), Vec::new());
        for (at, step) in (0u32..).zip(&self.manifest().steps) {
            let Some(batch) = &step.batch else { continue };
            let sequences = batch.sequences.iter().enumerate();
            for (place, part) in sequences.filter(|(_, part)| part.sequence == sequence) {
                parts.push(StepPart::of_batch(at, batch, place));
                own.push(Step {
                    tokens: part.rows.iter().map(|&row| step.tokens[row]).collect(),
                    first_position: part.first_position,
                    prefix: part.prefix.clone(),
                    removed: part.removed,
                    choice: None,
                    batch: None,
                    ..step.clone()
                });
            }
        }
        let manifest =
            Manifest { steps: own, prompt_tokens: None, prompt: None, ..self.manifest().clone() };
        let selection = Selection { whole: self, sequence: Some(sequence), parts };
        TraceReader::of_selection(manifest, selection)
    }

    /// The trace without the tokens that later steps remove, up to the first step for which positions move: what a
    /// run has that never drafted them. The same trace where nothing is removed.
    pub fn settled(self) -> Result<TraceReader, TraceError> {
        let steps = &self.manifest().steps;
        if steps.iter().all(|step| step.removed.is_none()) {
            return Ok(self);
        }
        let lengths: Vec<_> = steps.iter().map(|step| (step.tokens.len(), step.removed)).collect();
        let left = removed::settled(self.manifest().positions().start, &lengths);
        let (mut parts, mut own) = (Vec::new(), Vec::new());
        for ((at, step), left) in (0u32..).zip(steps).zip(left) {
            let Some(left) = left.filter(|&left| left > 0) else { continue };
            parts.push(StepPart::beginning(at, step, left));
            let is_whole = left == step.tokens.len();
            own.push(Step {
                tokens: step.tokens[..left].to_vec(),
                removed: None,
                choice: step.choice.filter(|_| is_whole),
                ..step.clone()
            });
        }
        let manifest = Manifest { steps: own, ..self.manifest().clone() };
        let sequence = self.selected();
        TraceReader::of_selection(manifest, Selection { whole: self, sequence, parts })
    }
}

impl StepPart {
    fn of_batch(step: u32, batch: &Batch, place: usize) -> StepPart {
        let part = &batch.sequences[place];
        let positions = 0..part.positions();
        let slot = |at: usize| part.slot(at, batch.block_size);
        StepPart {
            step,
            rows: part.rows.clone(),
            slots: if batch.slots == 0 {
                Vec::new()
            } else {
                positions.clone().map(slot).collect()
            },
            keys: positions.map(|at| part.key(at)).collect(),
            place: Some([place, batch.sequences.len()]),
            is_whole: false,
        }
    }

    /// The first tokens of a step.
    fn beginning(step: u32, of: &Step, tokens: usize) -> StepPart {
        let positions: Vec<usize> = (0..of.first_position + tokens).collect();
        let is_whole = tokens == of.tokens.len();
        let (slots, keys) = (positions.clone(), positions);
        StepPart { step, rows: (0..tokens).collect(), slots, keys, place: None, is_whole }
    }
}

impl Selection {
    pub fn sequence(&self) -> Option<u32> {
        self.sequence
    }

    /// The site of the whole trace.
    pub fn of_whole(&self, site: Site) -> Site {
        Site { step: self.of_whole_step(site.step), ..site }
    }

    pub fn of_whole_step(&self, step: u32) -> u32 {
        self.parts[step as usize].step
    }

    /// The own number of a step of the whole trace, where something of that is shown.
    pub fn own_step(&self, of_whole: u32) -> Option<u32> {
        let found = self.parts.binary_search_by_key(&of_whole, |part| part.step);
        found.ok().map(|step| step as u32)
    }

    fn part(&self, step: u32) -> Option<&StepPart> {
        self.parts.get(step as usize)
    }

    /// Which of the tokens that are shown have a row of a recorded site; `None` where all have.
    pub fn rows(&self, site: Site) -> Option<Arc<[usize]>> {
        let recorded = self.whole.rows(self.of_whole(site))?;
        let part = self.part(site.step)?;
        let has = |&token: &usize| recorded.contains(&part.rows[token]);
        let tokens: Vec<usize> = (0..part.rows.len()).filter(has).collect();
        (tokens.len() < part.rows.len()).then(|| tokens.into())
    }

    /// What a reader of the selection has of a site that the whole trace has.
    pub fn of_site(&self, site: Site, whole: &Whole) -> Option<Whole> {
        let part = self.part(site.step)?;
        let kind = self.whole.list().get(site).and_then(RowKind::of);
        let is_divided = matches!(kind, Some(RowKind::Tokens | RowKind::Slots));
        if part.place.is_none() && !part.is_whole && !is_divided {
            return None;
        }
        let rows = self.rows(site).filter(|_| whole.rows.is_some());
        if rows.as_ref().is_some_and(|rows| rows.is_empty()) {
            return None;
        }
        Some(Whole { rows, ..whole.clone() })
    }

    /// What is shown of a tensor.
    pub fn of_tensor(&self, site: Site, tensor: Tensor) -> Option<Tensor> {
        let part = self.part(site.step)?;
        if part.is_whole {
            return Some(tensor);
        }
        let listed = self.whole.list().get(site)?;
        let rows: Vec<usize> = match RowKind::of(listed)? {
            RowKind::Tokens => match self.whole.rows(self.of_whole(site)) {
                None => part.rows.clone(),
                Some(recorded) => {
                    let row = |row: &usize| recorded.iter().position(|own| own == row);
                    part.rows.iter().filter_map(row).collect()
                }
            },
            RowKind::Slots => part.slots.clone(),
            RowKind::Sequences => {
                let [place, sequences] = part.place?;
                let each = tensor.shape[0] / sequences;
                (place * each..(place + 1) * each).collect()
            }
        };
        let tensor = rows_of(tensor, &rows)?;
        if listed.axes.last() != Some(&Axis::Key) {
            return Some(tensor);
        }
        Some(last_of(&tensor, &part.keys))
    }

    /// The rows of a site with a row for each token, of all other sequences up to that step.
    pub fn neighbours(&self, site: Site) -> Result<Vec<NeighbourRow>, TraceError> {
        let mut found = Vec::new();
        for step in 0..=self.of_whole(site).step {
            let of_step = Site { step, ..site };
            let own = &self.whole.manifest().steps[step as usize];
            let (Some(batch), Some(tensor)) = (&own.batch, self.whole.tensor(of_step)?) else {
                continue;
            };
            if self.whole.rows(of_step).is_some() || tensor.shape[0] != own.tokens.len() {
                continue;
            }
            let width = tensor.data.len() / tensor.shape[0];
            let is_other = |part: &&BatchedSequence| Some(part.sequence) != self.sequence;
            for part in batch.sequences.iter().filter(is_other) {
                let row = |(token, &row): (usize, &usize)| NeighbourRow {
                    sequence: part.sequence,
                    position: part.first_position + token,
                    values: tensor.data[row * width..(row + 1) * width].to_vec(),
                };
                found.extend(part.rows.iter().enumerate().map(row));
            }
        }
        Ok(found)
    }

    /// The rows of a cache that hold none of the sequence's positions, of one page at most and of the other
    /// sequences of the step.
    pub fn outside(&self, site: Site) -> Result<Vec<OutsideRow>, TraceError> {
        let is_cache = self.whole.list().get(site).and_then(RowKind::of) == Some(RowKind::Slots);
        let Some(part) = self.part(site.step).filter(|_| is_cache) else { return Ok(Vec::new()) };
        let batch = self.whole.manifest().steps[part.step as usize].batch.as_ref();
        let (Some(batch), Some(tensor)) = (batch, self.whole.tensor(self.of_whole(site))?) else {
            return Ok(Vec::new());
        };
        let mut taken: BTreeSet<usize> = part.slots.iter().copied().collect();
        let mut slots: Vec<(Outside, usize, usize)> = Vec::new();
        let is_other = |other: &&BatchedSequence| Some(other.sequence) != self.sequence;
        for other in batch.sequences.iter().filter(is_other) {
            for position in 0..other.positions() {
                let slot = other.slot(position, batch.block_size);
                if taken.insert(slot) {
                    slots.push((Outside::Sequence(other.sequence), position, slot));
                }
            }
        }
        let (Some(&first), Some(&last)) = (part.slots.first(), part.slots.last()) else {
            return Ok(Vec::new());
        };
        let page = last + 1..(last / batch.block_size + 1) * batch.block_size;
        let behind = (part.slots.len()..).zip(page).filter(|(_, slot)| taken.insert(*slot));
        slots.extend(behind.map(|(position, slot)| (Outside::Page, position, slot)));
        let before = if batch.block_size == 1 { self.padding(0).min(first) } else { 0 };
        let before = (first - before..first).enumerate().filter(|(_, slot)| taken.insert(*slot));
        slots.extend(before.map(|(position, slot)| (Outside::Padding, position, slot)));
        let width = tensor.data.len() / tensor.shape[0];
        let row = |(of, position, slot): (Outside, usize, usize)| {
            let values = tensor.data[slot * width..(slot + 1) * width].to_vec();
            OutsideRow { of, position, values }
        };
        Ok(slots.into_iter().map(row).collect())
    }

    /// Rows of no sequence right before the sequence's own in a step.
    pub fn padding(&self, step: u32) -> usize {
        let Some(part) = self.part(step) else { return 0 };
        let Some(batch) = &self.whole.manifest().steps[part.step as usize].batch else { return 0 };
        let is_owned = |row: usize| batch.sequences.iter().any(|own| own.rows.contains(&row));
        let first = part.rows.iter().copied().min().unwrap_or(0);
        (0..first).rev().take_while(|&row| !is_owned(row)).count()
    }

    pub fn read(&self, site: Site, order: ByteOrder) -> Result<Option<Tensor>, TraceError> {
        let tensor = self.whole.read(self.of_whole(site), order)?;
        Ok(tensor.and_then(|tensor| self.of_tensor(site, tensor)))
    }
}

impl Manifest {
    /// The sequences of a batch, ascending; none where the trace is one sequence.
    pub fn sequences(&self) -> Vec<u32> {
        let batches = self.steps.iter().filter_map(|step| step.batch.as_ref());
        let numbers = batches.flat_map(|batch| &batch.sequences).map(|part| part.sequence);
        numbers.collect::<BTreeSet<u32>>().into_iter().collect()
    }
}

/// Some rows of a tensor; `None` where it has not all of them, as of a rank that has other rows.
fn rows_of(tensor: Tensor, rows: &[usize]) -> Option<Tensor> {
    let width: usize = tensor.shape[1..].iter().product();
    let mut data = Vec::with_capacity(rows.len() * width);
    for &row in rows {
        data.extend_from_slice(tensor.data.get(row * width..(row + 1) * width)?);
    }
    let mut shape = tensor.shape;
    shape[0] = rows.len();
    Some(Tensor::new(shape, data))
}

/// Some elements of the last axis.
fn last_of(tensor: &Tensor, chosen: &[usize]) -> Tensor {
    let mut shape = tensor.shape.clone();
    let last = shape.len() - 1;
    let lines = tensor.data.chunks_exact(shape[last]);
    let data = lines.flat_map(|line| chosen.iter().map(|&at| line[at])).collect();
    shape[last] = chosen.len();
    Tensor::new(shape, data)
}
