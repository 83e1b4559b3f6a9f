//! A loaded reference model, and decoding sessions on it.

use std::{
    ffi::CString,
    path::{Path, PathBuf},
    ptr::NonNull,
    sync::Arc,
};

use super::{
    Noise, StepShape,
    callback::{Capture, Changes, Failure, HOOKS},
    context::{Context, ContextSpec, Hooks},
    import::{self, IMPORT_POSITIONS, Importer},
    rpc::{self, RemoteDevice, Server, ServerError},
    skip::Skipped,
    widen::Widening,
};
use crate::{
    core::{
        activity::{self, Foreign, Running},
        cache::Entry,
        exit::Exit,
        sink::{Choice, Sink, Stopped},
        spans,
    },
    graph::{
        ModelGraph, SequenceInputs,
        site::{Site, Stage},
    },
    model::{ModelFile, llama},
};
use llama_cpp_2::{model::LlamaModel, token::LlamaToken};
use llama_cpp_sys_2 as sys;

/// What llama.cpp computes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// The weights as f32, which holds any of them exactly, and an f32 KV cache: the sharp reference.
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
    #[error(
        "cannot compute llama.cpp's products in f32: {detail}; --reference native leaves them unchanged"
    )]
    Widen { detail: String },
    #[error(
        "llama.cpp could not create a context for {tokens} tokens: {detail}; use a shorter prompt"
    )]
    Context { tokens: usize, detail: String },
    #[error("llama.cpp failed to decode step {step} (code {code}): {detail}; shorten the prompt")]
    Decode { step: u32, code: i32, detail: String },
    #[error(
        "llama.cpp's graph has {found} nodes for {site}, not 1; this version of firstdiff does not know this \
         graph: exclude the site with --sites"
    )]
    Matches { site: Site, found: u32 },
    #[error("{site} of llama.cpp: {detail}; exclude the site with --sites")]
    Node { site: Site, detail: String },
    #[error("llama.cpp's graph cannot be read: {detail}; please report the model")]
    Import { detail: String },
    #[error(
        "llama.cpp cannot place {path} on {servers}: {detail}; give servers with more memory, or more of them"
    )]
    Place { path: PathBuf, servers: String, detail: String },
    #[error(transparent)]
    Server(#[from] ServerError),
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
            Place { .. } => Exit::Device,
            Server(error) => error.exit(),
            Matches { .. } | Node { .. } | Import { .. } | Widen { .. } => Exit::NotMeasured,
            Load { .. } | Context { .. } | Decode { .. } | Stopped(_) => Exit::BadInput,
        }
    }
}

/// A model loaded in llama.cpp. Sessions on it may run in several threads.
pub struct Reference {
    /// The user's file.
    name: String,
    model: LlamaModel,
    graph: Arc<ModelGraph>,
    options: ReferenceOptions,
    threads: i32,
    /// Whether most of its work is widening weights and multiplying by them, which llama.cpp is told to skip.
    widens: bool,
    /// Identifies the model's file.
    hash: String,
    architecture: String,
    remote: Option<Box<Remote>>,
}

/// Where a model's layers lie on servers.
struct Remote {
    servers: Vec<Server>,
    /// Which layers lie where.
    placed: String,
    /// The same model from the mapped file, whose graph is read.
    here: Reference,
}

impl Reference {
    /// Loads a model, and reads its graph.
    pub fn load(file: &ModelFile, options: ReferenceOptions) -> Result<Reference, ReferenceError> {
        // Weights in another order of its own are read by llama.cpp alone.
        Reference::here(file, options, options.precision == Precision::Native)
    }

    /// Loads a model with its layers on RPC servers, which compute them as the file has them. Its graph is read from
    /// the mapped file: there no tensor is a copy on its way to a server.
    pub fn load_on(
        file: &ModelFile,
        threads: Option<usize>,
        servers: &[Server],
    ) -> Result<Reference, ReferenceError> {
        let options = ReferenceOptions { precision: Precision::Native, threads };
        let devices = rpc::devices(servers)?;
        let here = Reference::here(file, options, false)?;
        let names = rpc::listed(servers);
        let doing = format!("loads {}", here.name);
        let running = activity::running(Foreign::Server, &names, &doing);
        llama::take_errors();
        let model = loaded(&file.path, true, &devices).ok_or_else(|| {
            let (path, detail) = (file.path.clone(), load_errors());
            ReferenceError::Place { path, servers: names.clone(), detail }
        })?;
        drop(running);
        let (name, hash) = (here.name.clone(), here.hash.clone());
        let (graph, architecture) = (Arc::clone(&here.graph), here.architecture.clone());
        let (threads, widens) = (here.threads, here.widens);
        let remote = Remote { servers: servers.to_vec(), placed: rpc::placed(&devices), here };
        let remote = Some(Box::new(remote));
        Ok(Reference { name, model, graph, options, threads, widens, hash, architecture, remote })
    }

    /// Loads a model into this machine's memory, and reads its graph.
    fn here(
        file: &ModelFile,
        options: ReferenceOptions,
        reorders: bool,
    ) -> Result<Reference, ReferenceError> {
        let name = file.path.display().to_string();
        let running = activity::running(Foreign::Llama, &name, "loads the model");
        llama::take_errors();
        let model = loaded(&file.path, reorders, &[]).ok_or_else(|| ReferenceError::Load {
            path: file.path.clone(),
            detail: load_errors(),
        })?;
        drop(running);
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let small = file.parameters() < SMALL_MODEL_PARAMETERS;
        // A quarter of the cores is left to the comparison: llama.cpp's threads wait busily, and a core
        // that two of them share stops all.
        let threads = options.threads.unwrap_or(if small { 1 } else { cores - cores / 4 });
        let mut reference = Reference {
            name,
            model,
            graph: Arc::default(),
            options,
            threads: threads as i32,
            widens: options.precision == Precision::F32 && file.is_narrow(),
            hash: file.hash(),
            architecture: file.architecture.clone(),
            remote: None,
        };
        reference.graph = reference.graph_for(IMPORT_POSITIONS)?;
        Ok(reference)
    }

    /// The token ids of a text, with the special tokens that the model's tokenizer adds.
    pub fn tokenize(&self, text: &str) -> Vec<i32> {
        let _running = activity::running(Foreign::Llama, &self.name, "tokenises the prompt");
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

    /// Entries of the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.model.n_vocab() as usize
    }

    /// Threads that a session uses.
    pub fn threads(&self) -> usize {
        self.threads as usize
    }

    /// The options it was loaded with.
    pub fn options(&self) -> ReferenceOptions {
        self.options
    }

    /// The servers that compute the layers, by their addresses; none where this machine does.
    pub fn servers(&self) -> &[Server] {
        self.remote.as_ref().map_or(&[], |remote| &remote.servers)
    }

    /// What computes, in words.
    pub fn device(&self) -> String {
        match self.servers() {
            [] => "llama.cpp on the CPU".to_string(),
            servers => format!("llama.cpp on the RPC servers {}", rpc::listed(servers)),
        }
    }

    /// Which layers lie on which server, in words.
    pub fn placement(&self) -> Option<&str> {
        self.remote.as_ref().map(|remote| remote.placed.as_str())
    }

    /// Notes that llama.cpp begins to work.
    fn running(&self, doing: &str) -> Running {
        match &self.remote {
            None => activity::running(Foreign::Llama, &self.name, doing),
            Some(remote) => {
                let doing = format!("{doing} of {}", self.name);
                activity::running(Foreign::Server, &rpc::listed(&remote.servers), &doing)
            }
        }
    }

    /// The model's graph and sites.
    pub fn graph(&self) -> &Arc<ModelGraph> {
        &self.graph
    }

    /// The graph with room in its caches for a sequence of tokens, and the values of its inputs.
    pub fn import(
        &self,
        tokens: &[i32],
    ) -> Result<(Arc<ModelGraph>, SequenceInputs), ReferenceError> {
        if let Some(remote) = &self.remote {
            return remote.here.import(tokens);
        }
        let graph = if tokens.len() < self.graph.graph.capacity {
            Arc::clone(&self.graph)
        } else {
            self.graph_for(tokens.len())?
        };
        let mut importer = self.importer(tokens.len())?;
        let _running = activity::running(Foreign::Llama, &self.name, "makes the graph's inputs");
        let inputs = importer.inputs(&graph, tokens)?;
        Ok((graph, inputs))
    }

    /// The graph with room for that many positions, from the cache if it is there.
    fn graph_for(&self, positions: usize) -> Result<Arc<ModelGraph>, ReferenceError> {
        let key = (GRAPH_VERSION, env!("CARGO_PKG_VERSION"), &self.hash, self.options.precision);
        let key = serde_json::to_vec(&(key, positions)).expect("plain data has no reason to fail");
        let entry = Entry::new("graphs", format!("{}.json", blake3::hash(&key).to_hex())).ok();
        let cached = entry.as_ref().and_then(Entry::read);
        if let Some(graph) = cached.and_then(|json| serde_json::from_slice(&json).ok()) {
            return Ok(Arc::new(graph));
        }
        let mut importer = self.importer(positions)?;
        let running = activity::running(Foreign::Llama, &self.name, "makes its graph");
        let graph = importer.graph()?;
        drop(running);
        if let (Some(entry), Ok(json)) = (entry, serde_json::to_vec(&graph)) {
            entry.write(&json);
        }
        Ok(Arc::new(graph))
    }

    /// Whether logits are among the nodes that are computed.
    fn has_logits(&self, needed: Option<&[bool]>) -> bool {
        let mut specs = self.graph.sites.specs().iter();
        let logits = specs.find(|spec| spec.stage == Stage::Logits);
        needed.is_none_or(|needed| logits.is_some_and(|spec| needed[spec.node.index()]))
    }

    fn importer(&self, positions: usize) -> Result<Importer, ReferenceError> {
        let positions = positions.max(IMPORT_POSITIONS);
        let spec = ContextSpec {
            positions,
            batch: positions,
            threads: self.threads,
            precision: self.options.precision,
        };
        let context = self.context(&spec, &import::HOOKS)?;
        Ok(Importer { context, architecture: self.architecture.clone(), token: 0 })
    }

    fn context(&self, spec: &ContextSpec, hooks: &Hooks) -> Result<Context, ReferenceError> {
        llama::take_errors();
        let doing = format!("makes a context for {} tokens", spec.positions);
        let running = self.running(&doing);
        let context = Context::new(&self.model, spec, hooks);
        drop(running);
        context.ok_or_else(|| ReferenceError::Context {
            tokens: spec.positions,
            detail: llama::take_errors(),
        })
    }

    /// A session with an empty KV cache for that many tokens in all, at most `batch` a step.
    pub fn session(&self, tokens: usize, batch: usize) -> Result<Session<'_>, ReferenceError> {
        self.session_beside(0, tokens, batch)
    }

    /// The same where so many sessions of other references run at the same time, and share the threads: more of
    /// them than cores wait for one another, busily.
    pub fn session_beside(
        &self,
        others: usize,
        tokens: usize,
        batch: usize,
    ) -> Result<Session<'_>, ReferenceError> {
        let mut one = self.sessions_of(1, others + 1, tokens, batch)?;
        Ok(one.pop().expect("one was asked for"))
    }

    /// Sessions that run the same steps, each in a thread of its own: in a product each waits for the others, so
    /// that a weight is read once for all. One that does not go on must be dropped.
    pub fn sessions(
        &self,
        n: usize,
        tokens: usize,
        batch: usize,
    ) -> Result<Vec<Session<'_>>, ReferenceError> {
        self.sessions_of(n, n, tokens, batch)
    }

    /// Sessions of one reference, among so many that run.
    fn sessions_of(
        &self,
        n: usize,
        running: usize,
        tokens: usize,
        batch: usize,
    ) -> Result<Vec<Session<'_>>, ReferenceError> {
        // Those of llama.cpp wait busily for one another after each node, in the way of the engine's and of those that
        // multiply. A few are enough for the rest of a graph.
        let threads = self.threads / running as i32 / if self.widens { 3 } else { 1 };
        let spec = ContextSpec {
            positions: tokens,
            batch,
            threads: threads.max(1),
            precision: self.options.precision,
        };
        let shared = self.threads as usize * n / running;
        let widening = self.widenings(n, shared.max(1), &spec)?;
        let session = |widening| {
            let context = self.context(&spec, &HOOKS)?;
            Ok(Session { reference: self, widening, context, positions: 0 })
        };
        widening.into_iter().map(session).collect()
    }

    /// What computes in f32 beside some contexts, where that is asked for.
    fn widenings(
        &self,
        n: usize,
        threads: usize,
        spec: &ContextSpec,
    ) -> Result<Vec<Option<Widening>>, ReferenceError> {
        if self.options.precision == Precision::Native {
            return Ok((0..n).map(|_| None).collect());
        }
        let widening = Widening::of_each(n, threads).ok_or_else(|| ReferenceError::Context {
            tokens: spec.positions,
            detail: "no memory for its threads".to_string(),
        })?;
        Ok(widening.into_iter().map(Some).collect())
    }
}

/// A model in llama.cpp's memory, or its layers in that of devices; `None` where llama.cpp does not load it.
/// `reorders` lets llama.cpp keep weights in an order that is faster to multiply.
fn loaded(path: &Path, reorders: bool, devices: &[RemoteDevice]) -> Option<LlamaModel> {
    llama::backend();
    let path = CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
    let mut list: Vec<sys::ggml_backend_dev_t> =
        devices.iter().map(|device| device.device).collect();
    list.push(std::ptr::null_mut());
    // SAFETY: the parameters are plain data, the path is NUL-terminated and the list ends with a null, and the model
    // is the wrapper's alone, which is a pointer that is not null.
    unsafe {
        let mut params = sys::llama_model_default_params();
        params.n_gpu_layers = 0;
        if !devices.is_empty() {
            params.devices = list.as_mut_ptr();
            // All of them.
            params.n_gpu_layers = -1;
        }
        params.use_extra_bufts = reorders;
        let model = NonNull::new(sys::llama_model_load_from_file(path.as_ptr(), params))?;
        Some(std::mem::transmute::<NonNull<sys::llama_model>, LlamaModel>(model))
    }
}

/// What llama.cpp says of a model that it did not load.
fn load_errors() -> String {
    let errors = llama::take_errors();
    if errors.is_empty() { "it gives no reason".into() } else { errors }
}

/// Raised when a change of how graphs are read makes cached ones wrong.
const GRAPH_VERSION: u32 = 2;

/// A sequence of tokens that grows step by step.
pub struct Session<'a> {
    reference: &'a Reference,
    widening: Option<Widening>,
    context: Context,
    positions: usize,
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
        self.step_with(step, tokens, sink, Changes { noise, ..Changes::default() })
    }

    /// The same, with other changes too.
    pub fn step_with(
        &mut self,
        step: u32,
        tokens: &[i32],
        sink: &mut dyn Sink,
        changes: Changes<'_>,
    ) -> Result<Option<Choice>, ReferenceError> {
        let positions = self.positions + tokens.len();
        let shape = StepShape { step, tokens: tokens.len(), positions };
        let widening = self.widening.as_mut();
        let mut capture = Capture::new(&self.reference.graph, sink, changes, widening, shape);
        llama::take_errors();
        let _span = spans::span("reference", || format!("step {step}"));
        let running = self.reference.running(&format!("computes step {step}"));
        let code = self.context.decode_with(&mut capture, tokens, self.positions);
        drop(running);
        let (failure, missing) = (capture.failure.take(), capture.missing());
        let mut skipped: Skipped = std::mem::take(&mut capture.skipped);
        skipped.put_back();
        if let Some(widening) = &mut self.widening {
            widening.put_back();
        }
        match failure {
            None => {}
            Some(Failure::Stopped) => return Err(Stopped.into()),
            Some(Failure::Node { site, detail }) => {
                return Err(ReferenceError::Node { site, detail });
            }
            Some(Failure::Graph(detail)) => return Err(ReferenceError::Import { detail }),
            Some(Failure::Widen(detail)) => return Err(ReferenceError::Widen { detail }),
            Some(Failure::Panic(text)) => return Err(ReferenceError::Panic(text)),
        }
        if code != 0 && activity::interrupted().is_some() {
            return Err(Stopped.into());
        }
        if code != 0 {
            return Err(ReferenceError::Decode { step, code, detail: llama::take_errors() });
        }
        if let Some((site, found)) = missing {
            return Err(ReferenceError::Matches { site, found });
        }
        self.positions = positions;
        Ok(if self.reference.has_logits(changes.needed) { self.choice() } else { None })
    }

    fn choice(&self) -> Option<Choice> {
        let n_vocab = self.reference.model.n_vocab() as usize;
        self.context.logits(n_vocab).and_then(Choice::of)
    }
}
