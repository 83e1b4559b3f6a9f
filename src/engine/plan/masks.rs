//! The values of the masks and positions: our attention is causal, over every position before.

use super::{Unplanned, root_of, unplanned};
use crate::graph::{Kind, ModelGraph, NodeId, Op, SequenceInputs};

/// Masks and positions that are not those of our kernels, each at the first place that reads it.
pub(super) fn wrong(model: &ModelGraph, inputs: &SequenceInputs) -> Vec<Unplanned> {
    let mut known: Vec<NodeId> = Vec::new();
    let mut wrong = Vec::new();
    for (id, node) in model.graph.iter().filter(|(_, node)| node.kind == Kind::Computed) {
        let check = match node.op {
            Op::SoftMax => mask,
            Op::Rope => positions,
            _ => continue,
        };
        let Some(input) = root_of(&model.graph, id, 1).filter(|input| !known.contains(input))
        else {
            continue;
        };
        known.push(input);
        let values = inputs.values.get(&input).map_or(&[][..], Vec::as_slice);
        if let Some(what) = check(values, inputs) {
            wrong.push(unplanned(model, id, what));
        }
    }
    wrong
}

/// What a mask (T, N) does besides hiding each key after its query.
fn mask(values: &[f64], inputs: &SequenceInputs) -> Option<String> {
    let (tokens, cells) = (inputs.tokens, inputs.cells);
    if values.len() != tokens * cells {
        return Some("SOFT_MAX with a mask of another shape".to_string());
    }
    for (query, row) in values.chunks_exact(cells.max(1)).enumerate() {
        for (key, &value) in row.iter().enumerate() {
            let is_hidden = value == f64::NEG_INFINITY;
            if is_hidden == (key > query) && (is_hidden || value == 0.0) {
                continue;
            }
            return Some(if is_hidden {
                format!("SOFT_MAX with a window: position {query} does not see position {key}")
            } else if key > query {
                format!("SOFT_MAX that is not causal: position {query} sees position {key}")
            } else {
                format!("SOFT_MAX with a mask that adds {value}")
            });
        }
    }
    None
}

/// What positions are, if not those of the tokens.
fn positions(values: &[f64], inputs: &SequenceInputs) -> Option<String> {
    let right = (0..inputs.tokens).map(|position| position as f64);
    (!values.iter().copied().eq(right)).then(|| "ROPE with other positions".to_string())
}
