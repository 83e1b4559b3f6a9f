//! A model's graph with what is derived from it once.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::{Graph, Kind, NodeId, SiteSpec, Sites};

/// A model's graph, its sites, and the nodes in the order in which llama.cpp computes them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct ModelGraph {
    pub graph: Graph,
    pub sites: Sites,
    /// The node that the callback is asked of, in the order of asking; `None` where it is never computed.
    pub asked: Vec<Option<NodeId>>,
    /// The sites whose values are in place when a node is computed.
    read_at: HashMap<NodeId, Vec<usize>>,
}

/// What a file has: the rest follows from it.
#[derive(Serialize, Deserialize)]
struct Stored {
    graph: Graph,
    asked: Vec<Option<NodeId>>,
}

impl TryFrom<Stored> for ModelGraph {
    type Error = String;

    fn try_from(stored: Stored) -> Result<ModelGraph, String> {
        stored.graph.check()?;
        let nodes = stored.graph.nodes.len();
        if stored.asked.len() > nodes || stored.asked.iter().flatten().any(|id| id.index() >= nodes)
        {
            return Err("nodes are computed that the graph does not have".to_string());
        }
        Ok(ModelGraph::new(stored.graph, stored.asked))
    }
}

impl From<ModelGraph> for Stored {
    fn from(model: ModelGraph) -> Stored {
        Stored { graph: model.graph, asked: model.asked }
    }
}

impl ModelGraph {
    pub fn new(graph: Graph, asked: Vec<Option<NodeId>>) -> ModelGraph {
        let sites = Sites::of(&graph);
        let mut read_at: HashMap<NodeId, Vec<usize>> = HashMap::new();
        for (place, spec) in sites.specs().iter().enumerate() {
            read_at.entry(spec.reader).or_default().push(place);
        }
        ModelGraph { graph, sites, asked, read_at }
    }

    /// The weights that the operation of a site reads, back to the sites that it is computed from.
    pub fn weights_of(&self, spec: &SiteSpec) -> Vec<String> {
        let sites: HashSet<NodeId> = self.sites.specs().iter().map(|other| other.node).collect();
        let (mut waiting, mut seen, mut weights) = (vec![spec.node], HashSet::new(), Vec::new());
        while let Some(id) = waiting.pop() {
            for &source in self.graph.node(id).sources.iter().flatten() {
                let root = self.graph.root(source);
                if !seen.insert(root) {
                    continue;
                }
                let node = self.graph.node(root);
                match node.kind {
                    Kind::Weight => weights.push(node.name.clone()),
                    Kind::Computed if !sites.contains(&root) => waiting.push(root),
                    _ => {}
                }
            }
        }
        weights
    }

    /// The sites whose values are in place when a node is computed, by their places.
    pub fn read_at(&self, node: NodeId) -> &[usize] {
        self.read_at.get(&node).map_or(&[], Vec::as_slice)
    }
}
