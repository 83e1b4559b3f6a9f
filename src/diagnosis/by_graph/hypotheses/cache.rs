//! Mistakes in what a cache holds: which slots are written, with what.

use super::{Order, Visit};
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        by_graph::{Evidence, StepEvidence},
        scene::Rank,
    },
    graph::{Kind, NodeId, Op, site::Axis},
};

/// Rows of tokens that are appended step by step, and where a memory of them is seen.
struct Rows {
    /// Elements of a row.
    width: usize,
    /// Each step's new rows.
    steps: Vec<Vec<f64>>,
}

/// A slot that a token's row is written to, by its position, the step's place and its first position.
type Slot = fn(usize, usize, usize) -> Option<usize>;

const SLOTS: [(CauseKey, &str, Slot); 8] = [
    (CauseKey::CacheUnwritten, "never written", |_, _, _| None),
    (CauseKey::CacheUnwritten, "decode steps are never appended", |p, step, _| {
        (step == 0).then_some(p)
    }),
    (CauseKey::CacheUnwritten, "the prompt is never appended", |p, step, _| {
        (step > 0).then_some(p)
    }),
    (CauseKey::CacheSlot, "written one slot late", |p, _, _| Some(p + 1)),
    (CauseKey::CacheSlot, "written one slot early", |p, _, _| p.checked_sub(1)),
    (CauseKey::CacheSlot, "decode steps overwrite the slot before", |p, step, _| {
        p.checked_sub(usize::from(step > 0))
    }),
    (CauseKey::CacheSlot, "decode steps are written one slot late", |p, step, _| {
        Some(p + usize::from(step > 0))
    }),
    (CauseKey::CacheSlot, "every step is written from slot 0 on", |p, _, first| Some(p - first)),
];

/// Caches that are read: their slots, what was appended, and the order of heads.
pub fn caches(evidence: &Evidence<'_>, visit: Visit<'_>) {
    if !is_cache(evidence) {
        return;
    }
    let Some(own) = own_rows(evidence) else { return };
    for (key, text, slot) in SLOTS {
        visit(evidence.replaced(key, text, Rank::Mistake, |step| {
            Some(seen(evidence, &own, step, slot, SeenAt::After))
        }));
    }
    visit(evidence.replaced(
        CauseKey::CacheLate,
        "read before the step's own slots are written",
        Rank::Mistake,
        |step| Some(seen(evidence, &own, step, |p, _, _| Some(p), SeenAt::Before)),
    ));
    // What the side itself held before the step, but for the step's own rows.
    let unwritten = |step: &StepEvidence<'_>| {
        let mut value = step.observed.piece.expected.value.clone();
        value[step.machine.first_position * own.width..].fill(0.0);
        Some(value)
    };
    let text = "a step's own rows are not written";
    visit(evidence.replaced(CauseKey::CacheUnwritten, text, Rank::Mistake, unwritten));
    let before = |step: &StepEvidence<'_>| {
        let mut value = step.observed.piece.expected.value.clone();
        let first = step.machine.first_position;
        if step.machine.extent.tokens == 1 && first > 0 {
            value.copy_within((first - 1) * own.width..first * own.width, first * own.width);
        }
        Some(value)
    };
    let text = "decode steps hold the row of the slot before";
    visit(evidence.replaced(CauseKey::CacheStale, text, Rank::Mistake, before));
    let stale = Rows { width: own.width, steps: stale(&own) };
    let text = "decode steps append the row of the step before";
    visit(evidence.replaced(CauseKey::CacheStale, text, Rank::Mistake, |step| {
        Some(seen(evidence, &stale, step, |p, _, _| Some(p), SeenAt::After))
    }));
    heads(evidence, visit);
    sources(evidence, &own, visit);
}

fn is_cache(evidence: &Evidence<'_>) -> bool {
    let spec = evidence.spec();
    let graph = evidence.graph();
    let is_state = graph.node(graph.root(spec.node)).kind == Kind::State;
    is_state && spec.axes.first().is_some_and(|axis| axis.axis == Axis::Position)
}

/// The rows that each step must append.
fn own_rows(evidence: &Evidence<'_>) -> Option<Rows> {
    let width = evidence.steps.first()?.observed.shape[1..].iter().product::<usize>();
    let rows = |step: &StepEvidence<'_>| {
        let from = step.machine.first_position * width;
        step.observed.piece.expected.value.get(from..).map(<[f64]>::to_vec)
    };
    Some(Rows { width, steps: evidence.steps.iter().map(rows).collect::<Option<_>>()? })
}

fn stale(own: &Rows) -> Vec<Vec<f64>> {
    let of = |(step, rows): (usize, &Vec<f64>)| match step.checked_sub(1) {
        Some(before) if rows.len() == own.width => {
            let before = &own.steps[before];
            before[before.len() - own.width..].to_vec()
        }
        _ => rows.clone(),
    };
    own.steps.iter().enumerate().map(of).collect()
}

/// Whether a step sees its own rows.
#[derive(Clone, Copy, PartialEq)]
enum SeenAt {
    Before,
    After,
}

/// What a step sees of a memory that all steps up to it wrote their rows into.
fn seen(
    evidence: &Evidence<'_>,
    rows: &Rows,
    step: &StepEvidence<'_>,
    slot: Slot,
    at: SeenAt,
) -> Vec<f64> {
    let length = step.observed.piece.expected.value.len();
    let mut memory = vec![0.0; length];
    for (nth, (earlier, rows_of)) in evidence.steps.iter().zip(&rows.steps).enumerate() {
        let number = earlier.observed.step;
        let is_past = number < step.observed.step;
        if !is_past && (number > step.observed.step || at == SeenAt::Before) {
            break;
        }
        let first = earlier.machine.first_position;
        for (token, row) in rows_of.chunks_exact(rows.width).enumerate() {
            let Some(slot) = slot(first + token, nth, first) else { continue };
            if let Some(place) = memory.get_mut(slot * rows.width..(slot + 1) * rows.width) {
                place.copy_from_slice(row);
            }
        }
    }
    memory
}

/// Heads of the rows in another order.
fn heads(evidence: &Evidence<'_>, visit: Visit<'_>) {
    let Some(heads) = evidence.heads() else { return };
    let orders: [(&str, Order); 3] = [
        ("KV heads in reverse order", |h, n| n - 1 - h),
        ("every KV head shifted by one", |h, n| (h + 1) % n),
        ("neighbouring KV heads exchanged", |h, n| if (h ^ 1) < n { h ^ 1 } else { h }),
    ];
    for (text, order) in orders {
        let moved = |step: &StepEvidence<'_>| {
            let value = &step.observed.piece.expected.value;
            let from = step.machine.first_position * heads.count * heads.dim;
            let of = |i: usize| {
                let (row, head) = (i / heads.dim / heads.count, i / heads.dim % heads.count);
                let moved =
                    (row * heads.count + order(head, heads.count)) * heads.dim + i % heads.dim;
                // What was recorded of earlier steps is as it is.
                if i < from { value[i] } else { value[moved] }
            };
            Some((0..value.len()).map(of).collect())
        };
        visit(evidence.replaced(CauseKey::CacheHead, text, Rank::Mistake, moved));
    }
}

/// The node whose rows are written into the cache.
fn written(evidence: &Evidence<'_>) -> Option<NodeId> {
    let graph = evidence.graph();
    let root = graph.root(evidence.spec().node);
    let writer = graph.nodes.iter().find(|node| {
        node.op == Op::SetRows && node.window.is_some_and(|window| window.root == root)
    });
    writer?.source(0)
}

/// Rows of another tensor of the layer, or of another layer.
fn sources(evidence: &Evidence<'_>, own: &Rows, visit: Visit<'_>) {
    let Some(written) = written(evidence) else { return };
    let graph = evidence.graph();
    let is_rotated = graph.node(graph.root(written)).op == Op::Rope;
    let specs = evidence.run.model.sites.specs();
    let has_norm = |place: usize| specs[place].op.is_norm();
    for place in evidence.other_sites(written) {
        let other = &specs[place];
        let name = other.site(0).tensor_name();
        let is_before = is_rotated && is_upstream(evidence, place, written);
        let (key, text) = if other.layer != evidence.spec().layer {
            (CauseKey::CacheLayer, format!("holds {name}"))
        } else if is_before {
            let what = if has_norm(place) { "the rotation" } else { "the norm or rotation" };
            (CauseKey::CacheBeforeRope, format!("appended before {what}: {name}"))
        } else {
            (CauseKey::CacheSource, format!("appended from {name}"))
        };
        let rows = |step: &StepEvidence<'_>| {
            let mut value = step.observed.piece.expected.value.clone();
            let from = step.machine.first_position * own.width;
            let recorded = evidence.recorded(step, place)?;
            let rows = value.get_mut(from..).filter(|rows| rows.len() == recorded.len())?;
            rows.copy_from_slice(&recorded);
            Some(value)
        };
        visit(evidence.replaced(key, text, Rank::Mistake, rows));
    }
}

/// Whether a tensor is computed from a site within its layer.
fn is_upstream(evidence: &Evidence<'_>, place: usize, from: NodeId) -> bool {
    const MAX_CHAIN: usize = 24;
    let graph = evidence.graph();
    let wanted = evidence.run.model.sites.specs()[place].node;
    let mut at = graph.root(from);
    for _ in 0..MAX_CHAIN {
        if at == graph.root(wanted) {
            return true;
        }
        match graph.node(at).source(0) {
            Some(source) => at = graph.root(source),
            None => return false,
        }
    }
    false
}
