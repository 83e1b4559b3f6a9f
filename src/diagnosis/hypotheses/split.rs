//! Work that is divided over ranks in one way and put together in another.

use std::sync::Arc;

use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        replay::{Matrix, ReplayError, ops, projection},
        scene::{Candidate, Scene, Visit},
    },
    graph::site::Stage,
};

const KEY: CauseKey = CauseKey::RankSplit;
/// At most this many ranks are tried.
const MAX_RANKS: usize = 16;
/// Larger weights are not held whole.
const MAX_ELEMENTS: usize = 1 << 26;

/// What a projection's outputs or inputs are divided into.
struct Parts {
    what: &'static str,
    count: usize,
    /// Elements of each.
    size: usize,
}

impl Parts {
    /// The place at which the right value of an element is, if `order` gives that of a part.
    fn place(&self, order: &[usize], element: usize) -> usize {
        order[element / self.size] * self.size + element % self.size
    }

    /// Wrong ways to divide them: for each place in the order of the ranks, the part that is there.
    fn orders(&self) -> Vec<(String, Vec<usize>)> {
        let (mut orders, what) = (Vec::new(), self.what);
        for world in (2..=MAX_RANKS).filter(|&world| self.count.is_multiple_of(world)) {
            let each = self.count / world;
            let mut with = |text: String, part: &dyn Fn(usize, usize) -> usize| {
                let order: Vec<usize> =
                    (0..self.count).map(|at| part(at / each, at % each)).collect();
                if order.iter().enumerate().any(|(at, &part)| at != part) {
                    orders.push((text, order));
                }
            };
            with(
                format!("{what} dealt to {world} ranks in turn, put together in blocks"),
                &|r, i| i * world + r,
            );
            with(format!("each of {world} ranks has the first one's {what}"), &|_, i| i);
            with(format!("the {what} of {world} ranks in reverse order of the ranks"), &|r, i| {
                (world - 1 - r) * each + i
            });
        }
        orders
    }
}

/// The right outputs, of other parts than those of the rank.
pub fn outputs<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let (c, heads) = (scene.config(), scene.heads());
    let parts = match scene.stage() {
        Stage::Q => Parts { what: "query heads", count: c.n_head, size: heads.dim },
        Stage::K | Stage::V => Parts { what: "KV heads", count: c.n_head_kv, size: heads.dim },
        Stage::FfnGate | Stage::FfnUp => Parts { what: "neurons", count: c.n_ff, size: 1 },
        _ => Parts { what: "vocabulary ids", count: c.n_vocab, size: 1 },
    };
    for (text, order) in parts.orders() {
        let from = |row, column| (row, parts.place(&order, column));
        visit(Candidate::mistake(KEY, text, scene.rearranged(from)))?;
    }
    Ok(())
}

/// Columns of the weight that are those of another rank's inputs.
pub fn inputs<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let (c, weight) = (scene.config(), scene.replay.weight(scene.operation)?);
    if weight.outputs * weight.inputs > MAX_ELEMENTS {
        return Ok(());
    }
    let parts = match scene.stage() {
        Stage::OProj => {
            Parts { what: "columns of heads", count: c.n_head, size: scene.heads().dim }
        }
        _ => Parts { what: "columns of neurons", count: c.n_ff, size: 1 },
    };
    let flat: Arc<[f32]> = weight.flat()?.into();
    let bias = scene.replay.bias(scene.operation)?;
    for (text, order) in parts.orders() {
        let columns: Vec<usize> = (0..weight.inputs).map(|i| parts.place(&order, i)).collect();
        let (flat, inputs) = (Arc::clone(&flat), weight.inputs);
        let moved =
            Matrix::of_elements(weight.outputs, inputs, move |o, i| flat[o * inputs + columns[i]]);
        visit(product(scene, text, &moved, bias.as_deref())?)?;
    }
    Ok(())
}

/// A fused weight of q, k and v cut into equal parts, one a rank, as if it were one projection.
pub fn fused_qkv<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let stages = [Stage::Q, Stage::K, Stage::V];
    let (mut flat, mut rows, mut biases) = (Vec::new(), Vec::new(), Vec::new());
    let inputs = scene.replay.weight(scene.operation)?.inputs;
    for stage in stages {
        let operation = scene.operation.at(stage);
        let weight = scene.replay.weight(operation)?;
        if weight.outputs * weight.inputs > MAX_ELEMENTS {
            return Ok(());
        }
        flat.extend(weight.flat()?);
        rows.push(weight.outputs);
        biases.extend(scene.replay.bias(operation)?.unwrap_or(vec![0.0; weight.outputs]));
    }
    let (flat, all): (Arc<[f32]>, usize) = (flat.into(), rows.iter().sum());
    let own = stages.iter().position(|&stage| stage == scene.stage()).unwrap_or(0);
    let has_bias = scene.replay.bias(scene.operation)?.is_some();
    for world in (2..=MAX_RANKS).filter(|world| rows.iter().all(|n| n.is_multiple_of(*world))) {
        let (each, before) = (rows[own] / world, rows[..own].iter().sum::<usize>() / world);
        let row = move |o: usize| o / each * (all / world) + before + o % each;
        let bias: Vec<f32> = (0..rows[own]).map(|o| biases[row(o)]).collect();
        let flat = Arc::clone(&flat);
        let moved = Matrix::of_elements(rows[own], inputs, move |o, i| flat[row(o) * inputs + i]);
        let text = format!(
            "the fused weight of q, k and v is cut into {world} equal parts for as many ranks"
        );
        visit(product(scene, text, &moved, has_bias.then_some(bias.as_slice()))?)?;
    }
    Ok(())
}

/// The projection by another weight, computed whole if it explains any element of the probe.
fn product<'a>(
    scene: &Scene<'_, 'a>,
    text: String,
    weight: &Matrix<'a>,
    bias: Option<&[f32]>,
) -> Result<Candidate<'a>, ReplayError> {
    let (x, rounding) = (scene.input()?, scene.rounding());
    if let Some(cells) = scene.probe.cells.first() {
        let few: Option<Vec<f32>> =
            bias.map(|bias| cells.columns.iter().map(|&output| bias[output]).collect());
        let chosen = weight.select(&cells.columns);
        let rows = Arc::new(x.select(&cells.rows));
        let found = ops::linear(&rows, &chosen, few.as_deref(), rounding)?;
        if !scene.explains(cells, &found) {
            return Ok(Candidate::refuted(KEY, text));
        }
    }
    let parts = scene.whole(ops::linear(&x, weight, bias, rounding)?);
    Ok(Candidate::mistake(KEY, text, parts))
}

/// Whether a projection's outputs are divided over ranks, and those of the others its inputs.
pub fn has_split_outputs(stage: Stage) -> bool {
    projection(stage).is_some() && !has_split_inputs(stage)
}

/// Whether a projection's inputs are divided over ranks.
pub fn has_split_inputs(stage: Stage) -> bool {
    matches!(stage, Stage::OProj | Stage::FfnDown)
}
