//! A model loaded on both sides with a prompt, and runs on it.

use std::path::Path;

use firstdiff::{
    compare::{SiteFilter, verdict::Rule},
    core::{exit::Exit, floor::DEFAULT_FACTOR, task::Task, tensor::DType},
    diagnosis::{
        Certainty, Finding,
        replay::{Operation, Replay},
    },
    engine::{
        AttentionVariant, DeviceKind, EngineSpec,
        fault::{Fault, Faults, Subject},
        kernels::KernelSet,
    },
    model::{
        Model,
        synth::{self, Arch, Spec},
    },
    reference::{Reference, ReferenceOptions},
    run::{self, Finished, Run},
};

use crate::Result;

/// Tokens decoded after a prompt.
pub const DECODE: u32 = 3;
/// The fixture's long prompt: past two warps, and past the cache's capacity step.
const FIXTURE_TOKENS: usize = 86;
/// The prompt of a random model.
const RANDOM_TOKENS: usize = 64;

pub struct Bench {
    pub name: &'static str,
    pub is_fixture: bool,
    pub model: Model,
    pub reference: Reference,
    pub prompt: Vec<i32>,
}

impl Bench {
    /// The trained fixture.
    pub fn fixture() -> Result<Bench> {
        let path = fixture();
        let model = run::open(&path)?;
        let reference = Reference::load(&model, ReferenceOptions::default())?;
        let text = std::fs::read_to_string(path.with_file_name("prompt-long.txt"))?;
        let prompt: Vec<i32> = reference.tokenize(&text).into_iter().take(FIXTURE_TOKENS).collect();
        Ok(Bench { name: "fixture", is_fixture: true, model, reference, prompt })
    }

    /// A random model of three layers, three query heads to a KV head, with an output of its own.
    pub fn random(arch: Arch, seed: u64) -> Result<Bench> {
        let spec = Spec {
            arch,
            qkv_bias: false,
            rope_freqs: arch == Arch::Llama,
            n_layer: 3,
            n_embd: 96,
            n_head: 6,
            n_head_kv: 2,
            head_dim: 16,
            n_ff: 112,
            tied_output: false,
            seed,
            ..Spec::preset("tiny-qwen2")?
        };
        let name = if arch == Arch::Llama { "llama" } else { "qwen3" };
        let n_vocab = spec.n_vocab;
        let mut state = seed;
        let prompt = (0..RANDOM_TOKENS).map(|_| random(&mut state, n_vocab) as i32).collect();
        Bench::synth(name, &spec, prompt)
    }

    /// A random model. Its file is gone when this returns; both sides have it mapped.
    pub fn synth(name: &'static str, spec: &Spec, prompt: Vec<i32>) -> Result<Bench> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("synth.gguf");
        synth::write(spec, &path, &mut |_| {})?;
        let model = run::open(&path)?;
        let reference = Reference::load(&model, ReferenceOptions::default())?;
        Ok(Bench { name, is_fixture: false, model, reference, prompt })
    }

    pub fn task(&self) -> Task<'_> {
        Task { prompt: &self.prompt, decode: DECODE }
    }

    /// Why a fault changes nothing here, if so.
    pub fn without_effect(&self, fault: &Fault) -> Option<String> {
        let (model, prompt) = (&self.model, self.prompt.len());
        let subject = Subject { model, storage: DType::F32, prompt, decode: DECODE };
        fault.without_effect(&subject)
    }

    /// Compares, replays and diagnoses an engine.
    pub fn run(&self, engine: &EngineSpec) -> Result<Finished> {
        run(&self.model, &self.reference, self.task(), engine)
    }
}

/// Compares, replays and diagnoses an engine.
pub fn run(
    model: &Model,
    reference: &Reference,
    task: Task<'_>,
    engine: &EngineSpec,
) -> Result<Finished> {
    let filter = SiteFilter::default();
    let rule = Rule { factor: DEFAULT_FACTOR, until_first: false };
    let run =
        Run { model, reference, task, engine, filter: &filter, rule, replay: Some(Replay::Quick) };
    Ok(run.run(&mut |_| {})?)
}

pub fn fixture() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-qwen2/tiny-qwen2-f16.gguf")
}

/// Our engine with faults, in f32.
pub fn faulty(faults: &[&'static Fault]) -> EngineSpec {
    EngineSpec { faults: Faults(faults.to_vec()), ..engine(DType::F32) }
}

/// Our engine as it is by default, in that storage.
pub fn engine(storage: DType) -> EngineSpec {
    EngineSpec {
        device: DeviceKind::Host,
        storage,
        attention: AttentionVariant::default(),
        faults: Faults::default(),
        kernels: KernelSet::embedded(),
        roundings: Vec::new(),
    }
}

/// What a run blames, on either side.
pub fn findings(finished: &Finished) -> &[Finding] {
    finished.diagnosis.as_ref().map_or(&[], |diagnosis| &diagnosis.findings)
}

/// The operation that a fault must be blamed on.
pub fn operation_of(fault: &Fault) -> Operation {
    let site = fault.site();
    Operation { layer: site.layer, stage: site.stage }
}

/// The findings on an operation.
pub fn findings_on(finished: &Finished, operation: Operation) -> impl Iterator<Item = &Finding> {
    let on = move |finding: &&Finding| finding.operations.contains(&operation);
    findings(finished).iter().filter(on)
}

/// A finding in a line.
pub fn described(finding: &Finding) -> String {
    let key = match finding.cause.certainty {
        Certainty::Proven => finding.cause.key.to_string(),
        Certainty::Consistent => format!("{}, consistent", finding.cause.key),
        Certainty::Partly => format!("{}, partly", finding.cause.key),
        Certainty::Unknown => "unknown".to_string(),
    };
    format!("{}: {} [{key}]", finding.what, finding.cause.text)
}

/// Whether a run is green: everything compared, equal, and nothing blamed.
pub fn is_green(finished: &Finished) -> bool {
    finished.coverage.exit() == Exit::Equal && findings(finished).is_empty()
}

/// A small generator of choices: splitmix64.
pub fn random(state: &mut u64, below: usize) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) % below as u64) as usize
}
