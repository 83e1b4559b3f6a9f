//! All guilty operations of a run, each with its cause, and whose fault it is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    rc::Rc,
};

use serde::{Deserialize, Serialize};

use super::{
    cause::{Cause, Certainty, diagnose, diagnose_again},
    evidence::gather_found,
    hypotheses,
    invariant::{Invariant, broken},
    replay::{
        self, Found, GraphRun, Judged, Operation, Recording, ReplayError, RunVerdict, Worst,
        judge_found,
    },
};
use crate::{
    core::{
        arithmetic::{Arithmetic, Convention},
        cause_key::CauseKey,
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
}

/// What one side's replay says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SideReplay {
    /// Operations whose results were recorded, and those of them within their bounds.
    pub replayed: usize,
    pub cleared: usize,
    /// Operations whose results were not recorded: no verdict on them alone.
    pub unmeasured: Vec<Operation>,
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
}

/// Scores, softmax and weighted sum where they are one.
const ATTENTION: &str = "attention";

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
struct Guilty {
    judged: Judged,
    cause: Cause,
    /// The first of what it is made from that was recorded, where results between were not.
    after: Option<Operation>,
}

impl Diagnosis {
    /// Replays the engine, and the reference where its arithmetic is known, and finds the causes.
    pub fn of(
        engine: GraphRun<'_>,
        reference: Option<GraphRun<'_>>,
    ) -> Result<Diagnosis, ReplayError> {
        match reference {
            Some(reference) => Ok(Diagnosis::of_both(engine, reference)?.0),
            None => Diagnosis::beside(engine, None),
        }
    }

    /// Replays both sides at the same time; what is known of the reference holds for another engine too.
    pub fn of_both(
        engine: GraphRun<'_>,
        reference: GraphRun<'_>,
    ) -> Result<(Diagnosis, ReferenceReplay), ReplayError> {
        let model = engine.model;
        let n_layer = model.sites.layers();
        let (engine, reference) = rayon::join(|| of_side(engine), || of_side(reference));
        let (summary, guilty) = reference?;
        let findings = group(n_layer, guilty, Verdict::ReferenceWrong);
        let findings = findings.into_iter().map(differing).collect();
        let reference = ReferenceReplay { findings, summary };
        Ok((Diagnosis::with(model, engine?, Some(&reference)), reference))
    }

    /// Replays the engine, and takes what is known of the reference.
    pub fn beside(
        engine: GraphRun<'_>,
        reference: Option<&ReferenceReplay>,
    ) -> Result<Diagnosis, ReplayError> {
        Ok(Diagnosis::with(engine.model, of_side(engine)?, reference))
    }

    fn with(
        model: &ModelGraph,
        (engine, guilty): (SideReplay, Vec<Guilty>),
        reference: Option<&ReferenceReplay>,
    ) -> Diagnosis {
        let n_layer = model.sites.layers();
        let mut findings = group(n_layer, guilty, Verdict::EngineWrong);
        undeclared(model, &mut findings);
        findings.extend(reference.iter().flat_map(|reference| reference.findings.iter().cloned()));
        let reference = reference.map(|reference| reference.summary.clone());
        Diagnosis { findings, engine, reference }
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

    /// Whether a recorded result is the work of a guilty operation.
    pub fn is_guilty(&self, operation: Operation) -> bool {
        self.findings.iter().any(|finding| finding.operations.contains(&operation))
    }
}

/// A side's replay, and its guilty operations with their causes.
fn of_side(run: GraphRun<'_>) -> Result<(SideReplay, Vec<Guilty>), ReplayError> {
    let first = Replayed::of(run, &Rc::default())?;
    if first.found.is_empty() {
        return Ok((first.summary, first.guilty));
    }
    // What the tokens found in wrong caches is known now: it is none of their readers' faults.
    let again = Replayed::of(run, &Rc::new(first.found))?;
    Ok((again.summary, again.guilty))
}

struct Replayed {
    summary: SideReplay,
    guilty: Vec<Guilty>,
    /// Caches as tokens found them, by their sites' places, where what is wrong with them is proven.
    found: HashMap<usize, Found>,
}

impl Replayed {
    fn of(run: GraphRun<'_>, known: &Rc<HashMap<usize, Found>>) -> Result<Replayed, ReplayError> {
        let mut all_broken: BTreeMap<usize, Invariant> = BTreeMap::new();
        let RunVerdict { judged, .. } = judge_found(run, known, &mut |machine, observed| {
            if let (false, Some(broken)) =
                (all_broken.contains_key(&observed.place), broken(machine, observed)?)
            {
                all_broken.insert(observed.place, broken);
            }
            Ok(())
        })?;
        let judged: BTreeMap<Operation, Judged> =
            judged.into_iter().map(|judged| (judged.operation, judged)).collect();
        let (mut summary, mut places) = (SideReplay::default(), BTreeSet::new());
        for (place, spec) in run.model.sites.specs().iter().enumerate() {
            let operation = Operation { layer: spec.layer, stage: spec.stage };
            match judged.get(&operation) {
                None => summary.unmeasured.push(operation),
                Some(judged) if judged.is_guilty() => {
                    places.insert(place);
                }
                Some(judged) => {
                    summary.cleared += 1;
                    summary.worst_cleared = summary.worst_cleared.max(judged.times_bound());
                }
            }
        }
        summary.replayed = summary.cleared + places.len();
        summary.broken = Invariant::by_property(all_broken.into_values().collect());
        let (mut guilty, mut found) = (Vec::new(), HashMap::new());
        let evidence =
            if places.is_empty() { Vec::new() } else { gather_found(run, &places, known)? };
        let mut causes: Vec<Cause> = Vec::new();
        for mut evidence in evidence {
            let spec = evidence.spec();
            let operation = Operation { layer: spec.layer, stage: spec.stage };
            let mut cause = diagnose_again(&mut evidence, &causes)?;
            if cause.certainty != Certainty::Proven {
                cause = exactly(run, evidence.place, known)?.unwrap_or(cause);
            }
            causes.push(cause.clone());
            if let Some(seen) = hypotheses::found(&evidence, &cause) {
                found.insert(evidence.place, seen);
            }
            let judged = judged[&operation].clone();
            let after = recorded_before(run.model, &judged.spanned);
            guilty.push(Guilty { judged, cause, after });
        }
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
    known: &Rc<HashMap<usize, Found>>,
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

/// Guilty operations of one cause together, in the order of the first of each.
fn group(n_layer: usize, guilty: Vec<Guilty>, verdict: Verdict) -> Vec<Finding> {
    let mut groups: Vec<Vec<Guilty>> = Vec::new();
    for one in guilty {
        let same = |group: &&mut Vec<Guilty>| {
            let first = &group[0];
            let stage = first.judged.operation.stage;
            first.cause.text == one.cause.text
                && first.cause.certainty == one.cause.certainty
                && (one.cause.is_convention()
                    || family(stage) == family(one.judged.operation.stage))
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(one),
            None => groups.push(vec![one]),
        }
    }
    groups.into_iter().map(|group| finding(n_layer, group, verdict)).collect()
}

/// Operations that one mistake makes wrong together, by one of them.
fn family(stage: Stage) -> Stage {
    match stage {
        Stage::Q | Stage::K | Stage::V => Stage::Q,
        Stage::QNorm | Stage::KNorm => Stage::QNorm,
        Stage::QRope | Stage::KRope => Stage::QRope,
        Stage::KCache | Stage::VCache => Stage::KCache,
        Stage::AttnNorm | Stage::FfnNorm | Stage::FinalNorm => Stage::AttnNorm,
        Stage::AttnResidual | Stage::LayerOut => Stage::AttnResidual,
        stage => stage,
    }
}

fn finding(n_layer: usize, group: Vec<Guilty>, verdict: Verdict) -> Finding {
    let operations: Vec<Operation> = group.iter().map(|one| one.judged.operation).collect();
    let sum = |of: &dyn Fn(&Guilty) -> u64| group.iter().map(of).sum::<u64>();
    let (elements, beyond) = (sum(&|one| one.judged.elements), sum(&|one| one.judged.beyond));
    let (explained, wrong) = (sum(&|one| one.cause.explained), sum(&|one| one.cause.wrong));
    let further =
        |a: &&Guilty, b: &&Guilty| a.judged.times_bound().total_cmp(&b.judged.times_bound());
    let worst = group.iter().max_by(further).and_then(|one| one.judged.worst.clone());
    let mut spanned: Vec<Operation> =
        group.iter().flat_map(|one| one.judged.spanned.iter().copied()).collect();
    spanned.sort_by_cached_key(|operation| operation.result());
    spanned.dedup();
    let mut what = what(n_layer, &operations);
    // An attention that is one kernel has scores and probabilities within it.
    let fused = |operation: &Operation| {
        let within = [Stage::Scores, Stage::Probs].map(|stage| Operation { stage, ..*operation });
        operation.stage == Stage::AttnOut && within.iter().all(|one| spanned.contains(one))
    };
    if operations.iter().all(&fused) {
        what = what.replace(replay::name(Stage::AttnOut), ATTENTION);
    }
    let first = group.into_iter().next().expect("a group has a member");
    let stage = first.judged.operation.stage;
    if let Some(after) = first.after
        && !operations.iter().any(fused)
        && operations.iter().all(|operation| operation.stage == stage)
    {
        what = what.replacen(replay::name(stage), &between(after, first.judged.operation), 1);
    }
    Finding {
        verdict,
        what,
        operations,
        cause: Cause { explained, wrong, ..first.cause },
        elements,
        beyond,
        worst,
        pattern: first.judged.pattern,
        spanned,
    }
}

/// `between the layer's input and layer_out`: what was recorded before and after what was not.
fn between(after: Operation, operation: Operation) -> String {
    let (stage, result) = (operation.stage.name(), after.result());
    let before = match (after.layer, operation.layer) {
        (own, layer) if own == layer => after.stage.name(),
        (Some(own), Some(layer)) if own + 1 == layer => "the layer's input",
        (None, Some(0)) => "the layer's input",
        _ => &result,
    };
    format!("between {before} and {stage}")
}

/// `q and k rotation, all layers`; `final norm`.
fn what(n_layer: usize, operations: &[Operation]) -> String {
    let mut layers: BTreeMap<Stage, Vec<u32>> = BTreeMap::new();
    for operation in operations {
        layers.entry(operation.stage).or_default().extend(operation.layer);
    }
    let mut by_layers: Vec<(Vec<u32>, Vec<Stage>)> = Vec::new();
    for (stage, layers) in layers {
        match by_layers.iter_mut().find(|(same, _)| *same == layers) {
            Some((_, stages)) => stages.push(stage),
            None => by_layers.push((layers, vec![stage])),
        }
    }
    let part = |(layers, stages): &(Vec<u32>, Vec<Stage>)| {
        let names = joined_names(stages);
        match layer_phrase(layers, n_layer as u32) {
            Some(layers) => format!("{names}, {layers}"),
            None => names,
        }
    };
    by_layers.iter().map(part).collect::<Vec<_>>().join("; ")
}

/// `q and k rotation`, where the names end alike; else joined in full.
fn joined_names(stages: &[Stage]) -> String {
    let names: Vec<&str> = stages.iter().map(|&stage| replay::name(stage)).collect();
    let halves: Vec<Option<(&str, &str)>> = names.iter().map(|name| name.split_once(' ')).collect();
    let end = halves[0].map(|(_, end)| end);
    let alike = end.is_some() && halves.iter().all(|half| half.map(|(_, end)| end) == end);
    let list = |words: &[&str]| match words {
        [one] => one.to_string(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
        [] => String::new(),
    };
    if alike {
        let starts: Vec<&str> = halves.iter().flatten().map(|(start, _)| *start).collect();
        format!("{} {}", list(&starts), end.unwrap_or_default())
    } else {
        list(&names)
    }
}

fn layer_phrase(layers: &[u32], n_layer: u32) -> Option<String> {
    let (first, last) = (*layers.first()?, *layers.last()?);
    let without_gap = (last - first) as usize + 1 == layers.len();
    Some(match layers.len() {
        1 => format!("layer {first}"),
        n if n == n_layer as usize => "all layers".to_string(),
        _ if without_gap => format!("layers {first}-{last}"),
        n if n > 6 => format!("{n} layers from {first} to {last}"),
        _ => {
            let names: Vec<String> = layers.iter().map(u32::to_string).collect();
            format!("layers {}", names.join(", "))
        }
    })
}
