//! Recorded sides replayed by llama.cpp's graph of their model, and the floors that no trace carries.

use std::collections::BTreeSet;

use firstdiff::{
    compare::SiteFilter,
    core::{arithmetic::Arithmetic, attending::Attending, floor::Floor, task::Task, tensor::DType},
    diagnosis::{
        Diagnosis,
        album::Album,
        loaded::LoadedSummary,
        replay::{GraphRun, RandomSums, Recording, Replay, ReplayError},
    },
    graph::{ModelGraph, SequenceInputs},
    model::{Model, ModelFile},
    reference::{Precision, Reference, ReferenceOptions},
    report::SiteRow,
    run::{
        Division,
        baseline::{Baseline, Held},
    },
    trace::{Side, TraceReader},
};

use super::{capture::routing, error::Error, inputs};

/// The graph beside a reference's trace, and the values of its inputs.
pub type Carried = (ModelGraph, SequenceInputs);

/// The model that was recorded.
pub enum Subject {
    /// One that our engine runs too.
    Engine(Box<Model>),
    /// Any other: llama.cpp's graph says what is computed.
    Graph(ModelFile),
}

impl Subject {
    pub fn file(&self) -> &ModelFile {
        match self {
            Subject::Engine(model) => model,
            Subject::Graph(file) => file,
        }
    }
}

/// The graph of a model that no trace carries, and the values of its inputs.
pub fn imported(file: &ModelFile, positions: usize) -> Result<Carried, Error> {
    let llama = Reference::load(file, ReferenceOptions::default())?;
    let (graph, inputs) = llama.import(&vec![0; positions])?;
    Ok((ModelGraph::clone(&graph), inputs))
}

/// What of a run is replayed.
#[derive(Clone, Copy, Default)]
pub struct Scope<'a> {
    /// The sites that are asked for, by their places, where not all are.
    pub asked: Option<&'a BTreeSet<usize>>,
    /// The sites that were compared, where that ended early.
    pub reached: Option<&'a [SiteRow]>,
    /// Whether the replay ends with the layer of the first operation that is wrong.
    pub until_first: bool,
}

impl Scope<'_> {
    /// The sites that are judged, by their places; `None` means all.
    fn places(&self, model: &ModelGraph) -> Option<BTreeSet<usize>> {
        let Some(reached) = self.reached else { return self.asked.cloned() };
        let place = |row: &SiteRow| model.sites.place(row.place);
        let reached: BTreeSet<usize> = reached.iter().filter_map(place).collect();
        Some(self.asked.map_or_else(|| reached.clone(), |asked| asked & &reached))
    }
}

/// The floor of an arithmetic over the wanted sites of a trace's steps that carries none for it: llama.cpp runs
/// again.
pub fn measured_floor(
    arithmetic: &Arithmetic,
    trace: &TraceReader,
    model: &ModelFile,
    filter: &SiteFilter,
) -> Result<Floor, Error> {
    let manifest = trace.manifest();
    let precision = match manifest.settings.reference_precision.as_deref() {
        Some("native") => Precision::Native,
        _ => Precision::F32,
    };
    let options = ReferenceOptions { precision, ..ReferenceOptions::default() };
    let (prompt, tokens) = inputs::tokens_of(trace)?;
    let task = Task { prompt: &prompt, decode: tokens.len() as u32 };
    let llama = Reference::load(model, options)?;
    let own = if manifest.settings.forced_routing { Some(routing(&llama, trace)?) } else { None };
    let held = Held { tokens: &tokens, routing: own.as_ref() };
    let baseline = Baseline::held(&llama, model, task, arithmetic, filter, held)?;
    let own: Vec<Vec<i32>> = manifest.steps.iter().map(|step| step.tokens.clone()).collect();
    if own == baseline.steps {
        return Ok(baseline.floor);
    }
    let division = Division { whole: baseline.steps, steps: own };
    Ok(division.floor(&baseline.floor, &llama.graph().sites))
}

/// A recorded side with what its replay is told.
struct Replayed<'t> {
    trace: &'t TraceReader,
    steps: Vec<Vec<i32>>,
    inputs: &'t SequenceInputs,
}

impl<'t> Replayed<'t> {
    fn of(trace: &'t TraceReader, inputs: &'t SequenceInputs) -> Replayed<'t> {
        let steps = trace.manifest().steps.iter().map(|step| step.tokens.clone()).collect();
        Replayed { trace, steps, inputs }
    }

    fn run<'a>(
        &'a self,
        file: &'a ModelFile,
        model: &'a ModelGraph,
        f32: &'a Arithmetic,
        (sums, only, until_first): (Option<&'a RandomSums>, Option<&'a BTreeSet<usize>>, bool),
    ) -> GraphRun<'a> {
        let Replayed { trace, steps, inputs } = self;
        let is_reference = trace.manifest().side == Side::Reference;
        let arithmetic = if is_reference { f32 } else { &trace.manifest().arithmetic };
        let attention = Attending::default();
        let recording = Recording { tensors: *trace, steps, arithmetic, attention };
        let has_tables = is_reference;
        let run = GraphRun::new(file, model, inputs, recording);
        GraphRun { has_tables, sums, only, until_first, ..run }
    }
}

/// Replays the engine, and the other side if there is one: llama.cpp where it ran in f32, as only then is its
/// arithmetic known, or another run of the engine. `weights` are the engine's, where it recorded any. An album is
/// filled with the engine's results.
pub fn diagnose(
    model: &Subject,
    (engine, other): (&TraceReader, Option<&TraceReader>),
    carried: Option<Carried>,
    weights: Option<&LoadedSummary>,
    (replay, album): (Replay, Option<&mut Album>),
    scope: Scope<'_>,
) -> Result<Diagnosis, Error> {
    let is_known = |trace: &&TraceReader| {
        let manifest = trace.manifest();
        let is_f32 = manifest.settings.reference_precision.as_deref() == Some("f32");
        manifest.side == Side::Engine || is_f32
    };
    let other = other.filter(is_known);
    let positions = |trace: &TraceReader| trace.manifest().positions().end;
    let needed = other.map_or(0, positions).max(positions(engine));
    let (graph, inputs) = match (carried, model) {
        (Some((graph, inputs)), _) if inputs.tokens >= needed => (graph, inputs),
        (None, Subject::Engine(model)) => (model.graph.clone(), model.inputs().clone()),
        (_, model) => imported(model.file(), needed)?,
    };
    let (file, f32) = (model.file(), Arithmetic::engine(DType::F32));
    let engine = Replayed::of(engine, &inputs);
    let other = other.map(|trace| Replayed::of(trace, &inputs));
    // A picture needs every element.
    let replay = if album.is_some() { Replay::Full } else { replay };
    let only = scope.places(&graph);
    let sums = replay.sums(file, &graph, only.as_ref()).map_err(ReplayError::from)?;
    let sums = (sums.as_ref(), only.as_ref(), scope.until_first);
    let other = other.as_ref().map(|other| other.run(file, &graph, &f32, sums));
    let mut diagnosis = Diagnosis::shown(engine.run(file, &graph, &f32, sums), other, album)?;
    if let Some(weights) = weights {
        diagnosis.explain_by(&graph, weights);
    }
    Ok(diagnosis)
}
