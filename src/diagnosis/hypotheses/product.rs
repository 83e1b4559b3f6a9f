//! Mistakes in a product with a weight: its bias, its weight, its input, its rows.

use std::rc::Rc;

use super::{Scalar, Visit, near::WeightSource, split};
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{Change, Edits, Evidence, cause::Tried, replay::ReplayError},
    graph::{NodeId, Op, site::Stage},
};

/// Weights of more elements are not read in another order.
const MAX_ELEMENTS: usize = 1 << 26;

/// A mistake that may be made together with another.
struct Single<'c> {
    key: CauseKey,
    text: String,
    edits: Edits<'c>,
}

impl<'c> Single<'c> {
    fn new(key: CauseKey, text: impl Into<String>, edits: Edits<'c>) -> Single<'c> {
        Single { key, text: text.into(), edits }
    }
}

/// Products with weights.
pub fn products(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let products = evidence.nodes(|node| matches!(node.op, Op::MulMat | Op::MulMatId));
    for &product in &products {
        if evidence.weight_source(product).is_none_or(|weight| weight.source != 0) {
            continue;
        }
        let weights = weights(evidence, product);
        let sums = evidence.nodes(|node| matches!(node.op, Op::Add | Op::AddId));
        let mut biases: Vec<Single<'_>> = Vec::new();
        for sum in sums {
            biases.extend(biases_of(evidence, sum));
        }
        let mut is_proven = false;
        for Single { key, text, edits } in weights.iter().chain(&biases) {
            let tried = evidence.mistake(*key, text, edits)?;
            is_proven |= tried.as_ref().is_some_and(|tried| tried.explained.is_proof());
            visit(tried);
        }
        let both = weights.iter().flat_map(|weight| biases.iter().map(move |bias| (weight, bias)));
        for (weight, bias) in both.filter(|_| !is_proven) {
            let text = format!("{}, and {}", weight.text, bias.text);
            let tried = evidence.mistake(weight.key, text, &weight.edits.and(&bias.edits))?;
            visit(tried.map(|tried| Tried { mistakes: 2, ..tried }));
        }
        fewer_outputs(evidence, product, visit)?;
        inputs(evidence, product, visit)?;
        // Of an order that both give, the ranks are what divided it.
        let has_ranks = evidence.run.recording.tensors.world() > 1;
        if has_ranks {
            split::ranks(evidence, product, visit)?;
        }
        rows(evidence, product, visit)?;
        if !has_ranks {
            split::ranks(evidence, product, visit)?;
        }
    }
    Ok(())
}

/// A bias that is missing, changed, or that of another.
pub fn biases(evidence: &Evidence<'_>, sum: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    for Single { key, text, edits } in biases_of(evidence, sum) {
        visit(evidence.mistake(key, text, &edits)?);
    }
    Ok(())
}

fn biases_of<'c>(evidence: &Evidence<'_>, sum: NodeId) -> Vec<Single<'c>> {
    let Some(WeightSource { source, name }) = evidence.weight_source(sum) else {
        return Vec::new();
    };
    let mut list = Vec::new();
    let mut add = |key, text: &str, change| {
        list.push(Single::new(key, text, Edits::one(sum, change)));
    };
    add(CauseKey::BiasMissing, "bias missing", Change::LeftOut(usize::from(source == 0)));
    if let Some(dim) = evidence.heads().map(|heads| heads.dim) {
        let first = Change::moved(source, move |i, _| Some(i % dim));
        add(CauseKey::BiasBroadcast, "the first head's bias added to every head", first);
    }
    let first = Change::moved(source, |_, _| Some(0));
    add(CauseKey::BiasBroadcast, "the first bias added to every output", first);
    let changes: [(CauseKey, &str, Scalar); 2] = [
        (CauseKey::BiasTwice, "bias added twice", |b| 2.0 * b),
        (CauseKey::BiasNegated, "bias subtracted", |b| -b),
    ];
    for (key, text, of) in changes {
        add(key, text, Change::each(source, of));
    }
    let shifted = Change::moved(source, |i, ne| Some((i + 1) % ne[0]));
    add(CauseKey::RowsPermuted, "each output has the next output's bias", shifted);
    let shifted = Change::moved(source, |i, ne| Some((i + ne[0] - 1) % ne[0]));
    add(CauseKey::RowsPermuted, "each output has the previous output's bias", shifted);
    if evidence.graph().node(sum).op == Op::Add {
        let text = "multiplied by the bias instead of added to it";
        add(CauseKey::OperationOther, text, Change::Op(Op::Mul));
    }
    for other in evidence.other_weights(&name) {
        let key =
            if other.is_other_layer { CauseKey::BiasOfOtherLayer } else { CauseKey::BiasOfOther };
        add(key, &evidence.instead(&other, &name), Change::Weight(source, other.name));
    }
    list
}

fn weights<'c>(evidence: &Evidence<'_>, product: NodeId) -> Vec<Single<'c>> {
    let mut list = Vec::new();
    let mut add = |key, text: String, change| {
        list.push(Single::new(key, text, Edits::one(product, change)));
    };
    add(CauseKey::WeightZero, "the weight is all zero".into(), Change::ZeroWeight(0));
    let weight = evidence.weight_source(product).map(|weight| weight.name).unwrap_or_default();
    let is_tied = evidence.spec().stage == Stage::Logits && weight == "output.weight";
    let table = "token_embd.weight";
    for other in evidence.other_weights(&weight) {
        if is_tied && other.name == table {
            continue;
        }
        let key = if other.is_other_layer {
            CauseKey::WeightOfOtherLayer
        } else {
            CauseKey::WeightOfOther
        };
        add(key, evidence.instead(&other, &weight), Change::Weight(0, other.name));
    }
    if is_tied {
        let text = "token_embd.weight in place of output.weight: the output is not tied";
        add(CauseKey::TiedOutput, text.into(), Change::Weight(0, table.into()));
    }
    let node = evidence.graph().node(product);
    let Some(weight) = node.source(0).map(|source| evidence.graph().node(source)) else {
        return list;
    };
    let [inputs, outputs] = [weight.ne[0], weight.ne[1]].map(|n| n.fixed.max(1) as usize);
    let elements = weight.ne.iter().map(|n| n.fixed.max(1) as usize).product::<usize>();
    // What follows reads a weight in any order, so it is held whole: not that of a large vocabulary.
    if elements > MAX_ELEMENTS {
        return list;
    }
    let size = inputs * outputs;
    let transposed = move |i: usize, _: [usize; 4]| {
        let (block, i) = (i / size, i % size);
        Some(block * size + i % inputs * outputs + i / inputs)
    };
    let text = "weight read transposed, as (inputs, outputs)".to_string();
    add(CauseKey::WeightTransposed, text, Change::moved(0, transposed));
    let mut strides = vec![inputs - 1, inputs + 1, outputs];
    let stages = [Stage::Embd, Stage::Q, Stage::K, Stage::FfnAct];
    strides.extend(stages.into_iter().filter_map(|stage| evidence.width_of(stage)));
    strides.extend([32, 64, 128, 256].map(|step| inputs.next_multiple_of(step)));
    strides.sort_unstable();
    strides.dedup();
    for stride in strides.into_iter().filter(|&stride| stride != inputs && stride > 0) {
        let text = format!("rows of the weight read at a stride of {stride} instead of {inputs}");
        let place = move |i: usize| i / size * size + (i % size / inputs * stride + i % inputs);
        let wraps = Change::moved(0, move |i, _| Some(place(i) % size + i / size * size));
        add(CauseKey::WeightLeadingDimension, text.clone(), wraps);
        let ends = move |i: usize, _: [usize; 4]| Some(place(i)).filter(|at| at / size == i / size);
        add(CauseKey::WeightLeadingDimension, text, Change::moved(0, ends));
    }
    list
}

/// The last outputs left out: zero, or nothing but their biases.
fn fewer_outputs(
    evidence: &Evidence<'_>,
    product: NodeId,
    visit: Visit<'_>,
) -> Result<(), ReplayError> {
    let node = evidence.graph().node(product);
    let outputs = node.ne[0].fixed.max(1) as usize;
    let Some(step) = evidence.steps.last() else { return Ok(()) };
    let machine = &step.machine;
    let Some(recorded) =
        machine.recorded_as(evidence.place, evidence.spec().node, node.sizes(machine.extent).ne)?
    else {
        return Ok(());
    };
    let Some(row) = recorded.rchunks_exact(outputs).next() else { return Ok(()) };
    let last = evidence.cone().last().copied().unwrap_or(product);
    let mut ends = vec![(vec![0.0; outputs], "zero", last)];
    for sum in evidence.nodes(|node| node.op == Op::Add) {
        if let Some(weight) = evidence.weight_source(sum)
            && let Some(source) = evidence.graph().node(sum).source(weight.source)
            && let Some(bias) = machine.argument(source)?
        {
            ends.push((bias.value()?.into_owned(), "the bias alone", product));
        }
    }
    for (rest, what, id) in ends.into_iter().filter(|(rest, _, _)| rest.len() == outputs) {
        let left_out = row.iter().zip(&rest).rev().take_while(|(x, rest)| x == rest).count();
        let n = outputs - left_out;
        if n == 0 || n == outputs {
            continue;
        }
        let cut = move |values: &mut [f64], ne: [usize; 4]| {
            values.chunks_exact_mut(ne[0]).for_each(|row| row[n..].fill(0.0));
        };
        let text =
            format!("only the first {n} of {outputs} outputs are computed; the rest are {what}");
        let edit = Edits::one(id, Change::Result(Rc::new(cut)));
        visit(evidence.mistake(CauseKey::OutputsTruncated, text, &edit)?);
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
            let edit = Edits::one(id, Change::Order(Rc::new(order)));
            visit(evidence.mistake(CauseKey::RowsPermuted, text, &edit)?);
        }
    }
    Ok(())
}
