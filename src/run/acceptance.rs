//! Whether an architecture can be judged: llama.cpp's own tensors, replayed through its own graph.
//!
//! Every node must be within its bound, or be named as not measured. No engine is needed.

use std::collections::{BTreeMap, BTreeSet};

use super::baseline::{self, Held};
use crate::{
    core::{arithmetic::Arithmetic, task::Task, tensor::DType},
    diagnosis::replay::{GraphRun, Recording, ReplayError, RunVerdict, judge},
    graph::{Graph, Kind, ModelGraph, NodeId, Size, site::Stage},
    model::ModelFile,
    reference::{Changes, Reference, ReferenceError},
    trace::{TraceError, recording::Spool},
};

/// Why it could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum AcceptanceError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// What the replay of llama.cpp by itself says.
pub struct Acceptance {
    /// Nodes of a step that compute.
    pub nodes: usize,
    /// Those that were judged, by themselves or as a part of an operation.
    pub measured: usize,
    pub ops: BTreeSet<String>,
    /// Roles that were found.
    pub roles: BTreeSet<&'static str>,
    pub elements: u64,
    /// Sites beyond their bounds, with how far.
    pub beyond: Vec<(String, f64)>,
    /// The largest error in units of its bound, and where.
    pub worst: Option<(String, f64)>,
    /// Operations that no rule is known for.
    pub without_rule: BTreeMap<String, usize>,
}

/// Runs llama.cpp in f32 and replays it.
pub fn accept(
    file: &ModelFile,
    reference: &Reference,
    task: Task<'_>,
) -> Result<Acceptance, AcceptanceError> {
    let mut spool = Spool::new()?;
    let choices = baseline::decode(reference, task, &mut spool, Changes::default(), |choice| {
        Some(choice?.token)
    })?;
    let spool = spool.finished()?;
    let steps = baseline::steps_of(task, Held::default(), &choices);
    let tokens: Vec<i32> = steps.iter().flatten().copied().collect();
    let (model, inputs) = reference.import(&tokens)?;
    let arithmetic = Arithmetic::engine(DType::F32);
    let recording = Recording {
        tensors: &spool,
        steps: &steps,
        arithmetic: &arithmetic,
        attention: Default::default(),
    };
    let run = GraphRun { has_tables: true, ..GraphRun::new(file, &model, &inputs, recording) };
    let verdict = judge(run)?;
    Ok(summary(&model, &verdict))
}

fn summary(model: &ModelGraph, verdict: &RunVerdict) -> Acceptance {
    let judged: BTreeSet<(Option<u32>, Stage)> = verdict
        .judged
        .iter()
        .map(|judged| (judged.operation.layer, judged.operation.stage))
        .collect();
    let specs = model.sites.specs().iter();
    let measured_sites = specs.filter(|spec| judged.contains(&(spec.layer, spec.stage)));
    let measured: BTreeSet<NodeId> = measured_sites.map(|spec| spec.node).collect();
    let computing: Vec<NodeId> = computing(&model.graph).collect();
    let has_rule = |id: NodeId| !verdict.without_rule.contains_key(model.graph.node(id).op.name());
    let is_measured = |id: &&NodeId| has_rule(**id) && is_judged(&model.graph, **id, &measured);
    let beyond = verdict.judged.iter().filter(|judged| judged.is_guilty());
    let worst = verdict.judged.iter().max_by(|a, b| a.times_bound().total_cmp(&b.times_bound()));
    let roles = model.sites.specs().iter().map(|spec| spec.stage);
    Acceptance {
        nodes: computing.len(),
        measured: computing.iter().filter(is_measured).count(),
        ops: computing.iter().map(|&id| model.graph.node(id).op.to_string()).collect(),
        roles: roles.filter(|s| !matches!(s, Stage::Other(_))).map(Stage::name).collect(),
        elements: verdict.judged.iter().map(|judged| judged.elements).sum(),
        beyond: beyond.map(|judged| (judged.operation.result(), judged.times_bound())).collect(),
        worst: worst.map(|judged| (judged.operation.result(), judged.times_bound())),
        without_rule: verdict.without_rule.clone(),
    }
}

/// The nodes that compute, and do not only arrange values.
fn computing(graph: &Graph) -> impl Iterator<Item = NodeId> {
    graph
        .iter()
        .filter(|(_, node)| {
            let is_empty = node.ne.contains(&Size::fixed(0));
            node.kind == Kind::Computed && !node.op.is_layout() && !is_empty
        })
        .map(|(id, _)| id)
}

/// Whether a node's result was judged: by itself, or through what reads it and nothing else.
fn is_judged(graph: &Graph, id: NodeId, measured: &BTreeSet<NodeId>) -> bool {
    let mut waiting = vec![id];
    let mut seen = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if measured.contains(&id) {
            return true;
        }
        if seen.insert(id) {
            let root = graph.root(id);
            let readers = graph.iter().skip(id.index()).filter(|(_, node)| {
                node.sources.iter().flatten().any(|&source| graph.root(source) == root)
            });
            waiting.extend(readers.map(|(id, _)| id).take(8));
        }
    }
    false
}
