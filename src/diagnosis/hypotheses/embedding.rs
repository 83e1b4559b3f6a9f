//! Mistakes in rows that are looked up: of other ids, of another table.

use std::rc::Rc;

use super::Visit;
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{Change, Edits, Evidence, replay::ReplayError},
    graph::{NodeId, Op},
};

/// Rows of a weight by ids.
pub fn lookups(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    for id in evidence.nodes(|node| node.op == Op::GetRows) {
        if evidence.weight_source(id).is_none_or(|weight| weight.source != 0) {
            continue;
        }
        ids(evidence, id, visit)?;
        evidence.of_other_weights(id, [CauseKey::WeightOfOther; 2], visit)?;
    }
    Ok(())
}

/// A row, of the id, its place in the step, its position and the number of rows.
type OtherRow = fn(&[f64], usize, usize, usize) -> f64;

fn ids(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let table = evidence.graph().node(id).source(0);
    let rows = table.map_or(1, |table| evidence.graph().node(table).ne[1].fixed.max(1) as usize);
    let others: [(&str, OtherRow); 8] = [
        ("the row of id + 1", |ids, t, _, n| (ids[t] + 1.0) % n as f64),
        ("the row of id - 1", |ids, t, _, n| (ids[t] + n as f64 - 1.0) % n as f64),
        ("the row of id + 2", |ids, t, _, n| (ids[t] + 2.0) % n as f64),
        ("the row of the token's position", |_, _, p, n| (p % n) as f64),
        ("the row of the token before", |ids, t, _, _| ids[t.saturating_sub(1)]),
        ("the row of the token after", |ids, t, _, _| ids[(t + 1).min(ids.len() - 1)]),
        ("the row of the token's place in the step", |_, t, _, n| (t % n) as f64),
        ("row 0 for every token", |_, _, _, _| 0.0),
    ];
    for (text, other) in others {
        let change = Change::Values(
            1,
            Rc::new(move |machine, ids, _| {
                let row = |t: usize| other(ids, t, machine.first_position + t, rows);
                Some((0..ids.len()).map(row).collect())
            }),
        );
        visit(evidence.mistake(CauseKey::EmbeddingRow, text, &Edits::one(id, change))?);
    }
    Ok(())
}
