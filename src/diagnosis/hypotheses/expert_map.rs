//! Which expert's weights each slot was computed with, read off the results; slots whose results are exchanged.

use std::{collections::BTreeMap, rc::Rc};

use super::{Order, Visit};
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        Change, Edits, Evidence, StepEvidence,
        replay::{Machine, ReplayError, rules::Values},
    },
    graph::{NodeId, Op, site::Axis},
};

/// Rows of an expert, and their outputs, that its weights are read off.
const ROWS: usize = 3;
const OUTPUTS: usize = 8;
/// Bounds by which a value may miss the one of another expert, when that is sought.
const NEAR: f64 = 4.0;
/// Experts that are named.
const NAMED: usize = 3;
/// At most so many ranks are tried.
const MAX_RANKS: usize = 16;

/// Products with the weights of other experts, and results of other slots.
pub fn mixtures(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let root = evidence.graph().root(evidence.spec().node);
    if evidence.graph().node(root).op == Op::MulMatId {
        weights(evidence, root, visit)?;
    }
    exchanged(evidence, visit)
}

/// Results of slots that are those of other slots.
fn exchanged(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let axes = &evidence.spec().axes;
    let Some(slots) =
        axes.iter().find(|axis| axis.axis == Axis::Slot).filter(|slots| slots.size.is_fixed())
    else {
        return Ok(());
    };
    let (count, along, last) =
        (slots.size.fixed.max(1) as usize, slots.along, evidence.cone().last().copied());
    let orders: [(&str, Order); 3] = [
        ("the results of a token's slots in reverse order", |slot, n| n - 1 - slot),
        ("each slot has the result of the next slot", |slot, n| (slot + 1) % n),
        ("each slot has the result of the previous slot", |slot, n| (slot + n - 1) % n),
    ];
    for (text, order) in orders.into_iter().filter(|_| count > 1) {
        let moved = move |flat: usize, ne: [usize; 4]| {
            let step: usize = ne[..along].iter().product();
            let slot = flat / step % ne[along];
            flat - slot * step + order(slot, ne[along]) * step
        };
        let Some(last) = last else { return Ok(()) };
        let edit = Edits::one(last, Change::Order(Rc::new(moved)));
        visit(evidence.mistake(CauseKey::ExpertRank, text, &edit)?);
    }
    Ok(())
}

/// Elements of a slot that tell which weights made it.
struct Sample<'e> {
    input: Vec<f64>,
    /// Each with its output's number, what was recorded, and its bound.
    elements: Vec<(usize, f64, f64)>,
    step: &'e StepEvidence<'e>,
}

/// Slots computed with the weights of another expert.
fn weights(evidence: &Evidence<'_>, product: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let node = evidence.graph().node(product);
    let [Some(matrix), Some(input), Some(ids)] = [0, 1, 2].map(|source| node.source(source)) else {
        return Ok(());
    };
    let mut samples: BTreeMap<usize, Vec<Sample<'_>>> = BTreeMap::new();
    for (step, wrong) in evidence.steps.iter().zip(&evidence.wrong) {
        let (Some(ids), Some(x)) = (step.machine.argument(ids)?, step.machine.argument(input)?)
        else {
            return Ok(());
        };
        let (names, values, slots) = (ids.value()?, x.value()?, ids.ne[0]);
        let outputs = step.observed.piece.captured.len() / names.len().max(1);
        for (row, wrong) in
            wrong.chunks(outputs.max(1)).enumerate().filter(|(_, wrong)| wrong.contains(&true))
        {
            let own = samples.entry(names[row] as usize).or_default();
            if own.len() == ROWS {
                continue;
            }
            let from = (row / slots * x.ne[1] + row % slots % x.ne[1]) * x.ne[0];
            let piece = &step.observed.piece;
            let wrong: Vec<usize> = (0..wrong.len()).filter(|&output| wrong[output]).collect();
            let every = wrong.len().div_ceil(OUTPUTS).max(1);
            let element = |&output: &usize| {
                let flat = row * outputs + output;
                (output, f64::from(piece.captured[flat]), piece.expected.most_bound(flat))
            };
            let elements = wrong.iter().step_by(every).map(element).collect();
            own.push(Sample { input: values[from..from + x.ne[0]].to_vec(), elements, step });
        }
    }
    let mut map = BTreeMap::new();
    for (expert, samples) in samples {
        let machine = &samples[0].step.machine;
        let Some(argument) = machine.argument(matrix)? else { return Ok(()) };
        let Values::Weight(of_all) = &argument.values else { return Ok(()) };
        let (outputs, experts) = (argument.ne[1], argument.ne[2]);
        for other in (0..experts).filter(|&other| other != expert) {
            if is_of(&samples, |output| Ok(of_all.row(other * outputs + output)?))? {
                map.insert(expert, other);
                break;
            }
        }
    }
    if map.is_empty() {
        return Ok(());
    }
    let experts = node
        .source(0)
        .map_or(1, |matrix| evidence.graph().node(matrix).ne[2].fixed.max(1) as usize);
    let text = described(evidence, &map, experts);
    let values = move |_: &Machine<'_>, ids: &[f64], _: [usize; 4]| {
        let other = |&id: &f64| map.get(&(id as usize)).map_or(id, |&other| other as f64);
        Some(ids.iter().map(other).collect::<Vec<f64>>())
    };
    let edit = Edits::one(product, Change::Values(2, Rc::new(values)));
    visit(evidence.mistake(CauseKey::ExpertsSwapped, text, &edit)?);
    Ok(())
}

/// Whether the rows of an expert's weight give all samples.
fn is_of(
    samples: &[Sample<'_>],
    row: impl Fn(usize) -> Result<Vec<f32>, ReplayError>,
) -> Result<bool, ReplayError> {
    for sample in samples {
        for &(output, recorded, bound) in &sample.elements {
            let sum: f64 =
                row(output)?.iter().zip(&sample.input).map(|(&w, x)| f64::from(w) * x).sum();
            if (sum - recorded).abs() > NEAR * bound {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// `slots of expert 3 have the weights of expert 5`, or how ranks hold the experts.
fn described(evidence: &Evidence<'_>, map: &BTreeMap<usize, usize>, experts: usize) -> String {
    let world = evidence.run.recording.tensors.world();
    let worlds = if world > 1 { world..=world } else { 2..=MAX_RANKS };
    for world in worlds.filter(|&world| experts.is_multiple_of(world) && world < experts) {
        let each = experts / world;
        let in_blocks = |expert: usize| expert % each * world + expert / each;
        let in_turn = |expert: usize| expert % world * each + expert / world;
        let reversed = |expert: usize| (world - 1 - expert / each) * each + expert % each;
        let forms: [(&str, &dyn Fn(usize) -> usize); 3] = [
            (
                "the experts are assigned to {} ranks round-robin, but looked up in blocks",
                &in_blocks,
            ),
            ("the experts are assigned to {} ranks in blocks, but looked up round-robin", &in_turn),
            ("the experts of {} ranks in reverse order of the ranks", &reversed),
        ];
        let is_it =
            |of: &dyn Fn(usize) -> usize| map.iter().all(|(&expert, &other)| of(expert) == other);
        if let Some((text, _)) = forms.iter().find(|(_, of)| map.len() > 1 && is_it(of)) {
            return text.replace("{}", &world.to_string());
        }
    }
    let one = |(expert, other): (&usize, &usize)| {
        format!("slots of expert {expert} have the weights of expert {other}")
    };
    let mut named: Vec<String> = map.iter().take(NAMED).map(one).collect();
    if map.len() > NAMED {
        named.push(format!("{} more", map.len() - NAMED));
    }
    named.join("; ")
}
