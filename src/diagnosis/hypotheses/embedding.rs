//! Mistakes in rows that are looked up: of other ids, of another table, of a table that ranks divide.

use std::rc::Rc;

use super::{
    Visit,
    least_squares::{solve, whole},
};
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        Change, Edits, Evidence, StepEvidence,
        cause::Rank,
        replay::{ReplayError, rules::Values},
    },
    graph::{NodeId, Op},
};

/// Larger tables are not searched for rows.
const MAX_ELEMENTS: usize = 1 << 28;
/// Tokens that must have a row that was read off.
const LEAST_TOKENS: usize = 2;
/// Bounds by which a row may miss the one that it is.
const NEAR: f64 = 4.0;
/// Runs of ids that are named.
const NAMED: usize = 4;

/// Rows of a weight by ids.
pub fn lookups(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    for id in evidence.nodes(|node| node.op == Op::GetRows) {
        if evidence.weight_source(id).is_none_or(|weight| weight.source != 0) {
            continue;
        }
        ids(evidence, id, visit)?;
        read_off(evidence, id, visit)?;
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
        ("the row of the previous token", |ids, t, _, _| ids[t.saturating_sub(1)]),
        ("the row of the next token", |ids, t, _, _| ids[(t + 1).min(ids.len() - 1)]),
        ("the row of the token's index in the step", |_, t, _, n| (t % n) as f64),
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

/// A row of the table, or the sum of some.
struct TableRow {
    ids: Vec<usize>,
    values: Vec<f64>,
}

/// What a wrong row is, by the right one; `None` where it is as it should be.
type Made<'m> = &'m dyn Fn(&WrongRow, &[f64]) -> Option<Vec<f64>>;

/// A token whose row is wrong, and what is in its place.
struct WrongRow {
    step: usize,
    token: usize,
    id: usize,
    recorded: Vec<f64>,
    /// How far that is from the right row.
    error: Vec<f64>,
    /// The row that was recorded, and the row that was added to the right one.
    taken: Option<TableRow>,
    added: Option<TableRow>,
}

/// Rows of other ids, or rows that were added to the right ones, read off the table: ids of another rank that are
/// looked up at a wrong offset, or are not masked.
fn read_off(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let graph = evidence.graph();
    // What is made of the rows further on is not told apart.
    if graph.root(evidence.spec().node) != id {
        return Ok(());
    }
    let mut wrong = wrong_rows(evidence, id)?;
    if wrong.len() < LEAST_TOKENS || !search(evidence, id, &mut wrong)? {
        return Ok(());
    }
    let rows = |of: fn(&WrongRow) -> Option<&TableRow>| {
        wrong.iter().map(|row| Some((row.id, of(row)?.ids.clone()))).collect::<Option<Vec<_>>>()
    };
    let of =
        |step: usize, token: usize| wrong.iter().find(|row| (row.step, row.token) == (step, token));
    let predicted = |step: &StepEvidence<'_>, made: Made<'_>| {
        let (at, right) = (evidence.index_of(step), &step.observed.piece.expected.value);
        let width = right.len() / step.machine.extent.tokens.max(1);
        let row = |(token, own): (usize, &[f64])| {
            of(at, token).and_then(|row| made(row, own)).unwrap_or_else(|| own.to_vec())
        };
        right.chunks(width.max(1)).enumerate().flat_map(row).collect::<Vec<f64>>()
    };
    let key = CauseKey::EmbeddingRow;
    if let Some(rows) = rows(|row| row.taken.as_ref()) {
        visit(evidence.copied(key, moved_ids(rows), Rank::Likeness, |step| {
            Some(predicted(step, &|row, _| Some(row.taken.as_ref()?.values.clone())))
        }));
    }
    if let Some(rows) = rows(|row| row.added.as_ref()) {
        visit(evidence.predicted(key, added_rows(rows), Rank::Mistake, |step| {
            let sum = |row: &WrongRow, own: &[f64]| {
                let added = &row.added.as_ref()?.values;
                Some(own.iter().zip(added).map(|(x, y)| x + y).collect())
            };
            let right = &step.observed.piece.expected;
            let values = predicted(step, &sum);
            // Each row that is added is a rounding of the sum so far.
            let terms = wrong.iter().filter_map(|row| row.added.as_ref());
            let roundings = terms.map(|row| row.ids.len()).max().unwrap_or(1) as f64;
            let largest = values.iter().chain(&right.value).fold(0f64, |most, x| most.max(x.abs()));
            Some(right.with_values(values, 2.0 * roundings * right.rounding.sum * largest))
        }));
    }
    Ok(())
}

/// The tokens that have wrong elements.
fn wrong_rows(evidence: &Evidence<'_>, id: NodeId) -> Result<Vec<WrongRow>, ReplayError> {
    let mut rows = Vec::new();
    let Some(ids) = evidence.graph().node(id).source(1) else { return Ok(rows) };
    for (at, (step, wrong)) in evidence.steps.iter().zip(&evidence.wrong).enumerate() {
        let Some(ids) = step.machine.argument(ids)? else { return Ok(Vec::new()) };
        let (ids, piece) = (ids.value()?, &step.observed.piece);
        let width = (piece.captured.len() / ids.len().max(1)).max(1);
        for (token, wrong) in
            wrong.chunks(width).enumerate().filter(|(_, wrong)| wrong.contains(&true))
        {
            let own = token * width..token * width + wrong.len();
            let recorded: Vec<f64> =
                piece.captured[own.clone()].iter().map(|&x| f64::from(x)).collect();
            let right = &piece.expected.value[own];
            let error = recorded.iter().zip(right).map(|(x, right)| x - right).collect();
            let Some(&id) = ids.get(token) else { return Ok(Vec::new()) };
            let (taken, added) = (None, None);
            rows.push(WrongRow { step: at, token, id: id as usize, recorded, error, taken, added });
        }
    }
    Ok(rows)
}

/// Looks for each wrong row, and for what was added to the right one, in the table; whether it could be searched.
fn search(
    evidence: &Evidence<'_>,
    id: NodeId,
    wrong: &mut [WrongRow],
) -> Result<bool, ReplayError> {
    let Some(table) = evidence.graph().node(id).source(0) else { return Ok(false) };
    let Some(table) = evidence.steps[0].machine.argument(table)? else { return Ok(false) };
    let Values::Weight(matrix) = &table.values else { return Ok(false) };
    if matrix.outputs * matrix.inputs > MAX_ELEMENTS {
        return Ok(false);
    }
    let bound = |right: &[f64]| {
        let most = right.iter().fold(0f64, |most, x| most.max(x.abs()));
        let rounding = evidence.steps[0].observed.piece.expected.rounding;
        NEAR * (rounding.storage + rounding.sum) * most + rounding.smallest
    };
    let bounds: Vec<f64> = wrong.iter().map(|row| bound(&row.recorded)).collect();
    for id in 0..matrix.outputs {
        let values: Vec<f64> = matrix.row(id)?.into_iter().map(f64::from).collect();
        for (row, bound) in wrong.iter_mut().zip(&bounds) {
            let is_it = |own: &[f64]| {
                own.len() == values.len()
                    && own.iter().zip(&values).all(|(x, y)| (x - y).abs() <= *bound)
            };
            let found = || Some(TableRow { ids: vec![id], values: values.clone() });
            if row.taken.is_none() && is_it(&row.recorded) {
                row.taken = found();
            }
            if row.added.is_none() && is_it(&row.error) {
                row.added = found();
            }
        }
    }
    let world = evidence.run.recording.tensors.world();
    let first_rows = [
        matrix.outputs / world,
        matrix.outputs.div_ceil(world),
        matrix.outputs.div_ceil(world).next_multiple_of(64),
    ];
    for each in first_rows.into_iter().filter(|_| world > 2) {
        // The larger shares come first.
        let over = matrix.outputs - (each * world).min(matrix.outputs);
        let starts = (0..world).map(|rank| rank * each + rank.min(over));
        let starts: Vec<usize> = starts.filter(|&start| start < matrix.outputs).collect();
        let table: Vec<Vec<f32>> =
            starts.iter().map(|&row| matrix.row(row)).collect::<Result<_, _>>()?;
        for (row, bound) in wrong.iter_mut().zip(&bounds).filter(|(row, _)| row.added.is_none()) {
            row.added = sum_of(&row.error, &table, &starts, world as f64 * bound);
        }
    }
    Ok(true)
}

/// The rows of which a vector is the sum.
fn sum_of(vector: &[f64], table: &[Vec<f32>], ids: &[usize], bound: f64) -> Option<TableRow> {
    let of_element = |i: usize| table.iter().map(|row| f64::from(row[i])).collect::<Vec<f64>>();
    let columns: Vec<Vec<f64>> = (0..vector.len()).map(of_element).collect();
    let counts = whole(&solve(&columns, vector)?, 0.01)?;
    let is_added = |(_, count): &(&usize, &i64)| **count == 1;
    let ids: Vec<usize> = ids.iter().zip(&counts).filter(is_added).map(|(&id, _)| id).collect();
    let sum =
        |row: &Vec<f64>| row.iter().zip(&counts).map(|(x, &count)| count as f64 * x).sum::<f64>();
    let values: Vec<f64> = columns.iter().map(sum).collect();
    let is_it = values.iter().zip(vector).all(|(x, y)| (x - y).abs() <= bound);
    (is_it && counts.iter().all(|count| (0..=1).contains(count)))
        .then_some(TableRow { ids, values })
}

/// `ids 256-511 have the row of id - 1`.
fn moved_ids(mut rows: Vec<(usize, Vec<usize>)>) -> String {
    rows.sort_unstable();
    rows.dedup();
    let off = |(id, taken): &(usize, Vec<usize>)| taken[0] as i64 - *id as i64;
    let part = |run: &[(usize, Vec<usize>)]| {
        let which = match run {
            [(id, _)] => format!("id {id} has"),
            [(first, _), .., (last, _)] => format!("ids {first} to {last} have"),
            [] => String::new(),
        };
        let (sign, by) = if off(&run[0]) < 0 { ('-', -off(&run[0])) } else { ('+', off(&run[0])) };
        format!("{which} the row of id {sign} {by}")
    };
    listed(&rows, |a, b| off(a) == off(b), part)
}

/// `to the rows of ids 12 to 200 row 256 is added: ids of another rank are not masked`.
fn added_rows(mut rows: Vec<(usize, Vec<usize>)>) -> String {
    rows.sort_unstable();
    rows.dedup();
    let part = |run: &[(usize, Vec<usize>)]| {
        let (first, last) = (run[0].0, run[run.len() - 1].0);
        let added: Vec<String> = run[0].1.iter().map(usize::to_string).collect();
        let (of, is) = if added.len() == 1 { ("row", "is") } else { ("rows", "are") };
        format!("{of} {} {is} added to those of ids {first} to {last}", added.join(" and "))
    };
    let parts = listed(&rows, |a, b| a.1 == b.1, part);
    format!("{parts}: a rank's rows for the ids of other ranks are not masked")
}

/// Runs of ids that are alike, of which some are named.
fn listed(
    rows: &[(usize, Vec<usize>)],
    alike: impl Fn(&(usize, Vec<usize>), &(usize, Vec<usize>)) -> bool,
    part: impl Fn(&[(usize, Vec<usize>)]) -> String,
) -> String {
    let runs: Vec<&[(usize, Vec<usize>)]> = rows.chunk_by(alike).collect();
    let mut named: Vec<String> = runs.iter().take(NAMED).map(|run| part(run)).collect();
    if runs.len() > NAMED {
        named.push(format!("{} more", runs.len() - NAMED));
    }
    named.join("; ")
}
