//! A loaded reference model, and decoding sessions on it.

use std::{path::PathBuf, ptr::NonNull};

use llama_cpp_2::{
    model::{LlamaModel, params::LlamaModelParams},
    token::LlamaToken,
};
use llama_cpp_sys_2 as sys;

use crate::{
    core::{
        exit::Exit,
        sink::{Choice, Sink, Stopped},
    },
    graph::site::Site,
    model::{Config, Model, gguf::WriteError, llama},
    reference::{
        Noise,
        callback::{Capture, Failure, is_over, on_node},
        context::{Context, ContextSpec},
        import::{self, IMPORT_POSITIONS, Imported, Importer, SequenceInputs},
        node::Biases,
        threads::Threads,
        widen,
    },
};

/// What llama.cpp computes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// The weights widened to f32, an f32 KV cache: the sharp reference.
    #[default]
    F32,
    /// The file as it is, an f16 KV cache: what llama.cpp users run.
    Native,
}

/// How the reference runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceOptions {
    pub precision: Precision,
    /// Threads; by default 1 for small models, on which more are slower, else three quarters of the cores.
    pub threads: Option<usize>,
}

/// Below this many parameters one thread is fastest.
const SMALL_MODEL_PARAMETERS: u64 = 50_000_000;

/// Why the reference could not run.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    #[error("llama.cpp cannot load {path}: {detail}; check the file with llama.cpp's own tools")]
    Load { path: PathBuf, detail: String },
    #[error("{0}; --reference native needs no widened copy")]
    Widen(#[from] WriteError),
    #[error("llama.cpp made no context for {tokens} tokens: {detail}; use a shorter prompt")]
    Context { tokens: usize, detail: String },
    #[error("llama.cpp failed to decode step {step} (code {code}): {detail}; shorten the prompt")]
    Decode { step: u32, code: i32, detail: String },
    #[error(
        "llama.cpp's graph has {found} nodes for {site}, not 1; this version of firstdiff does not \
         know this graph, leave the site out with --sites"
    )]
    Matches { site: Site, found: u32 },
    #[error("{site} of llama.cpp: {detail}; leave the site out with --sites")]
    Node { site: Site, detail: String },
    #[error("llama.cpp's graph cannot be read: {detail}; please report the model")]
    Import { detail: String },
    #[error("internal error in the graph callback: {0}; please report it")]
    Panic(String),
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl ReferenceError {
    /// The exit code of the error.
    pub fn exit(&self) -> Exit {
        use ReferenceError::*;
        match self {
            Panic(_) => Exit::Internal,
            Matches { .. } | Node { .. } | Import { .. } => Exit::NotMeasured,
            Load { .. } | Widen(_) | Context { .. } | Decode { .. } | Stopped(_) => Exit::BadInput,
        }
    }
}

/// A model loaded in llama.cpp. Sessions on it may run in several threads.
pub struct Reference {
    model: LlamaModel,
    config: Config,
    biases: Biases,
    options: ReferenceOptions,
    threads: i32,
}

impl Reference {
    /// Loads a model, making its f32 copy first where the precision asks for one.
    pub fn load(model: &Model, options: ReferenceOptions) -> Result<Reference, ReferenceError> {
        let path = match options.precision {
            Precision::F32 => widen::widened(model)?,
            Precision::Native => model.path.clone(),
        };
        let backend = llama::backend();
        llama::take_errors();
        let params = LlamaModelParams::default().with_n_gpu_layers(0);
        let loaded = LlamaModel::load_from_file(backend, &path, &params).map_err(|error| {
            let errors = llama::take_errors();
            let detail = if errors.is_empty() { error.to_string() } else { errors };
            ReferenceError::Load { path: path.clone(), detail }
        })?;
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let small = model.parameters() < SMALL_MODEL_PARAMETERS;
        // A quarter of the cores is left to the comparison: llama.cpp's threads wait busily, and a core
        // that two of them share stops all.
        let threads = options.threads.unwrap_or(if small { 1 } else { cores - cores / 4 });
        Ok(Reference {
            model: loaded,
            config: model.config.clone(),
            biases: biases(model),
            options,
            threads: threads as i32,
        })
    }

    /// The token ids of a text, with the special tokens that the model's tokenizer adds.
    pub fn tokenize(&self, text: &str) -> Vec<i32> {
        let tokens = self.model.vocab().tokenize(text.as_bytes(), true, true);
        tokens.into_iter().map(|token| token.0).collect()
    }

    /// The text of token ids; bytes that are no UTF-8 are shown as the replacement character.
    pub fn text(&self, tokens: &[i32]) -> String {
        let vocab = self.model.vocab();
        let mut bytes = Vec::new();
        for &token in tokens {
            bytes.extend(vocab.token_to_piece(LlamaToken(token), true, None));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Threads that a session uses.
    pub fn threads(&self) -> usize {
        self.threads as usize
    }

    /// The options it was loaded with.
    pub fn options(&self) -> ReferenceOptions {
        self.options
    }

    /// The model's graph, and where the tensors of a sequence get their inputs from.
    pub fn import(&self, tokens: &[i32]) -> Result<(Imported, SequenceInputs), ReferenceError> {
        let positions = tokens.len().max(IMPORT_POSITIONS);
        let spec = ContextSpec {
            positions,
            batch: positions,
            threads: self.threads,
            precision: self.options.precision,
        };
        llama::take_errors();
        let context = Context::new(&self.model, &spec, &import::HOOKS);
        let context = context.ok_or_else(|| ReferenceError::Context {
            tokens: positions,
            detail: llama::take_errors(),
        })?;
        let architecture = self.config.arch.name().to_string();
        let mut importer = Importer { context, architecture, token: 0 };
        let imported = importer.graph()?;
        let inputs = importer.inputs(&imported, tokens)?;
        Ok((imported, inputs))
    }

    /// A session with an empty KV cache for that many tokens in all, at most `batch` a step.
    pub fn session(&self, tokens: usize, batch: usize) -> Result<Session<'_>, ReferenceError> {
        self.session_of(1, tokens, batch)
    }

    /// One of several sessions that run at the same time, and share the threads: more of them than
    /// cores wait for one another, busily.
    pub fn session_of(
        &self,
        sessions: usize,
        tokens: usize,
        batch: usize,
    ) -> Result<Session<'_>, ReferenceError> {
        // The callback finds the step's capture through this slot, whose address never changes.
        let slot = Box::new(std::ptr::null_mut::<Capture<'static>>());
        let slot = NonNull::from(Box::leak(slot));
        // SAFETY: returns plain data.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = (tokens + 1).next_multiple_of(256) as u32;
        params.n_batch = batch as u32;
        params.n_ubatch = batch as u32;
        let threads = (self.threads / sessions as i32).max(1);
        params.n_threads = threads;
        params.n_threads_batch = threads;
        params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
        if self.options.precision == Precision::F32 {
            params.type_k = sys::GGML_TYPE_F32;
            params.type_v = sys::GGML_TYPE_F32;
        }
        params.offload_kqv = false;
        params.op_offload = false;
        params.cb_eval = Some(on_node);
        params.cb_eval_user_data = slot.as_ptr().cast();
        params.abort_callback = Some(is_over);
        params.abort_callback_data = slot.as_ptr().cast();
        llama::take_errors();
        // SAFETY: LlamaModel is a transparent wrapper around a non-null llama_model pointer, and
        // the session borrows it for as long as the context lives.
        let context = unsafe {
            let model = *std::ptr::from_ref(&self.model).cast::<*mut sys::llama_model>();
            sys::llama_init_from_model(model, params)
        };
        let mut session = Session { reference: self, context, slot, positions: 0, threads: None };
        if context.is_null() {
            return Err(ReferenceError::Context { tokens, detail: llama::take_errors() });
        }
        if let Some(threads) = Threads::new(threads) {
            // SAFETY: the session drops its context before its threads.
            unsafe { threads.attach_to(context) };
            session.threads = Some(threads);
        }
        Ok(session)
    }
}

fn biases(model: &Model) -> Biases {
    let layers = |part: &str| {
        let name = |layer: usize| format!("blk.{layer}.{part}.bias");
        (0..model.config.n_layer).map(|layer| model.has(&name(layer))).collect()
    };
    Biases {
        q: layers("attn_q"),
        k: layers("attn_k"),
        v: layers("attn_v"),
        o: layers("attn_output"),
        gate: layers("ffn_gate"),
        up: layers("ffn_up"),
        down: layers("ffn_down"),
        output: model.has("output.bias"),
    }
}

/// One llama.cpp context: a KV cache that grows step by step.
pub struct Session<'a> {
    reference: &'a Reference,
    context: *mut sys::llama_context,
    slot: NonNull<*mut Capture<'static>>,
    positions: usize,
    /// The context's own.
    threads: Option<Threads>,
}

// SAFETY: a context is used by one thread at a time, and llama.cpp ties it to none.
unsafe impl Send for Session<'_> {}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // SAFETY: the context and the slot are ours, and no decode runs.
        unsafe {
            if !self.context.is_null() {
                sys::llama_free(self.context);
            }
            drop(Box::from_raw(self.slot.as_ptr()));
        }
    }
}

impl Session<'_> {
    /// Decodes tokens at the next positions; every wanted site goes to the sink, changed by the
    /// noise if there is one. Returns what llama.cpp would say next.
    pub fn step(
        &mut self,
        step: u32,
        tokens: &[i32],
        sink: &mut dyn Sink,
        noise: Option<&Noise>,
    ) -> Result<Option<Choice>, ReferenceError> {
        let reference = self.reference;
        let positions = self.positions + tokens.len();
        let shape = (step, tokens.len(), positions);
        let mut capture = Capture::new(&reference.config, &reference.biases, sink, noise, shape);
        llama::take_errors();
        let pointer = std::ptr::from_mut(&mut capture);
        // SAFETY: the slot holds the capture only for the time of the decode, which ends before
        // `capture` does; nothing else touches it meanwhile.
        let code = unsafe {
            *self.slot.as_ptr() = pointer.cast();
            let code = decode(self.context, tokens, self.positions);
            *self.slot.as_ptr() = std::ptr::null_mut();
            code
        };
        match capture.failure.take() {
            None => {}
            Some(Failure::Stopped) => return Err(Stopped.into()),
            Some(Failure::Node { site, detail }) => {
                return Err(ReferenceError::Node { site, detail });
            }
            Some(Failure::Panic(text)) => return Err(ReferenceError::Panic(text)),
        }
        if code != 0 {
            return Err(ReferenceError::Decode { step, code, detail: llama::take_errors() });
        }
        check_matches(&capture)?;
        self.positions = positions;
        Ok(self.choice())
    }

    fn choice(&self) -> Option<Choice> {
        // SAFETY: the last decode asked for the logits of every token; llama.cpp owns n_vocab
        // floats until the next decode.
        let logits = unsafe {
            let first = sys::llama_get_logits_ith(self.context, -1);
            if first.is_null() {
                return None;
            }
            std::slice::from_raw_parts(first, self.reference.config.n_vocab)
        };
        Choice::of(logits)
    }
}

/// Every wanted site of the step must have been seen once.
fn check_matches(capture: &Capture<'_>) -> Result<(), ReferenceError> {
    let sites = capture.config.sites(1).into_iter();
    for site in sites.map(|site| Site { step: capture.step, ..site }) {
        let found = capture.seen.get(&site).copied().unwrap_or(0);
        if found != 1 && capture.sink.wants(site) {
            return Err(ReferenceError::Matches { site, found });
        }
    }
    Ok(())
}

/// Runs llama_decode over tokens at positions from `first` on, asking for logits of all of them.
///
/// # Safety
/// The context is live and used by no other thread.
unsafe fn decode(context: *mut sys::llama_context, tokens: &[i32], first: usize) -> i32 {
    let n = tokens.len();
    // SAFETY: the batch has room for `n` tokens of one sequence; every array is written below `n`.
    unsafe {
        let mut batch = sys::llama_batch_init(n as i32, 0, 1);
        batch.n_tokens = n as i32;
        for (i, &token) in tokens.iter().enumerate() {
            *batch.token.add(i) = token;
            *batch.pos.add(i) = (first + i) as i32;
            *batch.n_seq_id.add(i) = 1;
            **batch.seq_id.add(i) = 0;
            *batch.logits.add(i) = 1;
        }
        let code = sys::llama_decode(context, batch);
        sys::llama_batch_free(batch);
        code
    }
}
