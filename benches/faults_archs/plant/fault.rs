//! A fault: how it is planted, and which causes name it.

use std::collections::BTreeSet;

use firstdiff::graph::NodeId;

use super::{Subject, file::Edit, keys, results, results_attention, tamper::Change, tensors};

/// How a fault is planted.
pub enum Plant {
    /// llama.cpp runs another file.
    File(Edit),
    /// Results of nodes are overwritten.
    Results { nodes: BTreeSet<NodeId>, change: Change },
}

pub struct Fault {
    pub name: String,
    pub plant: Plant,
    /// Keys of causes, any of which names it.
    pub causes: &'static [&'static str],
}

impl Fault {
    pub fn of_file(name: impl Into<String>, edit: Edit, causes: &'static [&'static str]) -> Fault {
        Fault { name: name.into(), plant: Plant::File(edit), causes }
    }

    pub fn of_results(
        name: &str,
        nodes: BTreeSet<NodeId>,
        causes: &'static [&'static str],
        change: Change,
    ) -> Fault {
        Fault { name: name.to_string(), plant: Plant::Results { nodes, change }, causes }
    }

    /// The mechanism in a word.
    pub fn mechanism(&self) -> &'static str {
        match self.plant {
            Plant::File(_) => "file",
            Plant::Results { .. } => "result",
        }
    }

    /// Whether the model has what the fault changes.
    fn applies(&self) -> bool {
        match &self.plant {
            Plant::File(edit) => !edit.is_empty(),
            Plant::Results { nodes, .. } => !nodes.is_empty(),
        }
    }
}

/// Every fault that a model can have.
pub fn all(subject: &Subject) -> Vec<Fault> {
    let mut faults = keys::all(subject);
    faults.extend(tensors::all(subject));
    faults.extend(results::all(subject));
    faults.extend(results_attention::all(subject));
    faults.retain(Fault::applies);
    faults
}
