//! Faults of results outside of attention: what a node gives is overwritten.

use std::collections::BTreeSet;

use firstdiff::graph::{
    Kind, Node, NodeId, Op, SiteSpec,
    site::{Axis, Stage},
};

use super::{
    Fault, Subject,
    tamper::{Change, Scene, all_of},
};

/// The nodes of sites that are wanted.
pub fn nodes_of(subject: &Subject, wanted: impl Fn(&SiteSpec) -> bool) -> BTreeSet<NodeId> {
    let computes = |id: NodeId| {
        let node = subject.model.graph.node(id);
        node.kind == Kind::Computed && !node.op.is_window()
    };
    let specs = subject.model.sites.specs().iter().filter(|spec| wanted(spec));
    specs.map(|spec| spec.node).filter(|&id| computes(id)).collect()
}

/// All nodes that are wanted.
pub fn nodes(subject: &Subject, wanted: impl Fn(&Node) -> bool) -> BTreeSet<NodeId> {
    let graph = &subject.model.graph;
    let is_wanted = |node: &Node| node.kind == Kind::Computed && wanted(node);
    graph.iter().filter(|(_, node)| is_wanted(node)).map(|(id, _)| id).collect()
}

/// The nodes of one role.
pub fn of_stage(subject: &Subject, stage: Stage) -> BTreeSet<NodeId> {
    nodes_of(subject, |spec| spec.stage == stage)
}

fn first(mut nodes: BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    nodes.pop_first().into_iter().collect()
}

fn last(mut nodes: BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    nodes.pop_last().into_iter().collect()
}

/// The first of several sets that has something.
fn either<const N: usize>(sets: [BTreeSet<NodeId>; N]) -> BTreeSet<NodeId> {
    sets.into_iter().find(|set| !set.is_empty()).unwrap_or_default()
}

fn each(of: impl Fn(f32) -> f32 + 'static) -> Change {
    Box::new(move |scene| scene.values.iter_mut().for_each(|x| *x = of(*x)))
}

/// The result is one of the node's sources.
pub fn source(index: usize) -> Change {
    Box::new(move |scene| {
        if let Some(source) = scene.source(index).filter(|s| s.len() == scene.values.len()) {
            *scene.values = source.clone();
        }
    })
}

/// The result is a function of the same elements of two sources.
fn of_two(of: impl Fn(f32, f32) -> f32 + 'static) -> Change {
    Box::new(move |scene| {
        let (Some(a), Some(b)) = (scene.source(0), scene.source(1)) else { return };
        if a.len() == scene.values.len() && b.len() == a.len() {
            *scene.values = a.iter().zip(b).map(|(&a, &b)| of(a, b)).collect();
        }
    })
}

/// The result is a function of the same element of its source.
fn of_one(of: impl Fn(f32) -> f32 + 'static) -> Change {
    Box::new(move |scene| {
        if let Some(source) = scene.source(0).filter(|s| s.len() == scene.values.len()) {
            *scene.values = source.iter().map(|&x| of(x)).collect();
        }
    })
}

/// Row t of a step has row t - 1.
fn token_before(subject: &Subject) -> Change {
    let specs: Vec<SiteSpec> = subject.model.sites.specs().to_vec();
    Box::new(move |scene| {
        let Some(spec) = specs.iter().find(|spec| spec.node == scene.node) else { return };
        let (places, shape) = scene.places(spec);
        let width: usize = shape[1..].iter().product();
        let before = scene.values.clone();
        for (flat, &place) in places.iter().enumerate().skip(width) {
            scene.values[place] = before[places[flat - width]];
        }
    })
}

/// The elements of index 0 along an axis, or its last, are zero.
pub fn zero_along(subject: &Subject, axis: Axis, at_end: bool) -> Change {
    let specs: Vec<SiteSpec> = subject.model.sites.specs().to_vec();
    Box::new(move |scene| {
        let Some(spec) = specs.iter().find(|spec| spec.node == scene.node) else { return };
        let Some(along) = spec.axes.iter().position(|own| own.axis == axis) else { return };
        let (places, shape) = scene.places(spec);
        let inner: usize = shape[along + 1..].iter().product();
        let wanted = if at_end { shape[along] - 1 } else { 0 };
        for (flat, place) in places.into_iter().enumerate() {
            if flat / inner % shape[along] == wanted {
                scene.values[place] = 0.0;
            }
        }
    })
}

/// A decoded token's result is that of the step before.
fn previous_step() -> Change {
    Box::new(|scene| {
        let width = scene.ne[0];
        let own = scene.values[scene.values.len() - width..].to_vec();
        if scene.shape.tokens == 1 && scene.kept.len() == width {
            scene.values.copy_from_slice(scene.kept);
        }
        *scene.kept = own;
    })
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

pub fn all(subject: &Subject) -> Vec<Fault> {
    let stage = |stage| of_stage(subject, stage);
    let of_op = |op: Op| nodes_of(subject, |spec| subject.model.graph.node(spec.node).op == op);
    let two_sources = |op: Op| {
        let has_two = |id: &NodeId| subject.model.graph.node(*id).source(1).is_some();
        of_op(op).into_iter().filter(has_two).collect::<BTreeSet<_>>()
    };
    let all_norms = norms(subject);
    let residuals = either([stage(Stage::LayerOut), stage(Stage::AttnResidual)]);
    let branch = either([
        stage(Stage::OProj),
        stage(Stage::FfnDown),
        nodes_of(subject, |spec| spec.op == Op::MulMat && spec.weight.is_some()),
    ]);
    let experts = |end: &'static str| {
        nodes_of(subject, move |spec| spec.stage.name() == end || spec.stage.name().ends_with(end))
    };
    let missing: &[&str] = &["residual-missing"];
    let activation: &[&str] = &["activation"];
    let swapped: &[&str] = &["gate-up-swapped"];
    let rank: &[&str] = &["expert-rank"];
    vec![
        Fault::of_results(
            "norm-weight-left-out",
            all_norms.clone(),
            &["norm-weight-missing"],
            source(0),
        ),
        Fault::of_results("norm-result-scaled", last(all_norms), &["scaled"], each(|x| x * 1.01)),
        Fault::of_results(
            "branch-of-token-before",
            branch.clone(),
            &["token-before"],
            token_before(subject),
        ),
        Fault::of_results(
            "branch-of-previous-step",
            first(branch.clone()),
            &["previous-step"],
            previous_step(),
        ),
        Fault::of_results(
            "branch-stored-in-f16",
            last(branch),
            &["stored-coarser"],
            each(|x| half::f16::from_f32(x).to_f32()),
        ),
        Fault::of_results("residual-missing", residuals.clone(), missing, source(0)),
        Fault::of_results("residual-other-missing", first(residuals.clone()), missing, source(1)),
        Fault::of_results(
            "residual-twice",
            residuals.clone(),
            &["residual-twice"],
            of_two(|a, b| a + 2.0 * b),
        ),
        Fault::of_results(
            "residual-sign",
            last(residuals),
            &["residual-sign"],
            of_two(|a, b| a - b),
        ),
        Fault::of_results("embedding-scaled", stage(Stage::Embd), &["scaled"], each(|x| x * 1.5)),
        Fault::of_results(
            "swiglu-by-gelu",
            two_sources(Op::Swiglu),
            activation,
            of_two(|a, b| gelu(a) * b),
        ),
        Fault::of_results(
            "swiglu-swapped",
            two_sources(Op::Swiglu),
            swapped,
            of_two(|a, b| a * silu(b)),
        ),
        Fault::of_results(
            "geglu-by-silu",
            two_sources(Op::Geglu),
            activation,
            of_two(|a, b| silu(a) * b),
        ),
        Fault::of_results(
            "geglu-swapped",
            two_sources(Op::Geglu),
            swapped,
            of_two(|a, b| a * gelu(b)),
        ),
        Fault::of_results(
            "up-left-out",
            first(two_sources(Op::Swiglu)),
            &["up-missing"],
            of_two(|a, _| silu(a)),
        ),
        Fault::of_results("silu-by-relu", of_op(Op::Silu), activation, of_one(|x| x.max(0.0))),
        Fault::of_results("gelu-by-relu", of_op(Op::Gelu), activation, of_one(|x| x.max(0.0))),
        Fault::of_results("relu-by-silu", of_op(Op::Relu), activation, of_one(silu)),
        Fault::of_results(
            "softplus-by-relu",
            of_op(Op::Softplus),
            activation,
            of_one(|x| x.max(0.0)),
        ),
        Fault::of_results("sigmoid-by-tanh", of_op(Op::Sigmoid), activation, of_one(f32::tanh)),
        Fault::of_results(
            "tanh-left-out",
            nodes(subject, |node| node.op == Op::Tanh),
            &["soft-cap", "activation"],
            source(0),
        ),
        Fault::of_results("expert-ids-rotated", experts("ffn_moe_argsort"), rank, rotated()),
        Fault::of_results(
            "expert-left-out",
            experts("ffn_moe_weighted"),
            &["zero"],
            last_slot_zero(),
        ),
        Fault::of_results(
            "expert-sum-left-out",
            experts("ffn_moe_weights_norm"),
            &["expert-norm", "not-normalised"],
            source(0),
        ),
        Fault::of_results(
            "state-cleared",
            state_writes(subject, "cache_s"),
            &["state-zero", "zero"],
            each(|_| 0.0),
        ),
        Fault::of_results(
            "conv-state-cleared",
            state_writes(subject, "cache_r"),
            &["state-zero", "zero"],
            each(|_| 0.0),
        ),
        Fault::of_results(
            "conv-state-shifted",
            state_writes(subject, "cache_r"),
            &["state-shifted"],
            shifted(),
        ),
        Fault::of_results(
            "recurrence-scaled",
            nodes(subject, |node| node.op.is_packed()),
            &["scaled"],
            each(|x| x * 1.01),
        ),
        Fault::of_results(
            "convolution-of-token-before",
            of_op(Op::SsmConv),
            &["token-before", "state-shifted"],
            token_before(subject),
        ),
        Fault::of_results(
            "logits-scaled",
            stage(Stage::Logits),
            &["scaled", "soft-cap"],
            each(|x| x * 0.99),
        ),
    ]
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
