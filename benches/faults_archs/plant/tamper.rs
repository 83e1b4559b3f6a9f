//! Results of nodes overwritten while llama.cpp computes.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
};

use firstdiff::{
    core::tensor::Tensor,
    graph::{Extent, Graph, ModelGraph, NodeId, Op, Params, SiteSpec},
    reference::{StepShape, Tamper},
};

/// A result that is to be changed, and what it is made of.
pub struct Scene<'a> {
    pub graph: &'a Graph,
    pub node: NodeId,
    pub shape: StepShape,
    pub ne: [usize; 4],
    pub params: Params,
    /// In ggml's order.
    pub values: &'a mut Vec<f32>,
    /// What the same change kept for the next step.
    pub kept: &'a mut Vec<f32>,
    seen: &'a HashMap<NodeId, Vec<f32>>,
}

impl Scene<'_> {
    /// The values of the node's source, where it is all of a result that was seen.
    pub fn source(&self, index: usize) -> Option<&Vec<f32>> {
        let source = all_of(self.graph, self.graph.node(self.node).source(index)?)?;
        self.seen.get(&source)
    }

    /// The node's rows along ggml's first axis.
    pub fn rows(&mut self) -> std::slice::ChunksMut<'_, f32> {
        self.values.chunks_mut(self.ne[0].max(1))
    }

    pub fn first_position(&self) -> usize {
        self.shape.positions - self.shape.tokens
    }

    /// The place of each element of a site of this node, in the site's order, with the site's shape.
    pub fn places(&self, spec: &SiteSpec) -> (Vec<usize>, Vec<usize>) {
        let shape = spec.shape(self.shape.tokens, self.shape.positions);
        let mut places = Vec::new();
        let ne = self.ne;
        spec.each_index(&shape, |at| {
            places.push(((at[3] * ne[2] + at[2]) * ne[1] + at[1]) * ne[0] + at[0]);
        });
        (places, shape)
    }
}

/// The result that a source is, seen through windows that show all of it.
pub fn all_of(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let node = graph.node(id);
    match node.op {
        Op::Reshape => all_of(graph, node.source(0)?),
        Op::View | Op::Permute | Op::Transpose | Op::Leaf => None,
        _ => Some(id),
    }
}

/// What makes a wrong result of a right one.
pub type Change = Box<dyn Fn(&mut Scene<'_>)>;

/// The same change of several nodes.
pub struct Changed<'a> {
    pub model: &'a ModelGraph,
    pub nodes: BTreeSet<NodeId>,
    pub change: &'a Change,
    watched: BTreeSet<NodeId>,
    memory: RefCell<Memory>,
}

#[derive(Default)]
struct Memory {
    seen: HashMap<NodeId, Vec<f32>>,
    kept: HashMap<NodeId, Vec<f32>>,
    /// Results that are other ones now.
    changed: BTreeSet<NodeId>,
}

impl<'a> Changed<'a> {
    pub fn new(model: &'a ModelGraph, nodes: BTreeSet<NodeId>, change: &'a Change) -> Changed<'a> {
        let graph = &model.graph;
        let sources = nodes.iter().flat_map(|&id| graph.node(id).sources.iter().flatten());
        let watched = sources.filter_map(|&source| all_of(graph, source)).collect();
        Changed { model, nodes, change, watched, memory: RefCell::default() }
    }

    /// The nodes whose results were really changed.
    pub fn changed(&self) -> BTreeSet<NodeId> {
        self.memory.borrow().changed.clone()
    }
}

impl Tamper for Changed<'_> {
    fn wants(&self, node: NodeId) -> bool {
        self.nodes.contains(&node) || self.watched.contains(&node)
    }

    fn change(&self, id: NodeId, shape: StepShape, result: &mut Tensor) -> bool {
        let Memory { seen, kept, changed } = &mut *self.memory.borrow_mut();
        let right = result.data.clone();
        if self.nodes.contains(&id) {
            let mut ne = [1; 4];
            ne.iter_mut().zip(result.shape.iter().rev()).for_each(|(to, &n)| *to = n);
            let graph = &self.model.graph;
            let is_first = shape.tokens == shape.positions;
            let extent = Extent { tokens: shape.tokens, cells: shape.positions, is_first };
            let params = graph.node(id).params(extent);
            let kept = kept.entry(id).or_default();
            let values = &mut result.data;
            let mut scene = Scene { graph, node: id, shape, ne, params, values, kept, seen };
            (self.change)(&mut scene);
        }
        let is_changed = right.iter().zip(&result.data).any(|(a, b)| a.to_bits() != b.to_bits());
        if is_changed {
            changed.insert(id);
        }
        if self.watched.contains(&id) {
            seen.insert(id, result.data.clone());
        }
        is_changed
    }
}
