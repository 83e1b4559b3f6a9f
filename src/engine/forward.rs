//! The forward pass: prefill and decode with a KV cache, every site offered to a [`Sink`].

use std::cell::RefCell;

use crate::{
    capture::{Choice, NoSink, Sink, Stopped},
    contract::{ContractError, Op},
    device::{Buffer, Device, DeviceError, Gemm, Recorded},
    engine::{
        AttentionVariant,
        buffers::{Cache, Scratch, User},
        captures::Captures,
        contracts::{self, Loaded},
        hooks::Pass,
        variant::{Decode, Prefill, Softmax},
        weights::{Layer, Linear, Weights},
    },
    fault::{Faults, Wiring},
    kernels::{
        KernelError, KernelSet, launch,
        launch::{CacheView, Splits},
    },
    model::{Config, Model, ModelError, RopePairs},
    site::{Site, Stage},
    tensor::DType,
};

/// What an engine is made with.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Storage of weights, activations and KV cache: f32 or f16. Sums are f32.
    pub storage: DType,
    pub attention: AttentionVariant,
    pub faults: Faults,
    /// Positions that the KV cache must hold.
    pub positions: usize,
    /// Tokens of the longest step.
    pub tokens: usize,
}

/// Why the engine could not run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Contract(#[from] ContractError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("token id {id} is outside the vocabulary of {n_vocab}; check the prompt's ids")]
    Token { id: i32, n_vocab: usize },
    #[error("{wanted} positions do not fit the KV cache of {capacity}; make the engine larger")]
    CacheFull { wanted: usize, capacity: usize },
    #[error(
        "heads of {head_dim} are no multiple of {step}, which the fast attention kernels need; leave \
         out prefill=tiled and decode=split"
    )]
    HeadDim { head_dim: usize, step: usize },
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// The cache's capacity is a multiple of this above what is needed, so that a stride by length is
/// never right by luck.
const CAPACITY_STEP: usize = 64;

/// A model on a device, with a KV cache.
pub struct Engine {
    pub(super) device: Box<dyn Device>,
    pub(super) config: Config,
    pub(super) options: EngineOptions,
    weights: Weights,
    pub(super) caches: Vec<Cache>,
    pub(super) scratch: Scratch,
    pub(super) contracts: Vec<Loaded>,
    pub(super) capacity: usize,
    /// Positions in the cache.
    length: usize,
    /// Whether a decode step launches the same every time, whatever the position.
    repeats: bool,
    decode: RefCell<Repeated>,
}

/// A decode step, which is the same work every time for the same wanted sites.
enum Repeated {
    /// Not run yet. The first time a device may load what cannot be recorded.
    Never,
    Once,
    Recorded(Recorded, Captures),
    /// The device records nothing.
    Unrecorded,
}

impl Engine {
    /// Compiles the kernels and loads the weights.
    pub fn new(
        mut device: Box<dyn Device>,
        model: &Model,
        kernels: &KernelSet,
        options: EngineOptions,
    ) -> Result<Engine, EngineError> {
        let config = options.faults.config(&model.config);
        let (head_dim, step) = (config.head_dim, options.attention.head_dim_step());
        if !head_dim.is_multiple_of(step) {
            return Err(EngineError::HeadDim { head_dim, step });
        }
        let contracts = load_kernels(&mut *device, &config, kernels, &options)?;
        let weights = Weights::load(&*device, model, options.storage, &options.faults)?;
        let capacity = (options.positions + 1).next_multiple_of(CAPACITY_STEP);
        let scratch = Scratch::new(&*device, &config, &options)?;
        let caches = (0..config.n_layer)
            .map(|_| Cache::new(&*device, &config, options.storage, capacity))
            .collect::<Result<_, _>>()?;
        let (length, decode) = (0, RefCell::new(Repeated::Never));
        let repeats = repeats(kernels, &options);
        Ok(Engine {
            device,
            config,
            options,
            weights,
            caches,
            scratch,
            contracts,
            capacity,
            length,
            repeats,
            decode,
        })
    }

    /// Compiles the kernels anew; weights stay where they are.
    pub fn reload(&mut self, kernels: &KernelSet) -> Result<(), EngineError> {
        self.decode = RefCell::new(Repeated::Never);
        self.repeats = repeats(kernels, &self.options);
        self.contracts = load_kernels(&mut *self.device, &self.config, kernels, &self.options)?;
        self.reset()
    }

    /// The device's name, for the report.
    pub fn device_name(&self) -> String {
        self.device.name()
    }

    /// Runs a step of tokens at the next positions; every wanted site goes to the sink.
    /// Returns what the engine would say next, if its logits are numbers.
    pub fn step(
        &mut self,
        step: u32,
        tokens: &[i32],
        sink: &mut dyn Sink,
    ) -> Result<Option<Choice>, EngineError> {
        let first = self.length;
        let length = first + tokens.len();
        if length > self.capacity || tokens.len() > self.options.tokens {
            return Err(EngineError::CacheFull { wanted: length, capacity: self.capacity });
        }
        let n_vocab = self.config.n_vocab;
        if let Some(&id) = tokens.iter().find(|&&id| id < 0 || id as usize >= n_vocab) {
            return Err(EngineError::Token { id, n_vocab });
        }
        let (device, faults) = (&*self.device, &self.options.faults);
        self.scratch.integers.upload(device, faults, step, (tokens, first))?;
        let mut pass = Pass::new(device, &self.config, sink, step, (tokens.len(), length))?;
        let choice = match tokens.len() == 1 && self.repeats {
            true => self.repeated(&mut pass)?,
            false => self.forward(&mut pass)?,
        };
        pass.finish()?;
        self.length = length;
        Ok(choice)
    }

    fn forward(&self, pass: &mut Pass<'_>) -> Result<Option<Choice>, EngineError> {
        self.layers(pass)?;
        self.logits(pass)
    }

    /// A decode step: run, then recorded, then repeated from the recording.
    fn repeated(&self, pass: &mut Pass<'_>) -> Result<Option<Choice>, EngineError> {
        let mut decode = self.decode.borrow_mut();
        let wanted = pass.wanted();
        let is_due = match &*decode {
            Repeated::Once => true,
            Repeated::Recorded(_, captures) => !captures.are_of(&wanted),
            Repeated::Never | Repeated::Unrecorded => false,
        };
        if is_due {
            *decode = self.record(pass.step, wanted)?;
        }
        match &*decode {
            Repeated::Recorded(recorded, captures) => {
                self.device.repeat(recorded)?;
                captures.offer(pass, self.capacity, |layer, stage| match stage {
                    Stage::KCache => &self.caches[layer].k,
                    _ => &self.caches[layer].v,
                })?;
                self.choice(&self.scratch.logits, 0)
            }
            Repeated::Unrecorded => self.forward(pass),
            Repeated::Never | Repeated::Once => {
                *decode = Repeated::Once;
                self.forward(pass)
            }
        }
    }

    /// Records a decode step that captures these sites.
    fn record(&self, step: u32, sites: Vec<Site>) -> Result<Repeated, EngineError> {
        let kept = (self.capacity, self.options.storage);
        let mut captures = Captures::new(&*self.device, &self.config, sites, kept)?;
        let taps = [captures.scores.take(), captures.probs.take()];
        let (mut none, at) = (NoSink, (step, self.capacity));
        let mut pass =
            Pass::recorded((&*self.device, &self.config), &mut none, at, (&captures, taps));
        let mut outcome = Ok(());
        let recorded = self.device.record(&mut || {
            let run = self.layers(&mut pass).and_then(|()| {
                self.last_logits(&mut pass)?;
                pass.emit(None, Stage::Logits, &self.scratch.logits, DType::F32)
            });
            match run {
                // Of this and the end of the recording, which fails too, it says more.
                Err(EngineError::Device(error)) => Err(error),
                other => {
                    outcome = other;
                    Ok(())
                }
            }
        })?;
        outcome?;
        let (scores, probs) = (pass.scores.take(), pass.probs.take());
        drop(pass);
        (captures.scores, captures.probs) = (scores, probs);
        Ok(recorded.map_or(Repeated::Unrecorded, |recorded| Repeated::Recorded(recorded, captures)))
    }

    fn layers(&self, pass: &mut Pass<'_>) -> Result<(), EngineError> {
        self.embed(pass)?;
        for layer in 0..self.config.n_layer {
            self.attention_block(layer, pass)?;
            self.feed_forward_block(layer, pass)?;
        }
        Ok(())
    }

    /// Takes the cache as holding that many positions, whatever it holds: for measurements.
    pub fn assume(&mut self, positions: usize) {
        self.length = positions;
    }

    /// Empties the KV cache, for another prompt.
    pub fn reset(&mut self) -> Result<(), EngineError> {
        for cache in &self.caches {
            cache.clear(&*self.device)?;
        }
        self.length = 0;
        Ok(())
    }

    /// hidden = embedding rows.
    fn embed(&self, pass: &mut Pass<'_>) -> Result<(), EngineError> {
        let (dtype, scratch) = (self.options.storage, &self.scratch);
        let shape = (pass.tokens, self.config.n_embd);
        let table = &self.weights.embedding;
        let ids = scratch.integers.of(User::Embedding, pass.tokens);
        self.look_up(table, ids, shape)?;
        pass.emit(None, Stage::Embd, &scratch.hidden, dtype)
    }

    /// hidden += output projection of the attention over the normed hidden.
    fn attention_block(&self, layer: usize, pass: &mut Pass<'_>) -> Result<(), EngineError> {
        let (device, dtype, s) = (&*self.device, self.options.storage, &self.scratch);
        let weights = &self.weights.layers[layer];
        let at = Some(layer);

        self.norm(&s.normed, &s.hidden, &weights.attn_norm, (pass.tokens, self.config.n_embd))?;
        pass.emit(at, Stage::AttnNorm, &s.normed, dtype)?;
        self.project_qkv(layer, weights, pass)?;
        match self.contract(Op::Attention) {
            Some(loaded) => self.contracted_attention(loaded, layer, pass)?,
            None => self.own_attention(layer, pass)?,
        }
        for (stage, tap) in [(Stage::Scores, pass.scores.take()), (Stage::Probs, pass.probs.take())]
        {
            if let Some(tap) = tap {
                pass.emit(at, stage, &tap, DType::F32)?;
                pass.put_back(stage, tap);
            }
        }
        pass.emit(at, Stage::AttnOut, &s.attn_out, dtype)?;

        self.linear(&s.attn_out, pass.tokens, &[(&s.projected, &weights.o)])?;
        pass.emit(at, Stage::OProj, &s.projected, dtype)?;
        let n = pass.tokens * self.config.n_embd;
        let residual = s.residual(device, &self.options.faults, Stage::AttnResidual)?;
        self.add_residual(residual, n)?;
        pass.emit(at, Stage::AttnResidual, &s.hidden, dtype)
    }

    /// Appends the layer's keys and values, and attends, by our own kernels.
    fn own_attention(&self, layer: usize, pass: &mut Pass<'_>) -> Result<(), EngineError> {
        let (device, dtype, s) = (&*self.device, self.options.storage, &self.scratch);
        self.append_to_cache(layer, pass)?;
        let from_layer_0 = self.options.faults.has(Wiring::CacheOfLayer0);
        let cache = self.cache_view(if from_layer_0 { 0 } else { layer }, pass.length);
        let AttentionVariant { prefill, decode, .. } = self.options.attention;
        let attend = |op: &launch::Attention<'_>, tokens: usize| {
            if pass.tokens == 1 && decode == Decode::Split {
                launch::attention_split(device, dtype, &cache, op, &s.splits, &self.config)
            } else if pass.tokens > 1 && prefill == Prefill::Tiled {
                launch::attention_tiled(device, dtype, &cache, op, tokens)
            } else {
                launch::attention(device, dtype, &cache, op, tokens)
            }
        };
        let op = self.attention(pass);
        if pass.chosen.is_none() {
            return Ok(attend(&op, pass.tokens)?);
        }
        attend(&launch::Attention { scores: None, probs: None, ..op }, pass.tokens)?;
        self.tap_chosen(pass, &op, &attend)
    }

    /// Fills the taps with the chosen tokens' rows, by further launches whose outputs are thrown away: what
    /// flows on is of the launch that had no taps.
    pub(super) fn tap_chosen(
        &self,
        pass: &Pass<'_>,
        op: &launch::Attention<'_>,
        attend: &dyn Fn(&launch::Attention<'_>, usize) -> Result<(), DeviceError>,
    ) -> Result<(), EngineError> {
        let Some(chosen) = pass.chosen.as_ref().filter(|_| op.scores.or(op.probs).is_some()) else {
            return Ok(());
        };
        let runs: Vec<&[usize]> = chosen.chunk_by(|a, b| a + 1 == *b).collect();
        let width = self.config.n_head * self.config.head_dim * self.options.storage.size();
        let longest = runs.iter().map(|run| run.len()).max().unwrap_or(0);
        let out = &self.device.alloc(longest * width, "unused attn_out")?;
        let mut row = 0;
        for run in runs {
            let before = 4 * row * self.config.n_head * pass.length;
            let of_run = launch::Attention {
                q: (op.q.0, op.q.1 + run[0] * width),
                positions: (op.positions.0, op.positions.1 + 4 * run[0]),
                scores: op.scores.map(|(tap, _)| (tap, before)),
                probs: op.probs.map(|(tap, _)| (tap, before)),
                out,
                ..*op
            };
            attend(&of_run, run.len())?;
            row += run.len();
        }
        Ok(())
    }

    /// What our attention kernels take for a step.
    pub(super) fn attention<'s>(&'s self, pass: &'s Pass<'_>) -> launch::Attention<'s> {
        launch::Attention {
            q: (&self.scratch.q_rope, 0),
            out: &self.scratch.attn_out,
            positions: self.scratch.integers.of(User::Mask, pass.tokens),
            scores: pass.scores.as_ref().map(|tap| (tap, 0)),
            probs: pass.probs.as_ref().map(|tap| (tap, 0)),
            n_head: self.config.n_head,
            scale: self.config.attention_scale,
            online: self.options.attention.softmax == Softmax::Online,
        }
    }

    /// q, k and v of the normed hidden; norms (Qwen3) and rope of q and k.
    fn project_qkv(
        &self,
        layer: usize,
        weights: &Layer,
        pass: &mut Pass<'_>,
    ) -> Result<(), EngineError> {
        let (c, s, tokens) = (&self.config, &self.scratch, pass.tokens);
        let dtype = self.options.storage;
        let at = Some(layer);
        let projections = [(&s.q, &weights.q), (&s.k, &weights.k), (&s.v, &weights.v)];
        self.linear(&s.normed, tokens, &projections)?;
        for (out, stage) in [(&s.q, Stage::Q), (&s.k, Stage::K), (&s.v, Stage::V)] {
            pass.emit(at, stage, out, dtype)?;
        }
        for (x, weight, n_head, stage) in [
            (&s.q, &weights.q_norm, c.n_head, Stage::QNorm),
            (&s.k, &weights.k_norm, c.n_head_kv, Stage::KNorm),
        ] {
            if let Some(weight) = weight {
                self.norm(x, x, weight, (tokens * n_head, c.head_dim))?;
                pass.emit(at, stage, x, dtype)?;
            }
        }
        for (out, x, positions, n_head, stage) in [
            (&s.q_rope, &s.q, s.integers.of(User::QRope, tokens), c.n_head, Stage::QRope),
            (&s.k_rope, &s.k, s.integers.of(User::KRope, tokens), c.n_head_kv, Stage::KRope),
        ] {
            let rope = launch::Rope {
                neox: c.rope_pairs == RopePairs::Neox,
                theta: c.rope_theta,
                positions,
                factors: self.weights.rope_factors.as_ref(),
            };
            self.rotate(out, x, &rope, (tokens, n_head))?;
            pass.emit(at, stage, out, dtype)?;
        }
        Ok(())
    }

    fn append_to_cache(&self, layer: usize, pass: &mut Pass<'_>) -> Result<(), EngineError> {
        let (s, dtype, faults) = (&self.scratch, self.options.storage, &self.options.faults);
        let cache = self.cache_view(layer, pass.length);
        let kv = ((s.appended_keys(faults), 0), (&s.v, 0));
        let positions = s.integers.of(User::Append, pass.tokens);
        if pass.step == 0 || !faults.has(Wiring::DecodeNeverAppended) {
            self.append(&cache, kv, positions, pass.tokens, dtype)?;
        }
        let kept = (self.capacity, dtype);
        pass.emit_cache(layer, Stage::KCache, cache.k, kept)?;
        pass.emit_cache(layer, Stage::VCache, cache.v, kept)
    }

    /// hidden += down(silu(gate) * up) of the normed hidden.
    fn feed_forward_block(&self, layer: usize, pass: &mut Pass<'_>) -> Result<(), EngineError> {
        let (device, dtype, s) = (&*self.device, self.options.storage, &self.scratch);
        let weights = &self.weights.layers[layer];
        let (at, tokens) = (Some(layer), pass.tokens);
        let (hidden_size, inner_size) = (tokens * self.config.n_embd, tokens * self.config.n_ff);

        self.norm(&s.normed, &s.hidden, &weights.ffn_norm, (tokens, self.config.n_embd))?;
        pass.emit(at, Stage::FfnNorm, &s.normed, dtype)?;
        self.linear(&s.normed, tokens, &[(&s.gate, &weights.gate), (&s.up, &weights.up)])?;
        pass.emit(at, Stage::FfnGate, &s.gate, dtype)?;
        pass.emit(at, Stage::FfnUp, &s.up, dtype)?;
        self.swiglu(inner_size)?;
        pass.emit(at, Stage::FfnAct, &s.act, dtype)?;
        self.linear(&s.act, tokens, &[(&s.projected, &weights.down)])?;
        pass.emit(at, Stage::FfnDown, &s.projected, dtype)?;
        let residual = s.residual(device, &self.options.faults, Stage::LayerOut)?;
        self.add_residual(residual, hidden_size)?;
        pass.emit(at, Stage::LayerOut, &s.hidden, dtype)
    }

    /// Final norm and logits: of every token where either is wanted, else of the last one.
    fn logits(&self, pass: &mut Pass<'_>) -> Result<Option<Choice>, EngineError> {
        let c = &self.config;
        let wanted = pass.wants(None, Stage::FinalNorm) || pass.wants(None, Stage::Logits);
        // Without the final norm its input must stand where its output would, which is row 0.
        let norm_missing = self.options.faults.has(Wiring::FinalNormMissing);
        if !(wanted || norm_missing) || pass.tokens == 1 {
            self.last_logits(pass)?;
            pass.emit(None, Stage::Logits, &self.scratch.logits, DType::F32)?;
            return self.choice(&self.scratch.logits, 0);
        }
        let bytes = 4 * pass.tokens * c.n_vocab;
        let logits = self.device.alloc(bytes, Stage::Logits.name())?;
        self.logits_of(pass, 0, &logits)?;
        pass.emit(None, Stage::Logits, &logits, DType::F32)?;
        self.choice(&logits, bytes - 4 * c.n_vocab)
    }

    /// The logits of the last token, into their own buffer.
    fn last_logits(&self, pass: &mut Pass<'_>) -> Result<(), EngineError> {
        self.logits_of(pass, pass.tokens - 1, &self.scratch.logits)
    }

    /// The logits of the tokens from `first` on.
    fn logits_of(
        &self,
        pass: &mut Pass<'_>,
        first: usize,
        logits: &Buffer,
    ) -> Result<(), EngineError> {
        let (c, s, dtype) = (&self.config, &self.scratch, self.options.storage);
        let norm_missing = self.options.faults.has(Wiring::FinalNormMissing);
        let rows = pass.tokens - first;
        let hidden = (&s.hidden, first * c.n_embd * dtype.size());
        let shape = (rows, c.n_embd);
        let weight = &self.weights.final_norm;
        self.norm_of(&s.normed, hidden, weight, shape)?;
        let normed = if norm_missing { &s.hidden } else { &s.normed };
        pass.emit(None, Stage::FinalNorm, normed, dtype)?;
        let output = Gemm {
            x: normed,
            w: self.weights.output.as_ref().unwrap_or(&self.weights.embedding),
            bias: self.weights.output_bias.as_ref(),
            y: logits,
            rows,
            cols: c.n_vocab,
            inner: c.n_embd,
            input: dtype,
            output: DType::F32,
        };
        Ok(self.device.gemms(&[output])?)
    }

    /// What the logits from a byte offset on say next.
    fn choice(&self, logits: &Buffer, offset: usize) -> Result<Option<Choice>, EngineError> {
        if let Some(read) = self.device.read(logits, offset, 4 * self.config.n_vocab)? {
            return Ok(Choice::of(bytemuck::cast_slice(read.bytes()?)));
        }
        let mut last = vec![0f32; self.config.n_vocab];
        self.device.download(logits, offset, bytemuck::cast_slice_mut(&mut last))?;
        Ok(Choice::of(&last))
    }

    /// out (T, outputs) = x W^T + bias, for each of several.
    fn linear(
        &self,
        x: &Buffer,
        rows: usize,
        linears: &[(&Buffer, &Linear)],
    ) -> Result<(), EngineError> {
        let dtype = self.options.storage;
        let gemms = linears.iter().map(|(y, linear)| Gemm {
            x,
            w: &linear.weight,
            bias: linear.bias.as_ref(),
            y,
            rows,
            cols: linear.outputs,
            inner: linear.inputs,
            input: dtype,
            output: dtype,
        });
        Ok(self.device.gemms(&gemms.collect::<Vec<_>>())?)
    }

    fn norm(
        &self,
        out: &Buffer,
        x: &Buffer,
        weight: &Buffer,
        shape: (usize, usize),
    ) -> Result<(), EngineError> {
        self.norm_of(out, (x, 0), weight, shape)
    }

    pub(super) fn cache_view(&self, layer: usize, length: usize) -> CacheView<'_> {
        CacheView {
            k: &self.caches[layer].k,
            v: &self.caches[layer].v,
            n_head_kv: self.config.n_head_kv,
            head_dim: self.config.head_dim,
            capacity: self.capacity,
            length,
        }
    }
}

/// Whether a decode step launches the same every time: kernels of others may need the length.
fn repeats(kernels: &KernelSet, options: &EngineOptions) -> bool {
    let own = kernels.folder().is_none() && kernels.contracts().is_empty();
    own && options.faults.0.is_empty() && options.attention.decodes_alike()
}

/// Compiles the kernel files that the options need, and those of contracts.
fn load_kernels(
    device: &mut dyn Device,
    config: &Config,
    kernels: &KernelSet,
    options: &EngineOptions,
) -> Result<Vec<Loaded>, EngineError> {
    let mut sources = Vec::new();
    for file in KernelSet::files() {
        let mut defines = options.faults.defines(file);
        match file {
            "attention.cu" => defines.extend(options.attention.defines()),
            "attention_tiled.cu" if options.attention.prefill == Prefill::Row => continue,
            "attention_tiled.cu" => defines.extend(launch::tiled_defines(config)),
            "attention_split.cu" if options.attention.decode == Decode::Block => continue,
            "attention_split.cu" => defines.extend(Splits::defines(config)),
            _ => {}
        }
        sources.push(kernels.source(file, defines)?);
    }
    let contracts = contracts::prepare(kernels, (config, options.storage), &mut sources)?;
    device.load_all(&sources).map_err(|error| contracts::explained(&contracts, error))?;
    Ok(contracts)
}
