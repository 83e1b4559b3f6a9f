//! Hooks: the wanted sites of a step on their way to the sink. Nothing is copied for others.

use std::collections::VecDeque;

use half::{f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use crate::{
    capture::{NoSink, Sink},
    device::{Buffer, Device, DeviceError, Download},
    engine::{EngineError, captures::Captures},
    model::Config,
    recycle,
    site::{Site, Stage},
    tensor::{DType, Tensor},
};

/// One step on its way through the layers.
pub struct Pass<'a> {
    pub device: &'a dyn Device,
    pub config: &'a Config,
    sink: &'a mut dyn Sink,
    pub step: u32,
    /// T.
    pub tokens: usize,
    /// P, after this step.
    pub length: usize,
    /// (T, Hq, P) f32, where any layer's scores or probs are wanted; of the chosen tokens only.
    pub scores: Option<Buffer>,
    pub probs: Option<Buffer>,
    /// The tokens whose scores and probs are wanted, ascending; `None` where that is all.
    pub chosen: Option<Vec<usize>>,
    /// Where the captures of a step that is being recorded go.
    recording: Option<&'a Captures>,
    /// What leaves the device, in the order of the sites.
    reads: VecDeque<Read>,
}

/// Reads that are widened side by side, if they have so many elements: other threads take longer to wake
/// than fewer to widen.
const GROUP: usize = 64;
const SHARED: usize = 1 << 21;

/// A site's values while they leave the device.
struct Read {
    site: Site,
    shape: Vec<usize>,
    dtype: DType,
    /// One piece a KV head for a cache, else what follows one another.
    pieces: Vec<Box<dyn Download>>,
}

impl<'a> Pass<'a> {
    pub fn new(
        device: &'a dyn Device,
        config: &'a Config,
        sink: &'a mut dyn Sink,
        step: u32,
        (tokens, length): (usize, usize),
    ) -> Result<Pass<'a>, EngineError> {
        let (scores, probs, recording, reads) = (None, None, None, VecDeque::new());
        let at = Site { step, layer: Some(0), stage: Stage::Scores };
        let chosen = sink.queries(at).map(<[usize]>::to_vec);
        let rows = chosen.as_ref().map_or(tokens, Vec::len);
        let mut pass = Pass {
            device,
            config,
            sink,
            step,
            tokens,
            length,
            scores,
            probs,
            chosen,
            recording,
            reads,
        };
        let tap = |what: Stage| device.alloc(4 * rows * config.n_head * length, what.name());
        if pass.wants_in_any_layer(Stage::Probs) {
            pass.probs = Some(tap(Stage::Probs)?);
        }
        // A softmax over split keys reads the scores again.
        if pass.probs.is_some() || pass.wants_in_any_layer(Stage::Scores) {
            pass.scores = Some(tap(Stage::Scores)?);
        }
        Ok(pass)
    }

    /// A step of one token that is being recorded; its taps have a row of `length` keys.
    pub fn recorded(
        (device, config): (&'a dyn Device, &'a Config),
        sink: &'a mut NoSink,
        (step, length): (u32, usize),
        (captures, taps): (&'a Captures, [Option<Buffer>; 2]),
    ) -> Pass<'a> {
        let [scores, probs] = taps;
        let (recording, chosen, reads) = (Some(captures), None, VecDeque::new());
        Pass {
            device,
            config,
            sink,
            step,
            tokens: 1,
            length,
            scores,
            probs,
            chosen,
            recording,
            reads,
        }
    }

    /// The sites of a step that are wanted, in canonical order; with step 0 for any.
    pub fn wanted(&self) -> Vec<Site> {
        let wanted = |site: &Site| self.sink.wants(Site { step: self.step, ..*site });
        self.config.sites(1).into_iter().filter(wanted).collect()
    }

    pub fn wants(&self, layer: Option<usize>, stage: Stage) -> bool {
        self.sink.wants(self.site(layer, stage))
    }

    fn wants_in_any_layer(&self, stage: Stage) -> bool {
        (0..self.config.n_layer).any(|layer| self.wants(Some(layer), stage))
    }

    fn site(&self, layer: Option<usize>, stage: Stage) -> Site {
        Site { step: self.step, layer: layer.map(|layer| layer as u32), stage }
    }

    /// Offers what a buffer holds now.
    pub fn emit(
        &mut self,
        layer: Option<usize>,
        stage: Stage,
        buffer: &Buffer,
        dtype: DType,
    ) -> Result<(), EngineError> {
        if let Some(captures) = self.recording {
            return Ok(captures.keep(self.device, (layer, stage), buffer)?);
        }
        if !self.wants(layer, stage) {
            return Ok(());
        }
        let mut shape = self.config.shape(stage, self.tokens, self.length);
        if let (Stage::Scores | Stage::Probs, Some(chosen)) = (stage, &self.chosen) {
            shape[0] = chosen.len();
        }
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let read = self.start(buffer, 0, bytes)?;
        let site = self.site(layer, stage);
        self.reads.push_back(Read { site, shape, dtype, pieces: vec![read] });
        self.pass_on(false)
    }

    /// Offers what is on its way, as pieces that follow one another.
    pub fn push(&mut self, site: Site, dtype: DType, pieces: Vec<Box<dyn Download>>) {
        let shape = self.config.shape(site.stage, self.tokens, self.length);
        let site = Site { step: self.step, ..site };
        self.reads.push_back(Read { site, shape, dtype, pieces });
    }

    /// Keeps a tap for the next layer.
    pub fn put_back(&mut self, stage: Stage, tap: Buffer) {
        match stage {
            Stage::Scores => self.scores = Some(tap),
            _ => self.probs = Some(tap),
        }
    }

    /// Offers the positions 0..P of a cache, from [kv_head][position][dim] to (P, Hk, D).
    pub fn emit_cache(
        &mut self,
        layer: usize,
        stage: Stage,
        cache: &Buffer,
        (capacity, dtype): (usize, DType),
    ) -> Result<(), EngineError> {
        if self.recording.is_some() || !self.wants(Some(layer), stage) {
            return Ok(());
        }
        let row = self.config.head_dim * dtype.size();
        let pieces = (0..self.config.n_head_kv)
            .map(|head| self.start(cache, head * capacity * row, self.length * row))
            .collect::<Result<_, _>>()?;
        let shape = self.config.shape(stage, self.tokens, self.length);
        let site = self.site(Some(layer), stage);
        self.reads.push_back(Read { site, shape, dtype, pieces });
        self.pass_on(false)
    }

    /// Offers what is still under way, and ends the step.
    pub fn finish(mut self) -> Result<(), EngineError> {
        self.pass_on(true)
    }

    /// Starts to read bytes, once there is room for them.
    pub fn start(
        &mut self,
        buffer: &Buffer,
        offset: usize,
        bytes: usize,
    ) -> Result<Box<dyn Download>, EngineError> {
        loop {
            if let Some(read) = self.device.read(buffer, offset, bytes)? {
                return Ok(read);
            }
            let oldest = self.reads.pop_front().expect("a device is full of what is under way");
            let (site, tensor) = oldest.tensor(self.config.head_dim)?;
            self.sink.put(site, tensor)?;
        }
    }

    /// Gives the sink what has arrived, in order; all of it, if need be by waiting.
    fn pass_on(&mut self, all: bool) -> Result<(), EngineError> {
        // Pieces arrive in their order.
        let is_ready = |read: &&Read| all || read.pieces.last().is_none_or(|last| last.is_ready());
        let dim = self.config.head_dim;
        loop {
            let ready = self.reads.iter().take(GROUP).take_while(is_ready).count();
            let group: Vec<Read> = self.reads.drain(..ready).collect();
            if group.is_empty() {
                return Ok(());
            }
            let elements = |read: &Read| read.shape.iter().product::<usize>();
            let tensors: Vec<_> = match group.iter().map(elements).sum::<usize>() >= SHARED {
                true => group.into_par_iter().map(|read| read.tensor(dim)).collect(),
                false => group.into_iter().map(|read| read.tensor(dim)).collect(),
            };
            for tensor in tensors {
                let (site, tensor) = tensor?;
                self.sink.put(site, tensor)?;
            }
        }
    }
}

impl Read {
    /// The values, once they are there, in f32 and in the stage's order.
    fn tensor(self, head_dim: usize) -> Result<(Site, Tensor), EngineError> {
        let Read { site, shape, dtype, pieces } = self;
        let of_site = |error| at_site(error, site);
        let pieces: Vec<&[u8]> =
            pieces.iter().map(|piece| piece.bytes().map_err(of_site)).collect::<Result<_, _>>()?;
        let mut data = recycle::memory(shape.iter().product());
        // A cache has a piece for each head; the rows of other stages are in order.
        let dim = match site.stage {
            Stage::KCache | Stage::VCache => head_dim,
            _ => data.len() / pieces.len().max(1),
        };
        match dtype {
            DType::F16 => interleave::<f16>(&pieces, &mut data, dim),
            _ => interleave::<f32>(&pieces, &mut data, dim),
        }
        Ok((site, Tensor::new(shape, data)))
    }
}

/// An error met while a site was read.
fn at_site(error: DeviceError, site: Site) -> DeviceError {
    match error {
        DeviceError::Cuda { doing, detail } => {
            DeviceError::Cuda { doing: format!("{doing} (reading {site})"), detail }
        }
        other => other,
    }
}

/// An element of the engine's storage.
trait Stored: bytemuck::Pod + Sync {
    /// Widens as many elements as there are.
    fn widen(from: &[Self], to: &mut [f32]);
}

impl Stored for f32 {
    fn widen(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Stored for f16 {
    fn widen(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

/// Elements that one task widens.
const TASK: usize = 1 << 16;

/// Widens pieces, one a head: from [head][position][dim] to (position, head, dim). A single piece keeps
/// its order.
fn interleave<T: Stored>(pieces: &[&[u8]], data: &mut [f32], dim: usize) {
    let heads: Vec<&[T]> = pieces.iter().map(|piece| bytemuck::cast_slice(piece)).collect();
    if let [whole] = heads[..] {
        // Other threads take longer to wake than a small tensor to widen.
        if whole.len() <= TASK {
            return T::widen(whole, data);
        }
        let parts = data.par_chunks_mut(TASK).zip(whole.par_chunks(TASK));
        parts.for_each(|(to, from)| T::widen(from, to));
        return;
    }
    let row = heads.len() * dim;
    let rows = (TASK / row).max(1);
    let part = |(part, data): (usize, &mut [f32])| {
        for (position, data) in (part * rows..).zip(data.chunks_exact_mut(row)) {
            for (head, to) in heads.iter().zip(data.chunks_exact_mut(dim)) {
                T::widen(&head[position * dim..(position + 1) * dim], to);
            }
        }
    };
    match data.len() <= TASK {
        true => part((0, data)),
        false => data.par_chunks_mut(rows * row).enumerate().for_each(part),
    }
}
