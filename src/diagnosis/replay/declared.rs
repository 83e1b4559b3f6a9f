//! The roundings that a side declares, as the replay applies them: the values that a node takes or passes on
//! become what the format makes of them.

use std::borrow::Cow;

use super::{
    Edit, Expected, LAMBDA, Machine, ReplayError, Rounding, Spread,
    rules::{Argument, Call, Values},
};
use crate::{
    core::{
        arithmetic::{Convention, Value},
        format::Format,
        rounded::Rounded,
        tensor::DType,
    },
    graph::{NodeId, Op, site::Stage},
    model::gguf::input_format,
};

/// Roundings of nodes that belong to the operation of a stage.
#[derive(Clone, Copy)]
pub struct Declared<'c> {
    pub conventions: &'c [Convention],
    /// Of the operation that the nodes are of, where they are all of one.
    pub stage: Option<Stage>,
}

impl Declared<'_> {
    /// The format of a value, if it is rounded in a step of so many tokens.
    pub fn format(&self, value: Value, tokens: usize) -> Option<Format> {
        let mut own = self.conventions.iter().rev();
        own.find(|one| one.value == value && one.is_of(self.stage, tokens)).map(|one| one.format)
    }
}

impl Edit for Declared<'_> {
    fn change<'a>(
        &self,
        machine: &Machine<'a>,
        id: NodeId,
        call: &mut Call<'_, 'a>,
    ) -> Result<(), ReplayError> {
        let graph = machine.graph();
        let format = |value| self.format(value, machine.extent.tokens);
        match call.op {
            Op::MulMat | Op::MulMatId => {
                let weight = graph.node(id).source(0).map(|source| graph.root(source));
                for (source, value) in graph.values_of_product(id).into_iter().enumerate() {
                    let Some(format) = format(value) else { continue };
                    let format = match (format, weight) {
                        (Format::Ggml, Some(weight)) => {
                            let info = machine.run.file.info(&graph.node(weight).name)?;
                            input_format(info.ggml_type)
                        }
                        (format, _) => Some(format),
                    };
                    if let (Some(format), Some(Some(argument))) =
                        (format, call.arguments.get_mut(source))
                    {
                        round(argument, format)?;
                    }
                }
                let is_of_probs = graph.values_of_product(id).contains(&Value::Probs);
                if let (true, Some(format), Some(Some(probs))) =
                    (is_of_probs, format(Value::Exps), call.arguments.get_mut(1))
                {
                    round_exps(probs, format, call.rounding.sum);
                }
            }
            Op::RmsNorm | Op::Norm | Op::L2Norm => {
                call.steps.roots = call.steps.roots.or(format(Value::Roots))
            }
            Op::Rope => {
                call.steps.frequencies = call.steps.frequencies.or(format(Value::Frequencies));
                call.steps.angles = call.steps.angles.or(format(Value::Angles));
                call.steps.tables = call.steps.tables.or(format(Value::Tables));
            }
            Op::Silu | Op::Swiglu | Op::SwigluClamp => {
                call.steps.sigmoid = call.steps.sigmoid.or(format(Value::Sigmoid));
                call.steps.activated = call.steps.activated.or(format(Value::Activated));
            }
            _ => {}
        }
        Ok(())
    }

    fn result(&self, machine: &Machine<'_>, id: NodeId, result: &mut Expected<'_>) {
        let is_norm = matches!(machine.graph().node(id).op, Op::RmsNorm | Op::Norm | Op::L2Norm);
        // A norm that is a result of its own is stored.
        if let Some(format) = self.format(Value::Results, machine.extent.tokens)
            && let Ok(dtype) = DType::try_from(format)
            && machine.is_site(id)
        {
            let coarse = Rounding::new(dtype, dtype);
            (result.rounding.storage, result.rounding.smallest) = (coarse.storage, coarse.smallest);
        }
        let format = self.format(Value::Normed, machine.extent.tokens);
        if let Some(format) = format.filter(|_| is_norm && !machine.is_site(id)) {
            round_result(result, format);
        }
    }
}

/// Rounds a source's rows.
fn round(argument: &mut Argument<'_, '_>, format: Format) -> Result<(), ReplayError> {
    let length = argument.ne[0];
    if !format.divides(length) {
        return Ok(());
    }
    match &mut argument.values {
        Values::Weight(matrix) => *matrix = matrix.rounded(format),
        Values::Dense { value, spread } => {
            let (rounded, slack) = rows(value, spread.as_deref(), length, format);
            *value = Cow::Owned(rounded);
            *spread = slack.map(Cow::Owned);
        }
    }
    Ok(())
}

/// Rounds the exponentials of a softmax: its probabilities, divided by the largest of their row.
fn round_exps(probs: &mut Argument<'_, '_>, format: Format, u: f64) {
    const ROUNDINGS: f64 = 8.0;
    let length = probs.ne[0].max(1);
    let Values::Dense { value, spread } = &mut probs.values else { return };
    let mut rounded = Vec::with_capacity(value.len());
    let mut slack = Vec::with_capacity(value.len());
    for (at, row) in value.chunks(length).enumerate() {
        let most = row.iter().copied().fold(0.0, f64::max);
        for (i, &p) in row.iter().enumerate() {
            let off = spread.as_ref().map_or(0.0, |spread| LAMBDA * spread[at * length + i]);
            let exp = if most > 0.0 { p / most } else { 0.0 };
            let of =
                format.number_within(exp, ROUNDINGS * u * exp + off / most.max(f64::MIN_POSITIVE));
            rounded.push(most * of.value);
            slack.push(most * (of.slack + ROUNDINGS * u * of.value / LAMBDA));
        }
    }
    (*value, *spread) = (Cow::Owned(rounded), Some(Cow::Owned(slack)));
}

/// Rows rounded, and the standard deviations of what they may be beside that; `None` where all are known.
pub fn rows(
    values: &[f64],
    spread: Option<&[f64]>,
    length: usize,
    format: Format,
) -> (Vec<f64>, Option<Vec<f64>>) {
    let mut rounded: Vec<Rounded> = Vec::with_capacity(values.len());
    for (at, row) in values.chunks(length.max(1)).enumerate() {
        let error = |i: usize| spread.map_or(0.0, |spread| LAMBDA * spread[at * length + i]);
        rounded.extend(format.rounded(row, &error));
    }
    // Either of two neighbours is half of their distance from the middle.
    let slack: Vec<f64> = rounded.iter().map(|x| x.slack).collect();
    let is_known = slack.iter().all(|&slack| slack == 0.0);
    (rounded.iter().map(|x| x.value).collect(), (!is_known).then_some(slack))
}

/// Rounds a result that goes on to the next step, each element on its own.
fn round_result(result: &mut Expected<'_>, format: Format) {
    let n = result.value.len();
    let of = |i: usize| format.number_within(result.value[i], result.bound(i));
    let rounded: Vec<Rounded> = (0..n).map(of).collect();
    result.value = rounded.iter().map(|x| x.value).collect();
    result.single = rounded.iter().map(|x| x.slack).collect();
    result.spread = Spread::None;
    (result.rounding.storage, result.rounding.smallest) = (0.0, 0.0);
}
