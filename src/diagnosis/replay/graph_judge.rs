//! Every recorded site of a run judged through the model's graph.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Judged,
    forward::ReplayError,
    judge::Trial,
    machine::{GraphRun, Machine},
    operation::Operation,
};
use crate::graph::{NodeId, Op, site::Axis};

/// The verdict on a whole run.
pub struct GraphVerdict {
    /// In the order of the graph.
    pub judged: Vec<Judged>,
    /// Nodes that no rule is known for, with how many there are of each operation.
    pub without_rule: BTreeMap<String, usize>,
    /// Choices in which another would have been as good, within the rounding of what they choose among.
    pub near_ties: BTreeSet<Operation>,
}

/// Judges every site that a side recorded.
pub fn judge_graph(run: GraphRun<'_>) -> Result<GraphVerdict, ReplayError> {
    let specs = run.model.sites.specs();
    let mut trials: BTreeMap<usize, Trial> = BTreeMap::new();
    let mut spanned: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    let mut near_ties = BTreeSet::new();
    let operation = |place: usize| {
        let spec = &specs[place];
        Operation { layer: spec.layer, stage: spec.stage }
    };
    let mut machine = Machine::new(run);
    for step in 0..run.recording.steps.len() as u32 {
        machine.step(step, &mut |_, observed| {
            let place = observed.place;
            let trial = trials.entry(place).or_insert_with(|| Trial::new(operation(place)));
            let axes: Vec<Axis> = specs[place].axes.iter().map(|axis| axis.axis).collect();
            let shape = |_| observed.shape.clone();
            trial.add(&observed.piece, run.recording, &axes, &shape);
            spanned.entry(place).or_default().extend(&observed.spanned);
            if observed.choice.is_some_and(|times| times > 0.0) {
                near_ties.insert(operation(place));
            }
            Ok(())
        })?;
    }
    let verdict = |(place, trial): (usize, Trial)| {
        let through = spanned.get(&place).into_iter().flatten();
        let spanned = through.map(|&place| operation(place)).collect();
        Judged { spanned, ..trial.verdict() }
    };
    let judged = trials.into_iter().map(verdict).collect();
    let without_rule = counted(run, &machine.without_rule);
    Ok(GraphVerdict { judged, without_rule, near_ties })
}

fn counted(run: GraphRun<'_>, nodes: &BTreeSet<NodeId>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for &id in nodes {
        let op: &Op = &run.model.graph.node(id).op;
        *counts.entry(op.name().to_string()).or_default() += 1;
    }
    counts
}
