//! Hooks: the wanted sites of a step on their way to the sink. Nothing is copied for others.

use std::{
    collections::VecDeque,
    sync::{Arc, mpsc::TryRecvError},
};

use crate::{
    core::{
        sink::{NoSink, Sink},
        tensor::DType,
    },
    engine::{
        EngineError,
        buffers::{Activations, Scratch},
        captures::Captures,
        device::{Buffer, Device, Download, Strided, read_now},
        reads::{Read, UnderWay, parts, received},
        step::{CacheLayout, StepShape, Target},
    },
    graph::site::{Site, Stage},
    model::Config,
};

/// One step on its way through the layers.
pub struct Pass<'a> {
    pub device: &'a dyn Device,
    pub config: &'a Config,
    scratch: &'a Scratch,
    sink: &'a mut dyn Sink,
    pub step: u32,
    /// T.
    pub tokens: usize,
    /// P, after this step.
    pub length: usize,
    /// Scores and probs, (T, Hq, P) f32, where any layer's are wanted; of the chosen tokens only.
    taps: [Option<Buffer>; 2],
    /// The tokens whose scores and probs are wanted, ascending; `None` where that is all.
    pub chosen: Option<Vec<usize>>,
    /// Where the captures of a step that is being recorded are computed.
    recording: Option<&'a Captures>,
    /// What leaves the device, in the order of the sites.
    reads: VecDeque<UnderWay>,
    /// How many of them, from the first on, were handed out: to other threads, or to be widened here.
    handed_out: usize,
}

/// From so many elements on another thread widens a tensor: to wake it for fewer takes longer than to widen
/// them. From so many on all threads do, one tensor after another.
const ELSEWHERE: usize = 1 << 14;
const BY_ALL: usize = 1 << 20;
/// Bytes of a tensor that leave together: more is widened as it arrives.
const PIECE: usize = 16 << 20;

impl<'a> Pass<'a> {
    pub fn new(
        target: Target<'a>,
        scratch: &'a Scratch,
        sink: &'a mut dyn Sink,
        step: u32,
        shape: StepShape,
    ) -> Pass<'a> {
        let at = Site { step, layer: Some(0), stage: Stage::Scores };
        let chosen = sink.queries(at).map(<[usize]>::to_vec);
        Pass {
            device: target.device,
            config: target.config,
            scratch,
            sink,
            step,
            tokens: shape.tokens,
            length: shape.positions,
            taps: [None, None],
            chosen,
            recording: None,
            reads: VecDeque::new(),
            handed_out: 0,
        }
    }

    /// A step of one token that is being recorded, in a cache of that many positions.
    pub fn recorded(
        target: Target<'a>,
        scratch: &'a Scratch,
        sink: &'a mut NoSink,
        step: u32,
        positions: usize,
        captures: &'a Captures,
    ) -> Pass<'a> {
        let pass = Pass::new(target, scratch, sink, step, StepShape { tokens: 1, positions });
        Pass { recording: Some(captures), ..pass }
    }

    /// Makes room for scores and probs, where any layer's are wanted.
    pub fn make_taps(&mut self) -> Result<(), EngineError> {
        let rows = self.chosen.as_ref().map_or(self.tokens, Vec::len);
        let bytes = 4 * rows * self.config.n_head * self.length;
        let tap = |what: Stage| self.device.alloc(bytes, what.name());
        let probs = self.wants_in_any_layer(Stage::Probs);
        // A softmax over split keys reads the scores again.
        let scores = probs || self.wants_in_any_layer(Stage::Scores);
        let scores = scores.then(|| tap(Stage::Scores)).transpose()?;
        let probs = probs.then(|| tap(Stage::Probs)).transpose()?;
        self.taps = [scores, probs];
        Ok(())
    }

    /// Where a layer's activations are computed; without a layer, those of the whole step.
    pub fn activations(&self, layer: Option<usize>) -> &'a Activations {
        match self.recording {
            Some(captures) => captures.activations(layer),
            None => &self.scratch.activations,
        }
    }

    /// A layer's scores and probs, where they are wanted.
    pub fn taps(&self, layer: usize) -> [Option<Buffer>; 2] {
        self.recording.map_or_else(|| self.taps.clone(), |captures| captures.taps(layer))
    }

    /// Where the logits of the last token are computed.
    pub fn last_logits(&self) -> Buffer {
        let captured = self.recording.and_then(Captures::logits);
        captured.unwrap_or_else(|| self.scratch.logits.clone())
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

    /// Offers what a buffer holds now. What is being recorded stays where it is computed.
    pub fn emit(
        &mut self,
        layer: Option<usize>,
        stage: Stage,
        buffer: &Buffer,
        dtype: DType,
    ) -> Result<(), EngineError> {
        if self.recording.is_some() || !self.wants(layer, stage) {
            return Ok(());
        }
        let mut shape = self.config.shape(stage, self.tokens, self.length);
        if let (Stage::Scores | Stage::Probs, Some(chosen)) = (stage, &self.chosen) {
            shape[0] = chosen.len();
        }
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let parts = (0..bytes.max(1)).step_by(PIECE);
        let parts = parts.map(|at| Strided::whole(at, PIECE.min(bytes - at)));
        let pieces = parts.map(|part| self.start(buffer, part)).collect::<Result<_, _>>()?;
        self.push_shaped(self.site(layer, stage), shape, dtype, pieces);
        self.pass_on()
    }

    /// Offers what is on its way, as pieces that follow one another.
    pub fn push(&mut self, site: Site, dtype: DType, pieces: Vec<Box<dyn Download>>) {
        let shape = self.config.shape(site.stage, self.tokens, self.length);
        self.push_shaped(Site { step: self.step, ..site }, shape, dtype, pieces);
    }

    fn push_shaped(
        &mut self,
        site: Site,
        shape: Vec<usize>,
        dtype: DType,
        pieces: Vec<Box<dyn Download>>,
    ) {
        let head_dim = self.config.head_dim;
        self.reads.push_back(UnderWay::Reading(Read { site, shape, dtype, head_dim, pieces }));
    }

    /// Offers the positions 0..P of a cache, from [kv_head][position][dim] to (P, Hk, D).
    pub fn emit_cache(
        &mut self,
        layer: usize,
        stage: Stage,
        cache: &Buffer,
        layout: CacheLayout,
    ) -> Result<(), EngineError> {
        if let Some(captures) = self.recording {
            return Ok(captures.keep_cache(self.device, layer, stage, cache)?);
        }
        if !self.wants(Some(layer), stage) {
            return Ok(());
        }
        let CacheLayout { capacity, dtype } = layout;
        let row = self.config.head_dim * dtype.size();
        let (count, bytes, pitch) = (self.config.n_head_kv, self.length * row, capacity * row);
        let heads: Arc<dyn Download> =
            self.start(cache, Strided { offset: 0, count, bytes, pitch })?.into();
        let pieces = parts(&heads, (0..count).map(|head| head * bytes..(head + 1) * bytes));
        self.push(self.site(Some(layer), stage), dtype, pieces);
        self.pass_on()
    }

    /// Offers what is still under way, and ends the step.
    pub fn finish(mut self) -> Result<(), EngineError> {
        while !self.reads.is_empty() {
            self.put_next()?;
        }
        Ok(())
    }

    /// Starts to read bytes, once there is room for them.
    pub fn start(
        &mut self,
        buffer: &Buffer,
        rows: Strided,
    ) -> Result<Box<dyn Download>, EngineError> {
        loop {
            if let Some(read) = self.device.read(buffer, rows)? {
                return Ok(read);
            }
            // What fills the device is not in this queue: a read that its caller holds, or one of a step
            // that has failed.
            if self.reads.is_empty() {
                return Ok(read_now(self.device, buffer, rows)?);
            }
            self.put_next()?;
        }
    }

    /// Gives the sink what is done, in order, where a read is there as soon as it is asked for. What a device
    /// has yet to send can wait until all of the step's work is launched.
    fn pass_on(&mut self) -> Result<(), EngineError> {
        let UnderWay::Reading(last) = self.reads.back().expect("just put there") else {
            unreachable!("not handed out yet")
        };
        if !last.is_ready() {
            return Ok(());
        }
        self.hand_out()?;
        while self.handed_out > 0 && self.put_oldest(false)? {}
        Ok(())
    }

    /// Gives the sink the next in order, if need be by waiting.
    fn put_next(&mut self) -> Result<(), EngineError> {
        self.hand_out()?;
        if let (0, Some(UnderWay::Reading(oldest))) = (self.handed_out, self.reads.front()) {
            oldest.wait()?;
            self.hand_out()?;
        }
        self.put_oldest(true).map(drop)
    }

    /// Lets other threads widen what has arrived. A thread of their pool must not wait for them: all of the
    /// pool may be waiting.
    fn hand_out(&mut self) -> Result<(), EngineError> {
        let may_wait = rayon::current_thread_index().is_none();
        for under_way in self.reads.iter_mut().skip(self.handed_out) {
            let UnderWay::Reading(read) = under_way else { unreachable!("widened as it arrives") };
            if !read.is_ready() {
                break;
            }
            if may_wait && (ELSEWHERE..BY_ALL).contains(&read.elements()) {
                read.wait()?;
                under_way.widen_elsewhere();
            }
            self.handed_out += 1;
        }
        Ok(())
    }

    /// Gives the sink the oldest of what has arrived; `false` if it is not widened yet and is not to be
    /// waited for.
    fn put_oldest(&mut self, wait: bool) -> Result<bool, EngineError> {
        let (site, tensor) = match self.reads.pop_front().expect("something has arrived") {
            UnderWay::Reading(read) => read.tensor(true)?,
            UnderWay::Widening(widened) if wait => received(widened.recv().ok())?,
            UnderWay::Widening(widened) => match widened.try_recv() {
                Err(TryRecvError::Empty) => {
                    self.reads.push_front(UnderWay::Widening(widened));
                    return Ok(false);
                }
                tensor => received(tensor.ok())?,
            },
        };
        self.handed_out -= 1;
        self.sink.put(site, tensor)?;
        Ok(true)
    }
}
