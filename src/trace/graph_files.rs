//! The graph beside a reference's trace: `graph.json`, and `inputs.safetensors` with the values of its
//! inputs over all tokens of the run, F64 tensors named by their nodes.

use std::{collections::HashMap, io::Read, path::Path};

use safetensors::{
    Dtype, SafeTensors,
    tensor::{Metadata, TensorView},
};

use super::{
    error::{Limit, TraceError},
    header::open_file,
    manifest::{FileSeal, GraphFiles, Manifest, field, within},
};
use crate::graph::{Extent, Kind, ModelGraph, NodeId, SequenceInputs, SiteList};

pub(super) const GRAPH_FILE: &str = "graph.json";
pub(super) const INPUTS_FILE: &str = "inputs.safetensors";

/// Writes both files into a folder; what they must be.
pub(super) fn write(
    folder: &Path,
    graph: &ModelGraph,
    inputs: &SequenceInputs,
) -> Result<GraphFiles, TraceError> {
    let nodes = serde_json::to_vec(graph)
        .map_err(|error| TraceError::Misuse(format!("the graph is not JSON: {error}")))?;
    within(&folder.join(GRAPH_FILE), Limit::GraphBytes, nodes.len() as u64)?;
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(TraceError::io("write", path))?;
        Ok(FileSeal { bytes: bytes.len() as u64, blake3: blake3::hash(bytes).to_string() })
    };
    Ok(GraphFiles {
        nodes: write(GRAPH_FILE, &nodes)?,
        inputs: write(INPUTS_FILE, &bytes_of(inputs)?)?,
    })
}

fn bytes_of(inputs: &SequenceInputs) -> Result<Vec<u8>, TraceError> {
    let misuse = |error| TraceError::Misuse(format!("the inputs are not tensors: {error}"));
    let mut values: Vec<(NodeId, Vec<u8>)> = Vec::with_capacity(inputs.values.len());
    for (&id, own) in &inputs.values {
        values.push((id, own.iter().flat_map(|value| value.to_le_bytes()).collect()));
    }
    values.sort_by_key(|&(id, _)| id);
    let mut tensors = Vec::with_capacity(values.len());
    for (id, bytes) in &values {
        let view = TensorView::new(Dtype::F64, vec![bytes.len() / 8], bytes).map_err(misuse)?;
        tensors.push((id.0.to_string(), view));
    }
    let extent = [("tokens", inputs.tokens), ("cells", inputs.cells)];
    let extent = extent.map(|(key, n)| (key.to_string(), n.to_string()));
    safetensors::serialize(tensors, Some(HashMap::from(extent))).map_err(misuse)
}

/// Reads both files of a trace, and holds them to its manifest.
///
/// # Errors
/// A file is missing or another one, or the graph is not of the sites and tokens that were recorded.
pub(super) fn read(
    folder: &Path,
    manifest: &Manifest,
    list: &SiteList,
) -> Result<Option<(ModelGraph, SequenceInputs)>, TraceError> {
    let Some(files) = &manifest.graph else { return Ok(None) };
    let path = folder.join(GRAPH_FILE);
    within(&path, Limit::GraphBytes, files.nodes.bytes)?;
    let json = sealed(&path, &files.nodes)?;
    let graph: ModelGraph = serde_json::from_slice(&json)
        .map_err(|error| field(&path, "the graph".into(), format!("is invalid: {error}")))?;
    if SiteList::from(&graph.sites) != *list {
        let reason = "has other sites than the manifest lists";
        return Err(field(&path, "the graph".into(), reason.into()));
    }
    let path = folder.join(INPUTS_FILE);
    let inputs = parsed_inputs(&path, &sealed(&path, &files.inputs)?)?;
    let tokens: usize = manifest.steps.iter().map(|step| step.tokens.len()).sum();
    if inputs.tokens != tokens {
        let reason = format!("are of {} tokens, the run has {tokens}", inputs.tokens);
        return Err(field(&path, "the inputs".into(), reason));
    }
    check_inputs(&path, &graph, &inputs)?;
    Ok(Some((graph, inputs)))
}

/// The bytes of a file that is what it must be.
fn sealed(path: &Path, seal: &FileSeal) -> Result<Vec<u8>, TraceError> {
    let (file, found) = open_file(path)?;
    let expected = seal.bytes;
    if found != expected {
        return Err(TraceError::Length { path: path.into(), expected, found });
    }
    // It grows as it is read: a length that is only stated takes no memory.
    let mut bytes = Vec::new();
    file.take(found).read_to_end(&mut bytes).map_err(TraceError::io("read", path))?;
    let found = blake3::hash(&bytes).to_string();
    if found != seal.blake3 {
        let (path, expected) = (path.into(), seal.blake3.clone());
        return Err(TraceError::Checksum { path, expected, found });
    }
    Ok(bytes)
}

fn parsed_inputs(path: &Path, bytes: &[u8]) -> Result<SequenceInputs, TraceError> {
    let invalid = |reason: String| TraceError::SafeTensors { path: path.into(), reason };
    let (_, metadata): (usize, Metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| invalid(error.to_string()))?;
    let count = |key: &str| {
        let text = metadata.metadata().as_ref().and_then(|entries| entries.get(key));
        let count = text.and_then(|text| text.parse::<usize>().ok());
        count.ok_or_else(|| invalid(format!("it states no number of {key}")))
    };
    let (tokens, cells) = (count("tokens")?, count("cells")?);
    within(path, Limit::Tokens, tokens as u64)?;
    within(path, Limit::Dimension, cells as u64)?;
    let tensors = SafeTensors::deserialize(bytes).map_err(|error| invalid(error.to_string()))?;
    let mut values = HashMap::new();
    for (name, view) in tensors.iter() {
        let id = name.parse().map_err(|_| invalid(format!("{name:?} is not a node")))?;
        if view.dtype() != Dtype::F64 {
            return Err(invalid(format!("node {name} is {}, not F64", view.dtype())));
        }
        let own = view.data().as_chunks::<8>().0.iter().map(|&bytes| f64::from_le_bytes(bytes));
        values.insert(NodeId(id), own.collect());
    }
    Ok(SequenceInputs { tokens, cells, values })
}

/// Refuses values of what is no input of the graph, or of another length than it has.
fn check_inputs(
    path: &Path,
    graph: &ModelGraph,
    inputs: &SequenceInputs,
) -> Result<(), TraceError> {
    let extent = Extent { tokens: inputs.tokens, cells: inputs.cells, is_first: true };
    for (id, values) in &inputs.values {
        let node = graph.graph.nodes.get(id.index()).filter(|node| node.kind == Kind::Input);
        let ne = node.map(|node| node.sizes(extent).ne);
        let wanted = ne.map(|ne| ne.iter().fold(1usize, |all, &n| all.saturating_mul(n)));
        // A mask or index that a step does not use has no values.
        if wanted.is_none_or(|wanted| wanted != values.len() && !values.is_empty()) {
            let reason = format!("has {} values, the graph wants {wanted:?}", values.len());
            return Err(field(path, format!("node {}", id.0), reason));
        }
    }
    Ok(())
}
