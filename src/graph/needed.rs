//! What some of a model's sites are computed from.

use std::collections::BTreeSet;

use super::{Kind, ModelGraph, NodeId, SiteSpec};

impl ModelGraph {
    /// Which nodes must be computed for these sites, by their places, in any step: what they are made from, through
    /// caches and other states too.
    pub fn needed_for(&self, places: &BTreeSet<usize>) -> Vec<bool> {
        let graph = &self.graph;
        let mut needed = vec![false; graph.nodes.len()];
        let specs = places.iter().map(|&place| &self.sites.specs()[place]);
        let mut waiting: Vec<NodeId> = specs.flat_map(|spec| [spec.node, spec.reader]).collect();
        while let Some(id) = waiting.pop() {
            if std::mem::replace(&mut needed[id.index()], true) {
                continue;
            }
            waiting.extend(self.made_from(id));
        }
        needed
    }

    /// What a node is made from at once. Who reads a state reads what is written there.
    fn made_from(&self, id: NodeId) -> Vec<NodeId> {
        let (graph, root) = (&self.graph, self.graph.root(id));
        let mut found: Vec<NodeId> = graph.node(id).sources.iter().flatten().copied().collect();
        found.push(root);
        if graph.node(root).kind == Kind::State {
            found.extend(graph.writes_of(root));
        }
        found
    }

    /// The sites outside of some, by their places, that these begin from.
    pub fn inputs_of(&self, places: &BTreeSet<usize>) -> BTreeSet<usize> {
        let graph = &self.graph;
        let mut site_at = vec![None; graph.nodes.len()];
        for (place, spec) in self.sites.specs().iter().enumerate() {
            site_at[spec.node.index()] = Some(place);
        }
        let (mut found, mut seen) = (BTreeSet::new(), vec![false; graph.nodes.len()]);
        let node = |place: &usize| self.sites.specs()[*place].node;
        let mut waiting: Vec<NodeId> = places.iter().map(node).collect();
        while let Some(id) = waiting.pop() {
            if std::mem::replace(&mut seen[id.index()], true) {
                continue;
            }
            match site_at[id.index()].filter(|place| !places.contains(place)) {
                Some(place) => {
                    found.insert(place);
                }
                None => waiting.extend(self.made_from(id)),
            }
        }
        found
    }

    /// The weights that sites' own operations read.
    pub fn weights_of_all(&self, places: &BTreeSet<usize>) -> BTreeSet<String> {
        let specs = places.iter().map(|&place| &self.sites.specs()[place]);
        specs.flat_map(|spec: &SiteSpec| self.weights_of(spec)).collect()
    }
}
