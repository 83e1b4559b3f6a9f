//! Sums over the ranks of an engine: a term that each rank added before the sum, a sum that was made twice, a rank
//! whose part is missing or counts more than once. How often each term counts is read off the result.

use super::{
    Visit,
    least_squares::{solve, whole},
};
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        Change, Edits, Evidence, StepEvidence,
        cause::Rank,
        replay::{Expected, ReplayError, Spread},
    },
    graph::{NodeId, Op, site::Stage},
};

/// How near to a whole number a count is.
const NEAR: f64 = 1e-3;
/// Roundings of a sum over ranks, in each of its terms.
const ROUNDINGS: f64 = 4.0;

/// Sums of tensors, and biases, where there are several ranks.
pub fn sums(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let world = evidence.run.recording.tensors.world();
    if world < 2 {
        return Ok(());
    }
    for sum in evidence.nodes(|node| node.op == Op::Add) {
        match evidence.weight_source(sum) {
            Some(bias) if is_of_sum(evidence)? => {
                let text = format!(
                    "the bias is added on each of {world} ranks before their sum: times {world}"
                );
                let edit = Edits::one(sum, Change::scaled(bias.source, world as f64));
                visit(evidence.mistake(CauseKey::RankSplit, text, &edit)?);
            }
            Some(_) => {}
            None => counted(evidence, sum, visit)?,
        }
    }
    Ok(())
}

/// Whether the site is a product whose inner dimension is divided.
fn is_of_sum(evidence: &Evidence<'_>) -> Result<bool, ReplayError> {
    let spec = evidence.spec();
    let Some(step) = evidence.steps.first() else { return Ok(false) };
    let parts = evidence.run.recording.tensors.partial_sums(spec.site(step.observed.step))?;
    Ok(!parts.is_empty() || matches!(spec.stage, Stage::OProj | Stage::FfnDown))
}

/// A term of a sum, in one step.
struct Term {
    values: Vec<f64>,
    /// The rank whose part it is; `None` where it is whole.
    rank: Option<usize>,
    /// Which of the two sources it is of.
    source: usize,
}

/// The terms of a sum in a step: both sources, each in the parts that ranks recorded.
fn terms(
    evidence: &Evidence<'_>,
    sum: NodeId,
    step: &StepEvidence<'_>,
) -> Result<Option<Vec<Term>>, ReplayError> {
    let length = step.observed.piece.captured.len();
    let mut list = Vec::new();
    for source in 0..2 {
        let Some(id) = evidence.graph().node(sum).source(source) else { return Ok(None) };
        let tensors = evidence.run.recording.tensors;
        let site = evidence
            .site_of(id)
            .map(|place| evidence.run.model.sites.specs()[place].site(step.observed.step));
        let parts = site.map_or(Ok(Vec::new()), |site| tensors.partial_sums(site))?;
        let whole = |data: Vec<f64>, rank| Term { values: data, rank, source };
        if parts.is_empty() {
            let Some(argument) = step.machine.argument(id)? else { return Ok(None) };
            list.push(whole(argument.value()?.into_owned(), None));
        }
        for (rank, part) in parts.into_iter().enumerate() {
            list.push(whole(part.data.iter().map(|&x| f64::from(x)).collect(), Some(rank)));
        }
    }
    Ok(list.iter().all(|term| term.values.len() == length).then_some(list))
}

/// How often each term counts.
fn counted(evidence: &Evidence<'_>, sum: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    // A sum that is the site itself: of another the terms are not told apart so simply.
    if evidence.cone().last() != Some(&sum) || !evidence.may_fit() {
        return Ok(());
    }
    let mut of_steps = Vec::new();
    for step in &evidence.steps {
        let Some(terms) = terms(evidence, sum, step)? else { return Ok(()) };
        of_steps.push(terms);
    }
    let Some(counts) = solved(evidence, &of_steps) else { return Ok(()) };
    let Some(text) = described(evidence, sum, &of_steps[0], &counts) else { return Ok(()) };
    visit(evidence.predicted(CauseKey::RankSplit, text, Rank::Mistake, |step| {
        let (right, terms) = (&step.observed.piece.expected, &of_steps[evidence.index_of(step)]);
        let sized = |i: usize| {
            terms.iter().zip(&counts).map(move |(term, &count)| count as f64 * term.values[i])
        };
        let n = right.value.len();
        let value: Vec<f64> = (0..n).map(|i| sized(i).sum()).collect();
        let own = |i: usize| {
            let size: f64 = sized(i).map(f64::abs).sum();
            right.single_of(i) + ROUNDINGS * right.rounding.sum * size
        };
        let single = (0..n).map(own).collect();
        let most = counts.iter().map(|count| count.abs()).max().unwrap_or(1) as f64;
        let spread = Spread::Each((0..n).map(|i| most * right.most_spread(i)).collect());
        Some(Expected { value, spread, single, rounding: right.rounding })
    }));
    Ok(())
}

/// Whole numbers of times, where they are not all one.
fn solved(evidence: &Evidence<'_>, of_steps: &[Vec<Term>]) -> Option<Vec<i64>> {
    const MOST: usize = 1 << 14;
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    let every = (evidence.count_wrong() / MOST).max(1) | 1;
    let mut nth = 0;
    for ((step, wrong), terms) in evidence.steps.iter().zip(&evidence.wrong).zip(of_steps) {
        for (i, _) in wrong.iter().enumerate().filter(|(_, wrong)| **wrong) {
            nth += 1;
            let recorded = f64::from(step.observed.piece.captured[i]);
            let row: Vec<f64> = terms.iter().map(|term| term.values[i]).collect();
            if nth % every == 0 && recorded.is_finite() && row.iter().all(|x| x.is_finite()) {
                rows.push(row);
                targets.push(recorded);
            }
        }
    }
    let counts = whole(&solve(&rows, &targets)?, NEAR)?;
    counts.iter().any(|&count| count != 1).then_some(counts)
}

/// Of some rows of a tensor, as the last layer computes, that tensor.
fn whole_of(evidence: &Evidence<'_>, id: NodeId) -> NodeId {
    let root = evidence.graph().root(id);
    let node = evidence.graph().node(root);
    let is_some_rows = node.op == Op::GetRows && evidence.weight_source(root).is_none();
    node.source(0).filter(|_| is_some_rows).unwrap_or(id)
}

/// Whether a term is what a layer's parts are added to.
fn is_residual(evidence: &Evidence<'_>, id: NodeId) -> bool {
    let specs = evidence.run.model.sites.specs();
    let stage = evidence.site_of(id).map(|place| specs[place].stage);
    matches!(stage, Some(Stage::Embd | Stage::LayerOut | Stage::AttnResidual))
}

/// What the counts say; `None` where no mistake with ranks makes such.
fn described(
    evidence: &Evidence<'_>,
    sum: NodeId,
    terms: &[Term],
    counts: &[i64],
) -> Option<String> {
    let world = evidence.run.recording.tensors.world();
    let mut said = Vec::new();
    for source in 0..2 {
        let own = || terms.iter().zip(counts).filter(|(term, _)| term.source == source);
        let id = whole_of(evidence, evidence.graph().node(sum).source(source)?);
        let name = evidence.name_of(id);
        let all = |count: usize| own().all(|(_, &own)| own == count as i64);
        if all(1) {
            continue;
        }
        if all(world) {
            said.push(if is_residual(evidence, id) {
                format!("{name} is added on each of {world} ranks before their sum: times {world}")
            } else {
                format!("{name} is summed over the {world} ranks twice: times {world}")
            });
            continue;
        }
        for (term, &count) in own().filter(|(_, count)| **count != 1) {
            let rank = term.rank?;
            said.push(match count {
                0 => format!("rank {rank}'s partial sum of {name} is left out"),
                2 => format!("rank {rank}'s partial sum of {name} is added twice"),
                count => format!("rank {rank}'s partial sum of {name} is added {count} times"),
            });
        }
    }
    Some(said.join("; "))
}
