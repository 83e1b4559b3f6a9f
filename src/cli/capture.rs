//! `firstdiff capture`: one side's tensors, recorded as a trace.

use std::collections::BTreeMap;

use firstdiff::{
    compare::SiteFilter,
    core::{
        arithmetic::Arithmetic,
        exit::Exit,
        files,
        floor::{DeclaredFloor, Floor},
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
    reference::{Changes, Forced, Precision, Reference, Routing, is_choice},
    run::{
        Division, RunError,
        baseline::{Baseline, Baselines, Held, needed_nodes},
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

    fn begin_step(&mut self, tokens: &[i32], first_position: usize) -> Result<(), Stopped> {
        Sink::begin_step(self.writer, tokens, first_position)
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        progress::advance(site);
        Sink::put(self.writer, site, tensor)
    }

    fn end_step(&mut self, choice: Option<Choice>) -> Result<(), Stopped> {
        Sink::end_step(self.writer, choice)
    }
}

impl Filtered<'_> {
    /// Runs the steps, each into the writer.
    fn record(
        &mut self,
        steps: &[Vec<i32>],
        mut run: impl FnMut(u32, &[i32], &mut dyn Sink) -> Result<Option<Choice>, Error>,
    ) -> Result<(), Error> {
        let mut position = 0;
        let sites = self.writer.list().of_run(steps.len() as u32);
        let wanted = sites.into_iter().filter(|&site| self.filter.wants(site));
        progress::begin("recording", wanted.count());
        for (step, tokens) in (0u32..).zip(steps) {
            self.writer.begin_step(tokens, position)?;
            position += tokens.len();
            let choice = run(step, tokens, self);
            let choice = self.or_failure(choice)?;
            if let Some(choice) = choice {
                self.writer.set_choice(choice)?;
            }
            self.writer.end_step()?;
        }
        Ok(())
    }

    /// What a side gave. A writer that failed stops the side; its own error says why.
    fn or_failure<T, E: Into<Error>>(&mut self, given: Result<T, E>) -> Result<T, Error> {
        if given.is_err() {
            self.writer.failure()?;
        }
        given.map_err(Into::into)
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
    let held = Held { tokens: &tokens, routing: routing.as_ref() };
    let filter = filter.of_model(inputs.reference.graph())?;
    filter.check(&inputs.reference.graph().sites.of_run(inputs.decode + 1))?;
    let id = model_id(&inputs.reference, &inputs.model);
    let device = inputs.reference.device();
    let manifest = Manifest {
        settings: Settings { forced_routing: routing.is_some(), ..settings(&inputs.reference) },
        prompt: Some(inputs.prompt.clone()).filter(|prompt| !prompt.is_empty()),
        prompt_tokens: args.ids.chunks.map(|_| inputs.ids.len()),
        ..Manifest::new(Side::Reference, id, Arithmetic::engine(DType::F32), device)
    };
    let mut writer = TraceWriter::create(&args.output, manifest, args.overwrite)?;
    let mut filtered = Filtered { writer: &mut writer, filter: &filter, recomputed: Vec::new() };
    let arithmetics = Arithmetic::engines();
    let (reference, model, task) = (&inputs.reference, &inputs.model, inputs.task());
    let baselines = Baselines { reference, model, task, held, filter: &filter };
    let (floors, steps) = match args.ids.chunks {
        None => {
            bar.set_message("recording, and measuring the floor");
            let measured = baselines.of(&arithmetics, Some(&mut filtered));
            floors_and_steps(filtered.or_failure(measured)?)
        }
        Some(chunk) => {
            bar.set_message("measuring the floor");
            let (floors, steps) = floors_and_steps(baselines.of(&arithmetics, None)?);
            let divided = Division::of(&steps, chunk as usize);
            let sites = &reference.graph().sites;
            let floors = floors.iter().map(|floor| divided.floor(floor, sites)).collect();
            bar.set_message("recording");
            let mut session = reference.session(task.positions(), task.prompt.len())?;
            let forced = held.routing.map(|routing| routing as &dyn Forced);
            let needed = needed_nodes(reference, &filter);
            let changes = Changes { forced, needed: needed.as_deref(), ..Changes::default() };
            filtered.record(&divided.steps, |step, tokens, sink| {
                Ok(session.step_with(step, tokens, sink, changes)?)
            })?;
            (floors, divided.steps)
        }
    };
    let declared = arithmetics.into_iter().zip(floors);
    let declared = declared.map(|(arithmetic, floor)| DeclaredFloor { arithmetic, floor });
    writer.manifest_mut().floors = declared.collect();
    let (graph, values) = reference.import(&steps.concat())?;
    writer.put_graph(&graph, &values)?;
    writer.finish()?;
    Ok(steps.len())
}

/// The floor of each baseline, and the steps of all.
fn floors_and_steps(baselines: Vec<Baseline>) -> (Vec<Floor>, Vec<Vec<i32>>) {
    let steps = baselines.first().map_or(Vec::new(), |baseline| baseline.steps.clone());
    (baselines.into_iter().map(|baseline| baseline.floor).collect(), steps)
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
    let recomputed = engine.recomputed();
    let mut filtered = Filtered { writer: &mut writer, filter: &filter, recomputed };
    filtered.record(&steps, |step, tokens, sink| Ok(built.step(step, tokens, sink)?))?;
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
