//! Operations that no kernel computes, whatever is around them.

use std::collections::HashSet;

use super::{STEP, Unplanned, root_of, unplanned};
use crate::graph::{Kind, ModelGraph, Node, NodeId, Op, RopeParams};

/// Bits of a ROPE's mode that a kernel of ours has: none, or pairs (i, i + n/2).
const PAIRS_OF_HALVES: i32 = 2;

/// Every operation, or way of one, without a kernel; each once, at its first place.
pub(super) fn unknown(model: &ModelGraph) -> Vec<Unplanned> {
    let mut seen = HashSet::new();
    let mut unknown = Vec::new();
    let mut first_mask = None;
    for (id, node) in model.graph.iter().filter(|(_, node)| node.kind == Kind::Computed) {
        let mut found: Vec<String> = what(model, id, node).into_iter().collect();
        if node.op == Op::SoftMax
            && let Some(mask) = root_of(&model.graph, id, 1)
            && *first_mask.get_or_insert(mask) != mask
        {
            found.push("SOFT_MAX with a sliding window in some layers only".to_string());
        }
        for what in found {
            if seen.insert(what.clone()) {
                unknown.push(unplanned(model, id, what));
            }
        }
    }
    unknown
}

/// The operation, if no kernel computes it.
fn what(model: &ModelGraph, id: NodeId, node: &Node) -> Option<String> {
    let graph = &model.graph;
    let kind = |source: usize| root_of(graph, id, source).map(|root| graph.node(root).kind);
    match node.op {
        ref op if op.is_layout() => None,
        Op::RmsNorm | Op::Mul | Op::Add | Op::SetRows => None,
        Op::GetRows => None,
        Op::MulMat if kind(0) == Some(Kind::Input) => Some("MUL_MAT by an input".to_string()),
        Op::MulMat => None,
        Op::Rope => rope(model, id, node),
        Op::SoftMax => softmax(node),
        Op::Swiglu => swiglu(node),
        Op::Tanh if is_cap(model, id) => Some("TANH of a soft cap".to_string()),
        ref op => Some(op.name().to_string()),
    }
}

/// What a rotation has that our kernel does not.
fn rope(model: &ModelGraph, id: NodeId, node: &Node) -> Option<String> {
    let params = node.params(STEP);
    let rope = RopeParams::of(params);
    let (mode, dim) = (params.int(2), node.sizes(STEP).ne[0]);
    let (extrapolation, attention) = (params.float(7), params.float(8));
    let mut ways = Vec::new();
    if rope.has_sections {
        ways.push("sections of positions".to_string());
    } else if mode & !PAIRS_OF_HALVES != 0 {
        ways.push(format!("mode {mode}"));
    }
    if rope.dims != dim || rope.offset != 0 {
        ways.push(format!("{} of a head's {dim} dims", rope.dims));
    }
    if rope.scale != 1.0 {
        ways.push(format!("frequency scale {}", rope.scale));
    }
    if extrapolation != 0.0 {
        ways.push(format!("YaRN, extrapolation factor {extrapolation}"));
    }
    if attention != 1.0 {
        ways.push(format!("attention factor {attention}"));
    }
    let positions = root_of(&model.graph, id, 1).map(|root| model.graph.node(root).kind);
    if positions != Some(Kind::Input) {
        ways.push("positions that are not an input".to_string());
    }
    (!ways.is_empty()).then(|| format!("ROPE with {}", ways.join(" and ")))
}

/// What a softmax has that our attention does not.
fn softmax(node: &Node) -> Option<String> {
    let bias = node.params(STEP).float(1);
    if node.source(2).is_some() {
        return Some("SOFT_MAX with sinks".to_string());
    }
    if bias != 0.0 {
        return Some(format!("SOFT_MAX with ALiBi, largest bias {bias}"));
    }
    node.source(1).is_none().then(|| "SOFT_MAX without a mask".to_string())
}

/// Our kernel takes the gate and what it gates from two products.
fn swiglu(node: &Node) -> Option<String> {
    let is_swapped = node.params(STEP).int(1) != 0;
    let is_split = node.source(1).is_some() && !is_swapped;
    (!is_split).then(|| "SWIGLU of the halves of one product".to_string())
}

/// Whether a TANH is scaled before and after: scores or logits that are kept below a bound.
fn is_cap(model: &ModelGraph, id: NodeId) -> bool {
    let graph = &model.graph;
    let before = root_of(graph, id, 0).is_some_and(|root| graph.node(root).op == Op::Scale);
    let is_scaled = |node: &Node| node.op == Op::Scale && node.source(0) == Some(id);
    before && graph.nodes.iter().any(is_scaled)
}
