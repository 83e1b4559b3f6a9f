//! Faults of results outside of attention: what a node gives is overwritten.

use std::collections::BTreeSet;

use firstdiff::graph::{Kind, Node, NodeId, Op, site::Stage};

use super::{
    Fault, Subject,
    changes::{
        each, either, first, last, nodes, nodes_of, of_one, of_stage, of_two, previous_step,
        source, token_before,
    },
    tamper::{Change, Scene, all_of},
};

type Causes = &'static [&'static str];

const SCALED: Causes = &["scaled"];
const RESIDUAL_MISSING: Causes = &["residual-missing"];
const ACTIVATION: Causes = &["activation"];
const SWAPPED: Causes = &["gate-up-swapped"];
const STATE_ZERO: Causes = &["state-zero", "zero"];

pub fn all(subject: &Subject) -> Vec<Fault> {
    let mut faults = branches(subject);
    faults.extend(residuals(subject));
    faults.extend(gates(subject));
    faults.extend(functions(subject));
    faults.extend(experts(subject));
    faults.extend(states(subject));
    faults
}

/// The nodes of sites that are of an operation.
fn of_op(subject: &Subject, op: Op) -> BTreeSet<NodeId> {
    nodes_of(subject, |spec| subject.model.graph.node(spec.node).op == op)
}

/// Norms, what the parts of a layer add, and the two ends of the model.
fn branches(subject: &Subject) -> Vec<Fault> {
    let stage = |stage| of_stage(subject, stage);
    let norms = norms(subject);
    let branch = either([
        stage(Stage::OProj),
        stage(Stage::FfnDown),
        nodes_of(subject, |spec| spec.op == Op::MulMat && spec.weight.is_some()),
    ]);
    let of = Fault::of_results;
    let coarser = each(|x| half::f16::from_f32(x).to_f32());
    let before = token_before(subject);
    let (one, end) = (first(branch.clone()), last(branch.clone()));
    vec![
        of("norm-weight-left-out", norms.clone(), &["norm-weight-missing"], source(0)),
        of("norm-result-scaled", last(norms), SCALED, each(|x| x * 1.01)),
        of("branch-of-token-before", branch, &["token-before"], before),
        of("branch-of-previous-step", one, &["previous-step"], previous_step()),
        of("branch-stored-in-f16", end, &["stored-coarser"], coarser),
        of("embedding-scaled", stage(Stage::Embd), SCALED, each(|x| x * 1.5)),
        // Where a cap is the last operation, its own factor is another one.
        of("logits-scaled", stage(Stage::Logits), &["scaled", "soft-cap"], each(|x| x * 0.99)),
    ]
}

fn residuals(subject: &Subject) -> Vec<Fault> {
    let stage = |stage| of_stage(subject, stage);
    let all = either([stage(Stage::LayerOut), stage(Stage::AttnResidual)]);
    let of = Fault::of_results;
    let twice = of_two(|a, b| a + 2.0 * b);
    vec![
        of("residual-missing", all.clone(), RESIDUAL_MISSING, source(0)),
        of("residual-other-missing", first(all.clone()), RESIDUAL_MISSING, source(1)),
        of("residual-twice", all.clone(), &["residual-twice"], twice),
        of("residual-sign", last(all), &["residual-sign"], of_two(|a, b| a - b)),
    ]
}

/// Functions of a gate and what it gates.
fn gates(subject: &Subject) -> Vec<Fault> {
    let two = |op: Op| {
        let has_two = |id: &NodeId| subject.model.graph.node(*id).source(1).is_some();
        of_op(subject, op).into_iter().filter(has_two).collect::<BTreeSet<_>>()
    };
    let (swiglu, geglu) = (two(Op::Swiglu), two(Op::Geglu));
    let of = Fault::of_results;
    vec![
        of("swiglu-by-gelu", swiglu.clone(), ACTIVATION, of_two(|a, b| gelu(a) * b)),
        of("swiglu-swapped", swiglu.clone(), SWAPPED, of_two(|a, b| a * silu(b))),
        of("up-left-out", first(swiglu), &["up-missing"], of_two(|a, _| silu(a))),
        of("geglu-by-silu", geglu.clone(), ACTIVATION, of_two(|a, b| silu(a) * b)),
        of("geglu-swapped", geglu, SWAPPED, of_two(|a, b| a * gelu(b))),
    ]
}

/// Functions of one tensor.
fn functions(subject: &Subject) -> Vec<Fault> {
    let op = |op| of_op(subject, op);
    let relu = || of_one(|x| x.max(0.0));
    let tanh = nodes(subject, |node| node.op == Op::Tanh);
    let of = Fault::of_results;
    vec![
        of("silu-by-relu", op(Op::Silu), ACTIVATION, relu()),
        of("gelu-by-relu", op(Op::Gelu), ACTIVATION, relu()),
        of("relu-by-silu", op(Op::Relu), ACTIVATION, of_one(silu)),
        of("softplus-by-relu", op(Op::Softplus), ACTIVATION, relu()),
        of("sigmoid-by-tanh", op(Op::Sigmoid), ACTIVATION, of_one(f32::tanh)),
        of("tanh-left-out", tanh, &["soft-cap", "activation"], source(0)),
    ]
}

fn experts(subject: &Subject) -> Vec<Fault> {
    let named = |end: &'static str| nodes_of(subject, move |spec| spec.stage.name() == end);
    let ids = named("ffn_moe_argsort");
    let weighted = named("ffn_moe_weighted");
    let shares = named("ffn_moe_weights_norm");
    let of = Fault::of_results;
    vec![
        of("expert-ids-rotated", ids, &["expert-rank"], rotated()),
        of("expert-left-out", weighted, &["zero"], last_slot_zero()),
        of("expert-sum-left-out", shares, &["expert-norm", "not-normalised"], source(0)),
    ]
}

/// Recurrences and convolutions, and the states that they keep.
fn states(subject: &Subject) -> Vec<Fault> {
    let writes = |name| state_writes(subject, name);
    let packed = nodes(subject, |node| node.op.is_packed());
    let before = token_before(subject);
    let of = Fault::of_results;
    // The window of a convolution that is a token late gives the result of the token before.
    let late: Causes = &["token-before", "state-shifted"];
    vec![
        of("state-cleared", writes("cache_s"), STATE_ZERO, each(|_| 0.0)),
        of("conv-state-cleared", writes("cache_r"), STATE_ZERO, each(|_| 0.0)),
        of("conv-state-shifted", writes("cache_r"), &["state-shifted"], shifted()),
        of("recurrence-scaled", packed, SCALED, each(|x| x * 1.01)),
        of("convolution-of-token-before", of_op(subject, Op::SsmConv), late, before),
    ]
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x * x * x)).tanh())
}

/// Norms whose last node multiplies by a weight.
fn norms(subject: &Subject) -> BTreeSet<NodeId> {
    let graph = &subject.model.graph;
    nodes(subject, |node| {
        let source = |place| node.source(place).map(|id| graph.node(graph.root(id)));
        let normed = node.source(0).and_then(|id| all_of(graph, id));
        node.op == Op::Mul
            && source(1).is_some_and(|source| source.kind == Kind::Weight)
            && normed.is_some_and(|id| graph.node(id).op.is_norm())
    })
}

/// The nodes that write a state of that name.
fn state_writes(subject: &Subject, name: &str) -> BTreeSet<NodeId> {
    let graph = &subject.model.graph;
    nodes(subject, |node| {
        let state = node.window.map(|window| graph.node(window.root));
        let is_state = |root: &Node| root.kind == Kind::State && root.name.starts_with(name);
        matches!(node.op, Op::Cpy | Op::SetRows) && state.is_some_and(is_state)
    })
}

/// Each row of ids without its first, which comes last.
fn rotated() -> Change {
    Box::new(|scene| scene.rows().for_each(|row| row.rotate_left(1)))
}

/// Each state one element later.
fn shifted() -> Change {
    Box::new(|scene| {
        let by = 1.min(scene.values.len());
        scene.values.rotate_right(by);
    })
}

/// The last expert of each token gives nothing.
fn last_slot_zero() -> Change {
    Box::new(|scene: &mut Scene<'_>| {
        let slots = scene.ne[1];
        let rows = scene.rows().enumerate();
        rows.filter(|(row, _)| row % slots == slots - 1).for_each(|(_, row)| row.fill(0.0));
    })
}
