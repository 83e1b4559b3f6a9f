//! One sequence of a trace of several, as a trace of its own.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    batch::{Batch, BatchedSequence},
    error::TraceError,
    header::ByteOrder,
    layout::RowKind,
    manifest::{Manifest, Step},
    read::TraceReader,
    stitch::Whole,
};
use crate::{
    core::tensor::Tensor,
    graph::site::{Axis, Site},
};

/// The sequence that a reader shows, and the trace that has it.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    pub batch: TraceReader,
    pub sequence: u32,
    /// Of each step that the sequence is in: the batch's step, and the sequence's place in it.
    steps: Vec<(u32, usize)>,
}

/// A row of a site that another sequence of the batch has.
#[derive(Clone, Debug)]
pub struct NeighbourRow {
    pub sequence: u32,
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
        self.selection.as_ref().map(|selection| selection.sequence)
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
        let (mut steps, mut own) = (Vec::new(), Vec::new());
        for (at, step) in (0u32..).zip(&self.manifest().steps) {
            let sequences = step.batch.iter().flat_map(|batch| &batch.sequences).enumerate();
            for (place, part) in sequences.filter(|(_, part)| part.sequence == sequence) {
                steps.push((at, place));
                own.push(Step {
                    tokens: part.rows.iter().map(|&row| step.tokens[row]).collect(),
                    first_position: part.first_position,
                    choice: None,
                    batch: None,
                    ..step.clone()
                });
            }
        }
        let manifest =
            Manifest { steps: own, prompt_tokens: None, prompt: None, ..self.manifest().clone() };
        let selection = Selection { batch: self, sequence, steps };
        TraceReader::of_sequence(manifest, selection)
    }
}

impl Selection {
    /// The batch's site.
    pub fn of_batch(&self, site: Site) -> Site {
        Site { step: self.of_batch_step(site.step), ..site }
    }

    pub fn of_batch_step(&self, step: u32) -> u32 {
        self.steps[step as usize].0
    }

    /// The sequence's own number of a step of the batch, where it is in that.
    pub fn own_step(&self, of_batch: u32) -> Option<u32> {
        let found = self.steps.binary_search_by_key(&of_batch, |(step, _)| *step);
        found.ok().map(|step| step as u32)
    }

    fn part(&self, step: u32) -> Option<(&Batch, &BatchedSequence, usize)> {
        let (step, place) = *self.steps.get(step as usize)?;
        let batch = self.batch.manifest().steps[step as usize].batch.as_ref()?;
        Some((batch, &batch.sequences[place], place))
    }

    /// Which tokens of the sequence's step have a row of a recorded site; `None` where all have.
    pub fn rows(&self, site: Site) -> Option<Arc<[usize]>> {
        let recorded = self.batch.rows(self.of_batch(site))?;
        let (_, part, _) = self.part(site.step)?;
        let has = |&token: &usize| recorded.contains(&part.rows[token]);
        let tokens: Vec<usize> = (0..part.rows.len()).filter(has).collect();
        (tokens.len() < part.rows.len()).then(|| tokens.into())
    }

    /// What a reader of the sequence has of a site that the batch has.
    pub fn whole(&self, site: Site, of_batch: &Whole) -> Option<Whole> {
        let rows = self.rows(site).filter(|_| of_batch.rows.is_some());
        if rows.as_ref().is_some_and(|rows| rows.is_empty()) {
            return None;
        }
        Some(Whole { rows, ..of_batch.clone() })
    }

    /// The sequence's part of a tensor of the batch.
    pub fn of_tensor(&self, site: Site, tensor: Tensor) -> Option<Tensor> {
        let (batch, part, place) = self.part(site.step)?;
        let listed = self.batch.list().get(site)?;
        let rows: Vec<usize> = match RowKind::of(listed)? {
            RowKind::Tokens => match self.batch.rows(self.of_batch(site)) {
                None => part.rows.clone(),
                Some(recorded) => {
                    let row = |row: &usize| recorded.iter().position(|own| own == row);
                    part.rows.iter().filter_map(row).collect()
                }
            },
            RowKind::Slots => {
                (0..part.positions()).map(|at| part.slot(at, batch.block_size)).collect()
            }
            RowKind::Sequences => {
                let each = tensor.shape[0] / batch.sequences.len();
                (place * each..(place + 1) * each).collect()
            }
        };
        let tensor = rows_of(tensor, &rows)?;
        if listed.axes.last() != Some(&Axis::Key) {
            return Some(tensor);
        }
        let keys: Vec<usize> = (0..part.positions()).map(|at| part.key(at)).collect();
        Some(last_of(&tensor, &keys))
    }

    /// The rows of a site with a row for each token, of all other sequences up to that step.
    pub fn neighbours(&self, site: Site) -> Result<Vec<NeighbourRow>, TraceError> {
        let mut found = Vec::new();
        for step in 0..=self.of_batch(site).step {
            let of_step = Site { step, ..site };
            let own = &self.batch.manifest().steps[step as usize];
            let (Some(batch), Some(tensor)) = (&own.batch, self.batch.tensor(of_step)?) else {
                continue;
            };
            if self.batch.rows(of_step).is_some() || tensor.shape[0] != own.tokens.len() {
                continue;
            }
            let width = tensor.data.len() / tensor.shape[0];
            for part in batch.sequences.iter().filter(|part| part.sequence != self.sequence) {
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

    /// Rows of no sequence right before the sequence's own in a step.
    pub fn padding(&self, step: u32) -> usize {
        let Some((batch, part, _)) = self.part(step) else { return 0 };
        let is_owned = |row: usize| batch.sequences.iter().any(|own| own.rows.contains(&row));
        let first = part.rows.iter().copied().min().unwrap_or(0);
        (0..first).rev().take_while(|&row| !is_owned(row)).count()
    }

    pub fn read(&self, site: Site, order: ByteOrder) -> Result<Option<Tensor>, TraceError> {
        let tensor = self.batch.read(self.of_batch(site), order)?;
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
