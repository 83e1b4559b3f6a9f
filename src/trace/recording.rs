//! One side's tensors in a nameless temporary file, to be read again after the run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::unix::fs::FileExt,
};

use crate::{
    core::{
        cache, pool,
        sink::{Sink, Stopped},
        tensor::Tensor,
    },
    graph::site::{Site, Stage},
    trace::{
        NeighbourRow, OtherSequence, OutsideRow, PaddingRow, Removed, Split, TraceError,
        TraceReader,
    },
};

/// Tensors that can be read again, in any order and from several threads.
pub trait Recorded: Sync {
    /// The tensor of a site, or `None` if it was not recorded.
    fn tensor(&self, site: Site) -> Result<Option<Tensor>, TraceError>;

    /// Whether the site was recorded.
    fn has(&self, site: Site) -> bool;

    /// Which tokens of its step the rows of a recorded site are of; `None` where every token has one.
    fn rows(&self, _site: Site) -> Option<&[usize]> {
        None
    }

    /// The position of the first token of the first step.
    fn first_position(&self) -> usize {
        0
    }

    /// The ids of the positions before that, where they are known; else none.
    fn prefix(&self) -> &[i32] {
        &[]
    }

    /// Positions that are removed from the caches before a step.
    fn removed(&self, _step: u32) -> Option<Removed> {
        None
    }

    /// The rows of a site with a row for each token that the other sequences of a batch have, up to that step.
    fn neighbours(&self, _site: Site) -> Result<Vec<NeighbourRow>, TraceError> {
        Ok(Vec::new())
    }

    /// The rows of a cache of a batch that hold none of the sequence's positions.
    fn outside(&self, _site: Site) -> Result<Vec<OutsideRow>, TraceError> {
        Ok(Vec::new())
    }

    /// Of a sequence in a batch, how many rows of padding stand right before its own in a step.
    fn padding(&self, _step: u32) -> usize {
        0
    }

    /// The other sequences of a batch.
    fn others(&self) -> Result<Vec<OtherSequence>, TraceError> {
        Ok(Vec::new())
    }

    /// The rows of a site with a row for each token that are of no sequence of the batch, of the same step.
    fn padding_rows(&self, _site: Site) -> Result<Vec<PaddingRow>, TraceError> {
        Ok(Vec::new())
    }

    /// The step of the batch that a sequence's step is of.
    fn step_of_batch(&self, step: u32) -> u32 {
        step
    }

    /// Of a tensor that is the sum of what several ranks recorded, the sum of their magnitudes.
    fn magnitudes(&self, _site: Site) -> Result<Option<Vec<f32>>, TraceError> {
        Ok(None)
    }

    /// How many ranks the work is divided over.
    fn world(&self) -> usize {
        1
    }

    /// What each rank recorded of a tensor that is their sum; nothing of any other.
    fn partial_sums(&self, _site: Site) -> Result<Vec<Tensor>, TraceError> {
        Ok(Vec::new())
    }
}

impl Recorded for TraceReader {
    fn tensor(&self, site: Site) -> Result<Option<Tensor>, TraceError> {
        TraceReader::tensor(self, site)
    }

    fn has(&self, site: Site) -> bool {
        TraceReader::has(self, site)
    }

    fn rows(&self, site: Site) -> Option<&[usize]> {
        TraceReader::rows(self, site)
    }

    fn first_position(&self) -> usize {
        self.manifest().positions().start
    }

    fn prefix(&self) -> &[i32] {
        self.manifest().steps.first().map_or(&[], |step| &step.prefix)
    }

    fn removed(&self, step: u32) -> Option<Removed> {
        self.manifest().steps.get(step as usize)?.removed
    }

    fn neighbours(&self, site: Site) -> Result<Vec<NeighbourRow>, TraceError> {
        self.selection.as_ref().map_or(Ok(Vec::new()), |selection| selection.neighbours(site))
    }

    fn outside(&self, site: Site) -> Result<Vec<OutsideRow>, TraceError> {
        self.selection.as_ref().map_or(Ok(Vec::new()), |selection| selection.outside(site))
    }

    fn padding(&self, step: u32) -> usize {
        self.selection.as_ref().map_or(0, |selection| selection.padding(step))
    }

    fn others(&self) -> Result<Vec<OtherSequence>, TraceError> {
        self.selection.as_ref().map_or(Ok(Vec::new()), |selection| selection.others())
    }

    fn padding_rows(&self, site: Site) -> Result<Vec<PaddingRow>, TraceError> {
        self.selection.as_ref().map_or(Ok(Vec::new()), |selection| selection.padding_rows(site))
    }

    fn step_of_batch(&self, step: u32) -> u32 {
        self.selection.as_ref().map_or(step, |selection| selection.of_whole_step(step))
    }

    fn magnitudes(&self, site: Site) -> Result<Option<Vec<f32>>, TraceError> {
        TraceReader::magnitudes(self, site)
    }

    fn world(&self) -> usize {
        TraceReader::world(self)
    }

    fn partial_sums(&self, site: Site) -> Result<Vec<Tensor>, TraceError> {
        if self.world() == 1 || self.split(site.stage) != Split::Partial {
            return Ok(Vec::new());
        }
        let of_rank = |rank| TraceReader::of_rank(self, site, rank).transpose();
        (0..self.world()).filter_map(of_rank).collect()
    }
}

/// A file that only this process knows: it is gone when the process ends, however it ends.
pub struct Spool {
    file: File,
    length: u64,
    /// First byte and shape of each tensor.
    places: BTreeMap<Site, (u64, Vec<usize>)>,
    error: Option<TraceError>,
}

impl Spool {
    /// An empty spool in the cache folder.
    pub fn new() -> Result<Spool, TraceError> {
        let folder = cache::root();
        let failed = TraceError::io("create a temporary file in", &folder);
        let file = cache::folder("spool").and_then(tempfile::tempfile_in).map_err(failed)?;
        Ok(Spool { file, length: 0, places: BTreeMap::new(), error: None })
    }

    /// Adds the tensor of a site; a second one replaces the first. After an error nothing more is
    /// written.
    pub fn record(&mut self, site: Site, tensor: &Tensor) {
        if self.error.is_none() {
            self.error = self.write(site, tensor).err();
        }
    }

    /// The whole recording, or what went wrong with it.
    pub fn finished(mut self) -> Result<Spool, TraceError> {
        self.error.take().map_or(Ok(self), Err)
    }

    /// What was recorded of some sites.
    pub fn of(mut self, sites: &BTreeSet<Site>) -> Spool {
        self.places.retain(|site, _| sites.contains(site));
        self
    }

    fn write(&mut self, site: Site, tensor: &Tensor) -> Result<(), TraceError> {
        let bytes: &[u8] = bytemuck::cast_slice(&tensor.data);
        let failed = TraceError::io("write a temporary file in", cache::root());
        self.file.write_all_at(bytes, self.length).map_err(failed)?;
        self.places.insert(site, (self.length, tensor.shape.clone()));
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// Takes every tensor. An error is kept for [`Spool::finished`] and ends the recording, not the run.
impl Sink for Spool {
    fn wants(&self, _site: Site) -> bool {
        true
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        self.record(site, &tensor);
        Ok(())
    }
}

impl Recorded for Spool {
    fn tensor(&self, site: Site) -> Result<Option<Tensor>, TraceError> {
        let Some((offset, shape)) = self.places.get(&site) else { return Ok(None) };
        let mut data = pool::memory(shape.iter().product());
        let failed = TraceError::io("read a temporary file in", cache::root());
        let bytes = bytemuck::cast_slice_mut(&mut data);
        self.file.read_exact_at(bytes, *offset).map_err(failed)?;
        Ok(Some(Tensor::new(shape.clone(), data)))
    }

    fn has(&self, site: Site) -> bool {
        self.places.contains_key(&site)
    }
}

/// A recording in which some stages are not looked at.
pub struct Without<'a> {
    pub recorded: &'a dyn Recorded,
    pub stages: Vec<Stage>,
}

impl Recorded for Without<'_> {
    fn tensor(&self, site: Site) -> Result<Option<Tensor>, TraceError> {
        if self.has(site) { self.recorded.tensor(site) } else { Ok(None) }
    }

    fn rows(&self, site: Site) -> Option<&[usize]> {
        self.recorded.rows(site)
    }

    fn first_position(&self) -> usize {
        self.recorded.first_position()
    }

    fn prefix(&self) -> &[i32] {
        self.recorded.prefix()
    }

    fn removed(&self, step: u32) -> Option<Removed> {
        self.recorded.removed(step)
    }

    fn neighbours(&self, site: Site) -> Result<Vec<NeighbourRow>, TraceError> {
        self.recorded.neighbours(site)
    }

    fn outside(&self, site: Site) -> Result<Vec<OutsideRow>, TraceError> {
        self.recorded.outside(site)
    }

    fn padding(&self, step: u32) -> usize {
        self.recorded.padding(step)
    }

    fn others(&self) -> Result<Vec<OtherSequence>, TraceError> {
        let others = self.recorded.others()?.into_iter();
        Ok(others.map(|other| other.without(&self.stages)).collect())
    }

    fn padding_rows(&self, site: Site) -> Result<Vec<PaddingRow>, TraceError> {
        if self.has(site) { self.recorded.padding_rows(site) } else { Ok(Vec::new()) }
    }

    fn step_of_batch(&self, step: u32) -> u32 {
        self.recorded.step_of_batch(step)
    }

    fn magnitudes(&self, site: Site) -> Result<Option<Vec<f32>>, TraceError> {
        if self.has(site) { self.recorded.magnitudes(site) } else { Ok(None) }
    }

    fn world(&self) -> usize {
        self.recorded.world()
    }

    fn partial_sums(&self, site: Site) -> Result<Vec<Tensor>, TraceError> {
        if self.has(site) { self.recorded.partial_sums(site) } else { Ok(Vec::new()) }
    }

    fn has(&self, site: Site) -> bool {
        !self.stages.contains(&site.stage) && self.recorded.has(site)
    }
}
