//! Mistakes in a mixture of experts: which experts, by which router, with which weights.

use std::rc::Rc;

use super::{Order, Row, Visit};
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        Change, Edits, Evidence,
        replay::{ReplayError, rules::Call},
    },
    graph::{Kind, NodeId, Op, site::Axis},
};

/// The source that ids are of an operation.
fn ids_source(op: Op) -> Option<usize> {
    match op {
        Op::MulMatId | Op::AddId => Some(2),
        Op::GetRows => Some(1),
        _ => None,
    }
}

/// Every use of experts' ids, every choice of experts, and every router.
pub fn mixtures(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let uses = |op: Op| matches!(op, Op::MulMatId | Op::AddId);
    let users = evidence.nodes(|node| uses(node.op));
    if !users.is_empty() {
        ids(evidence, &users, visit)?;
    }
    // The matrices alone, and the biases alone.
    let has_both = users.len() > 1;
    let matrices = users.iter().copied().filter(|&id| evidence.graph().node(id).op == Op::MulMatId);
    for id in matrices.filter(|_| has_both) {
        ids(evidence, &[id], visit)?;
    }
    for id in users.into_iter().filter(|&id| evidence.graph().node(id).op == Op::AddId) {
        ids(evidence, &[id], visit)?;
        let by_slot = Change::moved(2, |_, _| None);
        let text = "the bias of expert 0 for every expert";
        visit(evidence.mistake(CauseKey::BiasOfOther, text, &Edits::one(id, by_slot))?);
    }
    for id in evidence.nodes(|node| node.op == Op::GetRows) {
        let graph = evidence.graph();
        let table = graph.node(id).source(0).map(|table| graph.node(graph.root(table)).kind);
        let chosen = graph.node(id).source(1).map(|ids| graph.node(graph.root(ids)).op);
        if table == Some(Kind::Computed) && chosen.is_some_and(|op| op.is_choice()) {
            ids(evidence, &[id], visit)?;
            chosen_weights(evidence, id, visit)?;
        }
    }
    for id in evidence.nodes(|node| node.op.is_choice()) {
        choices(evidence, id, visit)?;
    }
    routers(evidence, visit)
}

/// An id, of those of all tokens, by the slot, the token, the slots of a token and the experts.
type OtherId = fn(&[f64], Place) -> f64;

/// A slot of a token.
#[derive(Clone, Copy)]
struct Place {
    slot: usize,
    token: usize,
    slots: usize,
    tokens: usize,
    experts: usize,
}

impl Place {
    /// The id of another slot of another token.
    fn id(self, ids: &[f64], slot: usize, token: usize) -> f64 {
        ids[token * self.slots + slot]
    }

    fn own(self, ids: &[f64]) -> f64 {
        self.id(ids, self.slot, self.token)
    }
}

const OTHER_IDS: [(CauseKey, &str, OtherId); 11] = [
    (CauseKey::ExpertRank, "experts of the slots in reverse order", |ids, at| {
        at.id(ids, at.slots - 1 - at.slot, at.token)
    }),
    (CauseKey::ExpertRank, "each slot has the expert of the next slot", |ids, at| {
        at.id(ids, (at.slot + 1) % at.slots, at.token)
    }),
    (CauseKey::ExpertRank, "each slot has the expert of the previous slot", |ids, at| {
        at.id(ids, (at.slot + at.slots - 1) % at.slots, at.token)
    }),
    (CauseKey::ExpertRank, "neighbouring slots exchanged", |ids, at| {
        at.id(ids, if (at.slot ^ 1) < at.slots { at.slot ^ 1 } else { at.slot }, at.token)
    }),
    (CauseKey::ExpertRank, "every slot has the first slot's expert", |ids, at| {
        at.id(ids, 0, at.token)
    }),
    (CauseKey::ExpertsSwapped, "expert id + 1", |ids, at| (at.own(ids) + 1.0) % at.experts as f64),
    (CauseKey::ExpertsSwapped, "expert id - 1", |ids, at| {
        (at.own(ids) + at.experts as f64 - 1.0) % at.experts as f64
    }),
    (CauseKey::ExpertsSwapped, "experts e and e^1 exchanged", |ids, at| {
        let other = at.own(ids) as usize ^ 1;
        if other < at.experts { other as f64 } else { at.own(ids) }
    }),
    (CauseKey::ExpertsSwapped, "experts in reverse order", |ids, at| {
        at.experts as f64 - 1.0 - at.own(ids)
    }),
    (CauseKey::ExpertIds, "experts of the previous token", |ids, at| {
        at.id(ids, at.slot, at.token.saturating_sub(1))
    }),
    (CauseKey::ExpertIds, "experts of the next token", |ids, at| {
        at.id(ids, at.slot, (at.token + 1).min(at.tokens - 1))
    }),
];

/// Other ids for nodes that read the same.
fn ids(evidence: &Evidence<'_>, users: &[NodeId], visit: Visit<'_>) -> Result<(), ReplayError> {
    let graph = evidence.graph();
    let experts = |id: NodeId| {
        let table = graph.node(id).source(usize::from(graph.node(id).op == Op::AddId));
        let axis = if graph.node(id).op == Op::MulMatId { 2 } else { 1 };
        table.map_or(1, |table| graph.node(table).ne[axis].fixed.max(1) as usize)
    };
    let changed = |other: OtherId| {
        let change = |&id: &NodeId| {
            let experts = experts(id);
            let source = ids_source(graph.node(id).op)?;
            let of =
                move |_: &crate::diagnosis::replay::Machine<'_>, ids: &[f64], ne: [usize; 4]| {
                    let (slots, tokens) = (ne[0], ids.len() / ne[0]);
                    let of = |i: usize| {
                        let (slot, token) = (i % slots, i / slots);
                        other(ids, Place { slot, token, slots, tokens, experts })
                    };
                    Some((0..ids.len()).map(of).collect::<Vec<f64>>())
                };
            Some((id, Change::Values(source, Rc::new(of))))
        };
        Edits(users.iter().filter_map(change).collect())
    };
    for (key, text, other) in OTHER_IDS {
        visit(evidence.mistake(key, text, &changed(other))?);
    }
    Ok(())
}

/// The weights of the chosen experts: of another tensor, or divided by their sum.
fn chosen_weights(
    evidence: &Evidence<'_>,
    id: NodeId,
    visit: Visit<'_>,
) -> Result<(), ReplayError> {
    let graph = evidence.graph();
    evidence.other_inputs(id, 0, &|_| CauseKey::RouterSource, visit)?;
    let Some(slots) = graph.node(id).source(1).map(|ids| graph.node(ids).ne[0].fixed) else {
        return Ok(());
    };
    let slots = slots.max(1) as usize;
    let rows = |of: fn(&mut [f64])| -> Change<'static> {
        let each = move |values: &mut [f64], _: [usize; 4]| {
            values.chunks_exact_mut(slots).for_each(of);
        };
        Change::Result(Rc::new(each))
    };
    let sum = |row: &mut [f64]| {
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|x| *x /= sum);
    };
    let softmax = |row: &mut [f64]| {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row.iter_mut().for_each(|x| *x = (*x - largest).exp());
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|x| *x /= sum);
    };
    let sigmoid = |row: &mut [f64]| row.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp()));
    let equal = |row: &mut [f64]| {
        let n = row.len() as f64;
        row.fill(1.0 / n);
    };
    let list: [(CauseKey, &str, Row); 4] = [
        (CauseKey::ExpertNorm, "weights divided by their sum", sum),
        (CauseKey::RouterFunction, "softmax over the chosen experts", softmax),
        (CauseKey::RouterFunction, "sigmoid of the chosen weights", sigmoid),
        (CauseKey::ExpertNorm, "the chosen experts have equal weights", equal),
    ];
    for (key, text, of) in list {
        visit(evidence.mistake(key, text, &Edits::one(id, rows(of)))?);
    }
    Ok(())
}

/// Another order of the logits, or the order of others.
fn choices(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let negated = Edits::one(id, Change::each(0, |x| -x));
    let text = "the lowest are chosen, not the highest";
    visit(evidence.mistake(CauseKey::ExpertChoice, text, &negated)?);
    let size = Edits::one(id, Change::each(0, f64::abs));
    let text = "chosen by size, whatever the sign";
    visit(evidence.mistake(CauseKey::ExpertChoice, text, &size)?);
    let orders: [(&str, Order); 5] = [
        ("slots in reverse order", |i, n| n - 1 - i),
        ("each slot has the next one", |i, n| (i + 1) % n),
        ("each slot has the previous one", |i, n| (i + n - 1) % n),
        ("neighbouring slots exchanged", |i, n| if (i ^ 1) < n { i ^ 1 } else { i }),
        ("the first is left out", |i, n| (i + 1).min(n - 1)),
    ];
    for (text, order) in orders {
        let order = move |i: usize, ne: [usize; 4]| i / ne[0] * ne[0] + order(i % ne[0], ne[0]);
        let edit = Edits::one(id, Change::Order(Rc::new(order)));
        visit(evidence.mistake(CauseKey::ExpertRank, text, &edit)?);
    }
    for by in [1.0, -1.0] {
        let count =
            evidence.graph().node(id).source(0).map(|x| evidence.graph().node(x).ne[0].fixed);
        let n = count.unwrap_or(1).max(1) as f64;
        let shifted = move |ids: &mut [f64], _: [usize; 4]| {
            ids.iter_mut().for_each(|id| *id = (*id + by).rem_euclid(n));
        };
        let edit = Edits::one(id, Change::Result(Rc::new(shifted)));
        visit(evidence.mistake(CauseKey::ExpertIds, format!("expert id {by:+}"), &edit)?);
    }
    evidence.other_inputs(id, 0, &|_| CauseKey::ExpertChoice, visit)
}

/// Another function of the logits.
fn routers(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let axes = evidence.spec().axes.last().map(|axis| axis.axis);
    let over_experts = matches!(axes, Some(Axis::Expert | Axis::Slot | Axis::Element));
    let is_router = |op: Op| matches!(op, Op::SoftMax | Op::Sigmoid);
    for id in evidence.nodes(|node| is_router(node.op) && node.source(1).is_none()) {
        if !over_experts {
            continue;
        }
        let plain = |call: &mut Call<'_, '_>| {
            call.op = Op::SoftMax;
            call.params.set_float(0, 1.0);
            call.params.set_float(1, 0.0);
        };
        let changes: [(&str, Change<'_>); 5] = [
            ("softmax of the logits", Change::Call(Rc::new(plain))),
            ("sigmoid of the logits", Change::Op(Op::Sigmoid)),
            ("the logits themselves", Change::LeftOut(0)),
            ("exp of the logits", Change::Op(Op::Exp)),
            ("softmax not divided by its sum", undivided()),
        ];
        for (text, change) in changes {
            visit(evidence.mistake(CauseKey::RouterFunction, text, &Edits::one(id, change))?);
        }
        evidence.other_inputs(id, 0, &|_| CauseKey::RouterSource, visit)?;
    }
    Ok(())
}

fn undivided() -> Change<'static> {
    Change::Result(Rc::new(|values, ne| {
        for row in values.chunks_exact_mut(ne[0]) {
            let largest = row.iter().copied().fold(0.0, f64::max);
            row.iter_mut().for_each(|x| *x /= largest);
        }
    }))
}
