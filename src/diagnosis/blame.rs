//! All guilty operations of a run, each with its cause, and whose fault it is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    album::Album,
    cause::{Cause, Certainty, diagnose, diagnose_again},
    common::note_types,
    evidence::gather_found,
    group::{ATTENTION, group},
    hypotheses,
    invariant::{Invariant, broken},
    loaded::LoadedSummary,
    prefix::{self, CachedPrefix},
    replay::{
        Found, GraphRun, Judged, Machine, Observed, Operation, Recording, ReplayEnd, ReplayError,
        RunVerdict, Worst, go_on, judge_found, part_count,
    },
};
use crate::{
    core::{
        arithmetic::{Arithmetic, Convention},
        cause_key::CauseKey,
        spans,
    },
    graph::{ModelGraph, site::Stage},
};

/// Who departs from the model's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    EngineWrong,
    ReferenceWrong,
    /// Each side computes cleanly, but with another parameter than the file's.
    ModelsDiffer,
    /// The engine is right in an arithmetic that it did not declare.
    Undeclared,
}

impl Verdict {
    /// Whether it is on the engine, and not on the reference.
    pub fn is_of_engine(self) -> bool {
        matches!(self, Verdict::EngineWrong | Verdict::Undeclared)
    }
}

/// Operations that are wrong for one cause.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finding {
    pub verdict: Verdict,
    /// The operations in words, such as `q and k rotation, all layers`.
    pub what: String,
    pub operations: Vec<Operation>,
    pub cause: Cause,
    /// Elements that were checked, and those beyond their bound.
    pub elements: u64,
    pub beyond: u64,
    /// The element furthest beyond its bound.
    pub worst: Option<Worst>,
    /// Which elements of the first of the operations are beyond, in its first wrong step.
    pub pattern: Option<String>,
    /// Operations within what is blamed, whose own results were not recorded.
    pub spanned: Vec<Operation>,
    /// What is said of weights that the operations read, where the engine holds other values than the file's own.
    #[serde(default)]
    pub weights: Vec<String>,
}

/// What one side's replay says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SideReplay {
    /// Operations whose results were recorded, and those of them within their bounds.
    pub replayed: usize,
    pub cleared: usize,
    /// Operations whose results were not recorded: no verdict on them alone.
    pub unmeasured: Vec<Operation>,
    /// Operations that were not asked for, or that a replay that ended early did not reach.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<Operation>,
    /// Where the replay ended, if that was before its last site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<ReplayEnd>,
    /// Whether it was told to end before the replay and the search for causes were done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_interrupted: bool,
    /// Operations within their bounds of which products were cleared by random sums, and not element by element.
    #[serde(default)]
    pub by_sums: usize,
    /// The furthest any cleared operation is from exact arithmetic, in units of its bound.
    #[serde(deserialize_with = "crate::core::tensor::nan_from_null")]
    pub worst_cleared: f64,
    /// Properties that hold whatever the weights are, and were broken.
    pub broken: Vec<Invariant>,
}

/// The diagnosis of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Diagnosis {
    pub findings: Vec<Finding>,
    pub engine: SideReplay,
    /// `None` where the reference was not replayed.
    pub reference: Option<SideReplay>,
    /// Whether a cached prefix is that of its ids; left out where they are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<CachedPrefix>,
}

impl Finding {
    /// Operations whose results were not recorded and that are not blamed by name.
    pub fn unseen(&self) -> Vec<Operation> {
        let is_attention = self.what.split(',').next() == Some(ATTENTION);
        let is_within = |stage| matches!(stage, Stage::Scores | Stage::Probs);
        let is_named = |operation: &Operation| is_attention && is_within(operation.stage);
        self.spanned.iter().copied().filter(|operation| !is_named(operation)).collect()
    }
}

/// The replay of a reference, which is the same for every engine.
#[derive(Clone, Debug)]
pub struct ReferenceReplay {
    findings: Vec<Finding>,
    summary: SideReplay,
}

/// A guilty operation and its cause.
pub(super) struct Guilty {
    pub judged: Judged,
    pub cause: Cause,
    /// The first of what it is made from that was recorded, where results between were not.
    pub after: Option<Operation>,
}

impl Diagnosis {
    /// Replays the engine, and the reference where its arithmetic is known, and finds the causes.
    pub fn of(
        engine: GraphRun<'_>,
        reference: Option<GraphRun<'_>>,
    ) -> Result<Diagnosis, ReplayError> {
        Diagnosis::shown(engine, reference, None)
    }

    /// The same, and fills an album with the engine's results.
    pub fn shown(
        engine: GraphRun<'_>,
        reference: Option<GraphRun<'_>>,
        album: Option<&mut Album>,
    ) -> Result<Diagnosis, ReplayError> {
        let diagnosis = match reference {
            Some(reference) => Diagnosis::of_both(engine, reference, album)?.0,
            None => Diagnosis::beside(engine, None, album)?,
        };
        let prefix = match prefix::check(engine) {
            Err(ReplayError::Interrupted) => None,
            prefix => prefix?,
        };
        Ok(Diagnosis { prefix, ..diagnosis })
    }

    /// Replays both sides at the same time; what is known of the reference holds for another engine too.
    pub fn of_both(
        engine: GraphRun<'_>,
        reference: GraphRun<'_>,
        album: Option<&mut Album>,
    ) -> Result<(Diagnosis, ReferenceReplay), ReplayError> {
        let model = engine.model;
        let half = |run: GraphRun<'_>| run.at_once.div_ceil(2);
        let engine = GraphRun { at_once: half(engine), ..engine };
        let reference = GraphRun { at_once: half(reference), ..reference };
        let (engine, reference) =
            rayon::join(|| of_engine(engine, album), || of_reference(reference));
        let (summary, guilty) = reference?;
        let findings = group(model, guilty, Verdict::ReferenceWrong);
        let findings = findings.into_iter().map(differing).collect();
        let reference = ReferenceReplay { findings, summary };
        Ok((Diagnosis::with(model, engine?, Some(&reference)), reference))
    }

    /// Replays the engine, and takes what is known of the reference.
    pub fn beside(
        engine: GraphRun<'_>,
        reference: Option<&ReferenceReplay>,
        album: Option<&mut Album>,
    ) -> Result<Diagnosis, ReplayError> {
        Ok(Diagnosis::with(engine.model, of_engine(engine, album)?, reference))
    }

    fn with(
        model: &ModelGraph,
        (engine, guilty): (SideReplay, Vec<Guilty>),
        reference: Option<&ReferenceReplay>,
    ) -> Diagnosis {
        let mut findings = group(model, guilty, Verdict::EngineWrong);
        undeclared(model, &mut findings);
        findings.extend(reference.iter().flat_map(|reference| reference.findings.iter().cloned()));
        let reference = reference.map(|reference| reference.summary.clone());
        Diagnosis { findings, engine, reference, prefix: None }
    }

    /// The first finding on the engine itself.
    pub fn first_of_engine(&self) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.verdict == Verdict::EngineWrong)
    }

    /// What the engine rounds that it did not declare, in the order of the findings.
    pub fn undeclared(&self) -> Vec<Convention> {
        let findings = self.findings.iter();
        let own = findings.filter(|finding| finding.verdict == Verdict::Undeclared);
        let all = own.flat_map(|finding| finding.cause.declare.iter().copied());
        let mut seen = BTreeSet::new();
        all.filter(|convention| seen.insert(*convention)).collect()
    }

    /// Says of each finding on the engine which of its weights are not the file's own.
    pub fn explain_by(&mut self, model: &ModelGraph, weights: &LoadedSummary) {
        for finding in self.findings.iter_mut().filter(|finding| finding.verdict.is_of_engine()) {
            let operations = finding.operations.iter().chain(&finding.spanned);
            let specs = operations.filter_map(|operation| model.sites.get(operation.site(0)));
            let tensors: Vec<String> = specs.flat_map(|spec| model.weights_of(spec)).collect();
            finding.weights = weights.said_of(&tensors);
        }
    }

    /// Whether it was told to end before it was done.
    pub fn is_interrupted(&self) -> bool {
        self.engine.is_interrupted
            || self.reference.as_ref().is_some_and(|side| side.is_interrupted)
    }

    /// Whether a recorded result is the work of a guilty operation.
    pub fn is_guilty(&self, operation: Operation) -> bool {
        self.findings.iter().any(|finding| finding.operations.contains(&operation))
    }
}

type SideResult = Result<(SideReplay, Vec<Guilty>), ReplayError>;

fn of_engine(run: GraphRun<'_>, album: Option<&mut Album>) -> SideResult {
    let _span = spans::span("replay", || "engine".into());
    of_side(run, album)
}

fn of_reference(run: GraphRun<'_>) -> SideResult {
    let _span = spans::span("replay", || "reference".into());
    of_side(run, None)
}

/// A side's replay, and its guilty operations with their causes.
fn of_side(run: GraphRun<'_>, mut album: Option<&mut Album>) -> SideResult {
    let first = Replayed::of(run, &Arc::default(), album.as_deref_mut())?;
    if first.found.is_empty() || first.summary.is_interrupted {
        return Ok((first.summary, first.guilty));
    }
    // What the tokens found in wrong caches is known now: it is none of their readers' faults.
    let again = Replayed::of(run, &Arc::new(first.found), album)?;
    Ok((again.summary, again.guilty))
}

struct Replayed {
    summary: SideReplay,
    guilty: Vec<Guilty>,
    /// Caches as tokens found them, by their sites' places, where what is wrong with them is proven.
    found: HashMap<usize, Found>,
}

/// What a part of a replay shows beside its verdicts.
#[derive(Default)]
struct Looked<'a> {
    /// Invariants that are broken, by the places of their sites.
    broken: BTreeMap<usize, Invariant>,
    album: Option<&'a mut Album>,
}

impl Looked<'_> {
    fn look(&mut self, machine: &Machine<'_>, observed: &Observed<'_>) -> Result<(), ReplayError> {
        if let Some(album) = self.album.as_deref_mut() {
            album.take(machine, observed);
        }
        if !self.broken.contains_key(&observed.place)
            && let Some(broken) = broken(machine, observed)?
        {
            self.broken.insert(observed.place, broken);
        }
        Ok(())
    }
}

impl Replayed {
    fn of(
        run: GraphRun<'_>,
        known: &Arc<HashMap<usize, Found>>,
        mut album: Option<&mut Album>,
    ) -> Result<Replayed, ReplayError> {
        if let Some(album) = album.as_deref_mut() {
            album.begin(run);
        }
        // An album takes the results in the order of the graph.
        let parts = if album.is_some() { 1 } else { part_count(run) };
        let mut kept: Vec<Looked<'_>> = (0..parts).map(|_| Looked::default()).collect();
        kept[0].album = album.as_deref_mut();
        let (RunVerdict { judged, ended, is_interrupted, .. }, kept) =
            judge_found(run, known, kept, &|kept, machine, observed| kept.look(machine, observed))?;
        let all_broken: BTreeMap<usize, Invariant> =
            kept.into_iter().flat_map(|looked| looked.broken).collect();
        // What was not reached is no evidence.
        let steps = &run.recording.steps
            [..ended.map_or(run.recording.steps.len(), |end| end.step as usize + 1)];
        let run = GraphRun { recording: Recording { steps, ..run.recording }, ..run };
        let judged: BTreeMap<Operation, Judged> =
            judged.into_iter().map(|judged| (judged.operation, judged)).collect();
        let mut places = BTreeSet::new();
        let mut summary = SideReplay { ended, is_interrupted, ..SideReplay::default() };
        for (place, spec) in run.model.sites.specs().iter().enumerate() {
            let operation = Operation { layer: spec.layer, stage: spec.stage };
            match judged.get(&operation) {
                None if ended.is_some()
                    || is_interrupted
                    || run.only.is_some_and(|only| !only.contains(&place)) =>
                {
                    summary.left_out.push(operation);
                }
                None => summary.unmeasured.push(operation),
                Some(judged) if judged.is_guilty() => {
                    places.insert(place);
                }
                Some(judged) => {
                    summary.cleared += 1;
                    summary.by_sums += usize::from(judged.by_sums.is_some());
                    summary.worst_cleared = summary.worst_cleared.max(judged.times_bound());
                }
            }
        }
        summary.replayed = summary.cleared + places.len();
        summary.broken = Invariant::by_property(all_broken.into_values().collect());
        let (mut guilty, mut found) = (Vec::new(), HashMap::new());
        let gathers = spans::span("diagnosis", || "evidence".into());
        let evidence = if places.is_empty() {
            Vec::new()
        } else {
            match gather_found(run, &places, known) {
                Err(ReplayError::Interrupted) => Vec::new(),
                evidence => evidence?,
            }
        };
        drop(gathers);
        let mut proven = Vec::new();
        for mut evidence in evidence {
            let spec = evidence.spec();
            let operation = Operation { layer: spec.layer, stage: spec.stage };
            let _span = spans::span("diagnosis", || operation.result());
            let cause = diagnose_again(&mut evidence, &mut proven);
            let cause = cause.and_then(|cause| match cause.certainty {
                Certainty::Proven => Ok(cause),
                _ => Ok(exactly(run, evidence.place, known)?.unwrap_or(cause)),
            });
            let cause = match cause {
                Err(ReplayError::Interrupted) => break,
                cause => cause?,
            };
            if let Some(seen) = hypotheses::found(&evidence, &cause) {
                found.insert(evidence.place, seen);
            }
            if let Some(album) = album.as_deref_mut().filter(|album| album.has_room_to_read()) {
                album.read_off(operation, hypotheses::readings(&evidence)?);
            }
            let judged = judged[&operation].clone();
            let after = recorded_before(run.model, &judged.spanned);
            guilty.push(Guilty { judged, cause, after });
        }
        if go_on().is_err() {
            summary.is_interrupted = is_interrupted || guilty.len() < places.len();
            let known: BTreeSet<Operation> =
                guilty.iter().map(|one| one.judged.operation).collect();
            let specs = places.iter().map(|&place| &run.model.sites.specs()[place]);
            let others = specs.map(|spec| Operation { layer: spec.layer, stage: spec.stage });
            for operation in others.filter(|operation| !known.contains(operation)) {
                let judged = judged[&operation].clone();
                let after = recorded_before(run.model, &judged.spanned);
                guilty.push(Guilty { judged, cause: Cause::not_sought(), after });
            }
        }
        let is_right =
            |operation: Operation| judged.get(&operation).is_some_and(|one| !one.is_guilty());
        note_types(run, &mut guilty, &is_right);
        Ok(Replayed { summary, guilty, found })
    }
}

/// The first recorded result, in the order of the graph, that operations are made from.
fn recorded_before(model: &ModelGraph, spanned: &[Operation]) -> Option<Operation> {
    let spec = |operation: &Operation| model.sites.get(operation.site(0));
    let inputs = spanned.iter().filter_map(spec).flat_map(|spec| &spec.inputs);
    let inputs = inputs.filter_map(|name| Operation::of_result(name));
    let is_recorded = |one: &Operation| spec(one).is_some() && !spanned.contains(one);
    let place = |one: &Operation| model.sites.specs().iter().position(|s| s.site(0) == one.site(0));
    inputs.filter(is_recorded).min_by_key(place)
}

/// The cause of a guilty site where nothing that is declared is rounded, if that is proven: a side may be wrong
/// and more exact than it declares.
fn exactly(
    run: GraphRun<'_>,
    place: usize,
    known: &Arc<HashMap<usize, Found>>,
) -> Result<Option<Cause>, ReplayError> {
    let declared = run.recording.arithmetic;
    if declared.roundings.is_empty() {
        return Ok(None);
    }
    let arithmetic = Arithmetic { roundings: Vec::new(), ..declared.clone() };
    let recording = Recording { arithmetic: &arithmetic, ..run.recording };
    let run = GraphRun { recording, ..run };
    let evidence = gather_found(run, &BTreeSet::from([place]), known)?;
    let cause = evidence.first().map(diagnose).transpose()?;
    Ok(cause.filter(|cause| cause.certainty == Certainty::Proven))
}

/// A reference that computes cleanly with another parameter than the file's is no wrong program.
fn differing(mut finding: Finding) -> Finding {
    let parameter = matches!(
        finding.cause.key,
        CauseKey::Eps
            | CauseKey::RopeTheta
            | CauseKey::RopePairs
            | CauseKey::RopeFactors
            | CauseKey::RopePartial
            | CauseKey::ScoreScale
    );
    if parameter && finding.cause.certainty == Certainty::Proven {
        finding.verdict = Verdict::ModelsDiffer;
    }
    finding
}

/// What is right in an arithmetic that was not declared is no mistake: what to declare is said instead. It
/// comes after what is wrong.
fn undeclared(model: &ModelGraph, findings: &mut [Finding]) {
    let mut stages: BTreeMap<Convention, BTreeSet<Stage>> = BTreeMap::new();
    for finding in findings.iter_mut().filter(|finding| finding.cause.is_convention()) {
        finding.verdict = Verdict::Undeclared;
        let own = || finding.operations.iter().map(|operation| operation.stage);
        for &convention in &finding.cause.declare {
            stages.entry(convention).or_default().extend(own());
        }
    }
    let everywhere = |convention: &Convention| {
        let all = model.stages_with(convention.value);
        convention.stage.is_some() || stages.get(convention).is_some_and(|own| all.is_subset(own))
    };
    for finding in findings.iter_mut().filter(|finding| finding.verdict == Verdict::Undeclared) {
        let own: BTreeSet<Stage> = finding.operations.iter().map(|one| one.stage).collect();
        let of_stages = |&convention: &Convention| {
            if everywhere(&convention) {
                return vec![convention];
            }
            own.iter().map(|&stage| Convention { stage: Some(stage), ..convention }).collect()
        };
        finding.cause.declare = finding.cause.declare.iter().flat_map(of_stages).collect();
    }
    findings.sort_by_key(|finding| finding.verdict == Verdict::Undeclared);
}
