//! All guilty operations of a run, each with its cause, and whose fault it is.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        Cause, Certainty, Invariant, Scene,
        by_graph::{self, Evidence},
        diagnose,
        hypotheses::cache,
        invariants,
        replay::{
            GraphRun, Judged, Operation, Recording, Replay, ReplayError, Worst, judge, judge_graph,
        },
    },
    graph::site::Stage,
    model::Model,
};

/// Who departs from the model's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    EngineWrong,
    ReferenceWrong,
    /// Each side computes cleanly, but with another parameter than the file's.
    ModelsDiffer,
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
}

impl Diagnosis {
    /// Replays the engine, and the reference where its arithmetic is known, and finds the causes.
    pub fn of(
        model: &Model,
        engine: Recording<'_>,
        reference: Option<Recording<'_>>,
    ) -> Result<Diagnosis, ReplayError> {
        match reference {
            Some(reference) => Ok(Diagnosis::of_both(model, engine, reference)?.0),
            None => Diagnosis::beside(model, engine, None),
        }
    }

    /// Replays both sides at the same time; what is known of the reference holds for another engine too.
    pub fn of_both(
        model: &Model,
        engine: Recording<'_>,
        reference: Recording<'_>,
    ) -> Result<(Diagnosis, ReferenceReplay), ReplayError> {
        let [engine, (summary, guilty)] = sides(model, [engine, reference])?;
        let findings = group(model.config.n_layer, guilty, Verdict::ReferenceWrong);
        let findings = findings.into_iter().map(differing).collect();
        let reference = ReferenceReplay { findings, summary };
        Ok((Diagnosis::with(model, engine, Some(&reference)), reference))
    }

    /// Replays the engine, and takes what is known of the reference.
    pub fn beside(
        model: &Model,
        engine: Recording<'_>,
        reference: Option<&ReferenceReplay>,
    ) -> Result<Diagnosis, ReplayError> {
        let [engine] = sides(model, [engine])?;
        Ok(Diagnosis::with(model, engine, reference))
    }

    /// The same of a model of any architecture, through its graph.
    pub fn by_graph(
        engine: GraphRun<'_>,
        reference: Option<GraphRun<'_>>,
    ) -> Result<Diagnosis, ReplayError> {
        let n_layer = engine.model.sites.layers();
        let (summary, guilty) = of_graph(engine)?;
        let mut findings = group(n_layer, guilty, Verdict::EngineWrong);
        let mut of_reference = None;
        if let Some(reference) = reference {
            let (summary, guilty) = of_graph(reference)?;
            let own = group(n_layer, guilty, Verdict::ReferenceWrong);
            findings.extend(own.into_iter().map(differing));
            of_reference = Some(summary);
        }
        Ok(Diagnosis { findings, engine: summary, reference: of_reference })
    }

    fn with(
        model: &Model,
        (engine, guilty): (SideReplay, Vec<Guilty>),
        reference: Option<&ReferenceReplay>,
    ) -> Diagnosis {
        let mut findings = group(model.config.n_layer, guilty, Verdict::EngineWrong);
        findings.extend(reference.iter().flat_map(|reference| reference.findings.iter().cloned()));
        let reference = reference.map(|reference| reference.summary.clone());
        Diagnosis { findings, engine, reference }
    }

    /// The first finding on the engine itself.
    pub fn first_of_engine(&self) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.verdict == Verdict::EngineWrong)
    }

    /// Whether a recorded result is the work of a guilty operation.
    pub fn is_guilty(&self, operation: Operation) -> bool {
        self.findings.iter().any(|finding| finding.operations.contains(&operation))
    }
}

/// A side judged through its graph, and its guilty sites with their causes.
fn of_graph(run: GraphRun<'_>) -> Result<(SideReplay, Vec<Guilty>), ReplayError> {
    let verdict = judge_graph(run)?;
    let mut summary = SideReplay::default();
    let judged: BTreeMap<Operation, &Judged> =
        verdict.judged.iter().map(|judged| (judged.operation, judged)).collect();
    let mut places = BTreeSet::new();
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
    let evidence = if places.is_empty() { Vec::new() } else { by_graph::gather(run, &places)? };
    let guilty = |evidence: &Evidence<'_>| {
        let spec = evidence.spec();
        let operation = Operation { layer: spec.layer, stage: spec.stage };
        let judged = judged[&operation].clone();
        Ok(Guilty { judged, cause: by_graph::diagnose(evidence)? })
    };
    let guilty = evidence.iter().map(guilty).collect::<Result<Vec<_>, ReplayError>>()?;
    Ok((summary, guilty))
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

/// An operation, what was said of it, and why it is guilty.
type Said = (Operation, Option<Judged>, Option<Cause>);

/// Judges and diagnoses all operations of sides, layers of all of them in parallel.
fn sides<const N: usize>(
    model: &Model,
    recordings: [Recording<'_>; N],
) -> Result<[(SideReplay, Vec<Guilty>); N], ReplayError> {
    let operations = Operation::all(&model.config);
    let layers: Vec<&[Operation]> = operations.chunk_by(|a, b| a.layer == b.layer).collect();
    let of_side = |recording| layers.iter().map(move |&layer| (recording, layer));
    let mut all: Vec<(Recording<'_>, &[Operation])> =
        recordings.into_iter().flat_map(of_side).collect();
    // The logits take longest, and most memory: those of one side first, and of another side last.
    let first = ..layers.len();
    all[first].rotate_right(1);
    let said = all.par_iter().map(|&(recording, layer)| said_of_layer(model, recording, layer));
    let mut said = said.collect::<Result<Vec<_>, ReplayError>>()?;
    said[first].rotate_left(1);
    let mut said = said.into_iter();
    Ok(std::array::from_fn(|_| summed(said.by_ref().take(layers.len()))))
}

fn said_of_layer(
    model: &Model,
    recording: Recording<'_>,
    layer: &[Operation],
) -> Result<(Vec<Said>, Vec<Invariant>), ReplayError> {
    let replay = Replay::new(model, recording);
    let of = |&operation: &Operation| {
        let judged = judge(&replay, operation)?;
        let guilty = judged.as_ref().is_some_and(Judged::is_guilty);
        let scene = if guilty { Scene::new(&replay, operation)? } else { None };
        let cause = scene.as_ref().map(diagnose).transpose()?;
        if let (Some(scene), Some(cause)) = (&scene, &cause)
            && matches!(operation.stage, Stage::KCache | Stage::VCache)
            && let Some(found) = cache::found(scene, cause)?
        {
            replay.set_found(operation, found);
        }
        Ok((operation, judged, cause))
    };
    let said = layer.iter().map(of).collect::<Result<Vec<_>, ReplayError>>()?;
    Ok((said, invariants(&replay, layer)?))
}

/// What was said of the layers of a side, in their order.
fn summed(layers: impl Iterator<Item = (Vec<Said>, Vec<Invariant>)>) -> (SideReplay, Vec<Guilty>) {
    let (mut summary, mut guilty) = (SideReplay::default(), Vec::new());
    let mut all_broken = Vec::new();
    for (operations, broken) in layers {
        all_broken.extend(broken);
        for (operation, judged, cause) in operations {
            match (judged, cause) {
                (None, _) => summary.unmeasured.push(operation),
                (Some(judged), Some(cause)) => guilty.push(Guilty { judged, cause }),
                (Some(judged), None) => {
                    summary.cleared += 1;
                    summary.worst_cleared = summary.worst_cleared.max(judged.times_bound());
                }
            }
        }
    }
    summary.broken = Invariant::by_property(all_broken);
    summary.replayed = summary.cleared + guilty.len();
    (summary, guilty)
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
                && family(stage) == family(one.judged.operation.stage)
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
        let within = [Stage::Scores, Stage::Probs].map(|stage| operation.at(stage));
        operation.stage == Stage::AttnOut && within.iter().all(|one| spanned.contains(one))
    };
    if operations.iter().all(fused) {
        what = what.replace(crate::diagnosis::replay::name(Stage::AttnOut), ATTENTION);
    }
    let first = group.into_iter().next().expect("a group has a member");
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
    let names: Vec<&str> =
        stages.iter().map(|&stage| crate::diagnosis::replay::name(stage)).collect();
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
