//! Which operations an edit of a file makes wrong: those whose weights, parameters or inputs it changes, by
//! the graphs of both files.

use std::collections::{BTreeSet, HashMap};

use firstdiff::graph::{Graph, Kind, ModelGraph, Node, NodeId, Op, SequenceInputs, SiteSpec};

use super::{file::Edit, subject::Names};

/// A model and the inputs of a sequence.
#[derive(Clone, Copy)]
pub struct Fed<'a> {
    pub model: &'a ModelGraph,
    pub inputs: &'a SequenceInputs,
}

/// What an edit changes.
pub struct Difference {
    /// Nodes of the right graph that compute something else.
    pub nodes: BTreeSet<NodeId>,
    /// Sites of the right graph, by their places, whose values are multiplied by another factor.
    pub factors: BTreeSet<usize>,
    /// The edited model's sites by the right one's names.
    pub names: Names,
}

impl Difference {
    pub fn of(edit: &Edit, right: Fed<'_>, edited: Fed<'_>) -> Difference {
        let (a, b) = (&right.model.graph, &edited.model.graph);
        let partner = partners(a, b);
        let changed_weight = |node: &Node| edit.tensors.iter().any(|(name, _)| *name == node.name);
        let changed_input = |id: NodeId| {
            let values = |fed: Fed<'_>, id: NodeId| fed.inputs.values.get(&id).cloned();
            let other = partner.get(&id).copied();
            other.is_none_or(|other| values(right, id) != values(edited, other))
        };
        let changed_leaf = |id: NodeId| match a.node(a.root(id)).kind {
            Kind::Weight => changed_weight(a.node(a.root(id))),
            Kind::Input => changed_input(a.root(id)),
            _ => false,
        };
        let computed = a.iter().filter(|(_, node)| node.kind == Kind::Computed);
        let is_changed = |&(id, node): &(NodeId, &Node)| {
            let reads_changed = node.sources.iter().flatten().any(|&s| changed_leaf(s));
            let Some(&other) = partner.get(&id) else { return true };
            reads_changed || differs(node, b.node(other), &partner)
        };
        let nodes = computed.filter(is_changed).map(|(id, _)| id).collect();
        let (names, factors) = sites(right.model, edited.model, &partner);
        Difference { nodes, factors, names }
    }
}

/// Whether two nodes compute other things of the same sources.
fn differs(a: &Node, b: &Node, partner: &HashMap<NodeId, NodeId>) -> bool {
    let mapped = |id: &Option<NodeId>| id.map(|id| partner.get(&id).copied().unwrap_or(id));
    let sources: Vec<Option<NodeId>> = a.sources.iter().map(mapped).collect();
    let place = |node: &Node| node.window.map(|window| window.offset);
    a.op != b.op
        || a.params != b.params
        || sources != b.sources
        || a.op == Op::View && (a.ne, a.nb, place(a)) != (b.ne, b.nb, place(b))
}

/// The node of the edited graph that each of the right one is: the longest sequence that both have, and
/// what stands in for one another between.
fn partners(a: &Graph, b: &Graph) -> HashMap<NodeId, NodeId> {
    let key = |node: &Node| {
        let name = if node.name.starts_with("node_") { String::new() } else { node.name.clone() };
        (node.op, node.kind, name)
    };
    let keys = [a, b].map(|graph| graph.nodes.iter().map(key).collect::<Vec<_>>());
    let [left, right] = &keys;
    let width = right.len() + 1;
    let mut longest = vec![0u32; (left.len() + 1) * width];
    for i in (0..left.len()).rev() {
        for j in (0..right.len()).rev() {
            longest[i * width + j] = if left[i] == right[j] {
                longest[(i + 1) * width + j + 1] + 1
            } else {
                longest[(i + 1) * width + j].max(longest[i * width + j + 1])
            };
        }
    }
    let mut pairs = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < left.len() && j < right.len() {
        if left[i] == right[j] {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if longest[(i + 1) * width + j] >= longest[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    let mut found = HashMap::new();
    let (mut i, mut j) = (0, 0);
    for (to_i, to_j) in pairs.into_iter().chain([(left.len(), right.len())]) {
        if to_i - i == to_j - j {
            found.extend((i..to_i).zip(j..to_j).map(|(i, j)| (id(i), id(j))));
        }
        if to_i < left.len() {
            found.insert(id(to_i), id(to_j));
        }
        (i, j) = (to_i + 1, to_j + 1);
    }
    found
}

fn id(index: usize) -> NodeId {
    NodeId(index as u32)
}

/// The sites that both have in one shape, and those of them whose factors differ.
fn sites(
    right: &ModelGraph,
    edited: &ModelGraph,
    partner: &HashMap<NodeId, NodeId>,
) -> (Names, BTreeSet<usize>) {
    let (mut names, mut factors) = (Names::new(), BTreeSet::new());
    for (place, spec) in right.sites.specs().iter().enumerate() {
        let Some(&node) = partner.get(&spec.node) else { continue };
        let Some(other) = edited.sites.specs().iter().find(|other| other.node == node) else {
            continue;
        };
        let any = |spec: &SiteSpec| spec.shape(7, 11);
        if any(other) != any(spec) {
            continue;
        }
        names.insert((other.layer, other.stage), (spec.layer, spec.stage));
        if other.factor != spec.factor {
            factors.insert(place);
        }
    }
    (names, factors)
}

/// The recorded sites that the results of nodes are a part of: the nearest on every way from them.
pub fn sites_of(
    model: &ModelGraph,
    nodes: &BTreeSet<NodeId>,
    is_recorded: &dyn Fn(usize) -> bool,
) -> BTreeSet<usize> {
    let graph = &model.graph;
    let specs = model.sites.specs().iter().enumerate();
    let site_at: HashMap<NodeId, usize> = specs
        .filter(|(place, _)| is_recorded(*place))
        .map(|(place, spec)| (spec.node, place))
        .collect();
    let readers = graph.readers();
    let mut found = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut waiting: Vec<NodeId> = nodes.iter().copied().collect();
    while let Some(id) = waiting.pop() {
        if !seen.insert(id) {
            continue;
        }
        if let Some(&place) = site_at.get(&id) {
            found.insert(place);
            continue;
        }
        waiting.extend(&readers[id.index()]);
        let node = graph.node(id);
        if let Some(window) = node.window.filter(|_| !node.op.is_window()) {
            let reads = |reader: &NodeId| *reader != id && graph.node(*reader).op != Op::SetRows;
            let of_root = readers[window.root.index()].iter().copied();
            let windows = graph.ids().filter(|&other| {
                graph.root(other) == window.root && graph.node(other).op.is_window()
            });
            waiting.extend(of_root.chain(windows).filter(reads));
        }
    }
    found
}
