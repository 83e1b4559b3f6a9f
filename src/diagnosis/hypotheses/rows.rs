//! Rows that are the right ones of other rows: of another token, of another sequence of the batch, or of padding.

use std::collections::BTreeSet;

use super::Visit;
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        Evidence, StepEvidence,
        cause::{Rank, Tried},
        evidence::gather,
        replay::{AsItIs, Expected, GraphRun, Recording, ReplayError, Spread},
    },
    graph::site::Axis,
    trace::OtherSequence,
};

/// Wrong elements that tell a row from another.
const LEAST_WRONG: usize = 8;
/// Elements of all rows that are computed.
const MOST: usize = 1 << 26;

/// Whose a row is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Itself,
    Sequence(u32),
    Padding,
}

/// The right results of a step of a sequence.
struct RightRows<'e> {
    owner: Owner,
    /// The step of the batch.
    step: u32,
    first_position: usize,
    count: usize,
    expected: Expected<'e>,
}

/// A row among the right ones: of which step, and which.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Origin {
    rows: usize,
    row: usize,
}

/// A row that is wrong, and the rows whose right results it has.
struct WrongRow {
    /// Of the evidence.
    step: usize,
    row: usize,
    origins: Vec<Origin>,
}

/// How the rows that are taken lie to those that should be.
#[derive(Clone, Copy)]
enum Relation {
    SamePosition(u32),
    SamePlace(u32),
    LastToken(u32),
    Before(usize),
    Padding,
}

/// Rows of others in place of a site's own.
pub fn of_others(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let axes = &evidence.spec().axes;
    let has_keys = axes.iter().any(|axis| matches!(axis.axis, Axis::Key | Axis::Position));
    let is_of_tokens = axes.first().is_some_and(|axis| axis.axis == Axis::Token) && !has_keys;
    if !is_of_tokens || evidence.is_through_caches() {
        return Ok(());
    }
    let Some(mut wrong) = wrong_rows(evidence) else { return Ok(()) };
    let recording = &evidence.run.recording;
    let others = recording.tensors.others()?;
    let recorded: Vec<_> = others.iter().map(OtherSequence::recorded).collect();
    let tokens: Vec<_> = others.iter().map(OtherSequence::steps).collect();
    let own = evidence.steps.iter().map(tokens_of).sum::<usize>();
    let rows = own + tokens.iter().flatten().map(Vec::len).sum::<usize>();
    let first = &evidence.steps[0];
    if rows * (evidence.wrong[0].len() / tokens_of(first)) > MOST {
        return Ok(());
    }
    let mut right = rows_of(evidence, Owner::Itself)?;
    for ((other, tensors), steps) in others.iter().zip(&recorded).zip(&tokens) {
        let recording = Recording { tensors: &**tensors, steps, ..*recording };
        let last = (steps.len() as u32).saturating_sub(1);
        if recording.positions(last).end > evidence.run.inputs.tokens {
            continue;
        }
        let run = GraphRun { recording, ..evidence.run };
        for own in gather(run, &BTreeSet::from([evidence.place]))? {
            right.extend(rows_of(&own, Owner::Sequence(other.number))?);
        }
    }
    right.extend(padding(evidence)?);
    for row in &mut wrong {
        row.origins = origins(evidence, &right, row);
        if row.origins.is_empty() {
            return Ok(());
        }
    }
    if let Some((text, chosen)) = described(evidence, &right, &wrong) {
        let tried = evidence.predicted(CauseKey::RowOfOther, text, Rank::Likeness, |step| {
            let at = evidence.index_of(step);
            let moved = wrong.iter().zip(&chosen).filter(|(row, _)| row.step == at);
            let moved = moved.map(|(row, &origin)| (row.row, origin));
            Some(with_rows(&step.observed.piece.expected, tokens_of(step), &right, moved))
        });
        visit(tried.map(|tried| Tried { mistakes: 2, ..tried }));
    }
    Ok(())
}

fn tokens_of(step: &StepEvidence<'_>) -> usize {
    step.machine.extent.tokens.max(1)
}

/// The rows that are wrong; `None` where one is in too few elements to be another.
fn wrong_rows(evidence: &Evidence<'_>) -> Option<Vec<WrongRow>> {
    let mut rows = Vec::new();
    for (at, (step, wrong)) in evidence.steps.iter().zip(&evidence.wrong).enumerate() {
        let width = wrong.len() / tokens_of(step);
        for (row, wrong) in wrong.chunks(width.max(1)).enumerate() {
            match wrong.iter().filter(|&&wrong| wrong).count() {
                0 => {}
                count if count < LEAST_WRONG => return None,
                _ => rows.push(WrongRow { step: at, row, origins: Vec::new() }),
            }
        }
    }
    (!rows.is_empty()).then_some(rows)
}

/// The right results of all rows of a sequence, whether they were recorded or not.
fn rows_of<'e>(evidence: &Evidence<'e>, owner: Owner) -> Result<Vec<RightRows<'e>>, ReplayError> {
    let mut all = Vec::new();
    for step in &evidence.steps {
        let again = step.machine.again(evidence.place, &step.cone, &AsItIs)?;
        let (count, first_position) = (tokens_of(step), step.machine.first_position);
        let step = evidence.run.recording.tensors.step_of_batch(step.observed.step);
        all.extend(again.map(|expected| RightRows {
            owner,
            step,
            first_position,
            count,
            expected,
        }));
    }
    Ok(all)
}

/// The rows of padding as they were recorded: nothing says what they must be.
fn padding(evidence: &Evidence<'_>) -> Result<Vec<RightRows<'static>>, ReplayError> {
    let tensors = evidence.run.recording.tensors;
    let mut all = Vec::new();
    for step in &evidence.steps {
        let own = step.observed.step;
        for row in tensors.padding_rows(evidence.spec().site(own))? {
            let value = row.values.into_iter().map(f64::from).collect();
            let rounding = step.observed.piece.expected.rounding;
            let expected = Expected { value, spread: Spread::None, single: Vec::new(), rounding };
            let (owner, step) = (Owner::Padding, tensors.step_of_batch(own));
            all.push(RightRows { owner, step, first_position: row.row, count: 1, expected });
        }
    }
    Ok(all)
}

/// The rows, of no later step, whose right results a row has.
fn origins(evidence: &Evidence<'_>, right: &[RightRows<'_>], wrong: &WrongRow) -> Vec<Origin> {
    let step = &evidence.steps[wrong.step];
    let captured = &step.observed.piece.captured;
    let width = captured.len() / tokens_of(step);
    let own = &captured[wrong.row * width..(wrong.row + 1) * width];
    let of_batch = evidence.run.recording.tensors.step_of_batch(step.observed.step);
    let fits = |&Origin { rows, row }: &Origin| {
        let expected = &right[rows].expected;
        let at = row * width;
        let is_within = |(i, &x): (usize, &f32)| {
            expected.value[at + i].is_finite()
                && expected.times_bound(at + i, x).is_some_and(|times| times <= 1.0)
        };
        expected.value.len() == right[rows].count * width && own.iter().enumerate().all(is_within)
    };
    let earlier = right.iter().enumerate().filter(|(_, rows)| rows.step <= of_batch);
    let all = earlier.flat_map(|(rows, of)| (0..of.count).map(move |row| Origin { rows, row }));
    all.filter(fits).collect()
}

impl Relation {
    fn holds(
        self,
        own: &StepEvidence<'_>,
        wrong: &WrongRow,
        of: &RightRows<'_>,
        row: usize,
    ) -> bool {
        let tensors = own.machine.run.recording.tensors;
        let is_now = of.step == tensors.step_of_batch(own.observed.step);
        let (position, from) = (own.machine.first_position + wrong.row, of.first_position + row);
        match self {
            Relation::SamePosition(number) => {
                of.owner == Owner::Sequence(number) && from == position
            }
            Relation::SamePlace(number) => {
                of.owner == Owner::Sequence(number) && is_now && row == wrong.row
            }
            Relation::LastToken(number) => {
                of.owner == Owner::Sequence(number) && is_now && row + 1 == of.count
            }
            Relation::Before(count) => of.owner == Owner::Itself && from + count == position,
            Relation::Padding => of.owner == Owner::Padding,
        }
    }

    fn text(self) -> String {
        match self {
            Relation::SamePosition(n) => format!("rows of sequence {n} at the same positions"),
            Relation::SamePlace(n) => format!("rows of sequence {n} at the same place in the step"),
            Relation::LastToken(n) => format!("rows of sequence {n}'s last token"),
            Relation::Before(1) => "rows of the previous token".into(),
            Relation::Before(count) => format!("rows from {count} tokens earlier"),
            Relation::Padding => "rows of padding".into(),
        }
    }

    fn owner(self) -> Owner {
        match self {
            Relation::SamePosition(n) | Relation::SamePlace(n) | Relation::LastToken(n) => {
                Owner::Sequence(n)
            }
            Relation::Before(_) => Owner::Itself,
            Relation::Padding => Owner::Padding,
        }
    }
}

/// Which rows are taken in words, and the one that each wrong row has; `None` where several are alike.
fn described(
    evidence: &Evidence<'_>,
    right: &[RightRows<'_>],
    wrong: &[WrongRow],
) -> Option<(String, Vec<Origin>)> {
    if wrong.len() > 1
        && let Some(found) = related(evidence, right, wrong)
    {
        return found;
    }
    let only = |row: &WrongRow| match row.origins[..] {
        [only] => Some(only),
        // Which row of padding it is does not matter.
        [first, ..] if row.origins.iter().all(|of| right[of.rows].owner == Owner::Padding) => {
            Some(first)
        }
        _ => None,
    };
    let chosen: Vec<Origin> = wrong.iter().map(only).collect::<Option<_>>()?;
    let (row, of) = (&wrong[0], &right[chosen[0].rows]);
    let from = of.first_position + chosen[0].row;
    let to = evidence.steps[row.step].machine.first_position + row.row;
    let what = match of.owner {
        Owner::Itself => format!("row of token {from}"),
        Owner::Sequence(number) => format!("row of sequence {number}, token {from},"),
        Owner::Padding => "row of padding".into(),
    };
    let more = match wrong.len() - 1 {
        0 => String::new(),
        more => format!("; {more} more rows differ"),
    };
    Some((format!("{what} in place of token {to}{more}"), chosen))
}

/// The relation that all rows are in: an inner `None` where rows of several sequences are.
fn related(
    evidence: &Evidence<'_>,
    right: &[RightRows<'_>],
    wrong: &[WrongRow],
) -> Option<Option<(String, Vec<Origin>)>> {
    let first = &wrong[0];
    let position = evidence.steps[first.step].machine.first_position + first.row;
    let mut relations: Vec<Relation> = Vec::new();
    for origin in &first.origins {
        let of = &right[origin.rows];
        match of.owner {
            Owner::Sequence(number) => relations.extend([
                Relation::SamePosition(number),
                Relation::SamePlace(number),
                Relation::LastToken(number),
            ]),
            Owner::Itself => {
                let before = position.checked_sub(of.first_position + origin.row);
                relations.extend(before.filter(|&before| before > 0).map(Relation::Before));
            }
            Owner::Padding => relations.push(Relation::Padding),
        }
    }
    let chosen = |relation: Relation| -> Option<Vec<Origin>> {
        let origin = |row: &WrongRow| {
            let step = &evidence.steps[row.step];
            let holds = |of: &&Origin| relation.holds(step, row, &right[of.rows], of.row);
            row.origins.iter().find(holds).copied()
        };
        wrong.iter().map(origin).collect()
    };
    let mut found = relations.into_iter().filter_map(|own| Some((own, chosen(own)?)));
    let (relation, origins) = found.next()?;
    let is_alone = found.all(|(other, _)| other.owner() == relation.owner());
    Some(is_alone.then(|| (relation.text(), origins)))
}

/// A step's right result with rows of others in place of some.
fn with_rows(
    own: &Expected<'_>,
    tokens: usize,
    right: &[RightRows<'_>],
    moved: impl Iterator<Item = (usize, Origin)>,
) -> Expected<'static> {
    let n = own.value.len();
    let mut value = own.value.clone();
    let mut spread: Vec<f64> = (0..n).map(|i| own.most_spread(i)).collect();
    let mut single: Vec<f64> = (0..n).map(|i| own.single_of(i)).collect();
    let width = n / tokens;
    for (row, origin) in moved {
        let from = &right[origin.rows].expected;
        for i in 0..width {
            let (to, at) = (row * width + i, origin.row * width + i);
            value[to] = from.value[at];
            spread[to] = from.most_spread(at);
            single[to] = from.single_of(at);
        }
    }
    Expected { value, spread: Spread::Each(spread), single, rounding: own.rounding }
}
