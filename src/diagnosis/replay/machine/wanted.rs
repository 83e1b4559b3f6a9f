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
        let is_write = |id: &NodeId| {
            let window = graph.node(*id).window;
            window.is_some_and(|window| graph.node(window.root).kind == Kind::State)
        };
        let mut waiting: Vec<NodeId> = own.chain(graph.ids().filter(is_write)).collect();
        let mut found = BTreeSet::new();
        while let Some(id) = waiting.pop() {
            if graph.node(id).kind != Kind::Computed || !found.insert(id) {
                continue;
            }
            let sources = self.sources_of([&id].into_iter());
            waiting.extend(sources.into_iter().filter(|&source| !self.is_recorded(source)));
        }
        Some(found)
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
            let end = if self.is_recorded(id) { id } else { last[graph.root(id).index()].max(id) };
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

    fn is_recorded(&self, id: NodeId) -> bool {
        let specs = self.run.model.sites.specs();
        let place = self.site_at[id.index()];
        let tensors = self.run.recording.tensors;
        let is_whole = |place: usize| {
            let site = specs[place].site(self.step);
            tensors.has(site) && tensors.rows(site).is_none()
        };
        place.is_some_and(is_whole)
    }
}
