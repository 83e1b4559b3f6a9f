//! What goes wrong in a projection: its bias, its weight, its input.

use std::sync::Arc;

use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        replay::{Expected, Matrix, Operand, Operation, ReplayError, Spread, ops, projection},
        scene::{Candidate, Scene, Visit},
    },
    graph::site::Stage,
};

/// A weight or a bias that may have been used, and how to say so.
struct Named<T> {
    /// `None` of what is right.
    key: Option<CauseKey>,
    text: String,
    value: T,
}

fn named<T>(key: CauseKey, text: impl Into<String>, value: T) -> Named<T> {
    Named { key: Some(key), text: text.into(), value }
}

/// Other biases, other weights, and one of each together.
pub fn weights_and_biases<'a>(
    scene: &Scene<'_, 'a>,
    visit: Visit<'_, 'a>,
) -> Result<(), ReplayError> {
    let x = scene.input()?;
    let own = scene.replay.weight(scene.operation)?;
    let right = scene.replay.bias(scene.operation)?;
    let biases = biases(scene, right.as_deref())?;
    let right = Named { key: None, text: String::new(), value: right };
    let own_weight = Named { key: None, text: String::new(), value: own.clone() };
    let all: Vec<usize> = (0..scene.width()).collect();
    let probe = scene.probe.cells.first();
    let few_rows = probe.map(|cells| Arc::new(x.select(&cells.rows)));
    for weight in std::iter::once(own_weight).chain(weights(scene, &own)?) {
        let few = few_rows.as_ref().zip(probe).map(|(x, cells)| {
            ops::linear(x, &weight.value.select(&cells.columns), None, scene.rounding())
        });
        let (few, mut whole) = (few.transpose()?, None);
        for bias in std::iter::once(&right).chain(&biases) {
            let Some(key) = weight.key.or(bias.key) else { continue };
            let both = weight.key.is_some() && bias.key.is_some();
            let texts = [weight.text.as_str(), bias.text.as_str()];
            let text = if both { texts.join(", and ") } else { texts.concat() };
            let bias = bias.value.as_deref();
            let refuted = few.as_ref().zip(probe).is_some_and(|(few, cells)| {
                !scene.explains(cells, &with_bias(few, bias, &cells.columns))
            });
            if refuted {
                visit(Candidate::refuted(key, text))?;
                continue;
            }
            let product = match &whole {
                Some(product) => product,
                None => whole.insert(ops::linear(&x, &weight.value, None, scene.rounding())?),
            };
            let parts = scene.whole(with_bias(product, bias, &all));
            visit(Candidate::mistake(key, text, parts).of_mistakes(1 + usize::from(both)))?;
        }
    }
    Ok(())
}

/// A product of some outputs with their biases added. Its bound is an upper limit, as the product
/// may be long gone.
fn with_bias(product: &Expected<'_>, bias: Option<&[f32]>, outputs: &[usize]) -> Expected<'static> {
    let (rounding, n) = (product.rounding, product.value.len());
    let bias_of = |i: usize| bias.map_or(0.0, |bias| f64::from(bias[outputs[i % outputs.len()]]));
    let value: Vec<f64> = (0..n).map(|i| product.value[i] + bias_of(i)).collect();
    let single = (0..n)
        .map(|i| match bias {
            Some(_) => rounding.storage * product.value[i].abs() + rounding.sum * value[i].abs(),
            None => 0.0,
        })
        .collect();
    let spread = Spread::Each((0..n).map(|i| product.most_spread(i)).collect());
    Expected { value, spread, single, rounding }
}

fn biases(
    scene: &Scene<'_, '_>,
    right: Option<&[f32]>,
) -> Result<Vec<Named<Option<Vec<f32>>>>, ReplayError> {
    let mut list = Vec::new();
    let outputs = scene.width();
    if let Some(right) = right {
        let dim = scene.heads().dim;
        list.push(named(CauseKey::BiasMissing, "bias missing", None));
        let first_head = (0..outputs).map(|i| right[i % dim.min(outputs)]).collect();
        list.push(named(
            CauseKey::BiasBroadcast,
            "the first head's bias added to every head",
            Some(first_head),
        ));
        let first = vec![right[0]; outputs];
        list.push(named(
            CauseKey::BiasBroadcast,
            "the first bias added to every output",
            Some(first),
        ));
        let twice = right.iter().map(|b| 2.0 * b).collect();
        list.push(named(CauseKey::BiasTwice, "bias added twice", Some(twice)));
        let negated = right.iter().map(|b| -b).collect();
        list.push(named(CauseKey::BiasNegated, "bias subtracted", Some(negated)));
    }
    for stage in [Stage::Q, Stage::K, Stage::V] {
        let (_, part) = projection(stage).expect("q, k and v are projections");
        let other = scene.replay.vector(&scene.operation.tensor(part))?;
        if let Some(other) =
            other.filter(|_| stage != scene.stage() && scene.operation.layer.is_some())
            && other.len() >= outputs
        {
            let text = format!("{part} added in place of its own bias");
            list.push(named(CauseKey::BiasOfOther, text, Some(other[..outputs].to_vec())));
        }
    }
    if let Some((_, part)) = projection(scene.stage())
        && right.is_some()
    {
        for layer in other_layers(scene) {
            let tensor = Operation { layer: Some(layer), stage: scene.stage() }.tensor(part);
            if let Some(other) = scene.replay.vector(&tensor)? {
                let text = format!("the bias of {}", scene.layer_name(layer));
                list.push(named(CauseKey::BiasOfOtherLayer, text, Some(other)));
            }
        }
    }
    Ok(list)
}

/// At most this many layers on either side are tried.
const NEAR_LAYERS: u32 = 2;

/// The layers whose weights may have been taken by mistake: the first, the last and the nearest.
pub fn other_layers(scene: &Scene<'_, '_>) -> Vec<u32> {
    let Some(own) = scene.operation.layer else { return Vec::new() };
    let last = scene.config().n_layer as u32 - 1;
    let mut layers = vec![0, last];
    layers.extend(own.saturating_sub(NEAR_LAYERS)..=(own + NEAR_LAYERS).min(last));
    layers.sort_unstable();
    layers.dedup();
    layers.retain(|&layer| layer != own);
    layers
}

fn weights<'a>(
    scene: &Scene<'_, 'a>,
    own: &Matrix<'a>,
) -> Result<Vec<Named<Matrix<'a>>>, ReplayError> {
    let (outputs, inputs) = (own.outputs, own.inputs);
    let mut list = Vec::new();
    let zero = Matrix::of_elements(outputs, inputs, |_, _| 0.0);
    list.push(named(CauseKey::WeightZero, "the weight is all zero", zero));
    others(scene, own, &mut list)?;
    // What follows reads a weight in any order, so it is held whole: not that of a large
    // vocabulary.
    if outputs * inputs > 1 << 26 {
        return Ok(list);
    }
    let flat: Arc<[f32]> = own.flat()?.into();
    let length = flat.len();
    let element = |map: Box<dyn Fn(usize, usize) -> Option<usize> + Send + Sync>| {
        let flat = Arc::clone(&flat);
        let at = move |o, i| map(o, i).and_then(|at| flat.get(at).copied()).unwrap_or(0.0);
        Matrix::of_elements(outputs, inputs, at)
    };
    let transposed = element(Box::new(move |o, i| Some(i * outputs + o)));
    list.push(named(
        CauseKey::WeightTransposed,
        "weight read transposed, as (inputs, outputs)",
        transposed,
    ));
    let c = scene.config();
    let mut strides = vec![inputs - 1, inputs + 1, c.n_embd, c.n_ff, c.n_head * c.head_dim];
    strides.extend([c.n_head_kv * c.head_dim, outputs]);
    strides.sort_unstable();
    strides.dedup();
    for stride in strides.into_iter().filter(|&stride| stride != inputs) {
        let text = format!("rows of the weight read at a stride of {stride} instead of {inputs}");
        let wraps = element(Box::new(move |o, i| Some((o * stride + i) % length)));
        list.push(named(CauseKey::WeightLeadingDimension, text.clone(), wraps));
        let ends = element(Box::new(move |o, i| Some(o * stride + i)));
        list.push(named(CauseKey::WeightLeadingDimension, text, ends));
    }
    let mut lengths: Vec<usize> = vec![inputs / 2, inputs / 4, 3 * inputs / 4, inputs - 1];
    lengths.extend([32, 64, 128, 256].map(|step| inputs / step * step));
    lengths.extend([32, 64, 128, 256, 512, 1024]);
    lengths.sort_unstable();
    lengths.dedup();
    for n in lengths.into_iter().filter(|&n| 0 < n && n < inputs) {
        let text = format!("only the first {n} of {inputs} inputs are summed");
        let cut = element(Box::new(move |o, i| (i < n).then_some(o * inputs + i)));
        list.push(named(CauseKey::InnerTruncated, text, cut));
    }
    let dim = c.head_dim;
    if outputs.is_multiple_of(dim) && scene.operation.layer.is_some() {
        for (by, what) in [(dim, "one head"), (outputs - dim, "one head back"), (1, "one row")] {
            let text = format!("rows of the weight shifted by {what}");
            let shifted = element(Box::new(move |o, i| Some((o + by) % outputs * inputs + i)));
            list.push(named(CauseKey::RowsPermuted, text, shifted));
        }
    }
    Ok(list)
}

/// The last outputs left out: zero, or nothing but their biases.
pub fn fewer_outputs<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let (weight, bias) =
        (scene.replay.weight(scene.operation)?, scene.replay.bias(scene.operation)?);
    let (outputs, x) = (weight.outputs, scene.input()?);
    let row = scene.pieces.last().and_then(|piece| piece.captured.rchunks_exact(outputs).next());
    let Some(row) = row else { return Ok(()) };
    let zeros = vec![0.0; outputs];
    let ends = bias.iter().map(|bias| (bias, "its bias alone")).chain([(&zeros, "zero")]);
    for (rest, what) in ends {
        let left_out = row.iter().zip(rest).rev().take_while(|(x, rest)| x == rest).count();
        let n = outputs - left_out;
        if n == 0 || n == outputs {
            continue;
        }
        let added: Option<Vec<f32>> = bias.as_ref().map(|bias| [&bias[..n], &rest[n..]].concat());
        let cut = weight.clone().with_outputs(n);
        let parts = scene.whole(ops::linear(&x, &cut, added.as_deref(), scene.rounding())?);
        let text =
            format!("only the first {n} of {outputs} outputs are computed, the rest is {what}");
        visit(Candidate::mistake(CauseKey::OutputsTruncated, text, parts))?;
    }
    Ok(())
}

/// Weights of other projections and layers.
fn others<'a>(
    scene: &Scene<'_, 'a>,
    own: &Matrix<'a>,
    list: &mut Vec<Named<Matrix<'a>>>,
) -> Result<(), ReplayError> {
    let (part, _) = projection(scene.stage()).expect("called for a projection");
    for layer in other_layers(scene) {
        let tensor = Operation { layer: Some(layer), stage: scene.stage() }.tensor(part);
        if let Some(other) = scene.matrix_like(&tensor, own)? {
            let text = format!("the weight of {}", scene.layer_name(layer));
            list.push(named(CauseKey::WeightOfOtherLayer, text, other));
        }
    }
    let stages = Stage::ALL.into_iter().filter(|&stage| stage != scene.stage());
    for (part, _) in stages.filter_map(projection) {
        let tensor = scene.operation.tensor(part);
        if scene.operation.layer.is_none() {
            continue;
        }
        if let Some(other) = scene.matrix_like(&tensor, own)? {
            list.push(named(
                CauseKey::WeightOfOther,
                format!("{part} in place of its own weight"),
                other,
            ));
        }
    }
    if scene.stage() == Stage::Logits && scene.replay.model.has("output.weight") {
        let text = "token_embd.weight in place of output.weight: the output is not tied";
        let tied = scene.replay.matrix("token_embd.weight")?;
        list.push(named(CauseKey::TiedOutput, text, tied));
    }
    Ok(())
}

/// The projection of another tensor of the same width.
pub fn other_input<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let weight = scene.replay.weight(scene.operation)?;
    let bias = scene.replay.bias(scene.operation)?;
    let right = scene.replay.input(scene.operation);
    for (operation, x) in candidates_of_width(scene, weight.inputs)? {
        if operation == right {
            continue;
        }
        let names = (scene.named(operation), scene.named(right));
        let text = format!("its input is {} instead of {}", names.0, names.1);
        let product = |x: &Arc<Operand>, weight: &Matrix<'a>, bias: Option<&[f32]>| {
            ops::linear(x, weight, bias, scene.rounding())
        };
        if let Some(cells) = scene.probe.cells.first() {
            let few = Arc::new(x.select(&cells.rows));
            let own = bias.as_ref().map(|bias| cells.columns.iter().map(|&o| bias[o]));
            let own: Option<Vec<f32>> = own.map(Iterator::collect);
            let few = product(&few, &weight.select(&cells.columns), own.as_deref())?;
            if !scene.explains(cells, &few) {
                visit(Candidate::refuted(CauseKey::InputOfOther, text))?;
                continue;
            }
        }
        let parts = scene.whole(product(&x, &weight, bias.as_deref())?);
        visit(Candidate::mistake(CauseKey::InputOfOther, text, parts))?;
    }
    Ok(())
}

/// Recorded results of that width whose rows are tokens: of the layer, and what enters it.
pub fn candidates_of_width(
    scene: &Scene<'_, '_>,
    width: usize,
) -> Result<Vec<(Operation, Arc<Operand>)>, ReplayError> {
    let own = scene.operation;
    let stages = scene.config().stages();
    let mut operations: Vec<Operation> = match own.layer {
        Some(_) => stages.into_iter().filter(|s| s.in_layer()).map(|stage| own.at(stage)).collect(),
        None => vec![own.at(Stage::Embd), own.at(Stage::FinalNorm)],
    };
    operations.push(own.hidden(scene.config()));
    let mut found = Vec::new();
    for operation in operations {
        use Stage::*;
        let ragged = matches!(operation.stage, KCache | VCache | Scores | Probs);
        if operation == own
            || ragged
            || !scene.steps.iter().all(|&step| scene.replay.has(operation, step))
        {
            continue;
        }
        let operand = scene.replay.operand(operation, &scene.steps)?;
        if operand.width == width {
            found.push((operation, operand));
        }
    }
    Ok(found)
}
