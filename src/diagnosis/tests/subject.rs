//! Random models and right runs of them, in memory.

use std::{collections::BTreeMap, path::Path};

use crate::{
    core::{
        arithmetic::Arithmetic,
        attending::Attending,
        tensor::{DType, Tensor},
    },
    diagnosis::{
        Cause, Scene, diagnose,
        replay::{Operation, Parts, Recording, Replay, judge},
    },
    engine::Plan,
    graph::site::{Site, Stage},
    model::{
        Config, Model, ModelFile,
        synth::{self, Spec},
    },
    reference::{Reference, ReferenceOptions},
    trace::{TraceError, recording::Recorded},
};

/// Recorded tensors, some of them in place of those of another recording.
#[derive(Default)]
pub struct Tensors<'t> {
    pub own: BTreeMap<Site, Tensor>,
    pub base: Option<&'t Tensors<'t>>,
}

impl Recorded for Tensors<'_> {
    fn tensor(&self, site: Site) -> Result<Option<Tensor>, TraceError> {
        match (self.own.get(&site), self.base) {
            (Some(tensor), _) => Ok(Some(tensor.clone())),
            (None, Some(base)) => base.tensor(site),
            (None, None) => Ok(None),
        }
    }

    fn has(&self, site: Site) -> bool {
        self.own.contains_key(&site) || self.base.is_some_and(|base| base.has(site))
    }
}

/// A number in [0, n), the same on every machine.
pub fn random(state: &mut u64, n: usize) -> usize {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    ((*state >> 33) % n as u64) as usize
}

/// The model of a file.
fn opened(path: &Path) -> Model {
    let file = ModelFile::open(path).unwrap();
    let reference = Reference::load(&file, ReferenceOptions::default()).unwrap();
    let (graph, inputs) = reference.import(&[0; 8]).unwrap();
    Plan::model(file, &graph, &inputs).unwrap()
}

/// A random model and a right run of it.
pub struct Subject {
    pub model: Model,
    /// The same weights under another theta, eps and attention scale.
    pub other: Model,
    pub steps: Vec<Vec<i32>>,
    pub arithmetic: Arithmetic,
    pub attention: Attending,
    pub tensors: Tensors<'static>,
}

impl Subject {
    /// A prompt of that many tokens and three decode steps. Results of the stages in `magnified` are
    /// multiplied until the largest is as large as that.
    pub fn new(spec: &Spec, tokens: usize, magnified: &[(Stage, f32)]) -> Subject {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("synth.gguf");
        synth::write(spec, &path, &mut |_| {}).unwrap();
        let (model, mut other) = (opened(&path), opened(&path));
        let c = &mut other.config;
        (c.rope_theta, c.rms_eps, c.attention_scale) = (23456.0, 3.25e-3, 0.317);
        let mut state = spec.seed + 1;
        let mut prompt = |n: usize| (0..n).map(|_| random(&mut state, 258) as i32).collect();
        let steps: Vec<Vec<i32>> = [tokens, 1, 1, 1].map(&mut prompt).to_vec();
        let arithmetic = Arithmetic::engine(DType::F32);
        let (attention, tensors) = Default::default();
        let mut subject = Subject { model, other, steps, arithmetic, attention, tensors };
        for operation in Operation::all(&subject.model.config) {
            let mut made = subject.computed(&subject.model, operation);
            for (_, largest) in magnified.iter().filter(|(stage, _)| *stage == operation.stage) {
                let values = made.values().flat_map(|tensor| &tensor.data);
                let factor = largest / values.fold(0f32, |most, x| most.max(x.abs()));
                made.values_mut().flat_map(|t| &mut t.data).for_each(|x| *x *= factor);
            }
            subject.tensors.own.extend(made);
        }
        subject
    }

    /// The same without what an attention kernel keeps to itself.
    pub fn fused(mut self, attention: Attending) -> Subject {
        self.attention = attention;
        let within = [Stage::Scores, Stage::Probs];
        self.tensors.own.retain(|site, _| !within.contains(&site.stage));
        self
    }

    pub fn config(&self) -> &Config {
        &self.model.config
    }

    pub fn recording<'a>(&'a self, tensors: &'a Tensors<'a>) -> Recording<'a> {
        Recording {
            tensors,
            steps: &self.steps,
            arithmetic: &self.arithmetic,
            attention: self.attention,
        }
    }

    /// An operation's exact results under a model's parameters.
    pub fn computed(&self, model: &Model, operation: Operation) -> BTreeMap<Site, Tensor> {
        let replay = Replay::new(model, self.recording(&self.tensors));
        let steps: Vec<u32> = (0..self.steps.len() as u32).collect();
        let rounding = replay.rounding(operation);
        self.stored(operation, replay.parts_rounded(operation, &steps, rounding).unwrap())
    }

    /// Results as f32 tensors, step by step. What is no number is stored as infinity.
    pub fn stored(&self, operation: Operation, parts: Parts<'_>) -> BTreeMap<Site, Tensor> {
        let mut tensors = BTreeMap::new();
        for (steps, expected) in parts.1 {
            let narrow = |x: &f64| if x.is_nan() { f32::INFINITY } else { *x as f32 };
            let mut values = expected.value.iter().map(narrow);
            for step in steps {
                let positions = self.recording(&self.tensors).positions(step);
                let shape = self.config().shape(operation.stage, positions.len(), positions.end);
                let data = values.by_ref().take(shape.iter().product()).collect();
                tensors.insert(operation.site(step), Tensor::new(shape, data));
            }
        }
        tensors
    }

    /// The right run with other results of some operation.
    pub fn with(&self, own: BTreeMap<Site, Tensor>) -> Tensors<'_> {
        Tensors { own, base: Some(&self.tensors) }
    }

    /// Why an operation of a recording is guilty; `None` where it is not.
    pub fn cause(&self, operation: Operation, tensors: &Tensors<'_>) -> Option<Cause> {
        let replay = Replay::new(&self.model, self.recording(tensors));
        let guilty = judge(&replay, operation).unwrap().unwrap().is_guilty();
        let scene = guilty.then(|| Scene::new(&replay, operation).unwrap().unwrap());
        scene.map(|scene| diagnose(&scene).unwrap())
    }
}
