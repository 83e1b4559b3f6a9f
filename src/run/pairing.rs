//! Two traces of the same tokens, position by position, however each divides them into steps.

use std::{collections::HashMap, ops::Range};

use super::SeenKeys;
use crate::{
    compare::{RowTokens, verdict::Outcome},
    core::tensor::Tensor,
    graph::{
        ListedSite, Size,
        site::{Axis, Site},
    },
    trace::{Common, Step, TraceError, TraceReader},
};

/// An engine's trace and a reference's. Sites are those of the reference's steps, and after them of the
/// engine's steps that go on.
pub struct Pairing<'a> {
    pub engine: &'a TraceReader,
    pub reference: &'a TraceReader,
    pub common: Common,
    /// The engine's steps that end after the reference.
    beyond: Range<usize>,
    /// Of each site that is not whole in the same step of both: which of its rows both have.
    shared: HashMap<Site, Shared>,
}

/// What two sides share of a site.
enum Shared {
    /// Rows of the reference's step, by their tokens or positions.
    Rows(Vec<usize>),
    /// The engine made rows for other tokens of its steps.
    OtherRows,
    Nothing(Outcome),
}

/// Where a row lies: the step of the trace that has it, and its place in the recorded tensor.
type RowPlace = (u32, usize);

impl<'a> Pairing<'a> {
    pub fn new(engine: &'a TraceReader, reference: &'a TraceReader, common: Common) -> Pairing<'a> {
        let (own, steps) = (&engine.manifest().steps, reference.manifest().steps.len());
        let end = reference.manifest().positions().end;
        let first = own.iter().position(|step| step.positions() > end).unwrap_or(own.len());
        let beyond = first..own.len();
        let mut pairing = Pairing { engine, reference, common, beyond, shared: HashMap::new() };
        for site in reference.list().of_run(steps as u32) {
            if let Some(shared) = pairing.share(site) {
                pairing.shared.insert(site, shared);
            }
        }
        pairing
    }

    /// Every site of the steps that either side has.
    pub fn sites(&self) -> Vec<Site> {
        let steps = self.reference.manifest().steps.len() + self.beyond.len();
        self.reference.list().of_run(steps as u32)
    }

    /// The rows of a site that are compared, where they are not those of the whole step as both have it.
    pub fn rows(&self, site: Site) -> Option<&[usize]> {
        match self.shared.get(&site) {
            Some(Shared::Rows(rows)) => Some(rows),
            _ => None,
        }
    }

    /// How the rows of a site are counted and seen; `seen` is of the reference.
    pub fn row_tokens<'s>(&'s self, seen: &'s SeenKeys, site: Site) -> RowTokens<'s> {
        let step = self.reference.manifest().steps.get(site.step as usize);
        RowTokens {
            axes: Some(self.reference.list().axes(site)),
            seen: seen.get(site),
            chosen: self.rows(site),
            ..step.map_or(0, |step| step.first_position).into()
        }
    }

    /// Of a site of which the sides share some rows only, or of whose rows the engine made others: how many, of
    /// how many.
    pub fn partly(&self, site: Site) -> Option<[usize; 2]> {
        let all = *self.shape(site)?.first()?;
        if matches!(self.shared.get(&site), Some(Shared::OtherRows)) {
            return Some([0, all]);
        }
        self.rows(site).map(|rows| [rows.len(), all]).filter(|[some, all]| some < all)
    }

    /// Why nothing of a site is compared, where that is known.
    pub fn missing(&self, site: Site) -> Option<&Outcome> {
        match self.shared.get(&site) {
            Some(Shared::Nothing(why)) => Some(why),
            _ => None,
        }
    }

    /// The engine's tensor of a site, or the rows of it that the reference has too.
    pub fn engine(&self, site: Site) -> Result<Option<Tensor>, TraceError> {
        let Some(step) = self.reference.manifest().steps.get(site.step as usize) else {
            let step = self.beyond.start + site.step as usize;
            let step = step - self.reference.manifest().steps.len();
            return self.engine.tensor(Site { step: step as u32, ..site });
        };
        match self.shared.get(&site) {
            Some(Shared::Nothing(_) | Shared::OtherRows) => Ok(None),
            Some(Shared::Rows(rows)) => self.gathered(self.engine, site, rows),
            None => match step_of(self.engine, step) {
                Some(step) => self.engine.tensor(Site { step, ..site }),
                None => Ok(None),
            },
        }
    }

    /// The reference's tensor of a site, or the rows of it that the engine has too.
    pub fn reference(&self, site: Site) -> Result<Option<Tensor>, TraceError> {
        match self.shared.get(&site) {
            Some(Shared::Nothing(_) | Shared::OtherRows) => Ok(None),
            Some(Shared::Rows(rows)) => self.gathered(self.reference, site, rows),
            None if (site.step as usize) < self.reference.manifest().steps.len() => {
                self.reference.tensor(site)
            }
            None => Ok(None),
        }
    }

    fn shape(&self, site: Site) -> Option<Vec<usize>> {
        let step = self.reference.manifest().steps.get(site.step as usize)?;
        let listed = self.reference.list().get(site)?;
        Some(listed.shape(step.tokens.len(), step.positions()))
    }

    /// Which rows of a site of the reference both sides have; `None` where both have it whole in the same step,
    /// or it is missing altogether.
    fn share(&self, site: Site) -> Option<Shared> {
        let step = &self.reference.manifest().steps[site.step as usize];
        let listed = self.reference.list().get(site)?;
        let twin = step_of(self.engine, step).map(|step| Site { step, ..site });
        let is_common = self.common.positions.contains(&step.first_position)
            && self.common.positions.contains(&(step.positions() - 1));
        let is_whole = |trace: &TraceReader, site: Site| trace.rows(site).is_none();
        if is_common
            && let Some(twin) = twin
            && is_whole(self.engine, twin)
            && is_whole(self.reference, site)
        {
            return None;
        }
        let all = *self.shape(site)?.first()?;
        let has = |trace: &TraceReader, row: usize| row_place(trace, listed, step, row).is_some();
        let rows: Vec<usize> = match rows_are(listed)? {
            RowsAre::Tokens => {
                let is_common =
                    |row: &usize| self.common.positions.contains(&(step.first_position + row));
                let both = |row: &usize| has(self.engine, *row) && has(self.reference, *row);
                (0..all).filter(is_common).filter(both).collect()
            }
            RowsAre::Positions => {
                let both = |row: &usize| has(self.engine, *row) && has(self.reference, *row);
                let is_over = step.first_position >= self.common.positions.end;
                let rows = if is_over { 0 } else { all.min(self.common.positions.end) };
                (0..rows).filter(both).collect()
            }
            RowsAre::Neither if is_common && twin.is_some() => return None,
            RowsAre::Neither => Vec::new(),
        };
        if !rows.is_empty() {
            return Some(Shared::Rows(rows));
        }
        let common = self.common.positions.start.max(step.first_position)
            ..self.common.positions.end.min(step.positions());
        let is_other = |position: usize| {
            let own = step_at(self.engine, position).map(|step| listed.site(step));
            own.is_some_and(|own| self.engine.has(own) && self.engine.rows(own).is_some())
        };
        if !common.is_empty() && self.reference.has(site) && common.clone().all(is_other) {
            return Some(Shared::OtherRows);
        }
        let parted = self.common.parting.filter(|parting| step.positions() > parting.position);
        let is_before = step.positions() <= self.engine.manifest().positions().start;
        Some(Shared::Nothing(match parted {
            Some(parting) => Outcome::parted(parting.position),
            None if is_before => Outcome::Unmeasured(format!(
                "the engine's trace begins at position {}",
                self.engine.manifest().positions().start
            )),
            None if matches!(rows_are(listed), Some(RowsAre::Neither)) => Outcome::Unmeasured(
                "its rows are not tokens, and the sides split the run into different steps".into(),
            ),
            None if !self.reference.has(site) => {
                Outcome::Unmeasured("the reference does not have it".into())
            }
            None => Outcome::missing_in_engine(),
        }))
    }

    /// Rows of a site of the reference, from the steps of a trace that have them.
    fn gathered(
        &self,
        trace: &TraceReader,
        site: Site,
        rows: &[usize],
    ) -> Result<Option<Tensor>, TraceError> {
        let step = &self.reference.manifest().steps[site.step as usize];
        let (Some(listed), Some(mut shape)) = (self.reference.list().get(site), self.shape(site))
        else {
            return Ok(None);
        };
        shape[0] = rows.len();
        let width: usize = shape[1..].iter().product();
        let mut data = Vec::with_capacity(rows.len() * width);
        let mut open: Option<(u32, Tensor)> = None;
        for &row in rows {
            let Some((own, place)) = row_place(trace, listed, step, row) else { return Ok(None) };
            if open.as_ref().is_none_or(|(step, _)| *step != own) {
                let Some(tensor) = trace.tensor(Site { step: own, ..site })? else {
                    return Ok(None);
                };
                open = Some((own, tensor));
            }
            let Some((_, tensor)) = &open else { return Ok(None) };
            let own_width = tensor.data.len() / tensor.shape[0];
            let from = &tensor.data[place * own_width..(place + 1) * own_width];
            if tensor.shape[1..] == shape[1..] {
                data.extend_from_slice(from);
            } else if !add_keys(&mut data, listed, (from, &tensor.shape), &shape) {
                // It stays another shape, which the comparison refuses.
                return trace.tensor(Site { step: own, ..site });
            }
        }
        Ok(Some(Tensor::new(shape, data)))
    }
}

/// Adds a row with as many keys as the shape has: those that are over are after every query of the shorter
/// step. `false` where more than that differs.
fn add_keys(
    data: &mut Vec<f32>,
    listed: &ListedSite,
    (row, own): (&[f32], &[usize]),
    shape: &[usize],
) -> bool {
    let last = shape.len() - 1;
    let is_keys = listed.axes.last() == Some(&Axis::Key) && own.len() == shape.len();
    if !is_keys || own[1..last] != shape[1..last] {
        return false;
    }
    for keys in row.chunks(own[last]) {
        let some = keys.len().min(shape[last]);
        data.extend_from_slice(&keys[..some]);
        data.resize(data.len() + shape[last] - some, 0.0);
    }
    true
}

enum RowsAre {
    Tokens,
    Positions,
    Neither,
}

fn rows_are(listed: &ListedSite) -> Option<RowsAre> {
    let positions = Size { per_cell: 1, ..Size::default() };
    let is_cache = listed.axes.first() == Some(&Axis::Position);
    Some(if listed.has_row_of_each_token() {
        RowsAre::Tokens
    } else if is_cache && listed.sizes.first() == Some(&positions) {
        RowsAre::Positions
    } else {
        RowsAre::Neither
    })
}

/// The step of a trace that runs the very positions of another's.
fn step_of(trace: &TraceReader, step: &Step) -> Option<u32> {
    let steps = &trace.manifest().steps;
    let at = steps.partition_point(|own| own.first_position < step.first_position);
    let is_it = |own: &&Step| {
        own.first_position == step.first_position && own.tokens.len() == step.tokens.len()
    };
    steps.get(at).filter(is_it).map(|_| at as u32)
}

/// The step of a trace that runs a position.
fn step_at(trace: &TraceReader, position: usize) -> Option<u32> {
    let steps = &trace.manifest().steps;
    let at = steps.partition_point(|own| own.positions() <= position);
    steps.get(at).map(|_| at as u32)
}

/// Where a trace has a row of a site of that step; of a cache, in the first step after which it holds all of
/// the step's positions, or else the last.
fn row_place(
    trace: &TraceReader,
    listed: &ListedSite,
    step: &Step,
    row: usize,
) -> Option<RowPlace> {
    let steps = &trace.manifest().steps;
    let at = |position: usize| steps.partition_point(|own| own.positions() < position);
    let (own, row) = match rows_are(listed)? {
        RowsAre::Tokens => {
            let position = step.first_position + row;
            let own = at(position + 1);
            (own, position.checked_sub(steps.get(own)?.first_position)?)
        }
        RowsAre::Positions => {
            let own = at(step.positions()).min(steps.len() - 1);
            (own, (row < steps[own].positions()).then_some(row)?)
        }
        RowsAre::Neither => return None,
    };
    let site = listed.site(own as u32);
    if !trace.has(site) {
        return None;
    }
    match trace.rows(site) {
        None => Some((own as u32, row)),
        Some(tokens) => Some((own as u32, tokens.binary_search(&row).ok()?)),
    }
}
