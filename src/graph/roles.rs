//! Which tensors play the roles that every engine's author knows: q, scores, attn_out, ...
//!
//! A role is found by operation, weight and dataflow. No architecture is named.

use std::collections::HashMap;

use super::{Graph, Kind, NodeId, Op, site::Stage};

/// A tensor's role.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Role {
    pub stage: Stage,
    pub layer: Option<u32>,
    /// The node whose computation finds the tensor's values in place, where that is not the tensor itself:
    /// the reader of a cache.
    pub reader: Option<NodeId>,
    /// The node whose first parameter the values are multiplied by: the softmax that scales its scores.
    pub scaled_by: Option<NodeId>,
}

/// How far a chain of operations is followed.
const MAX_CHAIN: usize = 16;

/// A graph and what is asked of it often.
pub struct Flow<'g> {
    pub graph: &'g Graph,
    pub readers: Vec<Vec<NodeId>>,
    /// The nodes that write into each state.
    writers: HashMap<NodeId, Vec<NodeId>>,
}

/// The tensor that a chain of windows and copies begins at.
#[derive(Clone, Copy)]
struct Origin {
    id: NodeId,
    /// The last window on the way that shows only a part of it.
    part: Option<NodeId>,
}

impl<'g> Flow<'g> {
    pub fn new(graph: &'g Graph) -> Flow<'g> {
        let mut writers: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
        for (id, node) in graph.iter() {
            let is_write = matches!(node.op, Op::SetRows | Op::Cpy);
            if let (true, Some(window)) = (is_write, node.window)
                && graph.node(window.root).kind == Kind::State
            {
                writers.entry(window.root).or_default().push(id);
            }
        }
        Flow { graph, readers: graph.readers(), writers }
    }

    /// The nodes that write into a state.
    pub fn writers(&self, state: NodeId) -> impl Iterator<Item = NodeId> {
        self.writers.get(&state).into_iter().flatten().copied()
    }

    fn op(&self, id: NodeId) -> &Op {
        &self.graph.node(id).op
    }

    fn is_weight(&self, id: NodeId) -> bool {
        self.graph.node(self.graph.root(id)).kind == Kind::Weight
    }

    /// Whether a node picks rows of a computed tensor by an input: the rows whose logits are wanted.
    pub fn picks_rows(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        let kind = |place| node.source(place).map(|s| self.graph.node(self.graph.root(s)).kind);
        node.op == Op::GetRows && kind(0) == Some(Kind::Computed) && kind(1) == Some(Kind::Input)
    }

    /// The tensor that windows and copies lead back to.
    fn origin(&self, id: NodeId) -> Origin {
        let (mut id, mut part) = (id, None);
        for _ in 0..MAX_CHAIN {
            let node = self.graph.node(id);
            let arranges = node.op.is_layout() || self.picks_rows(id);
            let Some(source) = node.source(0).filter(|_| arranges && node.kind == Kind::Computed)
            else {
                break;
            };
            if node.op == Op::View && !self.shows_all(id) {
                part = Some(id);
            }
            id = source;
        }
        Origin { id, part }
    }

    /// Whether a window has as many elements as its root.
    fn shows_all(&self, id: NodeId) -> bool {
        const ANY: super::Extent = super::Extent { tokens: 7, cells: 11, is_first: false };
        let elements = |id: NodeId| self.graph.node(id).sizes(ANY).elements();
        elements(id) == elements(self.graph.root(id))
    }

    /// The norm that a factor and an offset from the weights follow: the last node of the three.
    fn is_norm(&self, id: NodeId) -> bool {
        self.norm_input(id).is_some()
    }

    /// What a norm takes, given its last node: RMS_NORM, or MUL and ADD by weights after it.
    fn norm_input(&self, id: NodeId) -> Option<NodeId> {
        let mut at = id;
        for expected in [Op::Add, Op::Mul] {
            let node = self.graph.node(at);
            if node.op == expected && node.source(1).is_some_and(|s| self.is_weight(s)) {
                at = self.origin(node.source(0)?).id;
            }
        }
        let node = self.graph.node(at);
        node.op.is_norm().then(|| node.source(0)).flatten()
    }

    /// The product with a weight that a node ends: itself, or the product that it adds a bias to.
    pub fn product(&self, id: NodeId) -> Option<NodeId> {
        let node = self.graph.node(id);
        let by_weight = |id: NodeId| {
            let node = self.graph.node(id);
            node.op.is_product() && node.source(0).is_some_and(|s| self.is_weight(s))
        };
        if by_weight(id) {
            return Some(id);
        }
        let adds_bias = matches!(node.op, Op::Add | Op::AddId)
            && node.source(1).is_some_and(|source| self.is_weight(source));
        let origin = node.source(0).filter(|_| adds_bias).map(|source| self.origin(source))?;
        (origin.part.is_none() && by_weight(origin.id)).then_some(origin.id)
    }

    /// The first node of an operation, given its last: a norm before its factor, a product before its bias.
    pub fn main(&self, id: NodeId) -> NodeId {
        if let Some(product) = self.product(id) {
            return product;
        }
        let mut at = id;
        for expected in [Op::Add, Op::Mul] {
            let node = self.graph.node(at);
            let by_weight = node.source(1).is_some_and(|source| self.is_weight(source));
            if let (true, true, Some(source)) = (node.op == expected, by_weight, node.source(0)) {
                at = self.origin(source).id;
            }
        }
        if self.op(at).is_norm() { at } else { id }
    }

    /// The node that adds a bias to a product, if its only reader does; else the product.
    fn with_bias(&self, product: NodeId) -> NodeId {
        let mut at = product;
        for _ in 0..MAX_CHAIN {
            let [reader] = self.readers[at.index()][..] else { return product };
            if self.op(reader).is_window() {
                at = reader;
                continue;
            }
            return if self.product(reader) == Some(product) { reader } else { product };
        }
        product
    }

    /// Whether a norm's factor or a product's bias is still to come.
    pub fn is_before_factor(&self, id: NodeId) -> bool {
        let graph = self.graph;
        let mut at = id;
        let reader = loop {
            let [reader] = self.readers[at.index()][..] else { return false };
            if !graph.node(reader).op.is_window() {
                break reader;
            }
            at = reader;
        };
        let (node, next) = (graph.node(id), graph.node(reader));
        let by_weight = next.source(0) == Some(at)
            && next.source(1).is_some_and(|s| graph.node(graph.root(s)).kind == Kind::Weight);
        let is_factor = node.op.is_norm() && next.op == Op::Mul;
        let is_offset =
            node.op == Op::Mul && next.op == Op::Add && graph.weight_of(id).is_some() && {
                let normed = node.source(0).map(|source| graph.node(source).op.is_norm());
                normed == Some(true)
            };
        let is_bias = self.product(id) == Some(id) && matches!(next.op, Op::Add | Op::AddId);
        by_weight && (is_factor || is_offset || is_bias)
    }

    /// The computing nodes that read a tensor, through windows and copies.
    fn computing_readers(&self, id: NodeId) -> Vec<NodeId> {
        let mut found = Vec::new();
        let mut waiting = vec![id];
        while let Some(id) = waiting.pop() {
            for &reader in &self.readers[id.index()] {
                if self.op(reader).is_layout() || self.picks_rows(reader) {
                    waiting.push(reader);
                } else if !found.contains(&reader) {
                    found.push(reader);
                }
            }
        }
        found.sort();
        found
    }

    /// The first node after a tensor that is wanted, through those that change it element by element or by
    /// a norm.
    fn next(&self, id: NodeId, wanted: &dyn Fn(NodeId) -> bool) -> Option<NodeId> {
        let mut waiting = vec![id];
        for _ in 0..MAX_CHAIN {
            let readers: Vec<NodeId> =
                waiting.iter().flat_map(|&id| self.computing_readers(id)).collect();
            if let Some(&found) = readers.iter().find(|&&id| wanted(id)) {
                return Some(found);
            }
            let passes = |id: &NodeId| {
                let op = self.op(*id);
                op.is_norm()
                    || op.is_gated()
                    || op.is_activation()
                    || matches!(op, Op::Mul | Op::Add | Op::Scale | Op::Div | Op::Sigmoid | Op::Sqr)
                    || op.is_product()
            };
            waiting = readers.into_iter().filter(passes).collect();
            if waiting.is_empty() {
                return None;
            }
        }
        None
    }
}

/// The roles of a graph's tensors.
pub struct Roles<'g> {
    flow: &'g Flow<'g>,
    layers: &'g [Option<u32>],
    found: HashMap<NodeId, Role>,
    taken: HashMap<(Option<u32>, Stage), NodeId>,
}

/// The roles of one side of a product of queries and keys.
#[derive(Clone, Copy)]
struct Chain {
    projected: Stage,
    normed: Option<Stage>,
    rotated: Option<Stage>,
}

const Q: Chain =
    Chain { projected: Stage::Q, normed: Some(Stage::QNorm), rotated: Some(Stage::QRope) };
const K: Chain =
    Chain { projected: Stage::K, normed: Some(Stage::KNorm), rotated: Some(Stage::KRope) };
const V: Chain = Chain { projected: Stage::V, normed: None, rotated: None };

/// Finds the roles; `layers` has each tensor's layer.
pub fn roles(flow: &Flow<'_>, layers: &[Option<u32>]) -> HashMap<NodeId, Role> {
    let mut roles = Roles { flow, layers, found: HashMap::new(), taken: HashMap::new() };
    roles.ends();
    roles.norms();
    for (id, node) in flow.graph.iter() {
        if node.op == Op::SoftMax {
            roles.attention(id);
        }
    }
    for (id, node) in flow.graph.iter() {
        if node.op.is_gated() || node.op.is_activation() {
            roles.feed_forward(id);
        }
    }
    let norms: Vec<(Option<u32>, NodeId)> = roles.given(Stage::AttnNorm);
    norms.into_iter().for_each(|(layer, norm)| roles.residual(layer, norm));
    roles.hidden();
    roles.found
}

impl Roles<'_> {
    /// Gives a role to a tensor, unless either has its own.
    fn give(&mut self, id: NodeId, stage: Stage, layer: Option<u32>) -> bool {
        self.give_role(id, Role { stage, layer, reader: None, scaled_by: None })
    }

    fn give_role(&mut self, id: NodeId, role: Role) -> bool {
        let key = (role.layer, role.stage);
        let fits = role.stage.in_layer() == role.layer.is_some();
        if !fits || self.found.contains_key(&id) || self.taken.contains_key(&key) {
            return false;
        }
        self.found.insert(id, role);
        self.taken.insert(key, id);
        true
    }

    fn layer(&self, id: NodeId) -> Option<u32> {
        self.layers[id.index()]
    }

    /// The tensors that play a role, with their layers.
    fn given(&self, stage: Stage) -> Vec<(Option<u32>, NodeId)> {
        let all = self.taken.iter().filter(|((_, of), _)| *of == stage);
        let mut given: Vec<_> = all.map(|(&(layer, _), &id)| (layer, id)).collect();
        given.sort();
        given
    }

    /// The embedding and the logits.
    fn ends(&mut self) {
        let graph = self.flow.graph;
        let embeds = |id: &NodeId| {
            let node = graph.node(*id);
            let kind = |place| node.source(place).map(|s| graph.node(graph.root(s)).kind);
            node.kind == Kind::Computed
                && node.op == Op::GetRows
                && kind(0) == Some(Kind::Weight)
                && graph.weight_of(*id) == Some("token_embd.weight")
        };
        if let Some(id) = graph.ids().find(embeds) {
            self.give(id, Stage::Embd, None);
        }
        let computes = |id: &NodeId| graph.node(*id).kind == Kind::Computed;
        if let Some(id) = graph.ids().rfind(computes) {
            self.give(id, Stage::Logits, None);
        }
    }

    /// Norms, by the weights that they are multiplied by.
    fn norms(&mut self) {
        let graph = self.flow.graph;
        for id in graph.ids() {
            let node = graph.node(id);
            let ends = matches!(node.op, Op::Mul | Op::Add);
            if node.kind != Kind::Computed || !ends || !self.flow.is_norm(id) {
                continue;
            }
            // A bias may follow: then that is the norm's last node.
            let goes_on = self.flow.readers[id.index()]
                .iter()
                .any(|&reader| *self.flow.op(reader) == Op::Add && self.flow.is_norm(reader));
            let Some(weight) = graph.weight_of(id).filter(|_| !goes_on) else { continue };
            let part = weight.rsplit_once('.').map_or(weight, |(part, _)| part);
            let part = part.rsplit_once('.').map_or(part, |(_, part)| part);
            let (stage, layer) = match part {
                "attn_norm" => (Stage::AttnNorm, self.layer(id)),
                "ffn_norm" => (Stage::FfnNorm, self.layer(id)),
                "output_norm" => (Stage::FinalNorm, None),
                _ => continue,
            };
            self.give(id, stage, layer);
        }
    }

    /// The attention around a softmax.
    fn attention(&mut self, softmax: NodeId) {
        let (flow, graph) = (self.flow, self.flow.graph);
        let layer = self.layer(softmax);
        let Some(scores) = graph.node(softmax).source(0) else { return };
        let Some(product) = self.scores_product(scores) else { return };
        let scaled_by = Some(softmax);
        let scores = flow.origin(scores).id;
        self.give_role(scores, Role { stage: Stage::Scores, layer, reader: None, scaled_by });
        self.give(softmax, Stage::Probs, layer);
        let node = graph.node(product);
        if let Some(keys) = node.source(0) {
            self.cached(keys, (product, layer), Stage::KCache, K);
        }
        if let Some(queries) = node.source(1) {
            self.chain(queries, layer, Q);
        }
        let is_sum = |&id: &NodeId| {
            let node = graph.node(id);
            node.op == Op::MulMat && !node.source(0).is_some_and(|s| flow.is_weight(s))
        };
        let sum = flow.computing_readers(softmax).into_iter().find(is_sum);
        let Some(sum) = sum else { return };
        self.give(sum, Stage::AttnOut, layer);
        if let Some(values) = graph.node(sum).source(0) {
            self.cached(values, (sum, layer), Stage::VCache, V);
        }
        self.after_attention(sum, layer);
    }

    /// The product of queries and keys that scores come from.
    fn scores_product(&self, scores: NodeId) -> Option<NodeId> {
        let graph = self.flow.graph;
        let mut at = self.flow.origin(scores).id;
        for _ in 0..MAX_CHAIN {
            let node = graph.node(at);
            match node.op {
                Op::MulMat => {
                    let mut sources = node.sources.iter().flatten();
                    let computed = sources.all(|&source| !self.flow.is_weight(source));
                    return computed.then_some(at);
                }
                Op::Scale | Op::Tanh | Op::Add | Op::Mul | Op::Clamp => {
                    at = self.flow.origin(node.source(0)?).id;
                }
                _ => return None,
            }
        }
        None
    }

    /// Keys or values as attention reads them, and what they are made of.
    fn cached(&mut self, read: NodeId, by: (NodeId, Option<u32>), stage: Stage, chain: Chain) {
        let (reader, layer) = by;
        let root = self.flow.graph.root(read);
        if self.flow.graph.node(root).kind != Kind::State {
            self.chain(read, layer, chain);
            return;
        }
        let reader = Some(reader);
        self.give_role(read, Role { stage, layer, reader, scaled_by: None });
        let writer = self.flow.writers(root).next();
        if let Some(written) = writer.and_then(|writer| self.flow.graph.node(writer).source(0)) {
            self.chain(written, layer, chain);
        }
    }

    /// From a query, key or value back to its projection.
    fn chain(&mut self, from: NodeId, layer: Option<u32>, chain: Chain) {
        let (flow, graph) = (self.flow, self.flow.graph);
        let mut at = flow.origin(from);
        for _ in 0..MAX_CHAIN {
            let node = graph.node(at.id);
            let own = self.layer(at.id).or(layer);
            if flow.product(at.id).is_some() {
                self.give(at.part.unwrap_or(at.id), chain.projected, own);
                return;
            }
            let next = if let Some(input) = flow.norm_input(at.id) {
                if let Some(stage) = chain.normed {
                    self.give(at.id, stage, own);
                }
                input
            } else {
                if let (Op::Rope, Some(stage)) = (&node.op, chain.rotated) {
                    self.give(at.id, stage, own);
                }
                let passes = matches!(
                    node.op,
                    Op::Rope | Op::Scale | Op::Clamp | Op::Mul | Op::Add | Op::Tanh
                );
                match node.source(0).filter(|_| passes) {
                    Some(source) => source,
                    None => return,
                }
            };
            at = flow.origin(next);
        }
    }

    /// The output projection and the residual.
    fn after_attention(&mut self, sum: NodeId, layer: Option<u32>) {
        let (flow, graph) = (self.flow, self.flow.graph);
        let Some(hidden) = self.hidden_length() else { return };
        let is_output = |id: NodeId| {
            flow.product(id) == Some(id) && graph.node(id).ne[0] == super::Size::fixed(hidden)
        };
        let Some(output) = flow.next(sum, &is_output) else { return };
        let output = flow.with_bias(output);
        if self.layer(output) == layer {
            self.give(output, Stage::OProj, layer);
        }
    }

    /// Where the result of what follows the attention's norm is added to the stream that the norm took, and
    /// the norm of that sum.
    fn residual(&mut self, layer: Option<u32>, norm: NodeId) {
        let (flow, graph) = (self.flow, self.flow.graph);
        let Some(stream) = flow.norm_input(norm).map(|input| flow.origin(input).id) else { return };
        let is_residual = |id: NodeId| {
            let node = graph.node(id);
            let mut sources = node.sources.iter().flatten();
            node.op == Op::Add && sources.any(|&source| flow.origin(source).id == stream)
        };
        let after = flow.computing_readers(stream).into_iter().find(|&id| is_residual(id));
        let Some(residual) = after.filter(|&id| self.layer(id) == layer) else { return };
        if !self.give(residual, Stage::AttnResidual, layer) {
            return;
        }
        let mut norms = (residual.0..graph.nodes.len() as u32).map(NodeId).filter(|&id| {
            self.layer(id) == layer
                && !flow.is_before_factor(id)
                && flow.norm_input(id).is_some_and(|input| flow.origin(input).id == residual)
        });
        if let Some(norm) = norms.next() {
            self.give(norm, Stage::FfnNorm, layer);
        }
    }

    /// E, if the graph has an embedding.
    fn hidden_length(&self) -> Option<i64> {
        let embd = self.taken.get(&(None, Stage::Embd))?;
        Some(self.flow.graph.node(*embd).ne[0].fixed)
    }

    /// A dense feed-forward network around its activation.
    fn feed_forward(&mut self, act: NodeId) {
        let (flow, graph) = (self.flow, self.flow.graph);
        let layer = self.layer(act);
        let node = graph.node(act);
        let product = |source: Option<NodeId>| {
            let origin = flow.origin(source?);
            let product = flow.product(origin.id)?;
            let weight = graph.weight_of(product)?;
            let dense = graph.node(product).op == Op::MulMat
                && weight.contains("ffn_")
                && !weight.contains("shexp")
                && origin.part.is_none();
            dense.then_some(origin.id)
        };
        let Some(first) = product(node.source(0)) else { return };
        let second = product(node.source(1));
        let (act, gate, up) = if node.op.is_gated() {
            match second {
                Some(up) => (act, Some(first), Some(up)),
                // One product has both.
                None => (act, None, None),
            }
        } else {
            // The activation may be multiplied by another product.
            let times = flow.computing_readers(act).into_iter().find_map(|reader| {
                let node = graph.node(reader);
                let mut sources = node.sources.iter().flatten();
                let other = sources.find_map(|&source| product(Some(source)))?;
                (node.op == Op::Mul).then_some((reader, other))
            });
            match times {
                Some((times, up)) => (times, Some(first), Some(up)),
                None => (act, None, Some(first)),
            }
        };
        if !self.give(act, Stage::FfnAct, layer) {
            return;
        }
        for (id, stage) in [(gate, Stage::FfnGate), (up, Stage::FfnUp)] {
            if let Some(id) = id {
                self.give(id, stage, layer);
            }
        }
        let down = flow.next(act, &|id| flow.product(id) == Some(id));
        if let Some(down) = down.map(|down| flow.with_bias(down))
            && self.layer(down) == layer
        {
            self.give(down, Stage::FfnDown, layer);
        }
    }

    /// The hidden vector that leaves each layer: what the next layer's norm, or the last norm, takes.
    fn hidden(&mut self) {
        let norms = [Stage::AttnNorm, Stage::FinalNorm].map(|stage| self.given(stage));
        for (layer, norm) in norms.into_iter().flatten() {
            let Some(input) = self.flow.norm_input(norm) else { continue };
            let origin = self.flow.origin(input).id;
            let of = self.layer(origin);
            let is_next = match (of, layer) {
                (Some(of), Some(layer)) => of + 1 == layer,
                (Some(_), None) => true,
                (None, _) => false,
            };
            if is_next {
                self.give(origin, Stage::LayerOut, of);
            }
        }
    }
}
