//! Which nodes a step computes, and how long their results are kept.

use std::{collections::BTreeSet, rc::Rc};

use super::Machine;
use crate::graph::{Kind, NodeId};

impl Machine<'_> {
    /// The nodes that the wanted sites are made from in this step, as far as nothing was recorded between.
    pub(super) fn wanted_nodes(&self) -> Option<Rc<BTreeSet<NodeId>>> {
        if let Some(planned) = &self.planned {
            return Some(Rc::clone(&planned[self.step as usize]));
        }
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
        Some(Rc::new(found))
    }

    /// Of each step the nodes that sites are made from where they were recorded, as far as nothing was recorded
    /// between, and what these and later steps read of the states.
    pub(super) fn planned(&self, places: &BTreeSet<usize>) -> Vec<Rc<BTreeSet<NodeId>>> {
        let (mut states, steps) = (BTreeSet::new(), self.run.recording.steps.len() as u32);
        let of_step = |step| Rc::new(self.made_in(step, places, &mut states));
        let mut planned: Vec<_> = (0..steps).rev().map(of_step).collect();
        planned.reverse();
        planned
    }

    /// The same of one step; `states` are those that are read later, and then those that are read here too.
    fn made_in(
        &self,
        step: u32,
        places: &BTreeSet<usize>,
        states: &mut BTreeSet<NodeId>,
    ) -> BTreeSet<NodeId> {
        let (graph, specs) = (self.graph(), self.run.model.sites.specs());
        let is_there = |&&place: &&usize| self.run.recording.tensors.has(specs[place].site(step));
        let own = places.iter().filter(is_there).map(|&place| specs[place].node);
        let mut waiting: Vec<NodeId> = own.collect();
        waiting.extend(states.iter().flat_map(|&state| graph.writes_of(state)));
        let mut found = BTreeSet::new();
        while let Some(id) = waiting.pop() {
            let root = graph.root(id);
            if graph.node(root).kind == Kind::State && states.insert(root) {
                waiting.extend(graph.writes_of(root));
            }
            if graph.node(id).kind != Kind::Computed || !found.insert(id) {
                continue;
            }
            for source in self.sources_of([&id].into_iter()) {
                let is_state = graph.node(graph.root(source)).kind == Kind::State;
                if is_state || !self.is_recorded_in(step, source) {
                    waiting.push(source);
                }
            }
        }
        found
    }

    /// The memory that a step's nodes read or write, where not all are computed.
    pub(super) fn touched(
        &self,
        wanted: Option<&BTreeSet<NodeId>>,
        read: &BTreeSet<NodeId>,
    ) -> Option<BTreeSet<NodeId>> {
        let (graph, wanted) = (self.graph(), wanted.filter(|_| self.planned.is_some())?);
        Some(wanted.iter().chain(read).map(|&id| graph.root(id)).collect())
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
        self.is_recorded_in(self.step, id)
    }

    fn is_recorded_in(&self, step: u32, id: NodeId) -> bool {
        let specs = self.run.model.sites.specs();
        let place = self.site_at[id.index()];
        let tensors = self.run.recording.tensors;
        let is_whole = |place: usize| {
            let site = specs[place].site(step);
            tensors.has(site) && tensors.rows(site).is_none()
        };
        place.is_some_and(is_whole)
    }
}
