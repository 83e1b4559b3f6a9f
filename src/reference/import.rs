//! Reads llama.cpp's graph of a model as data.
//!
//! The callback is asked of every node before any is computed; it answers false, so that nothing is split
//! or copied, and the abort callback ends the decode after its first node. Before a step that is not the
//! first a token takes its place in the caches, of which nothing is computed: no weight is read.

use std::{
    collections::HashMap,
    ffi::{CStr, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
};

use llama_cpp_sys_2 as sys;

use super::{
    context::{Context, Hooks},
    node::{COMPUTE, Node as Live},
    session::ReferenceError,
    skip::Skipped,
};
use crate::graph::{
    Extent, Format, Graph, Kind, ModelGraph, Node, NodeId, Op, Sample, SequenceInputs, Size, Window,
};

const INPUT: i32 = sys::GGML_TENSOR_FLAG_INPUT as i32;

/// Cells that llama.cpp reads of a cache come in multiples of this.
const CELLS: usize = 256;

/// A tensor as one step's graph has it.
#[derive(Clone, Debug)]
struct RawNode {
    name: String,
    kind: Kind,
    op: Op,
    format: Format,
    ne: [i64; 4],
    nb: [i64; 4],
    params: Vec<i64>,
    sources: Vec<Option<NodeId>>,
    window: Option<(NodeId, i64)>,
    /// Place among the nodes that the callback was asked of.
    asked: Option<u32>,
}

/// What one decode shows of its graph.
#[derive(Default)]
struct Snapshot {
    nodes: Vec<RawNode>,
    ids: HashMap<usize, NodeId>,
    asked: u32,
    /// The values of the inputs.
    inputs: HashMap<NodeId, Vec<f64>>,
    failure: Option<String>,
    /// Whether the decode is to end before it computes anything.
    aborts: bool,
    /// What is left out of a decode that is not to be read.
    skipped: Option<Skipped>,
    is_over: bool,
}

impl Snapshot {
    /// The id of a tensor; it and what it is made of are added when they are first seen.
    ///
    /// # Safety
    /// The tensor is live or null.
    unsafe fn id(&mut self, tensor: *mut sys::ggml_tensor) -> Option<NodeId> {
        if tensor.is_null() {
            return None;
        }
        if let Some(&id) = self.ids.get(&(tensor as usize)) {
            return Some(id);
        }
        // SAFETY: live, as the caller promises; so are its sources and its root.
        unsafe {
            let t = &*tensor;
            let live = Live(tensor);
            // Weights are read as f32, whatever the file's format.
            let is_wide = live.is_narrow_weight();
            let (nb, offset) = if is_wide { live.wide_layout() } else { (t.nb, t.view_offs) };
            let window = self.id(t.view_src).map(|root| (root, offset as i64));
            // A copy to another format names itself as its place.
            let sources = t.src.map(|source| if source == tensor { None } else { self.id(source) });
            let last = sources.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
            let op = live.op();
            let kind = kind(t, &op);
            let node = RawNode {
                name: CStr::from_ptr(t.name.as_ptr()).to_string_lossy().into_owned(),
                kind,
                format: if is_wide { Format::F32 } else { format(t.type_) },
                ne: t.ne,
                nb: nb.map(|nb| nb as i64),
                params: match op {
                    Op::Leaf | Op::View => Vec::new(),
                    _ => t.op_params.iter().map(|&word| i64::from(word)).collect(),
                },
                op,
                sources: sources[..last].to_vec(),
                window,
                asked: None,
            };
            let id = NodeId(self.nodes.len() as u32);
            if kind == Kind::Input {
                self.inputs.insert(id, values(tensor, &node));
            }
            self.nodes.push(node);
            self.ids.insert(tensor as usize, id);
            Some(id)
        }
    }
}

fn kind(tensor: &sys::ggml_tensor, op: &Op) -> Kind {
    if *op != Op::Leaf {
        return Kind::Computed;
    }
    if Live(std::ptr::from_ref(tensor).cast_mut()).is_weight() {
        Kind::Weight
    } else if tensor.flags & INPUT != 0 {
        Kind::Input
    } else {
        Kind::State
    }
}

fn format(ggml_type: sys::ggml_type) -> Format {
    match ggml_type {
        sys::GGML_TYPE_F32 => Format::F32,
        sys::GGML_TYPE_F16 => Format::F16,
        sys::GGML_TYPE_BF16 => Format::Bf16,
        sys::GGML_TYPE_I32 => Format::I32,
        sys::GGML_TYPE_I64 => Format::I64,
        _ => Format::Blocks,
    }
}

/// The values of an input, in order; inputs are dense.
///
/// # Safety
/// The tensor is live.
unsafe fn values(tensor: *mut sys::ggml_tensor, node: &RawNode) -> Vec<f64> {
    // SAFETY: the CPU backend's tensors lie in this process's memory.
    unsafe {
        let data = (*tensor).data;
        if data.is_null() {
            return Vec::new();
        }
        let bytes: &[u8] = std::slice::from_raw_parts(data.cast(), sys::ggml_nbytes(tensor));
        decoded(bytes, node.format)
    }
}

/// The numbers that dense bytes hold.
pub(super) fn decoded(bytes: &[u8], format: Format) -> Vec<f64> {
    fn each<const N: usize>(bytes: &[u8], of: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes.as_chunks::<N>().0.iter().map(|&bytes| of(bytes)).collect()
    }
    match format {
        Format::F32 => each(bytes, |b| f64::from(f32::from_le_bytes(b))),
        Format::F16 => each(bytes, |b| half::f16::from_le_bytes(b).to_f64()),
        Format::Bf16 => each(bytes, |b| half::bf16::from_le_bytes(b).to_f64()),
        Format::I32 => each(bytes, |b| f64::from(i32::from_le_bytes(b))),
        Format::I64 => each(bytes, |b| i64::from_le_bytes(b) as f64),
        Format::Blocks => Vec::new(),
    }
}

const PANICKED: &str = "internal error in the graph callback";

/// llama.cpp's `cb_eval` while a graph is read. `user_data` points to a pointer to the [`Snapshot`].
unsafe extern "C" fn on_node(
    tensor: *mut sys::ggml_tensor,
    ask: bool,
    user_data: *mut c_void,
) -> bool {
    // SAFETY: the slot holds a live snapshot for the time of a decode, else null.
    let snapshot = unsafe { (*user_data.cast::<*mut Snapshot>()).as_mut() };
    let Some(snapshot) = snapshot.filter(|_| ask) else { return false };
    if let Some(skipped) = &mut snapshot.skipped {
        skipped.add(Live(tensor));
        return false;
    }
    let seen = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: llama.cpp asks of live nodes.
        let id = unsafe { snapshot.id(tensor) };
        if let Some(id) = id {
            snapshot.nodes[id.index()].asked = Some(snapshot.asked);
            // SAFETY: as above.
            if unsafe { (*tensor).flags } & COMPUTE == 0 {
                snapshot.nodes[id.index()].kind = Kind::Skipped;
            }
        }
        snapshot.asked += 1;
    }));
    if seen.is_err() {
        snapshot.failure = Some(PANICKED.to_string());
    }
    snapshot.is_over = true;
    false
}

/// llama.cpp's `abort_callback` while a graph is read.
unsafe extern "C" fn is_over(user_data: *mut c_void) -> bool {
    // SAFETY: as in `on_node`.
    let snapshot = unsafe { (*user_data.cast::<*mut Snapshot>()).as_ref() };
    snapshot
        .is_some_and(|snapshot| snapshot.failure.is_some() || snapshot.aborts && snapshot.is_over)
}

pub(super) const HOOKS: Hooks = Hooks { on_node, is_over };

/// A context in which graphs are read.
pub(super) struct Importer {
    pub context: Context,
    pub architecture: String,
    /// An id that the vocabulary has.
    pub token: i32,
}

/// The graphs that sizes are found from: tokens of a step, and whether another came before.
const STEPS: [(usize, bool); 7] = [
    (2, false),
    (3, false),
    (CELLS + 2, false),
    (CELLS + 3, false),
    (1, false),
    (3, true),
    (CELLS + 44, true),
];

/// Positions that a context needs for an import.
pub(super) const IMPORT_POSITIONS: usize = CELLS + 44;

impl Importer {
    /// The model's graph, for steps of any extent.
    pub fn graph(&mut self) -> Result<ModelGraph, ReferenceError> {
        let mut snapshots = Vec::new();
        for (tokens, is_first) in STEPS {
            let before = usize::from(!is_first);
            let snapshot = self.snapshot(&vec![self.token; tokens], before)?;
            let cells = (before + tokens).next_multiple_of(CELLS);
            snapshots.push((Extent { tokens, cells, is_first }, snapshot));
        }
        self.merged(&snapshots)
    }

    /// The values of the inputs of a sequence's tokens, all in one step from an empty cache.
    pub fn inputs(
        &mut self,
        imported: &ModelGraph,
        tokens: &[i32],
    ) -> Result<SequenceInputs, ReferenceError> {
        let snapshot = self.snapshot(tokens, 0)?;
        if snapshot.nodes.len() != imported.graph.nodes.len() {
            return Err(self.failed("the graph of a whole sequence is another one"));
        }
        let cells = tokens.len().next_multiple_of(CELLS);
        let values = snapshot.inputs.into_iter().map(|(id, values)| (id, values.into())).collect();
        Ok(SequenceInputs { tokens: tokens.len(), cells, values })
    }

    /// The graph of a step after `before` tokens.
    fn snapshot(&mut self, tokens: &[i32], before: usize) -> Result<Snapshot, ReferenceError> {
        self.context.clear();
        let mut snapshot = Snapshot::default();
        if before > 0 {
            self.occupy(before)?;
        }
        snapshot.aborts = true;
        let code = self.context.decode_with(&mut snapshot, tokens, before);
        // What llama.cpp says of an end that it was told to make is no error.
        crate::model::llama::take_errors();
        // 2: aborted, as it was told.
        if code != 2 && code != 0 {
            return Err(self.failed(&format!("code {code}")));
        }
        // What llama.cpp says of a decode that was ended on purpose is no error.
        crate::model::llama::take_errors();
        match snapshot.failure.take() {
            Some(failure) => Err(self.failed(&failure)),
            None => Ok(snapshot),
        }
    }

    /// Puts so many tokens into an empty cache, without their keys and values.
    fn occupy(&mut self, tokens: usize) -> Result<(), ReferenceError> {
        let tokens = vec![self.token; tokens];
        let mut first = Snapshot { skipped: Some(Skipped::default()), ..Snapshot::default() };
        let code = self.context.decode_with(&mut first, &tokens, 0);
        first.skipped.iter_mut().for_each(Skipped::put_back);
        match code {
            0 => Ok(()),
            _ => Err(self.failed(&format!("a token finds no place (code {code})"))),
        }
    }

    fn failed(&self, detail: &str) -> ReferenceError {
        let said = crate::model::llama::take_errors();
        let detail = if said.is_empty() { detail.to_string() } else { format!("{detail}: {said}") };
        ReferenceError::Import { detail }
    }

    /// One graph from those of several extents.
    fn merged(&self, snapshots: &[(Extent, Snapshot)]) -> Result<ModelGraph, ReferenceError> {
        let (_, first) = &snapshots[0];
        for (extent, other) in &snapshots[1..] {
            if let Some(what) = difference(&first.nodes, &other.nodes) {
                let tokens = extent.tokens;
                return Err(self.failed(&format!(
                    "a step of {tokens} tokens has another graph than one of 2 ({what})"
                )));
            }
        }
        let fitted = |what: &str, node: &RawNode, of: &dyn Fn(&RawNode) -> i64, index: usize| {
            let samples: Vec<Sample> = snapshots
                .iter()
                .map(|(extent, s)| Sample { extent: *extent, value: of(&s.nodes[index]) })
                .collect();
            Size::fit(&samples).ok_or_else(|| {
                let name = &node.name;
                self.failed(&format!("{what} of {name} does not grow with the tokens"))
            })
        };
        let node = |(index, raw): (usize, &RawNode)| -> Result<Node, ReferenceError> {
            let four = |what: &str, of: fn(&RawNode, usize) -> i64| {
                let mut sizes = [Size::default(); 4];
                for (axis, size) in sizes.iter_mut().enumerate() {
                    *size = fitted(what, raw, &|node| of(node, axis), index)?;
                }
                Ok::<_, ReferenceError>(sizes)
            };
            let params = (0..raw.params.len())
                .map(|word| fitted("a parameter", raw, &|node| node.params[word], index));
            let params: Vec<Size> = params.collect::<Result<_, _>>()?;
            let window = match raw.window {
                Some((root, _)) => {
                    let offset = |node: &RawNode| node.window.map_or(0, |window| window.1);
                    Some(Window { root, offset: fitted("the offset", raw, &offset, index)? })
                }
                None => None,
            };
            let is_zero = params.iter().all(|&word| word == Size::fixed(0));
            Ok(Node {
                name: raw.name.clone(),
                kind: raw.kind,
                op: raw.op,
                format: raw.format,
                ne: four("an axis", |node, axis| node.ne[axis])?,
                nb: four("a stride", |node, axis| node.nb[axis])?,
                params: if is_zero { Vec::new() } else { params },
                sources: raw.sources.clone(),
                window,
            })
        };
        let nodes = first.nodes.iter().enumerate().map(node).collect::<Result<_, _>>()?;
        let mut asked = vec![None; first.asked as usize];
        for (index, raw) in first.nodes.iter().enumerate() {
            if let (Some(place), Kind::Computed) = (raw.asked, raw.kind) {
                asked[place as usize] = Some(NodeId(index as u32));
            }
        }
        let (architecture, capacity) = (self.architecture.clone(), self.context.positions);
        Ok(ModelGraph::new(Graph { architecture, capacity, nodes }, asked))
    }
}

/// What two graphs do not have in common, besides sizes.
fn difference(a: &[RawNode], b: &[RawNode]) -> Option<String> {
    if a.len() != b.len() {
        return Some(format!("{} nodes, not {}", b.len(), a.len()));
    }
    // ggml numbers the nodes that have no name.
    let name = |node: &RawNode| {
        if node.name.starts_with("node_") { String::new() } else { node.name.clone() }
    };
    let key = |node: &RawNode| {
        let root = node.window.map(|(root, _)| root);
        (name(node), node.kind, node.op, node.sources.clone(), root, node.asked)
    };
    let (a, b) = a.iter().zip(b).find(|(a, b)| key(a) != key(b))?;
    Some(format!("{} {} instead of {} {}", b.op, b.name, a.op, a.name))
}
