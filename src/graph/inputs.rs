//! The values of a graph's inputs over a whole sequence of tokens.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{Extent, Graph, Kind, Node, NodeId, Op, RopeParams, Size};

/// The values of the inputs (ids, positions, masks, the cells that are written) of a sequence's tokens, as
/// one step from an empty cache has them. Those of any other step are a part of these.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequenceInputs {
    pub tokens: usize,
    /// N of that step.
    pub cells: usize,
    /// In ggml's order.
    pub values: HashMap<NodeId, Arc<[f64]>>,
}

/// How the axis of an input follows the tokens.
#[derive(Clone, Copy)]
enum Along {
    /// Those of the sequence, so many elements for each.
    Tokens(usize),
    /// The same, section by section: all tokens' first elements, then all second ones.
    Sections(usize),
    /// The cells of a cache, or a fixed number.
    Same,
}

impl SequenceInputs {
    /// The values of an input in a step whose first token has that position. `None` where the sequence
    /// does not have them.
    pub fn at(&self, graph: &Graph, input: NodeId, step: Extent, first: usize) -> Option<Vec<f64>> {
        let node = graph.node(input);
        let whole = Extent { tokens: self.tokens, cells: self.cells, is_first: true };
        let (all, ne) = (node.sizes(whole).ne, node.sizes(step).ne);
        let values = self
            .values
            .get(&input)
            .filter(|values| values.len() == all.iter().product::<usize>())?;
        if is_row_choice(graph, input) {
            return Some((0..ne[0]).map(|row| row as f64).collect());
        }
        let along = node.ne.map(|size| along(graph, input, size));
        let index = |axis: usize, i: usize| match along[axis] {
            Along::Tokens(each) => first * each + i,
            Along::Sections(n) => {
                let tokens = ne[axis] / n.max(1);
                i / tokens.max(1) * self.tokens + first + i % tokens.max(1)
            }
            Along::Same => i,
        };
        let mut found = Vec::with_capacity(ne.iter().product());
        for i3 in 0..ne[3] {
            for i2 in 0..ne[2] {
                for i1 in 0..ne[1] {
                    for i0 in 0..ne[0] {
                        let at = [i0, i1, i2, i3];
                        let at: [usize; 4] = std::array::from_fn(|axis| index(axis, at[axis]));
                        let flat = ((at[3] * all[2] + at[2]) * all[1] + at[1]) * all[0] + at[0];
                        found.push(*values.get(flat)?);
                    }
                }
            }
        }
        Some(found)
    }
}

impl Graph {
    /// The inputs that are the ids of a step's tokens. Positions may choose rows of a weight too.
    pub fn token_ids(&self) -> BTreeSet<NodeId> {
        let is_ids = |node: &Node| node.kind == Kind::Input && node.name == "inp_tokens";
        self.iter().filter(|(_, node)| is_ids(node)).map(|(id, _)| id).collect()
    }
}

fn along(graph: &Graph, input: NodeId, size: Size) -> Along {
    let each = size.per_token.max(0) as usize;
    let follows = size == Size { per_token: size.per_token, ..Size::fixed(0) } && each > 0;
    if !follows {
        return Along::Same;
    }
    let has_sections = graph.nodes.iter().any(|node| {
        let positions = node.op == Op::Rope && node.source(1) == Some(input);
        let any = Extent { tokens: 1, cells: 1, is_first: false };
        positions && RopeParams::of(node.params(any)).has_sections
    });
    if has_sections { Along::Sections(each) } else { Along::Tokens(each) }
}

/// Whether an input picks rows of a computed tensor: by their places in the step.
fn is_row_choice(graph: &Graph, input: NodeId) -> bool {
    graph.nodes.iter().any(|node| {
        let rows = node.source(0).map(|source| graph.node(graph.root(source)).kind);
        node.op == Op::GetRows
            && node.source(1) == Some(input)
            && rows == Some(Kind::Computed)
            && node.ne[1].has_tokens()
    })
}
