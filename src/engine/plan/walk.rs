//! The forward pass that our kernels compute, found in a graph from its ends to its middle: each node must
//! be the one that is due, and no node may be left over.

use std::collections::HashSet;

use super::{
    Plan, STEP, Unplanned,
    arrange::{Arranged, picks_rows},
    layers::{LayerShape, agreed},
    unplanned,
};
use crate::{
    graph::{Graph, Kind, ModelGraph, Node, NodeId, Op, RopeParams},
    model::{Config, LayerNames, LinearNames, RopePairs, WeightNames},
};

type Found<T> = Result<T, Unplanned>;

/// The plan of a graph whose operations all have kernels.
pub(super) fn plan(model: &ModelGraph) -> Found<Plan> {
    let readers = model.graph.readers();
    let mut walk = Walk { model, graph: &model.graph, readers, taken: HashSet::new() };
    let plan = walk.model()?;
    walk.nothing_left()?;
    Ok(plan)
}

/// A walk over a graph.
struct Walk<'m> {
    model: &'m ModelGraph,
    graph: &'m Graph,
    readers: Vec<Vec<NodeId>>,
    /// The nodes that the engine computes.
    taken: HashSet<NodeId>,
}

/// A norm with its factor.
struct Norm {
    weight: String,
    eps: f32,
    input: NodeId,
}

/// A product with its bias.
struct Linear {
    names: LinearNames,
    /// As it is arranged for the product.
    input: NodeId,
}

/// A layer, and what it leaves.
struct Layer {
    names: LayerNames,
    shape: LayerShape,
    out: NodeId,
}

/// q, k or v from the product on.
struct Projected {
    linear: Linear,
    norm: Option<Norm>,
    /// Of q and k.
    rope: Option<Rope>,
}

struct Rope {
    theta: f32,
    pairs: RopePairs,
    factors: Option<String>,
}

/// A layer's attention, from the norm before it to the sum of values.
struct Attention {
    q: Projected,
    k: Projected,
    v: Projected,
    /// D, Hq and Hk.
    head_dim: usize,
    n_head: usize,
    n_head_kv: usize,
    scale: f32,
    softmax: NodeId,
}

impl<'m> Walk<'m> {
    fn model(&mut self) -> Found<Plan> {
        let (embedding, embd) = self.embedding()?;
        let n_ids = self.ids(embd);
        let n_embd = self.lengths(embd)[0];
        let (mut hidden, mut layers) = (embd, Vec::new());
        while let Some(residual) = self.sum_with(hidden) {
            let layer = self.layer(hidden, residual)?;
            hidden = layer.out;
            layers.push(layer);
        }
        let logits = self.last().ok_or_else(|| self.refuse(embd, "a graph without logits"))?;
        let output = self.linear(logits)?;
        let normed = self.straight(output.input)?;
        let final_norm = self.norm(normed)?;
        self.expect(final_norm.input, hidden)?;
        let n_vocab = self.lengths(logits)[0];
        if n_vocab != n_ids {
            let what = format!("logits of {n_vocab} ids beside an embedding of {n_ids}");
            return Err(self.refuse(logits, what));
        }
        let shapes: Vec<LayerShape> = layers.iter().map(|layer| layer.shape.clone()).collect();
        let shape = agreed(self.model, &shapes, final_norm.eps)?
            .ok_or_else(|| self.refuse(embd, "a graph without layers"))?;
        let n_layer = layers.len();
        let config = Config {
            architecture: self.graph.architecture.clone(),
            n_layer,
            n_embd,
            n_head: shape.n_head,
            n_head_kv: shape.n_head_kv,
            head_dim: shape.head_dim,
            n_ff: shape.n_ff,
            n_vocab,
            qk_norm: shape.qk_norm,
            rope_theta: shape.theta,
            rope_pairs: shape.pairs,
            rms_eps: final_norm.eps,
            attention_scale: shape.scale,
        };
        let names = WeightNames {
            embedding,
            layers: layers.into_iter().map(|layer| layer.names).collect(),
            final_norm: final_norm.weight,
            output: output.names,
            rope_factors: shape.factors.clone(),
        };
        Ok(Plan { config, names })
    }

    /// The table that token ids pick rows of, and the rows.
    fn embedding(&mut self) -> Found<(String, NodeId)> {
        let by_ids = |(_, node): &(NodeId, &Node)| {
            let is = |source: usize, kind| {
                node.source(source).is_some_and(|source| self.graph.node(source).kind == kind)
            };
            let picks = node.kind == Kind::Computed && node.op == Op::GetRows;
            picks && is(0, Kind::Weight) && is(1, Kind::Input)
        };
        let found = self.graph.iter().find(by_ids).map(|(id, _)| id);
        let id = found.ok_or_else(|| self.refuse(NodeId(0), "a graph without an embedding"))?;
        let node = self.take(id, Op::GetRows)?;
        Ok((self.weight(id, node.source(0))?, id))
    }

    /// Rows of the table that is looked up.
    fn ids(&self, embd: NodeId) -> usize {
        self.graph.node(embd).source(0).map_or(0, |table| self.lengths(table)[1])
    }

    /// One layer, given the sum that ends its attention.
    fn layer(&mut self, hidden: NodeId, residual: NodeId) -> Found<Layer> {
        let projected = self.other_summand(residual, hidden)?;
        let o = self.linear(projected)?;
        let attention = self.attention(o.input)?;
        let normed = self.straight(attention.q.linear.input)?;
        for other in [&attention.k, &attention.v] {
            let input = self.straight(other.linear.input)?;
            self.expect(input, normed)?;
        }
        let attn_norm = self.norm(normed)?;
        self.expect(attn_norm.input, hidden)?;

        let out = self.sum_with(residual);
        let out = out.ok_or_else(|| self.refuse(residual, "a sum with nothing added"))?;
        let down = self.other_summand(out, residual)?;
        let down = self.linear(down)?;
        let act = self.straight(down.input)?;
        let node = self.take(act, Op::Swiglu)?;
        let [gate, up] = [0, 1].map(|source| node.source(source));
        let (gate, up) = (self.source(act, gate)?, self.source(act, up)?);
        let (gate, up) = (self.linear(gate)?, self.linear(up)?);
        let normed = self.straight(gate.input)?;
        let input = self.straight(up.input)?;
        self.expect(input, normed)?;
        let ffn_norm = self.norm(normed)?;
        self.expect(ffn_norm.input, residual)?;

        let shape = self.shape(&attention, [&attn_norm, &ffn_norm], act)?;
        let Attention { q, k, v, .. } = attention;
        let names = LayerNames {
            attn_norm: attn_norm.weight,
            q: q.linear.names,
            k: k.linear.names,
            v: v.linear.names,
            q_norm: q.norm.map(|norm| norm.weight),
            k_norm: k.norm.map(|norm| norm.weight),
            o: o.names,
            ffn_norm: ffn_norm.weight,
            gate: gate.names,
            up: up.names,
            down: down.names,
        };
        Ok(Layer { names, shape, out })
    }

    /// What every layer must have in common.
    fn shape(&self, attention: &Attention, norms: [&Norm; 2], act: NodeId) -> Found<LayerShape> {
        let Attention { q, k, softmax, .. } = attention;
        let (Some(q_rope), Some(k_rope)) = (&q.rope, &k.rope) else {
            return Err(self.refuse(*softmax, "attention without ROPE"));
        };
        let same = q_rope.theta == k_rope.theta
            && q_rope.pairs == k_rope.pairs
            && q_rope.factors == k_rope.factors;
        if !same {
            return Err(self.refuse(*softmax, "ROPE of q and of k by different angles"));
        }
        if q.norm.is_some() != k.norm.is_some() {
            return Err(self.refuse(*softmax, "a norm of q without one of k, or of k without q"));
        }
        let of_heads = [&q.norm, &k.norm].into_iter().flatten();
        Ok(LayerShape {
            softmax: *softmax,
            n_head: attention.n_head,
            n_head_kv: attention.n_head_kv,
            head_dim: attention.head_dim,
            n_ff: self.lengths(act)[0],
            qk_norm: q.norm.is_some(),
            theta: q_rope.theta,
            pairs: q_rope.pairs,
            factors: q_rope.factors.clone(),
            scale: attention.scale,
            eps: norms.into_iter().chain(of_heads).map(|norm| norm.eps).collect(),
        })
    }

    /// Attention, given what the output projection takes.
    fn attention(&mut self, out: NodeId) -> Found<Attention> {
        let tokens = STEP.tokens;
        let heads = Arranged::of(self.graph, out);
        let sum = heads.origin;
        let node = self.take(sum, Op::MulMat)?;
        let [d, _, hq, _] = self.lengths(sum);
        if !heads.is([d, hq, tokens], |dim, head, token| dim + d * (token + tokens * head)) {
            return Err(self.refuse(out, "heads in another order"));
        }
        let softmax = self.source(sum, node.source(1))?;
        let softmax = self.straight(softmax)?;
        let values = self.source(sum, node.source(0))?;
        let node = self.take(softmax, Op::SoftMax)?;
        let scale = node.params(STEP).float(0);
        let product = self.source(softmax, node.source(0))?;
        let product = self.straight(product)?;
        let node = self.take(product, Op::MulMat)?;
        let keys = self.source(product, node.source(0))?;
        let queries = Arranged::of(self.graph, self.source(product, node.source(1))?);
        let [dk, cells, hk, _] = self.lengths(keys);
        if dk != d {
            return Err(self.refuse(product, format!("keys of {dk} dims and values of {d}")));
        }
        if !queries.is([d, tokens, hq], |dim, token, head| dim + d * (head + hq * token)) {
            return Err(self.refuse(product, "queries in another order"));
        }
        // The cache of keys lies [position][head][dim], that of values [head][dim][position].
        let capacity = self.graph.capacity;
        let of_keys = |dim, cell, head| dim + d * (head + hk * cell);
        let of_values = |cell, dim, head| cell + capacity * (dim + d * head);
        let keys = self.appended(keys, [d, cells, hk], &of_keys)?;
        let values = self.appended(values, [cells, d, hk], &of_values)?;
        let (q, k) = (self.rotated(queries.origin)?, self.rotated(keys)?);
        let v = Projected { linear: self.linear(values)?, norm: None, rope: None };
        Ok(Attention { q, k, v, head_dim: d, n_head: hq, n_head_kv: hk, scale, softmax })
    }

    /// What is appended to the cache that is read.
    fn appended(
        &mut self,
        read: NodeId,
        lengths: [usize; 3],
        place: &dyn Fn(usize, usize, usize) -> usize,
    ) -> Found<NodeId> {
        let cache = Arranged::of(self.graph, read);
        let state = cache.origin;
        if self.graph.node(state).kind != Kind::State {
            return Err(self.refuse(state, "attention without a cache"));
        }
        if !cache.is(lengths, place) {
            return Err(self.refuse(read, "a cache in another order"));
        }
        let writes = |(id, node): (NodeId, &Node)| {
            let into = node.window.is_some_and(|window| window.root == state);
            (into && node.op == Op::SetRows).then_some(id)
        };
        let writers: Vec<NodeId> = self.graph.iter().filter_map(writes).collect();
        let [writer] = writers[..] else {
            return Err(self.refuse(state, "a cache that is not written once a layer"));
        };
        let node = self.take(writer, Op::SetRows)?;
        let written = self.source(writer, node.source(0))?;
        self.straight(written)
    }

    /// From a rotated query or key back to its product.
    fn rotated(&mut self, id: NodeId) -> Found<Projected> {
        let node = self.take(id, Op::Rope)?;
        let params = RopeParams::of(node.params(STEP));
        let rope = Rope {
            theta: node.params(STEP).float(5),
            pairs: if params.is_neox { RopePairs::Neox } else { RopePairs::Norm },
            factors: match node.source(2) {
                Some(factors) => Some(self.weight(id, Some(factors))?),
                None => None,
            },
        };
        let input = self.source(id, node.source(0))?;
        let mut at = self.straight(input)?;
        let mut norm = None;
        if self.graph.node(at).op == Op::Mul {
            let of_head = self.norm(at)?;
            if self.lengths(at)[0] != self.lengths(id)[0] {
                return Err(self.refuse(at, "RMS_NORM over all heads together"));
            }
            at = of_head.input;
            norm = Some(of_head);
        }
        Ok(Projected { linear: self.linear(at)?, norm, rope: Some(rope) })
    }

    /// A product by a weight, given its last node.
    fn linear(&mut self, id: NodeId) -> Found<Linear> {
        let id = self.straight(id)?;
        let (mut product, mut bias) = (id, None);
        let node = self.graph.node(id);
        if node.op == Op::Add && self.is_weight(node.source(1)) {
            self.take(id, Op::Add)?;
            bias = Some(self.weight(id, node.source(1))?);
            let source = self.source(id, node.source(0))?;
            product = self.straight(source)?;
        }
        let node = self.take(product, Op::MulMat)?;
        let weight = self.weight(product, node.source(0))?;
        let input = self.source(product, node.source(1))?;
        Ok(Linear { names: LinearNames { weight, bias }, input })
    }

    /// A norm and its factor, given the factor's node.
    fn norm(&mut self, id: NodeId) -> Found<Norm> {
        let node = self.take(id, Op::Mul)?;
        let weight = self.weight(id, node.source(1))?;
        let normed = self.source(id, node.source(0))?;
        let normed = self.straight(normed)?;
        let node = self.take(normed, Op::RmsNorm)?;
        let input = self.source(normed, node.source(0))?;
        Ok(Norm { weight, eps: node.params(STEP).float(0), input: self.straight(input)? })
    }

    /// The node, which must be that operation.
    fn take(&mut self, id: NodeId, due: Op) -> Found<&'m Node> {
        let node = self.graph.node(id);
        if node.kind != Kind::Computed || node.op != due {
            let found = if node.kind == Kind::Computed { node.op.name() } else { "a tensor" };
            return Err(self.refuse(id, format!("{found} where {due} is expected")));
        }
        self.taken.insert(id);
        Ok(node)
    }

    /// The whole tensor that is seen through layout operations.
    fn straight(&self, id: NodeId) -> Found<NodeId> {
        let arranged = Arranged::of(self.graph, id);
        if arranged.is_straight() {
            return Ok(arranged.origin);
        }
        let of = self.graph.node(arranged.origin).op.name();
        Err(self.refuse(arranged.origin, format!("a part of {of}, or another order of it")))
    }

    /// A node that must be the one that is due.
    fn expect(&self, found: NodeId, due: NodeId) -> Found<()> {
        if found == due {
            return Ok(());
        }
        let due = super::place(self.model, due);
        Err(self.refuse(found, format!("an input where {due} is expected")))
    }

    /// The sum that a tensor and something computed go into.
    fn sum_with(&self, id: NodeId) -> Option<NodeId> {
        let mut waiting = vec![id];
        while let Some(id) = waiting.pop() {
            for &reader in &self.readers[id.index()] {
                let node = self.graph.node(reader);
                if node.op.is_layout() || picks_rows(self.graph, reader) {
                    waiting.push(reader);
                } else if node.op == Op::Add && !self.is_weight(node.source(1)) {
                    return Some(reader);
                }
            }
        }
        None
    }

    /// What a tensor is added to.
    fn other_summand(&mut self, sum: NodeId, one: NodeId) -> Found<NodeId> {
        let node = self.take(sum, Op::Add)?;
        let (a, b) = (self.source(sum, node.source(0))?, self.source(sum, node.source(1))?);
        let (a, b) = (self.straight(a)?, self.straight(b)?);
        let other = if b == one { a } else { b };
        let lengths = [sum, a, b].map(|id| self.lengths(id));
        if (a != one && b != one) || lengths[1] != lengths[2] || other == one {
            return Err(self.refuse(sum, "ADD of other tensors"));
        }
        Ok(other)
    }

    /// The last node that is computed.
    fn last(&self) -> Option<NodeId> {
        let computed = |(_, node): &(NodeId, &Node)| node.kind == Kind::Computed;
        self.graph.iter().filter(computed).last().map(|(id, _)| id)
    }

    /// The name of a whole weight.
    fn weight(&self, reader: NodeId, source: Option<NodeId>) -> Found<String> {
        let source = self.source(reader, source)?;
        if self.is_weight(Some(source)) {
            return Ok(self.graph.node(source).name.clone());
        }
        let op = self.graph.node(reader).op.name();
        Err(self.refuse(reader, format!("{op} by something other than a whole weight")))
    }

    fn is_weight(&self, source: Option<NodeId>) -> bool {
        source.is_some_and(|source| self.graph.node(source).kind == Kind::Weight)
    }

    fn source(&self, reader: NodeId, source: Option<NodeId>) -> Found<NodeId> {
        let op = self.graph.node(reader).op.name();
        source.ok_or_else(|| self.refuse(reader, format!("{op} without a source")))
    }

    fn lengths(&self, id: NodeId) -> [usize; 4] {
        self.graph.node(id).sizes(STEP).ne
    }

    fn nothing_left(&self) -> Found<()> {
        let left = |(id, node): &(NodeId, &Node)| {
            let arranges = node.op.is_layout() || picks_rows(self.graph, *id);
            node.kind == Kind::Computed && !arranges && !self.taken.contains(id)
        };
        match self.graph.iter().find(left) {
            Some((id, node)) => Err(self.refuse(id, format!("{} in this place", node.op))),
            None => Ok(()),
        }
    }

    fn refuse(&self, id: NodeId, what: impl Into<String>) -> Unplanned {
        unplanned(self.model, id, what)
    }
}
