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
        let values = inputs.values.get(&input).map_or(&[][..], |values| values);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The mask of five tokens over eight cells, where `sees` says.
    fn of(sees: impl Fn(usize, usize) -> bool) -> Option<String> {
        let value = |i: usize| if sees(i / 8, i % 8) { 0.0 } else { f64::NEG_INFINITY };
        let values: Vec<f64> = (0..40).map(value).collect();
        mask(&values, &SequenceInputs { tokens: 5, cells: 8, ..SequenceInputs::default() })
    }

    #[test]
    fn a_mask_that_is_not_causal_is_told_by_the_first_pair_that_it_gets_wrong() {
        assert_eq!(of(|query, key| key <= query), None);
        let window = of(|query, key| key <= query && query - key < 3).unwrap();
        assert_eq!(window, "SOFT_MAX with a window: position 3 does not see position 0");
        let chunks = of(|query, key| key <= query && key / 2 == query / 2).unwrap();
        assert_eq!(chunks, "SOFT_MAX with a window: position 2 does not see position 0");
        let all = of(|_, key| key < 5).unwrap();
        assert_eq!(all, "SOFT_MAX that is not causal: position 0 sees position 1");
    }

    #[test]
    fn a_mask_that_adds_numbers_or_is_not_known_is_no_causal_one() {
        let inputs = SequenceInputs { tokens: 1, cells: 2, ..SequenceInputs::default() };
        let added = mask(&[-0.5, f64::NEG_INFINITY], &inputs).unwrap();
        assert_eq!(added, "SOFT_MAX with a mask that adds -0.5");
        assert!(mask(&[], &inputs).is_some());
    }

    #[test]
    fn positions_are_those_of_the_tokens() {
        let inputs = SequenceInputs { tokens: 3, cells: 8, ..SequenceInputs::default() };
        assert_eq!(positions(&[0.0, 1.0, 2.0], &inputs), None);
        assert!(positions(&[0.0, 2.0, 4.0], &inputs).is_some());
    }
}
