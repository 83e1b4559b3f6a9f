//! Which values on the way to a result an engine may round: of a node, and of an operation.

use std::collections::BTreeSet;

use crate::{
    core::arithmetic::Value,
    graph::{Graph, Kind, ModelGraph, NodeId, Op, site::Stage},
};

impl Graph {
    /// The values that a node takes, or has within it, and that an engine may round.
    pub fn rounded_values(&self, id: NodeId) -> Vec<Value> {
        match self.node(id).op {
            Op::MulMat | Op::MulMatId => {
                let sources = self.values_of_product(id);
                let exps = sources.contains(&Value::Probs).then_some(Value::Exps);
                sources.into_iter().chain(exps).collect()
            }
            Op::RmsNorm | Op::Norm | Op::L2Norm => vec![Value::Roots, Value::Normed],
            Op::Rope => vec![Value::Tables, Value::Angles, Value::Frequencies],
            Op::Silu | Op::Swiglu | Op::SwigluClamp => vec![Value::Sigmoid, Value::Activated],
            _ => Vec::new(),
        }
    }

    /// What the two sources of a product are.
    pub fn values_of_product(&self, id: NodeId) -> [Value; 2] {
        let node = self.node(id);
        let is_weight = |id: NodeId| self.node(self.root(id)).kind == Kind::Weight;
        if node.source(0).is_some_and(is_weight) {
            return [Value::Weights, Value::Inputs];
        }
        let by_probs = node.source(1).is_some_and(|id| self.is_softmax(id));
        if by_probs { [Value::Values, Value::Probs] } else { [Value::Keys, Value::Queries] }
    }

    /// Whether a tensor is a softmax, arranged in some way.
    fn is_softmax(&self, mut id: NodeId) -> bool {
        loop {
            id = self.root(id);
            let node = self.node(id);
            match node.source(0).filter(|_| node.op.is_layout()) {
                Some(source) => id = source,
                None => return node.op == Op::SoftMax,
            }
        }
    }
}

impl ModelGraph {
    /// The site that each node is computed for, by its place: its own, or that of the first node that reads it.
    pub fn operations(&self) -> Vec<Option<usize>> {
        let mut found = vec![None; self.graph.nodes.len()];
        for (place, spec) in self.sites.specs().iter().enumerate() {
            found[spec.node.index()] = Some(place);
        }
        let readers = self.graph.readers();
        let ids: Vec<NodeId> = self.graph.ids().collect();
        for id in ids.into_iter().rev().map(NodeId::index) {
            if found[id].is_none() {
                found[id] = readers[id].iter().find_map(|reader| found[reader.index()]);
            }
        }
        found
    }

    /// The stages whose operations have a value that may be rounded.
    pub fn stages_with(&self, value: Value) -> BTreeSet<Stage> {
        let specs = self.sites.specs();
        let is_cache = |stage: &Stage| matches!(stage, Stage::KCache | Stage::VCache);
        match value {
            Value::Caches => specs.iter().map(|spec| spec.stage).filter(is_cache).collect(),
            Value::Results => specs.iter().map(|spec| spec.stage).collect(),
            _ => {
                let places = self.operations();
                let has = |id: &NodeId| self.graph.rounded_values(*id).contains(&value);
                let of = |id: NodeId| Some(specs[places[id.index()]?].stage);
                self.graph.ids().filter(has).filter_map(of).collect()
            }
        }
    }
}
