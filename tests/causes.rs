use std::{collections::BTreeSet, path::Path, sync::Arc};

use firstdiff::{
    core::{
        arithmetic::Arithmetic,
        task::Task,
        tensor::{DType, Tensor},
    },
    diagnosis::{
        Certainty, Diagnosis, diagnose, gather,
        replay::{GraphRun, Recording},
    },
    graph::{ModelGraph, SequenceInputs, site::Site},
    model::{
        ModelFile,
        synth::arch::{ArchModel, ArchSpec, Setting},
    },
    reference::{Changes, Reference},
    run::baseline,
    trace::{
        TraceError,
        recording::{Recorded, Spool},
    },
};

/// The tokens that follow the prompt.
const FORCED: [i32; 3] = [5, 77, 130];

/// A random model that llama.cpp has loaded.
struct Subject {
    file: ModelFile,
    reference: Reference,
    _folder: tempfile::TempDir,
}

impl Subject {
    #[track_caller]
    fn new(name: &str, settings: &[&str]) -> Subject {
        let program = Path::new(env!("CARGO_BIN_EXE_firstdiff"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let settings = settings.iter().map(|text| Setting::parse(text).unwrap()).collect();
        let spec = ArchSpec { settings, ..ArchSpec::new(name) };
        let model = ArchModel::plan(&spec, program).unwrap();
        model.write(&path, program, &mut |_| {}).unwrap();
        let file = ModelFile::open(&path).unwrap();
        let reference = Reference::load(&file, Default::default()).unwrap();
        Subject { file, reference, _folder: folder }
    }

    fn steps() -> Vec<Vec<i32>> {
        let prompt = (0..24).map(|index| (index * 37 + 11) % 256).collect();
        vec![prompt, vec![FORCED[0]], vec![FORCED[1]]]
    }

    /// llama.cpp's own tensors.
    fn recorded(&self) -> Spool {
        let steps = Subject::steps();
        let task = Task { prompt: &steps[0], decode: 2 };
        let mut spool = Spool::new().unwrap();
        let mut forced = FORCED.into_iter();
        let changes = Changes::default();
        baseline::decode(&self.reference, task, &mut spool, changes, |_| forced.next()).unwrap();
        spool.finished().unwrap()
    }

    fn imported(&self) -> (Arc<ModelGraph>, SequenceInputs) {
        let tokens: Vec<i32> = Subject::steps().concat();
        self.reference.import(&tokens).unwrap()
    }

    /// Calls `of` with what another side recorded, as a run of this model.
    fn with_run<T>(&self, tensors: &dyn Recorded, of: impl FnOnce(GraphRun<'_>) -> T) -> T {
        let (model, inputs) = self.imported();
        let arithmetic = Arithmetic::engine(DType::F32);
        let steps = Subject::steps();
        let recording = Recording {
            tensors,
            steps: &steps,
            arithmetic: &arithmetic,
            attention: Default::default(),
        };
        let (file, model, inputs) = (&self.file, &*model, &inputs);
        of(GraphRun { has_tables: true, ..GraphRun::new(file, model, inputs, recording) })
    }
}

/// Recorded tensors whose numbers are moved at random; ids stay.
struct Noisy<'a>(&'a Spool);

impl Recorded for Noisy<'_> {
    fn tensor(&self, site: Site) -> Result<Option<Tensor>, TraceError> {
        let layer = site.layer.map_or(99, u64::from);
        let mut state = u64::from(site.step) * 7919 + layer * 104_729;
        state += site.stage.name().len() as u64;
        let noisy = |mut tensor: Tensor| {
            let is_ids = tensor.data.iter().all(|x| x.fract() == 0.0);
            for x in tensor.data.iter_mut().filter(|_| !is_ids) {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let random = (state >> 40) as f32 / (1u64 << 24) as f32;
                *x = *x * (0.6 + 0.8 * random) + 0.01 * (random - 0.5);
            }
            tensor
        };
        Ok(self.0.tensor(site)?.map(noisy))
    }

    fn has(&self, site: Site) -> bool {
        self.0.has(site)
    }
}

#[test]
fn numbers_at_random_have_no_proven_cause() {
    for name in ["gemma2", "gpt-oss", "deepseek2", "qwen35moe", "mamba2", "rwkv7", "bloom"] {
        let subject = Subject::new(name, &[]);
        let spool = subject.recorded();
        subject.with_run(&Noisy(&spool), |run| {
            let specs = run.model.sites.specs().iter().enumerate();
            let first = specs.filter(|(_, spec)| spec.layer.is_none_or(|layer| layer == 0));
            let places: BTreeSet<usize> = first.map(|(place, _)| place).collect();
            for evidence in gather(run, &places).unwrap() {
                let cause = diagnose(&evidence).unwrap();
                let site = evidence.spec().site(0).tensor_name();
                let is_proven = cause.certainty == Certainty::Proven && evidence.may_fit();
                assert!(!is_proven, "{name} {site}: {} {}", cause.key, cause.text);
            }
        });
    }
}

#[test]
fn a_model_under_another_parameter_is_blamed_for_it() {
    for (name, setting, key, text) in [
        ("qwen3moe", "attention.layer_norm_rms_epsilon=3e-3", "eps", "eps 3e-3 instead of"),
        ("phi3", "rope.freq_base=23456", "rope-theta", "theta 23456 instead of"),
        ("gemma2", "final_logit_softcapping=17", "soft-cap", "multiplied by"),
        ("granitemoe", "residual_scale=0.37", "scaled", "times 0.37"),
    ] {
        let (right, other) = (Subject::new(name, &[]), Subject::new(name, &[setting]));
        let spool = other.recorded();
        let diagnosis = right.with_run(&spool, |run| Diagnosis::of(run, None).unwrap());
        let cause = &diagnosis.first_of_engine().expect("the parameter differs").cause;
        assert_eq!(cause.certainty, Certainty::Proven, "{name}: {}", cause.text);
        assert_eq!(cause.key.name(), key, "{name}: {}", cause.text);
        assert!(cause.text.contains(text), "{name}: {}", cause.text);
    }
}
