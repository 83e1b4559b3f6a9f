//! From flags to a loaded model, a prompt, and an engine to be tested.

use std::path::{Path, PathBuf};

use firstdiff::{
    compare::{SiteFilter, verdict::Rule},
    core::{
        arithmetic::{Convention, Value},
        cache::{self, Entry},
        files,
        floor::{MOST_FACTOR, is_factor},
        near::did_you_mean,
        notice::notice,
        task::Task,
    },
    engine::{
        DeviceKind, EngineSpec,
        contract::{Contract, ContractError, Op},
        fault::{self, Faults, Subject},
        kernels::{KernelSet, Launches},
    },
    graph::SiteSpec,
    model::{Model, ModelFile},
    reference::{Precision, Reference, ReferenceOptions},
    run,
    trace::TraceReader,
};

use super::{
    args::{
        CompareArgs, DeviceArg, EngineArgs, IdsArgs, ModelArgs, OnlyArgs, PrecisionArg, UntilArg,
    },
    error::Error,
};

const FIXTURE: &[u8] = include_bytes!("../../fixtures/tiny-qwen2/tiny-qwen2-f16.gguf");
const PROMPT: &str = include_str!("../../fixtures/tiny-qwen2/prompt-long.txt");

/// A prompt file longer than this is no prompt.
const MAX_PROMPT_BYTES: u64 = 1 << 20;

/// A model loaded on the reference's side, and the prompt's ids. The model is a [`Model`] where an engine
/// runs too, else any [`ModelFile`].
pub struct Inputs<M = Model> {
    pub model: M,
    pub reference: Reference,
    pub prompt: String,
    pub ids: Vec<i32>,
    pub decode: u32,
}

impl Inputs {
    /// Opens a model that our engine can run, loads the reference and tokenises the prompt.
    pub fn load(args: &ModelArgs) -> Result<Inputs, Error> {
        let any = Inputs::load_any(args)?;
        let positions = any.task().positions();
        let Inputs { model, reference, prompt, ids, decode } = any;
        let model = run::planned(model, &reference, positions)?;
        Ok(Inputs { model, reference, prompt, ids, decode })
    }
}

impl Inputs<ModelFile> {
    /// The same for a model of any architecture, which no engine runs.
    pub fn load_any(args: &ModelArgs) -> Result<Inputs<ModelFile>, Error> {
        let prompt = prompt(args)?;
        let tokenise = |reference: &Reference| reference.tokenize(&prompt);
        let inputs = Inputs::load_with(args, args.n_predict, tokenise)?;
        Ok(Inputs { prompt, ..inputs })
    }

    /// The same over the ids that are given in place of a text, or of the choices after it.
    pub fn load_ids(args: &ModelArgs, ids: &IdsArgs) -> Result<Inputs<ModelFile>, Error> {
        let decode = if ids.decoded.is_empty() { args.n_predict } else { ids.decoded.len() as u32 };
        let prompt = if ids.tokens.is_empty() { prompt(args)? } else { String::new() };
        let inputs = Inputs::load_with(args, decode, |reference| match &ids.tokens[..] {
            [] => reference.tokenize(&prompt),
            tokens => tokens.to_vec(),
        })?;
        let n_vocab = inputs.reference.n_vocab();
        let is_unknown = |&&id: &&i32| usize::try_from(id).map_or(true, |id| id >= n_vocab);
        if let Some(id) = ids.tokens.iter().chain(&ids.decoded).find(is_unknown) {
            return Err(Error::Usage(format!(
                "token {id} is out of range: the model's ids are 0 to {}; give others",
                n_vocab - 1
            )));
        }
        Ok(Inputs { prompt, ..inputs })
    }

    /// The same over the tokens of a trace, however it divides them.
    pub fn load_like(args: &ModelArgs, trace: &TraceReader) -> Result<Inputs<ModelFile>, Error> {
        let manifest = trace.manifest();
        let (prompt, rest) = tokens_of(trace)?;
        let inputs = Inputs::load_with(args, rest.len() as u32, |_| prompt)?;
        let own = inputs.model.hash();
        if own != manifest.model.blake3 {
            return Err(Error::Refused(format!(
                "{} was recorded from {:?} (blake3 {}), {} has blake3 {own}; name the first with -m",
                trace.folder().display(),
                manifest.model.name,
                manifest.model.blake3,
                inputs.model.path.display()
            )));
        }
        Ok(Inputs { prompt: manifest.prompt.clone().unwrap_or_default(), ..inputs })
    }

    fn load_with(
        args: &ModelArgs,
        decode: u32,
        ids: impl FnOnce(&Reference) -> Vec<i32>,
    ) -> Result<Inputs<ModelFile>, Error> {
        let model = ModelFile::open(&path(args)?)?;
        let precision = match args.reference {
            PrecisionArg::F32 => Precision::F32,
            PrecisionArg::Native => Precision::Native,
        };
        let threads = args.threads;
        let reference = match (&args.rpc[..], precision) {
            ([], _) => Reference::load(&model, ReferenceOptions { precision, threads })?,
            (servers, Precision::Native) => Reference::load_on(&model, threads, servers)?,
            (_, Precision::F32) => {
                return Err(Error::Usage(
                    "--rpc is of no use in f32: there the products are computed here, from the mapped file, in \
                     little memory; leave it out, or add --reference native"
                        .into(),
                ));
            }
        };
        if let Some(placement) = reference.placement() {
            notice(&format!("llama.cpp has {placement}"));
        }
        let ids = ids(&reference);
        if ids.is_empty() {
            return Err(Error::Usage("the prompt has no tokens; give one with -p or -f".into()));
        }
        let wanted = Task { prompt: &ids, decode }.positions();
        if let Some(most) = model.trained_positions().filter(|&most| wanted > most) {
            return Err(Error::Usage(format!(
                "prompt and -n need {wanted} positions, but {} was trained for {most}; shorten them",
                model.path.display()
            )));
        }
        Ok(Inputs { model, reference, prompt: String::new(), ids, decode })
    }
}

/// The ids of a trace's prompt, and those after it.
pub fn tokens_of(trace: &TraceReader) -> Result<(Vec<i32>, Vec<i32>), Error> {
    let trace = &trace.clone().settled()?;
    let manifest = trace.manifest();
    let start = manifest.positions().start;
    if start > 0 {
        let trace = trace.folder().display();
        return Err(Error::Usage(format!(
            "{trace} begins at position {start}, but the earlier ids are unknown; give all of them with \
             --tokens and --decoded"
        )));
    }
    let mut all: Vec<i32> = manifest.steps.iter().flat_map(|s| s.tokens.clone()).collect();
    let rest = all.split_off(manifest.prompt_end().min(all.len()));
    Ok((all, rest))
}

impl<M> Inputs<M> {
    /// What both sides are to run.
    pub fn task(&self) -> Task<'_> {
        Task { prompt: &self.ids, decode: self.decode }
    }
}

fn path(args: &ModelArgs) -> Result<PathBuf, Error> {
    args.model.clone().map_or_else(fixture, Ok)
}

/// The engine that the flags describe, on one device.
pub fn engine(args: &EngineArgs) -> Result<EngineSpec, Error> {
    match engines(args)? {
        (engine, None) => Ok(engine),
        (_, Some(_)) => Err(Error::Usage("--device takes one device here; give one".into())),
    }
}

/// The engine that the flags describe, and the same on a second device if one is named.
pub fn engines(args: &EngineArgs) -> Result<(EngineSpec, Option<EngineSpec>), Error> {
    let (first, second) = match args.device[..] {
        [first] => (first, None),
        [first, second] if first != second => (first, Some(second)),
        _ => {
            let text = "--device takes one device, or two different ones as in host,cuda";
            return Err(Error::Usage(text.into()));
        }
    };
    let engine = on_device(args, first)?;
    let second = second.map(|second| EngineSpec { device: device(second), ..engine.clone() });
    Ok((engine, second))
}

fn on_device(args: &EngineArgs, on: DeviceArg) -> Result<EngineSpec, Error> {
    Ok(EngineSpec {
        device: device(on),
        storage: args.dtype.into(),
        attention: args.attention,
        faults: Faults(args.fault.iter().map(|name| fault(name)).collect::<Result<_, _>>()?),
        kernels: engine_kernels(args)?,
        roundings: args.arithmetic.clone(),
    })
}

/// The operation and the file of `--kernel`.
pub fn contract(given: &str) -> Result<(Op, &str), ContractError> {
    let named = given.split_once('=').and_then(|(op, file)| Some((Op::of(op)?, file)));
    named.ok_or_else(|| ContractError::Flag {
        given: given.to_string(),
        known: Op::ALL.map(Op::name).join(", "),
    })
}

/// The kernels of an engine's flags, those with a contract among them.
pub fn engine_kernels(args: &EngineArgs) -> Result<KernelSet, Error> {
    let own = folder(args.kernels.as_deref())?;
    let kernels = args.kernel.iter().try_fold(own, |kernels, given| {
        let (op, file) = contract(given)?;
        if kernels.contract(op).is_some() {
            return Err(Error::Usage(format!("--kernel {op} is given twice; give it once")));
        }
        Ok::<_, Error>(kernels.with_contract(Contract::read(op, Path::new(file))?))
    })?;
    kernels.check_names()?;
    Ok(kernels)
}

/// The device of a flag.
pub fn device(device: DeviceArg) -> DeviceKind {
    match device {
        DeviceArg::Host => DeviceKind::Host,
        DeviceArg::Checked => DeviceKind::Checked,
        DeviceArg::Cuda => DeviceKind::Cuda,
    }
}

/// The kernel sources of a flag, each of which is one that an engine launches.
pub fn kernels(own: Option<&Path>) -> Result<KernelSet, Error> {
    let kernels = folder(own)?;
    kernels.check_names()?;
    Ok(kernels)
}

fn folder(folder: Option<&Path>) -> Result<KernelSet, Error> {
    Ok(match folder {
        Some(folder) => KernelSet::overridden_by(folder)?,
        None => KernelSet::embedded(),
    })
}

/// Refuses changed kernels that this run does not launch, and faults that change nothing in it.
pub fn check_effects(args: &EngineArgs, engine: &EngineSpec, inputs: &Inputs) -> Result<(), Error> {
    if !args.unused_kernels {
        let (attention, decodes) = (engine.attention, inputs.decode > 0);
        let on_gpu = args.device.contains(&DeviceArg::Cuda);
        engine.kernels.check_launched(&[Launches { attention, decodes, on_gpu }])?;
    }
    args.arithmetic.iter().try_for_each(|&convention| check_rounding(convention, inputs))?;
    check_faults(engine, inputs)
}

/// Refuses a rounding that nothing of the model makes.
fn check_rounding(convention: Convention, inputs: &Inputs) -> Result<(), Error> {
    let Convention { value, format, stage, .. } = convention;
    let model = &inputs.model.graph;
    let stages = model.stages_with(value);
    let refuse = |why: String| Err(Error::Usage(format!("--arithmetic {convention}: {why}")));
    if stages.is_empty() || stage.is_some_and(|stage| !stages.contains(&stage)) {
        let names: Vec<&str> = stages.iter().map(|stage| stage.name()).collect();
        return refuse(format!(
            "no such operation has {}; choose from this model's: {}",
            value.name(),
            names.join(", ")
        ));
    }
    let caches = model.sites.specs().iter().filter(|spec| stages.contains(&spec.stage));
    let length = |spec: &SiteSpec| spec.axes.last().map_or(0, |axis| axis.size.fixed as usize);
    match caches.map(length).find(|&length| !format.divides(length)) {
        Some(length) if value == Value::Caches => refuse(format!(
            "heads of {length} are not whole blocks; give a format whose blocks divide them"
        )),
        _ => Ok(()),
    }
}

/// Refuses faults that change nothing in this run.
fn check_faults(engine: &EngineSpec, inputs: &Inputs) -> Result<(), Error> {
    let subject = Subject {
        model: &inputs.model,
        storage: engine.storage,
        prompt: inputs.ids.len(),
        decode: inputs.decode,
    };
    for fault in &engine.faults.0 {
        if let Some(why) = fault.without_effect(&subject) {
            let name = fault.name;
            return Err(Error::Usage(format!("--fault {name} has no effect here: {why}")));
        }
    }
    Ok(())
}

/// The sites of flags.
pub fn filter(only: &OnlyArgs) -> Result<SiteFilter, Error> {
    let named = match &only.sites {
        Some(globs) => SiteFilter::parse(globs)?,
        None => SiteFilter::default(),
    };
    Ok(named.with_layers(only.layers))
}

/// How a comparison is made.
pub fn rule(compare: &CompareArgs) -> Rule {
    Rule { factor: compare.factor, until_first: compare.until == UntilArg::First }
}

/// Refuses a factor that makes every or no tensor equal.
pub fn check_factor(factor: f64) -> Result<(), Error> {
    if is_factor(factor) {
        Ok(())
    } else {
        Err(Error::Usage(format!(
            "--factor {factor} is out of range; give more than 0 and at most {MOST_FACTOR}"
        )))
    }
}

fn fault(name: &str) -> Result<&'static fault::Fault, Error> {
    fault::find(name).ok_or_else(|| {
        let near = did_you_mean(name, fault::FAULTS.iter().map(|fault| fault.name));
        Error::Usage(format!("no fault {name}{near}; `firstdiff faults` lists them"))
    })
}

fn prompt(args: &ModelArgs) -> Result<String, Error> {
    let Some(path) = &args.file else {
        return Ok(args.prompt.clone().unwrap_or_else(|| PROMPT.trim_end().to_string()));
    };
    let read = |source| Error::Read { path: path.clone(), source };
    let text = files::read_text(path, MAX_PROMPT_BYTES).map_err(read)?;
    Ok(text.strip_suffix('\n').map(str::to_string).unwrap_or(text))
}

/// The embedded fixture, if that is the file of a blake3.
pub fn fixture_of(blake3: &str) -> Result<Option<PathBuf>, Error> {
    if blake3::hash(FIXTURE).to_hex().as_str() == blake3 { fixture().map(Some) } else { Ok(None) }
}

/// The embedded fixture, as a file in the cache: llama.cpp reads files.
pub fn fixture() -> Result<PathBuf, Error> {
    fixture_file().map_err(|source| Error::Write { path: cache::root(), source })
}

/// The same, for those who say themselves what was to be written.
pub fn fixture_file() -> std::io::Result<PathBuf> {
    let name = format!("tiny-qwen2-f16-{}.gguf", &blake3::hash(FIXTURE).to_hex()[..12]);
    let entry = Entry::new("fixture", name)?;
    if entry.file().is_none() {
        files::write_atomic(entry.path(), FIXTURE)?;
        entry.seal()?;
    }
    Ok(entry.path().to_path_buf())
}
