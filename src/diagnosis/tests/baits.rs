//! Wrong results that some hypotheses only propose where they see them.

use std::collections::BTreeMap;

use half::{bf16, f16};

use crate::{
    core::{cause_key::CauseKey, tensor::Tensor},
    diagnosis::{
        replay::{Operation, Replay, projection},
        tests::subject::Subject,
    },
    graph::site::{Site, Stage},
};

/// A wrong result that some hypotheses only propose where they see it.
struct Bait {
    key: CauseKey,
    applies: fn(Stage) -> bool,
    /// Changes a step's right values, given the length of a row.
    change: fn(&mut [f32], usize),
}

fn is_plain(stage: Stage) -> bool {
    matches!(stage, Stage::OProj | Stage::AttnNorm | Stage::AttnOut | Stage::LayerOut)
}

const BAITS: [Bait; 10] = [
    Bait {
        key: CauseKey::OutputsTruncated,
        applies: |stage| projection(stage).is_some(),
        change: |values, width| {
            values.chunks_mut(width).for_each(|row| row[width - width / 4..].fill(0.0));
        },
    },
    Bait { key: CauseKey::Constant, applies: is_plain, change: |values, _| values.fill(1.5) },
    Bait {
        key: CauseKey::Scaled,
        applies: is_plain,
        change: |values, _| values.iter_mut().for_each(|x| *x *= 1.001),
    },
    Bait {
        key: CauseKey::Scaled,
        applies: is_plain,
        change: |values, _| values.iter_mut().for_each(|x| *x *= -3.7),
    },
    Bait {
        key: CauseKey::Offset,
        applies: is_plain,
        change: |values, _| values.iter_mut().for_each(|x| *x += 0.37),
    },
    Bait {
        key: CauseKey::RowsPermuted,
        applies: is_plain,
        change: |values, width| values.chunks_mut(width).for_each(|row| row.rotate_left(3)),
    },
    Bait {
        key: CauseKey::StoredCoarser,
        applies: is_plain,
        change: |values, _| values.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()),
    },
    Bait {
        key: CauseKey::StoredCoarser,
        applies: is_plain,
        change: |values, _| values.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
    },
    Bait {
        key: CauseKey::Overflow,
        applies: |stage| stage == Stage::AttnResidual,
        change: |values, _| values.iter_mut().filter(|x| x.abs() > 65504.0).for_each(overflow),
    },
    Bait {
        key: CauseKey::Window,
        applies: |stage| stage == Stage::Probs,
        change: |values, keys| {
            for row in values.chunks_mut(keys) {
                let last = row.iter().rposition(|&p| p > 0.0).unwrap();
                row[..(last + 1).saturating_sub(5)].fill(0.0);
                let sum: f32 = row.iter().sum();
                row.iter_mut().for_each(|p| *p /= sum);
            }
        },
    },
];

fn overflow(x: &mut f32) {
    *x *= f32::INFINITY;
}

pub type Results = BTreeMap<Site, Tensor>;

/// Wrong results of an operation, each with the key of its cause.
pub fn baits(subject: &Subject, operation: Operation) -> Vec<(CauseKey, Results)> {
    let right =
        |step: u32| (operation.site(step), subject.tensors.own[&operation.site(step)].clone());
    let steps = 0..subject.steps.len() as u32;
    let mut list = Vec::new();
    for bait in BAITS.iter().filter(|bait| (bait.applies)(operation.stage)) {
        let mut results: Results = steps.clone().map(right).collect();
        for tensor in results.values_mut() {
            let width = match operation.stage {
                Stage::Probs => tensor.shape[2],
                _ => tensor.shape[1..].iter().product(),
            };
            (bait.change)(&mut tensor.data, width);
        }
        list.push((bait.key, results));
    }
    let of_other = |key| (key, subject.computed(&subject.other, operation));
    match operation.stage {
        Stage::QRope | Stage::KRope => list.push(of_other(CauseKey::RopeTheta)),
        Stage::AttnNorm | Stage::QNorm | Stage::FinalNorm => list.push(of_other(CauseKey::Eps)),
        Stage::Scores => list.push(of_other(CauseKey::ScoreScale)),
        Stage::OProj => list.push((CauseKey::F16Accumulation, summed_in_f16(subject, operation))),
        Stage::Probs => list.push((CauseKey::SoftmaxOverflow, without_maximum(subject, operation))),
        _ => {}
    }
    list.retain(|(_, results)| subject.cause(operation, &subject.with(results.clone())).is_some());
    list
}

/// A projection whose sums are rounded to f16 term by term.
fn summed_in_f16(subject: &Subject, operation: Operation) -> Results {
    let replay = Replay::new(&subject.model, subject.recording(&subject.tensors));
    let weight = replay.weight(operation).unwrap();
    let row = |output: usize| weight.row(output).unwrap();
    let rows: Vec<Vec<f32>> = (0..weight.outputs).map(row).collect();
    let narrow = |x: f32| f16::from_f32(x).to_f32();
    let of_step = |step: u32| {
        let x = replay.operand(replay.input(operation), &[step]).unwrap();
        let sum = |x: &[f64], w: &[f32]| {
            x.iter().zip(w).fold(0.0, |sum, (x, w)| narrow(sum + *x as f32 * w))
        };
        let of_row = |t: usize| rows.iter().map(move |w| (t, w)).map(|(t, w)| sum(x.row(t), w));
        let data = (0..x.rows()).flat_map(of_row).collect::<Vec<f32>>();
        (operation.site(step), Tensor::new(vec![x.rows(), weight.outputs], data))
    };
    (0..subject.steps.len() as u32).map(of_step).collect()
}

/// A softmax in f32 that does not subtract the maximum.
fn without_maximum(subject: &Subject, operation: Operation) -> Results {
    let of_step = |step: u32| {
        let scores = &subject.tensors.own[&operation.at(Stage::Scores).site(step)];
        let (heads, keys) = (scores.shape[1], scores.shape[2]);
        let first = subject.recording(&subject.tensors).positions(step).start;
        let mut data = scores.data.clone();
        for (index, row) in data.chunks_mut(keys).enumerate() {
            let (seen, hidden) = row.split_at_mut(first + index / heads + 1);
            seen.iter_mut().for_each(|x| *x = x.exp());
            let sum: f32 = seen.iter().sum();
            seen.iter_mut().for_each(|x| *x /= sum);
            hidden.fill(0.0);
        }
        (operation.site(step), Tensor::new(scores.shape.clone(), data))
    };
    (0..subject.steps.len() as u32).map(of_step).collect()
}
