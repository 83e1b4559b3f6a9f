//! The forward pass: prefill and decode with a KV cache, every site offered to a [`Sink`].

use std::cell::RefCell;

use crate::{
    core::{
        activity,
        exit::Exit,
        loaded::LoadedWeight,
        sink::{Choice, NoSink, Sink, Stopped},
        tensor::DType,
    },
    engine::{
        AttentionVariant,
        buffers::{Cache, Scratch, User},
        captures::Captures,
        contract::{ContractError, Op},
        contracts::{self, Loaded},
        device::{Buffer, Device, DeviceError, Gemm, Recorded, Strided},
        fault::{Faults, Wiring},
        hooks::Pass,
        kernels::{
            KernelError, KernelSet,
            launch::{self, Splits},
        },
        step::{StepShape, Target},
        variant::{Decode, Prefill},
        weights::{Layer, Linear, Weights},
    },
    graph::site::{Site, Stage},
    model::{Config, Model, ModelError, RopePairs},
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
    /// How many layers are loaded and run, without the logits; `None` means all of the model.
    pub depth: Option<usize>,
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
        "head size {head_dim} is not a multiple of {step}, as the fast attention kernels require; leave out \
         prefill=tiled and decode=split"
    )]
    HeadDim { head_dim: usize, step: usize },
    #[error(
        "the engine's {storage} embedding takes {:.1} GB of memory, and {:.1} GB are free; use {}the trace of an engine \
         (capture reference and explain need less memory), or a machine with more",
        giga(*needed), giga(*free), if *storage == DType::F32 { "--dtype f16, " } else { "" }
    )]
    Memory { storage: DType, needed: u64, free: u64 },
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

fn giga(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

impl EngineError {
    /// The exit code of the error.
    pub fn exit(&self) -> Exit {
        use EngineError::*;
        match self {
            Model(_) | Kernel(_) | Contract(_) | Token { .. } | HeadDim { .. } => Exit::BadInput,
            Device(_) | CacheFull { .. } | Memory { .. } | Stopped(_) => Exit::Device,
        }
    }
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
        let weights = Weights::load(&*device, model, &options)?;
        let capacity = (options.positions + 1).next_multiple_of(CAPACITY_STEP);
        let scratch = Scratch::new(&*device, &config, &options)?;
        let caches = (0..weights.layers.len())
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

    /// The weights as the device holds them: of large ones some rows.
    pub fn loaded_weights(&self) -> Result<Vec<LoadedWeight>, EngineError> {
        self.weights.held(&*self.device)
    }

    /// Runs a step of tokens at the next positions; every wanted site goes to the sink.
    /// Returns what the engine would say next, if its logits are numbers.
    pub fn step(
        &mut self,
        step: u32,
        tokens: &[i32],
        sink: &mut dyn Sink,
    ) -> Result<Option<Choice>, EngineError> {
        let (choice, pass) = self.start(step, tokens, sink)?;
        pass.finish()?;
        Ok(choice)
    }

    /// The same up to the logits: the choice is known, captures may still be on their way to the host. The
    /// sink has them all when the pass is finished.
    pub fn start<'s>(
        &'s mut self,
        step: u32,
        tokens: &[i32],
        sink: &'s mut dyn Sink,
    ) -> Result<(Option<Choice>, Pass<'s>), EngineError> {
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
        self.scratch.integers.upload(device, faults, step, tokens, first)?;
        let shape = StepShape { tokens: tokens.len(), positions: length };
        let target = Target { device, config: &self.config };
        let mut pass = Pass::new(target, &self.scratch, sink, step, shape);
        let choice = if tokens.len() == 1 && self.repeats {
            self.repeated(&mut pass)?
        } else {
            self.forward(&mut pass)?
        };
        self.length = length;
        Ok((choice, pass))
    }

    fn forward(&self, pass: &mut Pass<'_>) -> Result<Option<Choice>, EngineError> {
        pass.make_taps()?;
        let hidden = self.layers(pass)?;
        if self.options.depth.is_some() {
            return Ok(None);
        }
        self.logits(pass, hidden)
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
                if self.options.depth.is_some() {
                    return Ok(None);
                }
                self.choice(&captures.logits().unwrap_or_else(|| self.scratch.logits.clone()), 0)
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
        let target = Target { device: &*self.device, config: &self.config };
        let scratch = &self.scratch;
        let captures = Captures::new(target, scratch, sites, self.cache_layout())?;
        let mut none = NoSink;
        let mut pass = Pass::recorded(target, scratch, &mut none, step, self.capacity, &captures);
        let mut outcome = Ok(());
        let recorded = self.device.record(&mut || {
            let end = self.layers(&mut pass).and_then(|hidden| match self.options.depth {
                Some(_) => Ok(()),
                None => self.last_logits(&mut pass, hidden).map(drop),
            });
            match end {
                // Of this and the end of the recording, which fails too, it says more.
                Err(EngineError::Device(error)) => Err(error),
                other => {
                    outcome = other;
                    Ok(())
                }
            }
        })?;
        outcome?;
        drop(pass);
        Ok(recorded.map_or(Repeated::Unrecorded, |recorded| Repeated::Recorded(recorded, captures)))
    }

    /// The output of the last layer.
    fn layers<'a>(&self, pass: &mut Pass<'a>) -> Result<&'a Buffer, EngineError> {
        activity::place(pass.step, None);
        let mut hidden = self.embed(pass)?;
        for layer in 0..self.weights.layers.len() {
            activity::place(pass.step, Some(layer));
            hidden = self.attention_block(layer, pass, hidden)?;
            hidden = self.feed_forward_block(layer, pass, hidden)?;
        }
        activity::place(pass.step, None);
        Ok(hidden)
    }

    /// Whether a launch has ended when it returns, so that a capture reads what nothing writes any more.
    pub fn waits_for_launches(&self) -> bool {
        self.device.waits_for_launches()
    }

    /// Takes the cache as holding that many positions, whatever it holds.
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

    /// The embedding rows.
    fn embed<'a>(&self, pass: &mut Pass<'a>) -> Result<&'a Buffer, EngineError> {
        let hidden = &pass.activations(None)[Stage::Embd];
        let shape = (pass.tokens, self.config.n_embd);
        let ids = self.scratch.integers.of(User::Embedding, pass.tokens);
        self.look_up(hidden, &self.weights.embedding, ids, shape)?;
        pass.emit(None, Stage::Embd, hidden, self.options.storage)?;
        Ok(hidden)
    }

    /// hidden + output projection of the attention over the normed hidden.
    fn attention_block<'a>(
        &self,
        layer: usize,
        pass: &mut Pass<'a>,
        hidden: &Buffer,
    ) -> Result<&'a Buffer, EngineError> {
        let (device, dtype) = (&*self.device, self.options.storage);
        let weights = &self.weights.layers[layer];
        let (at, shape) = (Some(layer), (pass.tokens, self.config.n_embd));
        let a = pass.activations(at);

        self.norm_of(&a[Stage::AttnNorm], (hidden, 0), &weights.attn_norm, shape)?;
        pass.emit(at, Stage::AttnNorm, &a[Stage::AttnNorm], dtype)?;
        self.project_qkv(layer, weights, pass)?;
        match self.contract(Op::Attention) {
            Some(loaded) => self.contracted_attention(loaded, layer, pass)?,
            None => self.own_attention(layer, pass)?,
        }
        for (stage, tap) in [Stage::Scores, Stage::Probs].into_iter().zip(pass.taps(layer)) {
            if let Some(tap) = tap {
                pass.emit(at, stage, &tap, DType::F32)?;
            }
        }
        pass.emit(at, Stage::AttnOut, &a[Stage::AttnOut], dtype)?;

        let projected = &a[Stage::OProj];
        self.linear(&a[Stage::AttnOut], pass.tokens, &[(projected, &weights.o)])?;
        pass.emit(at, Stage::OProj, projected, dtype)?;
        let (faults, out) = (&self.options.faults, &a[Stage::AttnResidual]);
        let residual = a.residual(device, faults, Stage::AttnResidual, hidden)?;
        self.add_residual(out, (residual, projected), shape.0 * shape.1)?;
        pass.emit(at, Stage::AttnResidual, out, dtype)?;
        Ok(out)
    }

    /// q, k and v of the normed hidden; norms, if there are any, and rope of q and k.
    fn project_qkv(
        &self,
        layer: usize,
        weights: &Layer,
        pass: &mut Pass<'_>,
    ) -> Result<(), EngineError> {
        let (c, s, tokens) = (&self.config, &self.scratch, pass.tokens);
        let dtype = self.options.storage;
        let at = Some(layer);
        let a = pass.activations(at);
        let (q, k, v) = (&a[Stage::Q], &a[Stage::K], &a[Stage::V]);
        let projections = [(q, &weights.q), (k, &weights.k), (v, &weights.v)];
        self.linear(&a[Stage::AttnNorm], tokens, &projections)?;
        for (out, stage) in [(q, Stage::Q), (k, Stage::K), (v, Stage::V)] {
            pass.emit(at, stage, out, dtype)?;
        }
        for (x, weight, n_head, stage) in [
            (q, &weights.q_norm, c.n_head, Stage::QNorm),
            (k, &weights.k_norm, c.n_head_kv, Stage::KNorm),
        ] {
            if let Some((weight, out)) = weight.as_ref().zip(a.get(stage)) {
                self.norm_of(out, (x, 0), weight, (tokens * n_head, c.head_dim))?;
                pass.emit(at, stage, out, dtype)?;
            }
        }
        let [q, k] = a.unrotated();
        for (x, user, n_head, stage) in
            [(q, User::QRope, c.n_head, Stage::QRope), (k, User::KRope, c.n_head_kv, Stage::KRope)]
        {
            let rope = launch::Rope {
                neox: c.rope_pairs == RopePairs::Neox,
                theta: c.rope_theta,
                positions: s.integers.of(user, tokens),
                factors: self.weights.rope_factors.as_ref(),
            };
            self.rotate(&a[stage], x, &rope, (tokens, n_head))?;
            pass.emit(at, stage, &a[stage], dtype)?;
        }
        Ok(())
    }

    /// hidden + down(silu(gate) * up) of the normed hidden.
    fn feed_forward_block<'a>(
        &self,
        layer: usize,
        pass: &mut Pass<'a>,
        hidden: &Buffer,
    ) -> Result<&'a Buffer, EngineError> {
        let (device, dtype) = (&*self.device, self.options.storage);
        let weights = &self.weights.layers[layer];
        let (at, tokens, n_embd) = (Some(layer), pass.tokens, self.config.n_embd);
        let a = pass.activations(at);
        let [normed, gate, up, act, down, out] = [
            Stage::FfnNorm,
            Stage::FfnGate,
            Stage::FfnUp,
            Stage::FfnAct,
            Stage::FfnDown,
            Stage::LayerOut,
        ]
        .map(|stage| &a[stage]);

        self.norm_of(normed, (hidden, 0), &weights.ffn_norm, (tokens, n_embd))?;
        pass.emit(at, Stage::FfnNorm, normed, dtype)?;
        self.linear(normed, tokens, &[(gate, &weights.gate), (up, &weights.up)])?;
        pass.emit(at, Stage::FfnGate, gate, dtype)?;
        pass.emit(at, Stage::FfnUp, up, dtype)?;
        self.swiglu(act, (gate, up), tokens * self.config.n_ff)?;
        pass.emit(at, Stage::FfnAct, act, dtype)?;
        self.linear(act, tokens, &[(down, &weights.down)])?;
        pass.emit(at, Stage::FfnDown, down, dtype)?;
        let residual = a.residual(device, &self.options.faults, Stage::LayerOut, hidden)?;
        self.add_residual(out, (residual, down), tokens * n_embd)?;
        pass.emit(at, Stage::LayerOut, out, dtype)?;
        Ok(out)
    }

    /// Final norm and logits: of every token where either is wanted, else of the last one.
    fn logits(&self, pass: &mut Pass<'_>, hidden: &Buffer) -> Result<Option<Choice>, EngineError> {
        let c = &self.config;
        let wanted = pass.wants(None, Stage::FinalNorm) || pass.wants(None, Stage::Logits);
        // Without the final norm its input must stand where its output would, which is row 0.
        let norm_missing = self.options.faults.has(Wiring::FinalNormMissing);
        if !(wanted || norm_missing) || pass.tokens == 1 {
            let logits = self.last_logits(pass, hidden)?;
            pass.emit(None, Stage::Logits, &logits, DType::F32)?;
            return self.choice(&logits, 0);
        }
        let bytes = 4 * pass.tokens * c.n_vocab;
        let logits = self.device.alloc(bytes, Stage::Logits.name())?;
        self.logits_of(pass, hidden, 0, &logits)?;
        pass.emit(None, Stage::Logits, &logits, DType::F32)?;
        self.choice(&logits, bytes - 4 * c.n_vocab)
    }

    /// The logits of the last token.
    fn last_logits(&self, pass: &mut Pass<'_>, hidden: &Buffer) -> Result<Buffer, EngineError> {
        let logits = pass.last_logits();
        self.logits_of(pass, hidden, pass.tokens - 1, &logits)?;
        Ok(logits)
    }

    /// The logits of the tokens from `first` on.
    fn logits_of(
        &self,
        pass: &mut Pass<'_>,
        hidden: &Buffer,
        first: usize,
        logits: &Buffer,
    ) -> Result<(), EngineError> {
        let (c, dtype) = (&self.config, self.options.storage);
        let norm_missing = self.options.faults.has(Wiring::FinalNormMissing);
        let rows = pass.tokens - first;
        let from = (hidden, first * c.n_embd * dtype.size());
        let normed = &pass.activations(None)[Stage::FinalNorm];
        self.norm_of(normed, from, &self.weights.final_norm, (rows, c.n_embd))?;
        let normed = if norm_missing { hidden } else { normed };
        pass.emit(None, Stage::FinalNorm, normed, dtype)?;
        let output = Gemm {
            x: normed,
            w: &self.weights.output,
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
        let row = Strided::whole(offset, 4 * self.config.n_vocab);
        if let Some(read) = self.device.read(logits, row)? {
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
