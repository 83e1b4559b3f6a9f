//! Which nodes a fault changes, and how.

use std::collections::BTreeSet;

use firstdiff::graph::{
    Kind, Node, NodeId, SiteSpec,
    site::{Axis, Stage},
};

use super::{Subject, tamper::Change};

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

pub fn first(mut nodes: BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    nodes.pop_first().into_iter().collect()
}

pub fn last(mut nodes: BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    nodes.pop_last().into_iter().collect()
}

/// The first of several sets that has something.
pub fn either<const N: usize>(sets: [BTreeSet<NodeId>; N]) -> BTreeSet<NodeId> {
    sets.into_iter().find(|set| !set.is_empty()).unwrap_or_default()
}

pub fn each(of: impl Fn(f32) -> f32 + 'static) -> Change {
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
pub fn of_two(of: impl Fn(f32, f32) -> f32 + 'static) -> Change {
    Box::new(move |scene| {
        let (Some(a), Some(b)) = (scene.source(0), scene.source(1)) else { return };
        if a.len() == scene.values.len() && b.len() == a.len() {
            *scene.values = a.iter().zip(b).map(|(&a, &b)| of(a, b)).collect();
        }
    })
}

/// The result is a function of the same element of its source.
pub fn of_one(of: impl Fn(f32) -> f32 + 'static) -> Change {
    Box::new(move |scene| {
        if let Some(source) = scene.source(0).filter(|s| s.len() == scene.values.len()) {
            *scene.values = source.iter().map(|&x| of(x)).collect();
        }
    })
}

/// Row t of a step has row t - 1.
pub fn token_before(subject: &Subject) -> Change {
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

/// The elements of index 0 along an axis are zero.
pub fn zero_along(subject: &Subject, axis: Axis) -> Change {
    let specs: Vec<SiteSpec> = subject.model.sites.specs().to_vec();
    Box::new(move |scene| {
        let Some(spec) = specs.iter().find(|spec| spec.node == scene.node) else { return };
        let Some(along) = spec.axes.iter().position(|own| own.axis == axis) else { return };
        let (places, shape) = scene.places(spec);
        let inner: usize = shape[along + 1..].iter().product();
        for (flat, place) in places.into_iter().enumerate() {
            if (flat / inner).is_multiple_of(shape[along]) {
                scene.values[place] = 0.0;
            }
        }
    })
}

/// A decoded token's result is that of the step before.
pub fn previous_step() -> Change {
    Box::new(|scene| {
        let width = scene.ne[0];
        let own = scene.values[scene.values.len() - width..].to_vec();
        if scene.shape.tokens == 1 && scene.kept.len() == width {
            scene.values.copy_from_slice(scene.kept);
        }
        *scene.kept = own;
    })
}
