//! Mistakes in a product with a weight: its bias, its weight, its input, its rows.

use super::{Scalar, Visit, near::WeightSource};
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        by_graph::{Change, Edits, Evidence},
        replay::ReplayError,
    },
    graph::{NodeId, Op},
};

/// Weights of more elements are not read in another order.
const MAX_ELEMENTS: usize = 1 << 26;

/// Products with weights.
pub fn products(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let products = evidence.nodes(|node| matches!(node.op, Op::MulMat | Op::MulMatId));
    for &product in &products {
        if evidence.weight_source(product).is_none_or(|weight| weight.source != 0) {
            continue;
        }
        weights(evidence, product, visit)?;
        inputs(evidence, product, visit)?;
        rows(evidence, product, visit)?;
        for bias in evidence.nodes(|node| matches!(node.op, Op::Add | Op::AddId)) {
            biases(evidence, bias, visit)?;
        }
    }
    Ok(())
}

/// A bias that is missing, changed, or that of another.
pub fn biases(evidence: &Evidence<'_>, sum: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let Some(WeightSource { source, name }) = evidence.weight_source(sum) else { return Ok(()) };
    let kept = usize::from(source == 0);
    let edit = Edits::one(sum, Change::LeftOut(kept));
    visit(evidence.mistake(CauseKey::BiasMissing, format!("{name} is not added"), &edit)?);
    let changes: [(CauseKey, &str, Scalar); 2] = [
        (CauseKey::BiasTwice, "bias added twice", |b| 2.0 * b),
        (CauseKey::BiasNegated, "bias subtracted", |b| -b),
    ];
    for (key, text, of) in changes {
        visit(evidence.mistake(key, text, &Edits::one(sum, Change::each(source, of)))?);
    }
    let first = Change::moved(source, |_, _| Some(0));
    let text = "the first bias added to every output";
    visit(evidence.mistake(CauseKey::BiasBroadcast, text, &Edits::one(sum, first))?);
    if let Some(dim) = evidence.heads().map(|heads| heads.dim) {
        let first = Change::moved(source, move |i, _| Some(i % dim));
        let text = "the first head's bias added to every head";
        visit(evidence.mistake(CauseKey::BiasBroadcast, text, &Edits::one(sum, first))?);
    }
    if evidence.graph().node(sum).op == Op::Add {
        let text = format!("multiplied by {name} instead of added to it");
        let edit = Edits::one(sum, Change::Op(Op::Mul));
        visit(evidence.mistake(CauseKey::OperationOther, text, &edit)?);
    }
    let keys = [CauseKey::BiasOfOtherLayer, CauseKey::BiasOfOther];
    evidence.of_other_weights(sum, keys, visit)
}

fn weights(evidence: &Evidence<'_>, product: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let zero = Edits::one(product, Change::ZeroWeight(0));
    visit(evidence.mistake(CauseKey::WeightZero, "the weight is all zero", &zero)?);
    let node = evidence.graph().node(product);
    let Some(weight) = node.source(0).map(|source| evidence.graph().node(source)) else {
        return Ok(());
    };
    let [inputs, outputs] = [weight.ne[0], weight.ne[1]].map(|n| n.fixed.max(1) as usize);
    let elements = weight.ne.iter().map(|n| n.fixed.max(1) as usize).product::<usize>();
    if elements <= MAX_ELEMENTS {
        let size = inputs * outputs;
        let transposed = move |i: usize, _: [usize; 4]| {
            let (block, i) = (i / size, i % size);
            Some(block * size + i % inputs * outputs + i / inputs)
        };
        let edit = Edits::one(product, Change::moved(0, transposed));
        let text = "weight read transposed, as (inputs, outputs)";
        visit(evidence.mistake(CauseKey::WeightTransposed, text, &edit)?);
    }
    let keys = [CauseKey::WeightOfOtherLayer, CauseKey::WeightOfOther];
    evidence.of_other_weights(product, keys, visit)?;
    let is_logits = evidence.spec().stage == crate::graph::site::Stage::Logits;
    if is_logits && evidence.run.file.has("output.weight") {
        let text = "token_embd.weight in place of output.weight: the output is not tied";
        let edit = Edits::one(product, Change::Weight(0, "token_embd.weight".into()));
        visit(evidence.mistake(CauseKey::TiedOutput, text, &edit)?);
    }
    Ok(())
}

/// Only a part of the sum, or the sum over another tensor.
fn inputs(evidence: &Evidence<'_>, product: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let Some(input) = evidence.graph().node(product).source(1) else { return Ok(()) };
    let inputs = evidence.graph().node(input).ne[0].fixed.max(1) as usize;
    let mut lengths = vec![inputs / 2, inputs / 4, 3 * inputs / 4, inputs - 1];
    lengths.extend([32, 64, 128, 256].map(|step| inputs / step * step));
    lengths.extend([32, 64, 128, 256, 512, 1024]);
    lengths.retain(|&n| 0 < n && n < inputs);
    lengths.sort_unstable();
    lengths.dedup();
    for n in lengths {
        let cut = Change::moved(1, move |i, ne| (i % ne[0] < n).then_some(i));
        let text = format!("only the first {n} of {inputs} inputs are summed");
        visit(evidence.mistake(CauseKey::InnerTruncated, text, &Edits::one(product, cut))?);
    }
    evidence.other_inputs(product, 1, &|_| CauseKey::InputOfOther, visit)
}

/// A place in a row, of the place in the row that it should be.
type Place = Box<dyn Fn(usize) -> usize>;

/// Orders of a row of `width` elements, of which `dim` make a head.
pub fn orders(width: usize, dims: &[usize]) -> Vec<(String, Place)> {
    let mut list: Vec<(String, Place)> = Vec::new();
    let mut add = |text: String, place: Place| list.push((text, place));
    let mut dims: Vec<usize> = dims.to_vec();
    dims.retain(|&dim| dim > 1 && width.is_multiple_of(dim));
    for dim in dims {
        let heads = width / dim;
        let within = move |of: fn(usize, usize) -> usize| -> Place {
            Box::new(move |c| c / dim * dim + of(c % dim, dim))
        };
        if dim.is_multiple_of(2) {
            let of_head = if heads == 1 { String::new() } else { format!(" of each {dim}") };
            let text = format!("rows (i, i+d/2){of_head} stored as (2i, 2i+1)");
            add(text, within(|c, d| c % 2 * (d / 2) + c / 2));
            let text = format!("rows (2i, 2i+1){of_head} stored as (i, i+d/2)");
            add(text, within(|c, d| c % (d / 2) * 2 + c / (d / 2)));
            let text = format!("the halves{of_head} exchanged");
            add(text, within(|c, d| (c + d / 2) % d));
            add(format!("neighbouring rows{of_head} exchanged"), within(|c, _| c ^ 1));
        }
        add(format!("rows of each {dim} in reverse order"), within(|c, d| d - 1 - c));
        if heads < 2 {
            continue;
        }
        let reversed = move |c: usize| (heads - 1 - c / dim) * dim + c % dim;
        add(format!("heads of {dim} rows in reverse order"), Box::new(reversed));
        let neighbours = move |c: usize| {
            let head = c / dim;
            (if (head ^ 1) < heads { head ^ 1 } else { head }) * dim + c % dim
        };
        add(format!("neighbouring heads of {dim} rows exchanged"), Box::new(neighbours));
        let first = move |c: usize| if c < 2 * dim { (c + dim) % (2 * dim) } else { c };
        add(format!("heads 0 and 1 of {dim} rows exchanged"), Box::new(first));
        add(format!("rows shifted by one head of {dim}"), Box::new(move |c| (c + dim) % width));
        let back = move |c| (c + width - dim) % width;
        add(format!("rows shifted back by one head of {dim}"), Box::new(back));
        let text = format!("[head][{dim}] read as [{dim}][head]");
        add(text, Box::new(move |c| c % dim * heads + c / dim));
        let text = format!("[{dim}][head] read as [head][{dim}]");
        add(text, Box::new(move |c| c % heads * dim + c / heads));
    }
    add("rows shifted by one".into(), Box::new(move |c| (c + 1) % width));
    add("rows shifted back by one".into(), Box::new(move |c| (c + width - 1) % width));
    list
}

/// The same outputs in another order.
fn rows(evidence: &Evidence<'_>, product: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let node = evidence.graph().node(product);
    let width = node.ne[0].fixed.max(1) as usize;
    let last = evidence.cone().last().copied();
    let mut dims = evidence.heads().map_or_else(|| evidence.head_dims(), |heads| vec![heads.dim]);
    dims.extend([width, width / 2]);
    dims.sort_unstable();
    dims.dedup();
    // The rows of the weight alone, and with those of the bias.
    let same_rows = |id: &NodeId| *id != product && evidence.graph().node(*id).ne == node.ne;
    let places = std::iter::once(product).chain(last.filter(same_rows));
    for id in places {
        for (text, place) in orders(width, &dims) {
            let order = move |i: usize, _: [usize; 4]| i / width * width + place(i % width);
            let edit = Edits::one(id, Change::Order(Box::new(order)));
            visit(evidence.mistake(CauseKey::RowsPermuted, text, &edit)?);
        }
    }
    Ok(())
}
