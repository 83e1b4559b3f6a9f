//! What several tests need: models, prompts, runs.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use firstdiff::{
    compare::{
        SiteFilter,
        verdict::{Outcome, Rule, SiteReport},
    },
    core::{
        floor::DEFAULT_FACTOR,
        sink::{Sink, Stopped},
        task::Task,
        tensor::{DType, Tensor},
    },
    diagnosis::replay::Replay,
    engine::{AttentionVariant, DeviceKind, EngineSpec, fault::Faults, kernels::KernelSet},
    graph::site::{Site, Stage},
    model::{
        Model, ModelFile,
        synth::{self, Spec},
    },
    reference::{Reference, ReferenceOptions},
    run::{self, Finished, Run},
};

/// The trained fixture model, of the project or of a bundle of it.
pub fn fixture() -> PathBuf {
    let project = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let project = project.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    project.join("fixtures/tiny-qwen2/tiny-qwen2-f16.gguf")
}

/// Random values in [-1, 1].
pub fn random_values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Keeps every tensor of the stages it wants; an empty list wants all.
#[derive(Default)]
pub struct Keep {
    pub tensors: BTreeMap<Site, Tensor>,
    pub only: Vec<Stage>,
    /// The tokens of step 0 whose scores and probs it wants; `None` wants all.
    pub queries: Option<Vec<usize>>,
}

impl Sink for Keep {
    fn wants(&self, site: Site) -> bool {
        self.only.is_empty() || self.only.contains(&site.stage)
    }

    fn queries(&self, site: Site) -> Option<&[usize]> {
        let chosen = site.step == 0 && matches!(site.stage, Stage::Scores | Stage::Probs);
        self.queries.as_deref().filter(|_| chosen)
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        assert!(self.tensors.insert(site, tensor).is_none(), "{site} came twice");
        Ok(())
    }
}

const EVERY_SITE: Rule = Rule { factor: DEFAULT_FACTOR, until_first: false };

/// A model loaded on both sides.
pub struct Bench {
    pub model: Model,
    pub reference: Reference,
}

impl Bench {
    /// The trained fixture.
    pub fn fixture() -> Bench {
        Bench::open(&fixture())
    }

    /// A random model. The file is gone when this returns; both sides have it mapped.
    pub fn synth(spec: &Spec) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("synth.gguf");
        synth::write(spec, &path, &mut |_| {}).unwrap();
        Bench::open(&path)
    }

    /// The model of a file.
    pub fn open(path: &Path) -> Bench {
        let file = ModelFile::open(path).unwrap();
        let reference = Reference::load(&file, ReferenceOptions::default()).unwrap();
        let model = run::planned(file, &reference, 0).unwrap();
        Bench { model, reference }
    }

    /// The first `tokens` ids of a story.
    pub fn prompt(&self, tokens: usize) -> Vec<i32> {
        let story = "Once upon a time there was a little girl who lived in a house by the wood. ";
        let ids = self.reference.tokenize(&story.repeat(tokens / 8 + 1));
        ids[..tokens].to_vec()
    }

    /// Runs an engine on a prompt of that many tokens and decodes `decode` more.
    pub fn run(&self, engine: &EngineSpec, tokens: usize, decode: u32) -> Finished {
        self.run_by(EVERY_SITE, false, engine, tokens, decode)
    }

    /// The same, and every operation replayed.
    pub fn run_replayed(&self, engine: &EngineSpec, tokens: usize, decode: u32) -> Finished {
        self.run_by(EVERY_SITE, true, engine, tokens, decode)
    }

    /// The same, up to the first divergence.
    pub fn run_to_first(&self, engine: &EngineSpec, tokens: usize, decode: u32) -> Finished {
        let rule = Rule { until_first: true, ..EVERY_SITE };
        self.run_by(rule, false, engine, tokens, decode)
    }

    fn run_by(
        &self,
        rule: Rule,
        replay: bool,
        engine: &EngineSpec,
        tokens: usize,
        decode: u32,
    ) -> Finished {
        let ids = self.prompt(tokens);
        let task = Task { prompt: &ids, decode };
        let filter = SiteFilter::default();
        let (model, reference) = (&self.model, &self.reference);
        let replay = replay.then(Replay::default);
        Run { model, reference, task, engine, filter: &filter, rule, replay }
            .run(&mut |_| {})
            .unwrap()
    }
}

/// The device that the engine's tests run on: the host, unless `FIRSTDIFF_TEST_DEVICE` is `cuda`.
pub fn device() -> DeviceKind {
    match std::env::var("FIRSTDIFF_TEST_DEVICE").as_deref() {
        Err(_) | Ok("host") => DeviceKind::Host,
        Ok("cuda") => DeviceKind::Cuda,
        Ok(other) => panic!("FIRSTDIFF_TEST_DEVICE={other}: it takes host or cuda"),
    }
}

/// Our engine as it is by default, in that storage, on the device under test.
pub fn engine(storage: DType) -> EngineSpec {
    EngineSpec {
        device: device(),
        storage,
        attention: AttentionVariant::default(),
        faults: Faults::default(),
        kernels: KernelSet::embedded(),
        roundings: Vec::new(),
    }
}

/// The first site that diverges.
pub fn first_divergence(finished: &Finished) -> Option<&SiteReport> {
    finished.sites.iter().find(|report| report.outcome == Outcome::Diverged)
}

/// Fails, naming the worst site, unless every site of the model is equal within the floor.
#[track_caller]
pub fn assert_equal(finished: &Finished, what: &str) {
    if let Some(report) = first_divergence(finished) {
        let difference = report.difference.as_ref().unwrap();
        panic!("{what}: {} is {:.2} x floor", report.site, difference.times_floor());
    }
    assert_eq!(finished.coverage.equal, finished.coverage.total, "{what}");
    assert_eq!(finished.hooks_leave_logits, Some(true), "{what}");
}
