//! Positions that are removed from the caches before a step: those behind them move down, and keys are turned to
//! where they then are.

use std::{borrow::Cow, collections::BTreeSet, rc::Rc};

use super::{Machine, Root, errors::uncertain, places::Places, site_order, writes_into};
use crate::{
    diagnosis::replay::{
        recording::ReplayError,
        rules::{self, Argument, Call, Steps, Values},
    },
    graph::{Extent, Kind, NodeId, Op, SiteSpec, site::Axis},
    trace::Removed,
};

/// What a removal does to a row that moves.
enum Moving {
    /// It stays as it is: a value, or a key without positions.
    Unchanged,
    /// It is turned by this rotation.
    Turned(NodeId),
    /// Its new value does not follow from the old one alone.
    Unknown,
}

/// Rows of a cache in the order of its site.
struct CacheRows {
    /// Where each element lies in the cache's memory.
    places: Vec<usize>,
    heads: usize,
    dim: usize,
}

impl Machine<'_> {
    /// Brings the states of the step before to where this one begins. What they then hold is not known of states
    /// without positions, and of rows that are not moved by a plain rotation: it is read off what was recorded.
    pub(super) fn remove_positions(&mut self) -> Result<(), ReplayError> {
        let Some(removed) = self.run.recording.tensors.removed(self.step) else { return Ok(()) };
        let before = self.extent_of(self.step - 1);
        let (graph, specs) = (self.graph(), self.run.model.sites.specs());
        let is_state = |id: &NodeId| graph.node(*id).kind == Kind::State;
        for root in graph.ids().filter(is_state).collect::<Vec<NodeId>>() {
            let is_cache = |spec: &&SiteSpec| {
                graph.root(spec.node) == root
                    && spec.axes.first().is_some_and(|axis| axis.axis == Axis::Position)
            };
            let spec = specs.iter().find(is_cache);
            let is_moved = removed.is_shift(before.cells);
            let is_known = match spec {
                Some(_) if !is_moved => true,
                Some(spec) => self.move_rows(root, spec, removed, before)?,
                None => false,
            };
            if !is_known {
                self.memory[root.index()] = None;
            }
        }
        Ok(())
    }

    /// Moves the rows of a cache down; `false` where it is not known what they become.
    fn move_rows(
        &mut self,
        root: NodeId,
        spec: &SiteSpec,
        removed: Removed,
        before: Extent,
    ) -> Result<bool, ReplayError> {
        let (moving, rows) = (self.moving(root), self.cache_rows(spec, before));
        let (Some(rows), Some(memory)) = (rows, self.memory[root.index()].clone()) else {
            return Ok(false);
        };
        let width = rows.heads * rows.dim;
        let from = &rows.places[removed.end() * width..];
        let value: Vec<f64> = from.iter().map(|&at| memory.value[at]).collect();
        let spread = memory.spread.as_ref().map(|all| from.iter().map(|&at| all[at]).collect());
        let moved = match moving {
            Moving::Unknown => return Ok(false),
            Moving::Unchanged => Root { value, spread, ..Root::default() },
            Moving::Turned(rope) => {
                let rows = [rows.dim, rows.heads, value.len() / width, 1];
                let values = Values::Dense { value: value.into(), spread: spread.map(Cow::Owned) };
                match self.turned_back(rope, Argument { ne: rows, values }, removed.count)? {
                    Some(moved) => moved,
                    None => return Ok(false),
                }
            }
        };
        let mut memory = Root::clone(&memory);
        let n = memory.value.len();
        if moved.spread.is_some() {
            memory.spread.get_or_insert_with(|| vec![0.0; n]);
        }
        for (i, &at) in rows.places[removed.first * width..].iter().take(from.len()).enumerate() {
            memory.value[at] = moved.value[i];
            if let Some(all) = &mut memory.spread {
                all[at] = moved.spread.as_ref().map_or(0.0, |spread| spread[i]);
            }
        }
        self.memory[root.index()] = Some(Rc::new(memory));
        Ok(true)
    }

    /// Where the elements of a cache lie, (position, head, dim), in a step.
    fn cache_rows(&self, spec: &SiteSpec, step: Extent) -> Option<CacheRows> {
        let node = self.graph().node(spec.node);
        let sizes = node.sizes(step);
        let mut in_node = Vec::with_capacity(sizes.elements());
        Places::of(node.format.size(), &sizes)?.each(|at| in_node.push(at));
        let shape = spec.shape(step.tokens, step.cells);
        let [_, heads, dim] = shape[..] else { return None };
        let places = match site_order(spec, &shape, sizes.ne) {
            Some(order) => order.into_iter().map(|at| in_node[at]).collect(),
            None => in_node,
        };
        (places.len() == shape.iter().product::<usize>()).then_some(CacheRows {
            places,
            heads,
            dim,
        })
    }

    /// What becomes of a row of a cache at another position.
    fn moving(&self, root: NodeId) -> Moving {
        let graph = self.graph();
        let writer = graph.ids().find(|&id| writes_into(graph, id) == Some(root));
        let Some(rows) = writer.and_then(|id| graph.node(id).source(0)) else {
            return Moving::Unknown;
        };
        let rows = graph.root(rows);
        if graph.node(rows).op == Op::Rope {
            let params = graph.node(rows).params(self.extent);
            // YaRN turns in its own way, and a magnitude would count twice.
            let is_plain = params.float(7) == 0.0 && params.float(8) == 1.0;
            let is_known = is_plain && self.stored_as(root).is_none();
            return if is_known { Moving::Turned(rows) } else { Moving::Unknown };
        }
        if self.is_turned(rows) { Moving::Unknown } else { Moving::Unchanged }
    }

    /// Whether a rotation is among what a tensor is made from, up to the products with weights.
    fn is_turned(&self, id: NodeId) -> bool {
        let graph = self.graph();
        let (mut waiting, mut seen) = (vec![id], BTreeSet::new());
        while let Some(id) = waiting.pop() {
            let node = graph.node(id);
            if node.op == Op::Rope {
                return true;
            }
            let is_product = matches!(node.op, Op::MulMat | Op::MulMatId);
            if node.kind == Kind::Computed && !is_product && seen.insert(id) {
                waiting.extend(node.sources.iter().flatten().map(|&source| graph.root(source)));
            }
        }
        false
    }

    /// Rows turned back by so many positions.
    fn turned_back(
        &self,
        rope: NodeId,
        rows: Argument<'_, '_>,
        by: usize,
    ) -> Result<Option<Root>, ReplayError> {
        let node = self.graph().node(rope);
        let factors = node.source(2).map(|id| self.argument(id)).transpose()?;
        let positions = vec![-(by as f64); rows.ne[2]];
        let positions = Argument {
            ne: [rows.ne[2], 1, 1, 1],
            values: Values::Dense { value: positions.into(), spread: None },
        };
        let call = Call {
            op: node.op,
            params: node.params(self.extent),
            ne: rows.ne,
            arguments: vec![Some(rows), Some(positions), factors.flatten()],
            rounding: self.rounding(rope),
            has_tables: self.run.has_tables,
            position: None,
            steps: Steps::default(),
            only: None,
        };
        Ok(rules::compute(&call)?.map(uncertain))
    }
}
