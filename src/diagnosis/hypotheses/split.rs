//! Work that is divided over ranks in one way and put together in another.

use std::{rc::Rc, sync::Arc};

use super::{Visit, near::WeightSource};
use crate::{
    core::{cause_key::CauseKey, tensor::DType},
    diagnosis::{
        Change, Edits, Evidence,
        replay::{Machine, Matrix, ReplayError},
    },
    graph::{NodeId, Op, site::Stage},
};

/// At most this many ranks are tried.
const MAX_RANKS: usize = 16;
/// Larger weights are not held whole.
const MAX_ELEMENTS: usize = 1 << 26;

/// What a product's outputs or inputs are divided into.
struct Parts {
    what: &'static str,
    count: usize,
    /// Elements of each.
    size: usize,
}

impl Parts {
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
                format!("{what} assigned to {world} ranks round-robin, but gathered in blocks"),
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

/// Outputs of other ranks, columns of other ranks' inputs, or a fused weight cut in equal parts.
pub fn ranks(
    evidence: &Evidence<'_>,
    product: NodeId,
    visit: Visit<'_>,
) -> Result<(), ReplayError> {
    // Of several products on the way the site's own is meant.
    let weight = evidence.weight_source(product).map(|weight| weight.name);
    if weight != evidence.spec().weight {
        return Ok(());
    }
    match evidence.spec().stage {
        Stage::OProj | Stage::FfnDown => inputs(evidence, product, visit),
        Stage::Q | Stage::K | Stage::V => {
            outputs(evidence, product, visit)?;
            fused_qkv(evidence, product, visit)
        }
        Stage::FfnGate | Stage::FfnUp | Stage::Logits => outputs(evidence, product, visit),
        _ => Ok(()),
    }
}

/// Elements of a node's row.
fn width(evidence: &Evidence<'_>, id: NodeId) -> usize {
    evidence.graph().node(id).ne[0].fixed.max(1) as usize
}

/// The right outputs, of other parts than those of the rank.
fn outputs(evidence: &Evidence<'_>, product: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let (stage, width) = (evidence.spec().stage, width(evidence, product));
    let parts = match (stage, evidence.heads()) {
        (Stage::Q, Some(heads)) => {
            Parts { what: "query heads", count: width / heads.dim, size: heads.dim }
        }
        (Stage::K | Stage::V, Some(heads)) => {
            Parts { what: "KV heads", count: width / heads.dim, size: heads.dim }
        }
        (Stage::Logits, _) => Parts { what: "vocabulary ids", count: width, size: 1 },
        _ => Parts { what: "neurons", count: width, size: 1 },
    };
    let last = evidence.cone().last().copied().unwrap_or(product);
    for (text, order) in parts.orders() {
        let size = parts.size;
        let from = move |i: usize, _: [usize; 4]| {
            let (row, column) = (i / width, i % width);
            row * width + order[column / size] * size + column % size
        };
        let edit = Edits::one(last, Change::Order(Rc::new(from)));
        visit(evidence.mistake(CauseKey::RankSplit, text, &edit)?);
    }
    Ok(())
}

/// Columns of the weight that are those of another rank's inputs: as if the inputs were in another order.
fn inputs(evidence: &Evidence<'_>, product: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let Some(source) = evidence.graph().node(product).source(1) else { return Ok(()) };
    let width = width(evidence, source);
    let dim = evidence.run.model.sites.specs().iter().find_map(|spec| {
        let is_dim = |axis: &&crate::graph::SiteAxis| axis.axis == crate::graph::site::Axis::Dim;
        let own = spec.stage == Stage::AttnOut && spec.layer == evidence.spec().layer;
        own.then(|| spec.axes.iter().find(is_dim).map(|axis| axis.size.fixed as usize)).flatten()
    });
    let parts = match (evidence.spec().stage, dim) {
        (Stage::OProj, Some(dim)) if dim > 0 => {
            Parts { what: "columns of heads", count: width / dim, size: dim }
        }
        _ => Parts { what: "columns of neurons", count: width, size: 1 },
    };
    for (text, order) in parts.orders() {
        let size = parts.size;
        let gathered = move |_: &Machine<'_>, values: &[f64], _: [usize; 4]| {
            let mut moved = vec![0.0; values.len()];
            for (row, to) in values.chunks_exact(width).zip(moved.chunks_exact_mut(width)) {
                for (i, x) in row.iter().enumerate() {
                    to[order[i / size] * size + i % size] += x;
                }
            }
            Some(moved)
        };
        let edit = Edits::one(product, Change::Values(1, Rc::new(gathered)));
        visit(evidence.mistake(CauseKey::RankSplit, text, &edit)?);
    }
    Ok(())
}

/// A fused weight of q, k and v cut into equal parts, one a rank, as if it were one projection.
fn fused_qkv(
    evidence: &Evidence<'_>,
    product: NodeId,
    visit: Visit<'_>,
) -> Result<(), ReplayError> {
    let stages = [Stage::Q, Stage::K, Stage::V];
    let specs = evidence.run.model.sites.specs();
    let layer = evidence.spec().layer;
    let weight_of = |stage| {
        let spec = specs.iter().find(|spec| spec.stage == stage && spec.layer == layer)?;
        spec.weight.clone()
    };
    let Some(names) = stages.map(weight_of).into_iter().collect::<Option<Vec<String>>>() else {
        return Ok(());
    };
    let is_fused = names[0] == names[1];
    let arithmetic = evidence.run.recording.arithmetic;
    let of_file = |name: &str, dtype: DType| Matrix::of_file(evidence.run.file, name, dtype);
    let (mut flat, mut rows, mut biases) = (Vec::new(), Vec::new(), Vec::new());
    for name in &names {
        let weight = of_file(name, arithmetic.weights)?;
        if is_fused || weight.outputs * weight.inputs > MAX_ELEMENTS {
            return Ok(());
        }
        flat.extend(weight.flat()?);
        rows.push(weight.outputs);
        let bias = name.replace(".weight", ".bias");
        biases.extend(if evidence.run.file.has(&bias) {
            of_file(&bias, arithmetic.vectors.unwrap_or(DType::F32))?.flat()?
        } else {
            vec![0.0; weight.outputs]
        });
    }
    let inputs = flat.len() / rows.iter().sum::<usize>().max(1);
    let (flat, all): (Arc<[f32]>, usize) = (flat.into(), rows.iter().sum());
    let own = stages.iter().position(|&stage| stage == evidence.spec().stage).unwrap_or(0);
    let sum = evidence.nodes(|node| node.op == Op::Add).into_iter().find_map(|sum| {
        let WeightSource { source, .. } = evidence.weight_source(sum)?;
        Some((sum, source))
    });
    for world in (2..=MAX_RANKS).filter(|world| rows.iter().all(|n| n.is_multiple_of(*world))) {
        let (each, before) = (rows[own] / world, rows[..own].iter().sum::<usize>() / world);
        let row = move |o: usize| o / each * (all / world) + before + o % each;
        let (flat, outputs) = (Arc::clone(&flat), rows[own]);
        let matrix = other_matrix(move |_| {
            let flat = Arc::clone(&flat);
            Ok(Matrix::of_elements(outputs, inputs, move |o, i| flat[row(o) * inputs + i]))
        });
        let mut edit = Edits::one(product, matrix);
        if let Some((sum, source)) = sum {
            let moved: Vec<f64> = (0..rows[own]).map(|o| f64::from(biases[row(o)])).collect();
            let values = move |_: &Machine<'_>, _: &[f64], _: [usize; 4]| Some(moved.clone());
            edit = edit.and(&Edits::one(sum, Change::Values(source, Rc::new(values))));
        }
        let text = format!(
            "the fused weight of q, k and v is cut into {world} equal parts for as many ranks"
        );
        visit(evidence.mistake(CauseKey::RankSplit, text, &edit)?);
    }
    Ok(())
}

/// The weight of a product as a matrix that is made.
fn other_matrix<'c>(
    of: impl for<'a> Fn(&Machine<'a>) -> Result<Matrix<'a>, ReplayError> + 'c,
) -> Change<'c> {
    Change::Matrix(0, Rc::new(of))
}
