//! `firstdiff capture`: one side's tensors, recorded as a trace.

use std::collections::BTreeMap;

use firstdiff::{
    compare::SiteFilter,
    core::{
        arithmetic::Arithmetic,
        exit::Exit,
        floor::DeclaredFloor,
        sink::{Choice, Sink, Stopped},
        task::first_position,
        tensor::{DType, Tensor},
    },
    engine::{EngineSpec, kernels::KernelSet},
    graph::site::{Site, Stage},
    reference::Precision,
    run::baseline::Baseline,
    trace::{Manifest, ModelId, Settings, Side, TraceWriter},
};

use super::{
    args::{CaptureArgs, SideArg},
    error::Error,
    inputs::{self, Inputs},
    interrupt, output,
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
        Sink::put(self.writer, site, tensor)
    }
}

/// Records a side.
pub fn capture(args: &CaptureArgs) -> Result<Exit, Error> {
    let engine = inputs::engine(&args.engine)?;
    let filter = inputs::filter(args.sites.as_deref())?;
    let bar = output::progress(None, "loading the model and the reference");
    let inputs = Inputs::load(&args.model)?;
    inputs::check_faults(&engine, &inputs)?;
    filter.check(&inputs.model.config.sites(inputs.decode + 1))?;
    bar.set_message("measuring the floor");
    let floors = floors(&inputs, &engine, args.side)?;
    let baseline = &floors[0].1;
    let manifest = manifest(&inputs, &engine, args.side, &floors)?;
    interrupt::unfinished(&args.output);
    let mut writer = TraceWriter::create(&args.output, manifest, args.overwrite)?;
    bar.set_message("recording");
    match args.side {
        SideArg::Reference => record_reference(&inputs, baseline, &filter, &mut writer)?,
        SideArg::Engine => record_engine(&inputs, &engine, baseline, &filter, &mut writer)?,
    }
    writer.finish()?;
    bar.finish_and_clear();
    let side = if args.side == SideArg::Reference { "reference" } else { "engine" };
    let steps = baseline.steps.len();
    output::print(&format!("recorded {steps} steps of the {side} in {}\n", args.output.display()))?;
    Ok(Exit::Equal)
}

/// The floors to record: the engine's own, or, with the reference, those of every engine of ours.
fn floors(
    inputs: &Inputs,
    engine: &EngineSpec,
    side: SideArg,
) -> Result<Vec<(Arithmetic, Baseline)>, Error> {
    let arithmetics = match side {
        SideArg::Engine => vec![engine.arithmetic()],
        SideArg::Reference => Arithmetic::engines().to_vec(),
    };
    let measured = arithmetics.into_iter().map(|arithmetic| {
        let (reference, model) = (&inputs.reference, &inputs.model);
        let every = SiteFilter::default();
        let baseline = Baseline::of(reference, model, inputs.task(), &arithmetic, &every)?;
        Ok((arithmetic, baseline))
    });
    measured.collect()
}

fn manifest(
    inputs: &Inputs,
    engine: &EngineSpec,
    side: SideArg,
    floors: &[(Arithmetic, Baseline)],
) -> Result<Manifest, Error> {
    let model = &inputs.model;
    let name = model.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let id = ModelId::new(name, model.hash(), &model.config);
    let precision = match inputs.reference.options().precision {
        Precision::F32 => "f32",
        Precision::Native => "native",
    };
    let mut manifest = match side {
        SideArg::Reference => Manifest::new(
            Side::Reference,
            id,
            Arithmetic::engine(DType::F32),
            "llama.cpp on the CPU".to_string(),
        ),
        SideArg::Engine => {
            let device = engine.device.open()?.name();
            let mut manifest = Manifest::new(Side::Engine, id, engine.arithmetic(), device);
            manifest.kernels = kernel_hashes(engine)?;
            manifest
        }
    };
    let of_engine = side == SideArg::Engine;
    let faults: Vec<&str> = engine.faults.0.iter().map(|fault| fault.name).collect();
    manifest.settings = Settings {
        reference_precision: Some(precision.to_string()),
        dtype: of_engine.then_some(engine.storage),
        attention: of_engine.then(|| engine.attention.to_string()),
        fault: (!faults.is_empty()).then(|| faults.join(",")),
    };
    manifest.prompt = Some(inputs.prompt.clone());
    let declared = floors.iter().map(|(arithmetic, baseline)| DeclaredFloor {
        arithmetic: arithmetic.clone(),
        floor: baseline.floor.clone(),
    });
    manifest.floors = declared.collect();
    Ok(manifest)
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
            let hash = blake3::hash(&std::fs::read(path).map_err(read)?).to_hex().to_string();
            hashes.insert(path.display().to_string(), hash);
        }
    }
    Ok(hashes)
}

fn record_reference(
    inputs: &Inputs,
    baseline: &Baseline,
    filter: &SiteFilter,
    writer: &mut TraceWriter,
) -> Result<(), Error> {
    let task = inputs.task();
    let mut session = inputs.reference.session(task.positions(), task.prompt.len())?;
    let filtered = Filtered { writer, filter, recomputed: Vec::new() };
    record(task.prompt.len(), baseline, filtered, |step, tokens, sink| {
        Ok(session.step(step, tokens, sink, None)?)
    })
}

fn record_engine(
    inputs: &Inputs,
    spec: &EngineSpec,
    baseline: &Baseline,
    filter: &SiteFilter,
    writer: &mut TraceWriter,
) -> Result<(), Error> {
    let mut engine = spec.build(&inputs.model, inputs.task())?;
    let filtered = Filtered { writer, filter, recomputed: spec.recomputed() };
    record(inputs.ids.len(), baseline, filtered, |step, tokens, sink| {
        Ok(engine.step(step, tokens, sink)?)
    })
}

/// Runs the steps, each into the writer.
fn record(
    prompt: usize,
    baseline: &Baseline,
    mut filtered: Filtered<'_>,
    mut run: impl FnMut(u32, &[i32], &mut dyn Sink) -> Result<Option<Choice>, Error>,
) -> Result<(), Error> {
    for (step, tokens) in baseline.steps.iter().enumerate() {
        let step = step as u32;
        filtered.writer.begin_step(tokens, first_position(prompt, step))?;
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
