//! Where the elements of a tensor that layout operations arrange come from.

use super::STEP;
use crate::graph::{Graph, Kind, Node, NodeId, Op};

/// A tensor that windows and copies lead back to, and where each element lies in it.
pub(super) struct Arranged {
    pub origin: NodeId,
    /// Of each element in order, its place among those of the origin.
    places: Vec<usize>,
    /// Elements of the origin.
    len: usize,
}

impl Arranged {
    /// The origin of a tensor, in a step of [`STEP`]'s sizes.
    pub fn of(graph: &Graph, id: NodeId) -> Arranged {
        let len = |id: NodeId| graph.node(id).sizes(STEP).elements();
        let (mut at, mut places) = (id, None::<Vec<usize>>);
        loop {
            let node = graph.node(at);
            let before = if let Some(window) = node.window.filter(|_| node.op.is_window()) {
                let own = offsets(node);
                let root = places_of(graph.node(window.root), &own);
                places = Some(match places {
                    Some(places) => places.into_iter().map(|place| root[place]).collect(),
                    None => root,
                });
                Some(window.root)
            } else {
                let copies =
                    matches!(node.op, Op::Cont | Op::Dup | Op::Cpy) && !is_state(graph, at);
                node.source(0).filter(|_| copies || picks_rows(graph, at))
            };
            match before {
                Some(before) if graph.node(at).kind == Kind::Computed => at = before,
                _ => break,
            }
        }
        let places = places.unwrap_or_else(|| (0..len(id)).collect());
        Arranged { origin: at, places, len: len(at) }
    }

    /// Whether it is the whole origin, element by element.
    pub fn is_straight(&self) -> bool {
        self.len == self.places.len() && self.places.iter().enumerate().all(|(i, &p)| i == p)
    }

    /// Whether the element at each index (i, j, k) of `lengths`, the first the fastest, comes from the
    /// place that `of` gives.
    pub fn is(&self, lengths: [usize; 3], of: impl Fn(usize, usize, usize) -> usize) -> bool {
        let [n0, n1, n2] = lengths;
        let at = |i: usize| of(i % n0, i / n0 % n1, i / (n0 * n1));
        self.places.len() == n0 * n1 * n2
            && self.places.iter().enumerate().all(|(i, &place)| place == at(i))
    }
}

/// Whether a node picks rows of a computed tensor by an input: the tokens whose logits are wanted, which
/// are all of them.
pub(super) fn picks_rows(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let kind = |place| node.source(place).map(|source| graph.node(graph.root(source)).kind);
    node.op == Op::GetRows && kind(0) == Some(Kind::Computed) && kind(1) == Some(Kind::Input)
}

fn is_state(graph: &Graph, id: NodeId) -> bool {
    graph.node(graph.root(id)).kind == Kind::State
}

/// Bytes from the start of its root to each element of a window, in order.
fn offsets(window: &Node) -> Vec<usize> {
    let sizes = window.sizes(STEP);
    let [n0, n1, n2, n3] = sizes.ne;
    let mut offsets = Vec::with_capacity(sizes.elements());
    for i3 in 0..n3 {
        for i2 in 0..n2 {
            for i1 in 0..n1 {
                let row = sizes.offset + i3 * sizes.nb[3] + i2 * sizes.nb[2] + i1 * sizes.nb[1];
                offsets.extend((0..n0).map(|i0| row + i0 * sizes.nb[0]));
            }
        }
    }
    offsets
}

/// The places of the elements of a root, which is dense, at these offsets.
fn places_of(root: &Node, offsets: &[usize]) -> Vec<usize> {
    let size = root.format.size().unwrap_or(1);
    offsets.iter().map(|offset| offset / size).collect()
}
