//! The forward pass: prefill and decode with a KV cache, every site offered to a [`Sink`].

use half::{f16, slice::HalfFloatSliceExt};

use crate::{
    capture::{Choice, Sink, Stopped},
    device::{Buffer, Device, DeviceError, Gemm},
    engine::{
        AttentionVariant,
        buffers::{Cache, Scratch},
        variant::Softmax,
        weights::{Layer, Linear, Weights},
    },
    fault::{Faults, Wiring},
    kernels::{KernelError, KernelSet, launch, launch::CacheView},
    model::{Config, Model, ModelError, RopePairs},
    site::{Site, Stage},
    tensor::{DType, Tensor},
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
    Model(#[from] ModelError),
    #[error("token id {id} is outside the vocabulary of {n_vocab}; check the prompt's ids")]
    Token { id: i32, n_vocab: usize },
    #[error("{wanted} positions do not fit the KV cache of {capacity}; make the engine larger")]
    CacheFull { wanted: usize, capacity: usize },
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// The cache's capacity is a multiple of this above what is needed, so that a stride by length is
/// never right by luck.
const CAPACITY_STEP: usize = 64;

/// A model on a device, with a KV cache.
pub struct Engine {
    device: Box<dyn Device>,
    config: Config,
    options: EngineOptions,
    weights: Weights,
    caches: Vec<Cache>,
    scratch: Scratch,
    capacity: usize,
    /// Positions in the cache.
    length: usize,
}

/// One step on its way through the layers.
struct Pass<'a> {
    sink: &'a mut dyn Sink,
    step: u32,
    /// T.
    tokens: usize,
    /// P, after this step.
    length: usize,
    /// (T, Hq, P) f32, where any layer's scores or probs are wanted.
    scores: Option<Buffer>,
    probs: Option<Buffer>,
}

impl Engine {
    /// Compiles the kernels and loads the weights.
    pub fn new(
        mut device: Box<dyn Device>,
        model: &Model,
        kernels: &KernelSet,
        options: EngineOptions,
    ) -> Result<Engine, EngineError> {
        let mut sources = Vec::new();
        for file in KernelSet::files() {
            let mut defines = options.faults.defines(file);
            if file == "attention.cu" {
                defines.extend(options.attention.defines());
            }
            sources.push(kernels.source(file, defines)?);
        }
        device.load_all(&sources)?;
        let weights = Weights::load(&*device, model, options.storage, &options.faults)?;
        let config = options.faults.config(&model.config);
        let capacity = (options.positions + 1).next_multiple_of(CAPACITY_STEP);
        let scratch = Scratch::new(&*device, &config, &options)?;
        let caches = (0..config.n_layer)
            .map(|_| Cache::new(&*device, &config, options.storage, capacity))
            .collect::<Result<_, _>>()?;
        Ok(Engine { device, config, options, weights, caches, scratch, capacity, length: 0 })
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
        self.device.upload(&self.scratch.ids, 0, bytemuck::cast_slice(tokens))?;
        let (device, faults) = (&*self.device, &self.options.faults);
        self.scratch.positions.upload(device, faults, step, first..length)?;

        let mut pass = self.pass(step, tokens.len(), length, sink)?;
        self.embed(&mut pass)?;
        for layer in 0..self.config.n_layer {
            self.attention_block(layer, &mut pass)?;
            self.feed_forward_block(layer, &mut pass)?;
        }
        let choice = self.logits(&mut pass)?;
        self.length = length;
        Ok(choice)
    }

    /// Empties the KV cache, for another prompt.
    pub fn reset(&mut self) -> Result<(), EngineError> {
        for cache in &self.caches {
            cache.clear(&*self.device)?;
        }
        self.length = 0;
        Ok(())
    }

    fn pass<'a>(
        &self,
        step: u32,
        tokens: usize,
        length: usize,
        sink: &'a mut dyn Sink,
    ) -> Result<Pass<'a>, EngineError> {
        let tap = |stage: Stage| {
            let mut layers = 0..self.config.n_layer as u32;
            if !layers.any(|layer| sink.wants(Site::in_layer(step, layer, stage))) {
                return Ok(None);
            }
            let bytes = 4 * tokens * self.config.n_head * length;
            self.device.alloc(bytes, stage.name()).map(Some)
        };
        let (scores, probs) = (tap(Stage::Scores)?, tap(Stage::Probs)?);
        Ok(Pass { sink, step, tokens, length, scores, probs })
    }

    /// hidden = embedding rows.
    fn embed(&self, pass: &mut Pass<'_>) -> Result<(), EngineError> {
        let (dtype, scratch) = (self.options.storage, &self.scratch);
        let shape = (pass.tokens, self.config.n_embd);
        let table = &self.weights.embedding;
        launch::embedding(&*self.device, dtype, &scratch.hidden, table, &scratch.ids, shape)?;
        self.emit(pass, None, Stage::Embd, &scratch.hidden)
    }

    /// hidden += output projection of the attention over the normed hidden.
    fn attention_block(&self, layer: usize, pass: &mut Pass<'_>) -> Result<(), EngineError> {
        let (device, dtype, s) = (&*self.device, self.options.storage, &self.scratch);
        let weights = &self.weights.layers[layer];
        let at = Some(layer);

        self.norm(&s.normed, &s.hidden, &weights.attn_norm, (pass.tokens, self.config.n_embd))?;
        self.emit(pass, at, Stage::AttnNorm, &s.normed)?;
        self.project_qkv(layer, weights, pass)?;
        self.append_to_cache(layer, pass)?;

        let from_layer_0 = self.options.faults.has(Wiring::CacheOfLayer0);
        let cache = self.cache_view(if from_layer_0 { 0 } else { layer }, pass.length);
        let online = self.options.attention.softmax == Softmax::Online;
        let op = launch::Attention {
            q: &s.q_rope,
            out: &s.attn_out,
            positions: &s.positions.mask,
            scores: pass.scores.as_ref(),
            probs: pass.probs.as_ref(),
            n_head: self.config.n_head,
            scale: self.config.attention_scale,
            online,
        };
        launch::attention(device, dtype, &cache, &op, pass.tokens)?;
        self.emit_tap(pass, layer, Stage::Scores)?;
        self.emit_tap(pass, layer, Stage::Probs)?;
        self.emit(pass, at, Stage::AttnOut, &s.attn_out)?;

        self.linear(&s.projected, &s.attn_out, &weights.o, pass.tokens)?;
        self.emit(pass, at, Stage::OProj, &s.projected)?;
        let n = pass.tokens * self.config.n_embd;
        let residual = s.residual(device, &self.options.faults, Stage::AttnResidual)?;
        launch::residual_add(device, dtype, &s.hidden, (residual, &s.projected), n)?;
        self.emit(pass, at, Stage::AttnResidual, &s.hidden)
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
        for (out, linear, stage) in [
            (&s.q, &weights.q, Stage::Q),
            (&s.k, &weights.k, Stage::K),
            (&s.v, &weights.v, Stage::V),
        ] {
            self.linear(out, &s.normed, linear, tokens)?;
            self.emit(pass, at, stage, out)?;
        }
        for (x, weight, n_head, stage) in [
            (&s.q, &weights.q_norm, c.n_head, Stage::QNorm),
            (&s.k, &weights.k_norm, c.n_head_kv, Stage::KNorm),
        ] {
            if let Some(weight) = weight {
                self.norm(x, x, weight, (tokens * n_head, c.head_dim))?;
                self.emit(pass, at, stage, x)?;
            }
        }
        for (out, x, positions, n_head, stage) in [
            (&s.q_rope, &s.q, &s.positions.q_rope, c.n_head, Stage::QRope),
            (&s.k_rope, &s.k, &s.positions.k_rope, c.n_head_kv, Stage::KRope),
        ] {
            let rope = launch::Rope {
                neox: c.rope_pairs == RopePairs::Neox,
                theta: c.rope_theta,
                positions,
                factors: self.weights.rope_factors.as_ref(),
            };
            launch::rope(&*self.device, dtype, out, x, &rope, (tokens, n_head, c.head_dim))?;
            self.emit(pass, at, stage, out)?;
        }
        Ok(())
    }

    fn append_to_cache(&self, layer: usize, pass: &mut Pass<'_>) -> Result<(), EngineError> {
        let (s, dtype, faults) = (&self.scratch, self.options.storage, &self.options.faults);
        let cache = self.cache_view(layer, pass.length);
        let (kv, positions) = ((s.appended_keys(faults), &s.v), &s.positions.append);
        if pass.step == 0 || !faults.has(Wiring::DecodeNeverAppended) {
            launch::kv_append(&*self.device, dtype, &cache, kv, positions, pass.tokens)?;
        }
        self.emit_cache(pass, layer, Stage::KCache, cache.k)?;
        self.emit_cache(pass, layer, Stage::VCache, cache.v)
    }

    /// hidden += down(silu(gate) * up) of the normed hidden.
    fn feed_forward_block(&self, layer: usize, pass: &mut Pass<'_>) -> Result<(), EngineError> {
        let (device, dtype, s) = (&*self.device, self.options.storage, &self.scratch);
        let weights = &self.weights.layers[layer];
        let (at, tokens) = (Some(layer), pass.tokens);
        let (hidden_size, inner_size) = (tokens * self.config.n_embd, tokens * self.config.n_ff);

        self.norm(&s.normed, &s.hidden, &weights.ffn_norm, (tokens, self.config.n_embd))?;
        self.emit(pass, at, Stage::FfnNorm, &s.normed)?;
        self.linear(&s.gate, &s.normed, &weights.gate, tokens)?;
        self.emit(pass, at, Stage::FfnGate, &s.gate)?;
        self.linear(&s.up, &s.normed, &weights.up, tokens)?;
        self.emit(pass, at, Stage::FfnUp, &s.up)?;
        launch::swiglu(device, dtype, &s.act, (&s.gate, &s.up), inner_size)?;
        self.emit(pass, at, Stage::FfnAct, &s.act)?;
        self.linear(&s.projected, &s.act, &weights.down, tokens)?;
        self.emit(pass, at, Stage::FfnDown, &s.projected)?;
        let residual = s.residual(device, &self.options.faults, Stage::LayerOut)?;
        launch::residual_add(device, dtype, &s.hidden, (residual, &s.projected), hidden_size)?;
        self.emit(pass, at, Stage::LayerOut, &s.hidden)
    }

    /// Final norm and logits: of every token where either is wanted, else of the last one.
    fn logits(&self, pass: &mut Pass<'_>) -> Result<Option<Choice>, EngineError> {
        let (c, s) = (&self.config, &self.scratch);
        let wanted = [Stage::FinalNorm, Stage::Logits]
            .iter()
            .any(|&stage| pass.sink.wants(Site::global(pass.step, stage)));
        let norm_missing = self.options.faults.has(Wiring::FinalNormMissing);
        let rows = if wanted || norm_missing { pass.tokens } else { 1 };
        let skipped = (pass.tokens - rows) * c.n_embd * self.options.storage.size();
        launch::rms_norm(
            &*self.device,
            self.options.storage,
            &s.normed,
            (&s.hidden, skipped),
            &self.weights.final_norm,
            (rows, c.n_embd),
            c.rms_eps,
        )?;
        let normed = if norm_missing { &s.hidden } else { &s.normed };
        self.emit(pass, None, Stage::FinalNorm, normed)?;

        let logits = self.device.alloc(4 * rows * c.n_vocab, Stage::Logits.name())?;
        self.device.gemm(Gemm {
            x: normed,
            w: self.weights.output.as_ref().unwrap_or(&self.weights.embedding),
            y: &logits,
            rows,
            cols: c.n_vocab,
            inner: c.n_embd,
            input: self.options.storage,
            output: DType::F32,
        })?;
        if let Some(bias) = &self.weights.output_bias {
            launch::bias_add(&*self.device, DType::F32, &logits, bias, (rows, c.n_vocab))?;
        }
        let mut last = vec![0f32; c.n_vocab];
        let offset = 4 * (rows - 1) * c.n_vocab;
        self.device.download(&logits, offset, bytemuck::cast_slice_mut(&mut last))?;
        if wanted {
            self.emit_f32(pass, Site::global(pass.step, Stage::Logits), &logits)?;
        }
        Ok(Choice::of(&last))
    }

    /// out (T, outputs) = x W^T + bias.
    fn linear(
        &self,
        out: &Buffer,
        x: &Buffer,
        linear: &Linear,
        rows: usize,
    ) -> Result<(), EngineError> {
        let dtype = self.options.storage;
        self.device.gemm(Gemm {
            x,
            w: &linear.weight,
            y: out,
            rows,
            cols: linear.outputs,
            inner: linear.inputs,
            input: dtype,
            output: dtype,
        })?;
        if let Some(bias) = &linear.bias {
            launch::bias_add(&*self.device, dtype, out, bias, (rows, linear.outputs))?;
        }
        Ok(())
    }

    fn norm(
        &self,
        out: &Buffer,
        x: &Buffer,
        weight: &Buffer,
        shape: (usize, usize),
    ) -> Result<(), EngineError> {
        let (dtype, eps) = (self.options.storage, self.config.rms_eps);
        launch::rms_norm(&*self.device, dtype, out, (x, 0), weight, shape, eps)?;
        Ok(())
    }

    fn cache_view(&self, layer: usize, length: usize) -> CacheView<'_> {
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

/// Hooks: nothing is copied for a site that the sink does not want.
impl Engine {
    /// Offers an activation in the storage type.
    fn emit(
        &self,
        pass: &mut Pass<'_>,
        layer: Option<usize>,
        stage: Stage,
        buffer: &Buffer,
    ) -> Result<(), EngineError> {
        let site = Site { step: pass.step, layer: layer.map(|layer| layer as u32), stage };
        if !pass.sink.wants(site) {
            return Ok(());
        }
        let shape = self.config.shape(stage, pass.tokens, pass.length);
        let data = self.read(buffer, 0, shape.iter().product())?;
        Ok(pass.sink.put(site, Tensor::new(shape, data))?)
    }

    /// Offers scores or probs, which the attention kernel wrote as f32.
    fn emit_tap(&self, pass: &mut Pass<'_>, layer: usize, stage: Stage) -> Result<(), EngineError> {
        let site = Site::in_layer(pass.step, layer as u32, stage);
        let tap = if stage == Stage::Scores { pass.scores.take() } else { pass.probs.take() };
        if let Some(tap) = &tap
            && pass.sink.wants(site)
        {
            self.emit_f32(pass, site, tap)?;
        }
        match stage {
            Stage::Scores => pass.scores = tap,
            _ => pass.probs = tap,
        }
        Ok(())
    }

    fn emit_f32(
        &self,
        pass: &mut Pass<'_>,
        site: Site,
        buffer: &Buffer,
    ) -> Result<(), EngineError> {
        if !pass.sink.wants(site) {
            return Ok(());
        }
        let shape = self.config.shape(site.stage, pass.tokens, pass.length);
        let mut data = vec![0f32; shape.iter().product()];
        self.device.download(buffer, 0, bytemuck::cast_slice_mut(&mut data))?;
        Ok(pass.sink.put(site, Tensor::new(shape, data))?)
    }

    /// Offers the positions 0..P of a cache, from [kv_head][position][dim] to (P, Hk, D).
    fn emit_cache(
        &self,
        pass: &mut Pass<'_>,
        layer: usize,
        stage: Stage,
        cache: &Buffer,
    ) -> Result<(), EngineError> {
        let site = Site::in_layer(pass.step, layer as u32, stage);
        if !pass.sink.wants(site) {
            return Ok(());
        }
        let (heads, dim, length) = (self.config.n_head_kv, self.config.head_dim, pass.length);
        let mut data = vec![0f32; length * heads * dim];
        for head in 0..heads {
            let values = self.read(cache, head * self.capacity * dim, length * dim)?;
            for (position, row) in values.chunks_exact(dim).enumerate() {
                let first = (position * heads + head) * dim;
                data[first..first + dim].copy_from_slice(row);
            }
        }
        let shape = self.config.shape(stage, pass.tokens, length);
        Ok(pass.sink.put(site, Tensor::new(shape, data))?)
    }

    /// `count` elements of the storage type from element `first` on, widened to f32.
    fn read(&self, buffer: &Buffer, first: usize, count: usize) -> Result<Vec<f32>, EngineError> {
        let mut data = vec![0f32; count];
        let offset = first * self.options.storage.size();
        match self.options.storage {
            DType::F16 => {
                let mut narrow = vec![f16::ZERO; count];
                self.device.download(buffer, offset, bytemuck::cast_slice_mut(&mut narrow))?;
                narrow.convert_to_f32_slice(&mut data);
            }
            _ => self.device.download(buffer, offset, bytemuck::cast_slice_mut(&mut data))?,
        }
        Ok(data)
    }
}
