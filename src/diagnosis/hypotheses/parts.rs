//! Mistakes in how a tensor is cut into parts: a part of another place, or laid out otherwise.

use super::Visit;
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        Change, Edits, Evidence,
        replay::{Machine, ReplayError},
    },
    graph::{Kind, NodeId, Op},
};

/// Sources that are parts of a tensor.
pub fn parts(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let graph = evidence.graph();
    let arranging = |op: Op| !op.is_window() && op != Op::SetRows;
    for id in evidence.nodes(|node| arranging(node.op)) {
        for (source, window) in graph.node(id).sources.iter().enumerate() {
            let Some(window) = window.filter(|&window| is_part(evidence, window)) else { continue };
            siblings(evidence, Part { id, source, window }, visit)?;
            layouts(evidence, Part { id, source, window }, visit)?;
        }
    }
    Ok(())
}

/// A source of a node that is a part of a tensor.
#[derive(Clone, Copy)]
struct Part {
    id: NodeId,
    source: usize,
    window: NodeId,
}

/// Whether a window shows a part of a computed tensor that is no state.
fn is_part(evidence: &Evidence<'_>, id: NodeId) -> bool {
    let graph = evidence.graph();
    let (node, root) = (graph.node(id), graph.node(graph.root(id)));
    let any = crate::graph::Extent { tokens: 3, cells: 64, is_first: false };
    let is_smaller = node.sizes(any).elements() < root.sizes(any).elements();
    node.window.is_some() && root.kind == Kind::Computed && !root.op.is_choice() && is_smaller
}

/// Other windows of the same size on the same tensor.
fn siblings(evidence: &Evidence<'_>, part: Part, visit: Visit<'_>) -> Result<(), ReplayError> {
    let graph = evidence.graph();
    let root = graph.root(part.window);
    let own = graph.node(part.window);
    let mut seen = vec![own.window.map(|window| window.offset)];
    for (other, node) in graph.iter() {
        let is_sibling = graph.root(other) == root && node.ne == own.ne && node.nb == own.nb;
        let offset = node.window.map(|window| window.offset);
        if !is_sibling || offset.is_none() || seen.contains(&offset) {
            continue;
        }
        seen.push(offset);
        let byte = |offset: Option<crate::graph::Size>| offset.map_or(0, |size| size.fixed);
        let text = format!(
            "the part of {} from byte {} on, not from byte {} on",
            evidence.name_of(root),
            byte(offset),
            byte(own.window.map(|window| window.offset))
        );
        let edit = Edits::one(part.id, Change::Source(part.source, other));
        visit(evidence.mistake(CauseKey::PartsSwapped, text, &edit)?);
    }
    Ok(())
}

/// How a part of `length` elements of each of `heads` lies in rows of `width`.
#[derive(Clone, Copy)]
struct Cut {
    length: usize,
    heads: usize,
    /// Elements from a head to the next.
    stride: usize,
    /// The first element.
    first: usize,
    /// Elements of a token.
    width: usize,
}

/// Parts of all heads one after another, instead of the parts of each head; and at other places.
fn layouts(evidence: &Evidence<'_>, part: Part, visit: Visit<'_>) -> Result<(), ReplayError> {
    let graph = evidence.graph();
    let root = graph.root(part.window);
    let Some(own) = cut(evidence, part.window) else { return Ok(()) };
    let each = own.width / own.heads.max(1);
    let mut others: Vec<(String, CauseKey, Cut)> = Vec::new();
    if own.stride > own.length && own.heads > 1 {
        let first = own.first * own.heads;
        let text = "parts are stored one after another for all heads, not head by head".to_string();
        others.push((text, CauseKey::PartsLayout, Cut { first, stride: own.length, ..own }));
    }
    if own.stride == own.length && own.heads > 1 && each > own.length {
        let first = own.first / own.heads;
        let text = "parts are stored head by head, not one after another for all heads".to_string();
        others.push((text, CauseKey::PartsLayout, Cut { first, stride: each, ..own }));
    }
    let room = own.stride.max(own.length);
    let within = if own.heads > 1 && own.stride > own.length { room } else { own.width };
    let span = (own.heads - 1) * own.stride + own.length;
    for first in [0, own.length, within.saturating_sub(own.length), own.width.saturating_sub(span)]
    {
        if first != own.first && first + span <= own.width {
            let text = format!(
                "elements from {first} on of each part of {}, not from {} on",
                evidence.name_of(root),
                own.first
            );
            others.push((text, CauseKey::PartsSwapped, Cut { first, ..own }));
        }
    }
    for (text, key, cut) in others {
        let values = move |machine: &Machine<'_>, values: &[f64], ne: [usize; 4]| {
            let whole = machine.argument(root).ok()??;
            let whole = whole.value().ok()?;
            taken(&whole, cut, values.len(), ne)
        };
        let edit = Edits::one(part.id, Change::Values(part.source, std::rc::Rc::new(values)));
        visit(evidence.mistake(key, text, &edit)?);
    }
    Ok(())
}

/// How a window (length, heads, tokens) cuts rows of its root.
fn cut(evidence: &Evidence<'_>, window: NodeId) -> Option<Cut> {
    let any = crate::graph::Extent { tokens: 5, cells: 64, is_first: false };
    let graph = evidence.graph();
    let node = graph.node(window);
    let root = graph.node(graph.root(window));
    let (sizes, whole) = (node.sizes(any), root.sizes(any));
    let element = node.format.size()?;
    let width = whole.elements() / any.tokens;
    let token = sizes.ne.iter().position(|&n| n == any.tokens)?;
    let is_row_by_row = sizes.nb[token] == width * element && token <= 2 && sizes.nb[0] == element;
    let heads = if token == 2 { sizes.ne[1] } else { 1 };
    let is_simple = is_row_by_row && sizes.ne[3] == 1 && token >= 1 && width > 0;
    is_simple.then_some(Cut {
        length: sizes.ne[0],
        heads,
        stride: if token == 2 { sizes.nb[1] / element } else { sizes.ne[0] },
        first: sizes.offset / element,
        width,
    })
}

fn taken(whole: &[f64], cut: Cut, count: usize, ne: [usize; 4]) -> Option<Vec<f64>> {
    let tokens = whole.len() / cut.width;
    let mut out = Vec::with_capacity(count);
    for token in 0..tokens {
        for head in 0..cut.heads {
            let at = token * cut.width + cut.first + head * cut.stride;
            out.extend_from_slice(whole.get(at..at + cut.length)?);
        }
    }
    (out.len() == count && ne[0] == cut.length).then_some(out)
}
