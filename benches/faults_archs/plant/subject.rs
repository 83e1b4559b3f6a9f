//! A random model of an architecture, and llama.cpp's own run of it.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use firstdiff::{
    core::{
        arithmetic::Arithmetic,
        sink::{Sink, Stopped},
        tensor::{DType, Tensor},
    },
    diagnosis::{
        Diagnosis,
        replay::{GraphRun, Recording},
    },
    graph::{
        ModelGraph, SequenceInputs,
        site::{Site, Stage},
    },
    model::{
        ModelFile,
        synth::arch::{ArchModel, ArchSpec},
    },
    reference::{Changes, Reference, ReferenceOptions},
    trace::recording::Spool,
};

use super::Result;

/// Past any window of a synthetic model.
const PROMPT: usize = 40;
const DECODE: usize = 3;

/// A model with what is right of it.
pub struct Subject {
    pub file: ModelFile,
    pub reference: Reference,
    /// Of all tokens of the run.
    pub model: Arc<ModelGraph>,
    pub inputs: SequenceInputs,
    /// The tokens of each step: the prompt, then llama.cpp's own choices.
    pub steps: Vec<Vec<i32>>,
    /// llama.cpp's own tensors.
    pub clean: Spool,
    arithmetic: Arithmetic,
    folder: tempfile::TempDir,
}

/// The site of the right model that a site of another is, by layer and stage.
pub type Names = HashMap<(Option<u32>, Stage), (Option<u32>, Stage)>;

impl Subject {
    /// Makes the model of a spec and runs it over a prompt that the seed picks.
    pub fn new(spec: &ArchSpec) -> Result<Subject> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("right.gguf");
        let program = Path::new(env!("CARGO_BIN_EXE_firstdiff"));
        ArchModel::plan(spec, program)?.write(&path, program, &mut |_| {})?;
        let file = ModelFile::open(&path)?;
        let reference = Reference::load(&file, ReferenceOptions::default())?;
        let seed = spec.seed as i32;
        let prompt = (0..PROMPT as i32).map(|index| (index * (35 + 2 * seed) + 11 * seed) % 256);
        let mut steps = vec![prompt.collect::<Vec<i32>>()];
        let mut recorder = Recorder { spool: Spool::new()?, names: None };
        let mut session = reference.session(PROMPT + DECODE, PROMPT)?;
        for step in 0..=DECODE {
            let changes = Changes::default();
            let choice = session.step_with(step as u32, &steps[step], &mut recorder, changes)?;
            if step < DECODE {
                steps.push(vec![choice.ok_or("llama.cpp makes no choice")?.token]);
            }
        }
        drop(session);
        let clean = recorder.spool.finished()?;
        let tokens: Vec<i32> = steps.iter().flatten().copied().collect();
        let (model, inputs) = reference.import(&tokens)?;
        let arithmetic = Arithmetic::engine(DType::F32);
        Ok(Subject { file, reference, model, inputs, steps, clean, arithmetic, folder })
    }

    /// All tokens of the run.
    pub fn tokens(&self) -> Vec<i32> {
        self.steps.iter().flatten().copied().collect()
    }

    /// Where an edited file may lie.
    pub fn edited_path(&self) -> PathBuf {
        self.folder.path().join("edited.gguf")
    }

    /// Runs llama.cpp over the same tokens; what is recorded has the names of the right model.
    pub fn record(
        &self,
        reference: &Reference,
        names: Option<&Names>,
        changes: Changes<'_>,
    ) -> Result<Spool> {
        let mut recorder = Recorder { spool: Spool::new()?, names };
        let mut session = reference.session(PROMPT + DECODE, PROMPT)?;
        for (step, tokens) in self.steps.iter().enumerate() {
            session.step_with(step as u32, tokens, &mut recorder, changes)?;
        }
        Ok(recorder.spool.finished()?)
    }

    /// A recording as a run of the right model.
    pub fn run<'a>(&'a self, spool: &'a Spool) -> GraphRun<'a> {
        let recording = Recording {
            tensors: spool,
            steps: &self.steps,
            arithmetic: &self.arithmetic,
            attention: Default::default(),
        };
        let (file, model, inputs) = (&self.file, &*self.model, &self.inputs);
        GraphRun { has_tables: true, ..GraphRun::new(file, model, inputs, recording) }
    }

    /// Judges a recording by the right model. The right file's own run is judged once, by [`clean`]:
    /// it is the same beside every engine.
    ///
    /// [`clean`]: super::clean
    pub fn diagnosed(&self, engine: &Spool) -> Result<Diagnosis> {
        Ok(Diagnosis::of(self.run(engine), None)?)
    }

    /// The value of a key, by its name without the architecture.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.file.gguf().number(&self.key(key))
    }

    /// A key's whole name.
    pub fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.file.architecture)
    }

    /// The layers that have a tensor of that name.
    pub fn layers_with(&self, part: &str) -> Vec<usize> {
        (0..self.model.sites.layers())
            .filter(|layer| self.file.has(&format!("blk.{layer}.{part}")))
            .collect()
    }
}

/// Puts what is recorded into a spool, under the right model's names.
struct Recorder<'n> {
    spool: Spool,
    /// `None` where they are its own.
    names: Option<&'n Names>,
}

impl Recorder<'_> {
    fn renamed(&self, site: Site) -> Option<Site> {
        let Some(names) = self.names else { return Some(site) };
        let &(layer, stage) = names.get(&(site.layer, site.stage))?;
        Some(Site { step: site.step, layer, stage })
    }
}

impl Sink for Recorder<'_> {
    fn wants(&self, site: Site) -> bool {
        self.renamed(site).is_some()
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> std::result::Result<(), Stopped> {
        if let Some(site) = self.renamed(site) {
            self.spool.record(site, &tensor);
        }
        Ok(())
    }
}
