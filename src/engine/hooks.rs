//! Hooks: the wanted sites of a step on their way to the sink. Nothing is copied for others.

use std::collections::VecDeque;

use half::{f16, slice::HalfFloatSliceExt};

use crate::{
    capture::Sink,
    device::{Buffer, Device, DeviceError, Download},
    engine::EngineError,
    model::Config,
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
    /// (T, Hq, P) f32, where any layer's scores or probs are wanted.
    pub scores: Option<Buffer>,
    pub probs: Option<Buffer>,
    /// What leaves the device, in the order of the sites.
    reads: VecDeque<Read>,
}

/// A site's values while they leave the device.
struct Read {
    site: Site,
    shape: Vec<usize>,
    dtype: DType,
    /// One piece a KV head for a cache, else one.
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
        let (scores, probs, reads) = (None, None, VecDeque::new());
        let mut pass = Pass { device, config, sink, step, tokens, length, scores, probs, reads };
        let tap = |what: Stage| device.alloc(4 * tokens * config.n_head * length, what.name());
        if pass.wants_in_any_layer(Stage::Probs) {
            pass.probs = Some(tap(Stage::Probs)?);
        }
        // A softmax over split keys reads the scores again.
        if pass.probs.is_some() || pass.wants_in_any_layer(Stage::Scores) {
            pass.scores = Some(tap(Stage::Scores)?);
        }
        Ok(pass)
    }

    /// Whether the sink wants any site of the step.
    pub fn wants_any(&self) -> bool {
        let in_layer = |stage: Stage| stage.in_layer() && self.wants_in_any_layer(stage);
        Stage::ALL.into_iter().any(|stage| in_layer(stage) || self.wants(None, stage))
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
        if !self.wants(layer, stage) {
            return Ok(());
        }
        let shape = self.config.shape(stage, self.tokens, self.length);
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let read = self.start(buffer, 0, bytes)?;
        let site = self.site(layer, stage);
        self.reads.push_back(Read { site, shape, dtype, pieces: vec![read] });
        self.pass_on(false)
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
        if !self.wants(Some(layer), stage) {
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

    fn start(
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
            self.put(oldest)?;
        }
    }

    /// Gives the sink what has arrived, in order; all of it, if need be by waiting.
    fn pass_on(&mut self, all: bool) -> Result<(), EngineError> {
        let is_ready = |read: &Read| all || read.pieces.iter().all(|piece| piece.is_ready());
        while self.reads.front().is_some_and(is_ready) {
            let oldest = self.reads.pop_front().expect("there is a first");
            self.put(oldest)?;
        }
        Ok(())
    }

    fn put(&mut self, read: Read) -> Result<(), EngineError> {
        let Read { site, shape, dtype, pieces } = read;
        let of_site = |error| at_site(error, site);
        let data = match &pieces[..] {
            [piece] => widened(piece.bytes().map_err(of_site)?, dtype),
            heads => {
                let dim = self.config.head_dim;
                let mut data = vec![0f32; shape.iter().product()];
                for (head, piece) in heads.iter().enumerate() {
                    let values = widened(piece.bytes().map_err(of_site)?, dtype);
                    for (position, row) in values.chunks_exact(dim).enumerate() {
                        let first = (position * heads.len() + head) * dim;
                        data[first..first + dim].copy_from_slice(row);
                    }
                }
                data
            }
        };
        Ok(self.sink.put(site, Tensor::new(shape, data))?)
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

fn widened(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let mut data = vec![0f32; bytes.len() / dtype.size()];
    match dtype {
        DType::F16 => {
            let mut narrow = vec![f16::ZERO; data.len()];
            bytemuck::cast_slice_mut(&mut narrow).copy_from_slice(bytes);
            narrow.convert_to_f32_slice(&mut data);
        }
        _ => bytemuck::cast_slice_mut(&mut data).copy_from_slice(bytes),
    }
    data
}
