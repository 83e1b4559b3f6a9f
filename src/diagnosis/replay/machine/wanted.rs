//! Which nodes a step computes, and how long their results are kept.

use std::collections::BTreeSet;

use super::Machine;
use crate::graph::{Kind, NodeId};

impl Machine<'_> {
    /// The nodes that the wanted sites are made from in this step, as far as nothing was recorded between.
    pub(super) fn wanted_nodes(&self) -> Option<BTreeSet<NodeId>> {
        let (graph, specs) = (self.graph(), self.run.model.sites.specs());
        let own = self.wanted.as_ref()?.iter().map(|&place| graph.root(specs[place].node));
        // States are written in every step.
        let writes = graph.ids().filter(|&id| self.writes_to(id, |root| self.keeps(root)));
        Some(self.made_from(own.chain(writes), |id| self.is_recorded_in(self.step, id)))
    }

    /// Whether a node writes into such a state.
    pub(super) fn writes_to(&self, id: NodeId, is_such: impl Fn(NodeId) -> bool) -> bool {
        let window = self.graph().node(id).window;
        let state = window.map(|window| window.root);
        state.is_some_and(|root| self.graph().node(root).kind == Kind::State && is_such(root))
    }

    /// The nodes that some are made from, themselves among them, up to what is known.
    pub(super) fn made_from(
        &self,
        nodes: impl Iterator<Item = NodeId>,
        is_known: impl Fn(NodeId) -> bool,
    ) -> BTreeSet<NodeId> {
        let mut waiting: Vec<NodeId> = nodes.collect();
        let mut found = BTreeSet::new();
        while let Some(id) = waiting.pop() {
            if self.graph().node(id).kind != Kind::Computed || !found.insert(id) {
                continue;
            }
            let sources = self.sources_of([&id].into_iter());
            waiting.extend(sources.into_iter().filter(|&source| !is_known(source)));
        }
        found
    }

    /// The tensors that nodes are computed from.
    pub(super) fn sources_of<'n>(
        &self,
        nodes: impl Iterator<Item = &'n NodeId>,
    ) -> BTreeSet<NodeId> {
        let graph = self.graph();
        let sources = nodes.flat_map(|&id| graph.node(id).sources.iter().flatten());
        sources.flat_map(|&source| [source, graph.root(source)]).collect()
    }

    /// The computed roots that nothing after each node is made from, up to the next recording.
    pub(super) fn done_after(&self) -> Vec<Vec<NodeId>> {
        let graph = self.graph();
        let mut last: Vec<NodeId> = graph.ids().collect();
        for spec in self.run.model.sites.specs() {
            let root = graph.root(spec.node).index();
            last[root] = last[root].max(spec.reader);
        }
        for id in graph.ids().rev() {
            let end = if self.is_recorded_in(self.step, id) {
                id
            } else {
                last[graph.root(id).index()].max(id)
            };
            for &source in graph.node(id).sources.iter().flatten() {
                let root = graph.root(source).index();
                last[root] = last[root].max(end);
            }
        }
        let mut done = vec![Vec::new(); graph.nodes.len()];
        for (root, last) in graph.ids().zip(last) {
            if graph.node(root).kind == Kind::Computed {
                done[last.index()].push(root);
            }
        }
        done
    }

    /// Whether a tensor was recorded whole in a step.
    pub(super) fn is_recorded_in(&self, step: u32, id: NodeId) -> bool {
        let Some(place) = self.site_at[id.index()] else { return false };
        let (tensors, specs) = (self.run.recording.tensors, self.run.model.sites.specs());
        let site = specs[place].site(step);
        tensors.has(site) && tensors.rows(site).is_none()
    }
}
