//! Which keys each query of a step sees: read off the mask that the graph adds to the scores.

use std::ops::Range;

use super::{
    Extent, Graph, Kind, ModelGraph, NodeId, Op, SequenceInputs,
    site::{Site, Stage},
};

/// The tokens of a step.
#[derive(Clone, Copy, Debug)]
pub struct StepSpan {
    pub tokens: usize,
    /// The position of the first.
    pub first_position: usize,
}

/// Of each token of a step, the keys from the first that its query sees to the last. `None` where the
/// site's layer has no softmax, or one whose mask is no input.
pub fn seen_keys(
    model: &ModelGraph,
    inputs: &SequenceInputs,
    site: Site,
    step: StepSpan,
) -> Option<Vec<Range<usize>>> {
    let graph = &model.graph;
    let probs = model.sites.get(Site { stage: Stage::Probs, ..site })?;
    let softmax = graph.node(probs.node);
    let mask = softmax.source(1).filter(|_| softmax.op == Op::SoftMax)?;
    let mask = input_of(graph, mask)?;
    let positions = step.first_position + step.tokens;
    let extent =
        Extent { tokens: step.tokens, cells: positions, is_first: step.first_position == 0 };
    let values = inputs.at(graph, mask, extent, step.first_position)?;
    let keys = graph.node(mask).sizes(extent).ne[0];
    if keys == 0 || keys > positions || values.len() < keys * step.tokens {
        return None;
    }
    let hull = |row: &[f64]| {
        let mut seen = (0..keys).filter(|&key| row[key] > f64::from(f32::MIN) / 2.0);
        let first = seen.next().unwrap_or(0);
        first..seen.next_back().unwrap_or(first) + 1
    };
    Some(values.chunks_exact(keys).take(step.tokens).map(hull).collect())
}

/// The input that a tensor shows, through what only arranges it.
fn input_of(graph: &Graph, mut id: NodeId) -> Option<NodeId> {
    loop {
        let node = graph.node(id);
        match node.kind {
            Kind::Input => return Some(id),
            Kind::Computed if node.op.is_layout() => id = node.source(0)?,
            _ => return None,
        }
    }
}
