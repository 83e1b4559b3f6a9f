//! The engine's plan: llama.cpp's graph of a model, matched node by node to what our kernels compute.
//!
//! The graph is the truth: sizes, epsilons, angles, scales and the names of the weights come from it, and
//! nothing is read from the file's keys. What no kernel computes is named by llama.cpp's operation.

mod arrange;
mod layers;
mod masks;
mod ops;
mod walk;

use std::{fmt, path::PathBuf};

use crate::{
    graph::{Extent, Graph, ModelGraph, NodeId, SequenceInputs},
    model::{Config, Model, ModelError, ModelFile, WeightNames},
};

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("{path}: no kernel for {missing}: explain works, run does not")]
    NoKernel { path: PathBuf, missing: Missing },
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// What a graph has that no kernel computes, in the graph's order; not empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Missing(Vec<Unplanned>);

/// Something that no kernel computes.
#[derive(Clone, Debug, PartialEq)]
struct Unplanned {
    /// llama.cpp's operation, and what is unusual about it.
    what: String,
    /// The site, or llama.cpp's name of the node.
    place: String,
}

/// As many of them are named.
const NAMED: usize = 3;

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |one: &Unplanned| format!("{} ({})", one.what, one.place);
        let named: Vec<String> = self.0.iter().take(NAMED).map(name).collect();
        f.write_str(&named.join(", "))?;
        match self.0.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// What our engine computes for a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub config: Config,
    pub names: WeightNames,
}

impl Plan {
    /// The plan of a graph; `inputs` are those of a sequence as long as any that will be run.
    pub fn of(model: &ModelGraph, inputs: &SequenceInputs) -> Result<Plan, Missing> {
        let unknown = ops::unknown(model);
        if !unknown.is_empty() {
            return Err(Missing(unknown));
        }
        let plan = walk::plan(model).map_err(|unplanned| Missing(vec![unplanned]))?;
        let wrong = masks::wrong(model, inputs);
        if wrong.is_empty() { Ok(plan) } else { Err(Missing(wrong)) }
    }

    /// The model of a file and its graph.
    pub fn model(
        file: ModelFile,
        graph: &ModelGraph,
        inputs: &SequenceInputs,
    ) -> Result<Model, PlanError> {
        let plan = Plan::of(graph, inputs)
            .map_err(|missing| PlanError::NoKernel { path: file.path.clone(), missing })?;
        Ok(Model::new(file, plan.config, plan.names, graph.clone(), inputs.clone())?)
    }
}

/// A step whose sizes stand for those of any.
const STEP: Extent = Extent { tokens: 3, cells: 5, is_first: false };

/// The node of an operation at its place: under its site's name, or llama.cpp's.
fn unplanned(model: &ModelGraph, id: NodeId, what: impl Into<String>) -> Unplanned {
    Unplanned { what: what.into(), place: place(model, id) }
}

fn place(model: &ModelGraph, id: NodeId) -> String {
    let specs = model.sites.specs().iter();
    let own = specs.filter(|spec| spec.node == id || spec.reader == id);
    // A node that is a site reads others too: its own comes first.
    match own.max_by_key(|spec| spec.node == id) {
        Some(spec) => spec.site(0).tensor_name(),
        None => model.graph.node(id).name.clone(),
    }
}

/// The tensor of a node's source, seen through windows.
fn root_of(graph: &Graph, id: NodeId, source: usize) -> Option<NodeId> {
    graph.node(id).source(source).map(|source| graph.root(source))
}
