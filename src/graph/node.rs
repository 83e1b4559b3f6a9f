//! A graph's tensors: its leaves, and the nodes that are computed from them.

use serde::{Deserialize, Serialize};

use super::{
    op::Op,
    size::{Extent, Size},
};

/// The most nodes of a graph, and sources and bytes of the name of one.
const MOST_NODES: usize = 1 << 20;
const MOST_SOURCES: usize = 16;
const MOST_NAME: usize = 256;

/// A tensor of a [`Graph`], by its place in [`Graph::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u32);

impl NodeId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// How a tensor's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    F32,
    F16,
    Bf16,
    I32,
    I64,
    /// Blocks of integers with their scales.
    Blocks,
}

impl Format {
    /// Bytes of one element; quantised weights have blocks instead.
    pub fn size(self) -> Option<usize> {
        match self {
            Format::F32 | Format::I32 => Some(4),
            Format::F16 | Format::Bf16 => Some(2),
            Format::I64 => Some(8),
            Format::Blocks => None,
        }
    }
}

/// Where a tensor's values come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The model's file, under the tensor's name.
    Weight,
    /// The step's tokens: ids, positions, masks, the cells that are written.
    Input,
    /// The steps before: a cache of keys or values, a recurrent or convolution state.
    State,
    /// Its operation.
    Computed,
    /// Nowhere: llama.cpp lists the node and never computes it.
    Skipped,
}

/// A part of another tensor's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The tensor whose memory it is; no window itself.
    pub root: NodeId,
    /// Bytes.
    pub offset: Size,
}

/// A tensor of a graph. Lengths and strides are in ggml's order: the first axis is the fastest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// llama.cpp's name for it; not unique.
    pub name: String,
    pub kind: Kind,
    pub op: Op,
    pub format: Format,
    /// Elements along each axis.
    pub ne: [Size; 4],
    /// Bytes from an element to the next along each axis.
    pub nb: [Size; 4],
    /// `op_params`, 16 words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub params: Vec<Size>,
    /// Each source by its place in the operation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Option<NodeId>>,
    /// The memory it lies in, where that is another tensor's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

/// The sizes of a node in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub ne: [usize; 4],
    /// Bytes.
    pub nb: [usize; 4],
    /// Bytes from the start of its root.
    pub offset: usize,
}

impl Sizes {
    pub fn elements(&self) -> usize {
        self.ne.iter().product()
    }
}

impl Node {
    /// Its sizes in a step.
    pub fn sizes(&self, extent: Extent) -> Sizes {
        let at = |size: Size| size.at(extent).max(0) as usize;
        Sizes {
            ne: self.ne.map(at),
            nb: self.nb.map(at),
            offset: self.window.map_or(0, |window| at(window.offset)),
        }
    }

    /// Its `op_params` in a step.
    pub fn params(&self, extent: Extent) -> Params {
        let mut words = [0; 16];
        for (word, size) in words.iter_mut().zip(&self.params) {
            *word = size.at(extent) as i32;
        }
        Params(words)
    }

    /// Its source at that place of the operation.
    pub fn source(&self, index: usize) -> Option<NodeId> {
        self.sources.get(index).copied().flatten()
    }
}

/// The parameters of an operation, as ggml packs them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Params(pub [i32; 16]);

impl Params {
    pub fn int(&self, index: usize) -> i32 {
        self.0[index]
    }

    pub fn float(&self, index: usize) -> f32 {
        f32::from_bits(self.0[index] as u32)
    }

    pub fn set_int(&mut self, index: usize, value: i32) {
        self.0[index] = value;
    }

    pub fn set_float(&mut self, index: usize, value: f32) {
        self.0[index] = value.to_bits() as i32;
    }
}

/// Every tensor of a step, leaves and nodes, in an order in which each comes after its sources.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    /// `general.architecture` of the model, for people.
    pub architecture: String,
    /// Cells of a cache that the import's context had: caches lie in strides of it.
    pub capacity: usize,
    pub nodes: Vec<Node>,
}

impl Graph {
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The weight of the file that a node multiplies, if it is a product with one.
    pub fn multiplied_weight(&self, node: &Node) -> Option<NodeId> {
        let is_product = matches!(node.op, Op::MulMat | Op::MulMatId);
        let root = self.root(node.source(0)?);
        (is_product && self.node(root).kind == Kind::Weight).then_some(root)
    }

    /// The tensor whose memory a tensor lies in; itself, unless it is a window.
    pub fn root(&self, id: NodeId) -> NodeId {
        self.node(id).window.map_or(id, |window| window.root)
    }

    /// The nodes that write into a state.
    pub fn writes_of(&self, state: NodeId) -> impl Iterator<Item = NodeId> {
        let is_write = move |node: &Node| {
            node.window.is_some_and(|window| window.root == state) && !node.op.is_window()
        };
        self.iter().filter(move |(_, node)| is_write(node)).map(|(id, _)| id)
    }

    /// Whether a tensor is its root, or shows all of it in the root's own order.
    pub fn shows_in_order(&self, id: NodeId) -> bool {
        let any = Extent { tokens: 7, cells: 11, is_first: false };
        let (own, root) = (self.node(id).sizes(any), self.node(self.root(id)).sizes(any));
        let element = self.node(id).format.size().unwrap_or(1);
        let mut stride = element;
        let in_order = own.ne.iter().zip(own.nb).all(|(&n, nb)| {
            let fits = n == 1 || nb == stride;
            stride *= n;
            fits
        });
        in_order && own.offset == 0 && own.elements() == root.elements()
    }

    /// Every tensor in order.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    /// Every tensor with its id.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.ids().zip(&self.nodes)
    }

    /// The nodes that read each tensor, by the tensor's place.
    pub fn readers(&self) -> Vec<Vec<NodeId>> {
        let mut readers = vec![Vec::new(); self.nodes.len()];
        for (id, node) in self.iter() {
            for source in node.sources.iter().flatten() {
                if readers[source.index()].last() != Some(&id) {
                    readers[source.index()].push(id);
                }
            }
        }
        readers
    }

    /// Says what is wrong with a graph that a file holds: all that is derived from one relies on this.
    ///
    /// # Errors
    /// The first node that is none, by its place.
    pub fn check(&self) -> Result<(), String> {
        if self.nodes.len() > MOST_NODES {
            return Err(format!("{} nodes are more than {MOST_NODES}", self.nodes.len()));
        }
        for (id, node) in self.iter() {
            let root = node.window.map(|window| window.root);
            let mut before = node.sources.iter().flatten().copied().chain(root);
            let is_late = |other: NodeId| other >= id;
            let is_window =
                root.filter(|&root| !is_late(root)).and_then(|root| self.node(root).window);
            let offset = node.window.map(|window| window.offset);
            let mut sizes = node.ne.iter().chain(&node.nb).chain(&offset);
            let fault = if before.any(is_late) {
                "reads a node that comes after it"
            } else if is_window.is_some() {
                "is a window on a window"
            } else if node.sources.len() > MOST_SOURCES
                || node.params.len() > Params::default().0.len()
            {
                "has too many sources or parameters"
            } else if node.name.len() > MOST_NAME {
                "has too long a name"
            } else if sizes.any(|size| !size.is_sane()) {
                "has a size beyond all"
            } else {
                continue;
            };
            return Err(format!("node {} {fault}", id.0));
        }
        Ok(())
    }

    /// The name of the weight among a node's sources, seen through windows.
    pub fn weight_of(&self, id: NodeId) -> Option<&str> {
        let sources = self.node(id).sources.iter().flatten();
        let mut roots = sources.map(|&source| self.node(self.root(source)));
        roots.find(|root| root.kind == Kind::Weight).map(|root| root.name.as_str())
    }
}
