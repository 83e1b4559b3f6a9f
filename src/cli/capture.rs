//! `firstdiff capture`: one side's tensors, recorded as a trace.

use std::{collections::BTreeMap, sync::Arc};

use firstdiff::{
    compare::SiteFilter,
    core::{
        arithmetic::Arithmetic,
        exit::Exit,
        files,
        floor::DeclaredFloor,
        progress,
        sink::{Choice, Sink, Stopped},
        tensor::{DType, Tensor},
    },
    engine::{
        EngineSpec,
        kernels::{KernelSet, source},
    },
    graph::{
        SiteList,
        site::{Site, Stage},
    },
    model::ModelFile,
    reference::{Changes, Precision, Reference, Routing, is_choice},
    run::{
        Division, RunError,
        baseline::{Baseline, Held, needed_nodes},
    },
    trace::{Manifest, ModelId, Settings, Side, TraceReader, TraceWriter},
};

use indicatif::ProgressBar;

use super::{
    args::{CaptureArgs, IdsArgs, SideArg},
    error::Error,
    inputs::{self, Inputs},
    output,
};

/// A sink that passes on what the filter wants.
struct Filtered<'a> {
    writer: &'a mut TraceWriter,
    filter: &'a SiteFilter,
    /// Stages that no kernel of the engine gives.
    recomputed: Vec<Stage>,
}

impl Sink for Filtered<'_> {
    fn wants(&self, site: Site) -> bool {
        let recomputed = self.recomputed.contains(&site.stage);
        !recomputed && self.filter.wants(site) && self.writer.wants(site)
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        progress::advance(site);
        Sink::put(self.writer, site, tensor)
    }
}

/// Records a side.
pub fn capture(args: &CaptureArgs) -> Result<Exit, Error> {
    let engine = inputs::engine(&args.engine)?;
    let filter = inputs::filter(&args.only)?;
    let bar = output::progress(None, "loading the model and the reference");
    let steps = match args.side {
        SideArg::Reference => capture_reference(args, filter, &bar)?,
        SideArg::Engine => capture_engine(args, &engine, filter, &bar)?,
    };
    bar.finish_and_clear();
    let side = if args.side == SideArg::Reference { "reference" } else { "engine" };
    output::print(&format!("recorded {steps} steps of the {side} in {}\n", args.output.display()))?;
    Ok(Exit::Equal)
}

/// Records llama.cpp over a model of any architecture, with its graph and the floors of every engine of
/// ours; how many steps.
fn capture_reference(
    args: &CaptureArgs,
    filter: SiteFilter,
    bar: &ProgressBar,
) -> Result<usize, Error> {
    let like = args.tokens_of.as_deref().map(TraceReader::open).transpose()?;
    let like = like.map(|trace| trace.sequence(args.sequence)).transpose()?;
    let inputs = match &like {
        Some(trace) => Inputs::load_like(&args.model, trace)?,
        None => Inputs::load_ids(&args.model, &args.ids)?,
    };
    let tokens = match &like {
        Some(trace) => inputs::tokens_of(trace)?.1,
        None => args.ids.decoded.clone(),
    };
    let routing = match &like {
        Some(trace) if args.force_routing => Some(routing(&inputs.reference, trace)?),
        _ => None,
    };
    let (model, routing) = (Arc::clone(inputs.reference.graph()), routing.as_ref());
    let filter = filter.of_model(&model)?;
    filter.check(&model.sites.of_run(inputs.decode + 1))?;
    bar.set_message("measuring the floor");
    let (mut floors, mut steps) = (Vec::new(), Vec::new());
    for arithmetic in Arithmetic::engines() {
        let (reference, task) = (&inputs.reference, inputs.task());
        // Where a part of the graph will do, tokens are chosen once.
        let chosen: Vec<i32> = steps.iter().skip(1).flatten().copied().collect();
        let is_chosen = !filter.wants_all() && !chosen.is_empty();
        let held = Held { tokens: if is_chosen { &chosen } else { &tokens }, routing };
        let baseline = Baseline::held(reference, &inputs.model, task, &arithmetic, &filter, held)?;
        floors.push(DeclaredFloor { arithmetic, floor: baseline.floor });
        steps = baseline.steps;
    }
    if let Some(chunk) = args.ids.chunks {
        let divided = Division::of(&steps, chunk as usize);
        for declared in &mut floors {
            declared.floor = divided.floor(&declared.floor, &inputs.reference.graph().sites);
        }
        steps = divided.steps;
    }
    let id = model_id(&inputs.reference, &inputs.model);
    let device = "llama.cpp on the CPU".to_string();
    let manifest = Manifest {
        settings: Settings { forced_routing: routing.is_some(), ..settings(&inputs.reference) },
        prompt: Some(inputs.prompt.clone()).filter(|prompt| !prompt.is_empty()),
        prompt_tokens: args.ids.chunks.map(|_| inputs.ids.len()),
        floors,
        ..Manifest::new(Side::Reference, id, Arithmetic::engine(DType::F32), device)
    };
    let mut writer = TraceWriter::create(&args.output, manifest, args.overwrite)?;
    bar.set_message("recording");
    let needed = needed_nodes(&inputs.reference, &filter);
    let (graph, values) = inputs.reference.import(&steps.concat())?;
    writer.put_graph(&graph, &values)?;
    let task = inputs.task();
    let mut session = inputs.reference.session(task.positions(), task.prompt.len())?;
    let filtered = Filtered { writer: &mut writer, filter: &filter, recomputed: Vec::new() };
    let changes = Changes { routing, needed: needed.as_deref(), ..Changes::default() };
    record(&steps, filtered, |step, tokens, sink| {
        Ok(session.step_with(step, tokens, sink, changes)?)
    })?;
    writer.finish()?;
    Ok(steps.len())
}

/// The experts that a side sent its tokens to.
pub fn routing(reference: &Reference, trace: &TraceReader) -> Result<Routing, Error> {
    let graph = reference.graph();
    let mut routing = Routing::default();
    for site in trace.sites().filter(|&site| is_choice(graph, site)) {
        if let Some(ids) = trace.tensor(site)? {
            routing.insert(site, ids);
        }
    }
    if routing.is_empty() {
        let site = graph.sites.of_run(1).into_iter().find(|&site| is_choice(graph, site));
        let missing = match site {
            Some(site) => format!("has no {}: record the ids of its experts", site.tensor_name()),
            None => "is of a model without experts".to_string(),
        };
        let trace = trace.folder().display();
        return Err(Error::Usage(format!("--force-routing: {trace} {missing}")));
    }
    Ok(routing)
}

/// Records our engine over the reference's tokens; how many steps.
fn capture_engine(
    args: &CaptureArgs,
    engine: &EngineSpec,
    filter: SiteFilter,
    bar: &ProgressBar,
) -> Result<usize, Error> {
    let IdsArgs { tokens, decoded, chunks } = &args.ids;
    let given = [
        ("--tokens-of", args.tokens_of.is_some()),
        ("--tokens", !tokens.is_empty()),
        ("--decoded", !decoded.is_empty()),
        ("--chunks", chunks.is_some()),
    ];
    if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
        return Err(Error::Usage(format!("{flag} is for capture reference; leave it out")));
    }
    let inputs = Inputs::load(&args.model)?;
    inputs::check_effects(&args.engine, engine, &inputs)?;
    let sites = inputs.model.config.sites(inputs.decode + 1);
    let filter = filter.of_model(&inputs.model.graph)?;
    filter.check(&sites)?;
    bar.set_message("measuring the floor");
    let arithmetic = engine.arithmetic();
    let Baseline { steps, floor, .. } =
        Baseline::of(&inputs.reference, &inputs.model, inputs.task(), &arithmetic, &filter)?;
    let id = model_id(&inputs.reference, &inputs.model);
    let faults: Vec<&str> = engine.faults.0.iter().map(|fault| fault.name).collect();
    let mut built = engine.build_to(&inputs.model, inputs.task(), filter.depth(&sites))?;
    let manifest = Manifest {
        kernels: kernel_hashes(engine)?,
        settings: Settings {
            dtype: Some(engine.storage),
            attention: Some(engine.attention.to_string()),
            fault: (!faults.is_empty()).then(|| faults.join(",")),
            ..settings(&inputs.reference)
        },
        prompt: Some(inputs.prompt.clone()),
        floors: vec![DeclaredFloor { arithmetic: arithmetic.clone(), floor }],
        ..Manifest::new(Side::Engine, id, arithmetic, built.device_name())
    };
    let mut writer = TraceWriter::create(&args.output, manifest, args.overwrite)?;
    bar.set_message("recording");
    for weight in built.loaded_weights().map_err(RunError::from)? {
        writer.put_weight(&weight)?;
    }
    let filtered =
        Filtered { writer: &mut writer, filter: &filter, recomputed: engine.recomputed() };
    record(&steps, filtered, |step, tokens, sink| Ok(built.step(step, tokens, sink)?))?;
    writer.finish()?;
    Ok(steps.len())
}

pub fn model_id(reference: &Reference, file: &ModelFile) -> ModelId {
    let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let sites = SiteList::from(&reference.graph().sites);
    let (architecture, n_vocab) = (file.architecture.clone(), reference.n_vocab());
    ModelId::new(name, file.hash(), architecture, n_vocab, &sites)
}

fn settings(reference: &Reference) -> Settings {
    let precision = match reference.options().precision {
        Precision::F32 => "f32",
        Precision::Native => "native",
    };
    Settings { reference_precision: Some(precision.to_string()), ..Settings::default() }
}

fn kernel_hashes(engine: &EngineSpec) -> Result<BTreeMap<String, String>, Error> {
    let mut hashes = BTreeMap::new();
    for file in KernelSet::files() {
        let source = engine.kernels.source(file, Vec::new())?;
        let hash = blake3::hash(source.text.as_bytes()).to_hex().to_string();
        hashes.insert(file.to_string(), hash);
    }
    for contract in engine.kernels.contracts() {
        for path in contract.files() {
            let read = |source| Error::Read { path: path.to_path_buf(), source };
            let hash = blake3::hash(&files::read(path, source::MAX_BYTES).map_err(read)?)
                .to_hex()
                .to_string();
            hashes.insert(path.display().to_string(), hash);
        }
    }
    Ok(hashes)
}

/// Runs the steps, each into the writer.
fn record(
    steps: &[Vec<i32>],
    mut filtered: Filtered<'_>,
    mut run: impl FnMut(u32, &[i32], &mut dyn Sink) -> Result<Option<Choice>, Error>,
) -> Result<(), Error> {
    let mut position = 0;
    let sites = filtered.writer.list().of_run(steps.len() as u32);
    progress::begin("recording", sites.iter().filter(|&&site| filtered.filter.wants(site)).count());
    for (step, tokens) in (0u32..).zip(steps) {
        filtered.writer.begin_step(tokens, position)?;
        position += tokens.len();
        let choice = match run(step, tokens, &mut filtered) {
            Ok(choice) => choice,
            // A writer that failed stops the side; its own error says why.
            Err(error) => {
                filtered.writer.end_step()?;
                return Err(error);
            }
        };
        if let Some(choice) = choice {
            filtered.writer.set_choice(choice)?;
        }
        filtered.writer.end_step()?;
    }
    Ok(())
}
