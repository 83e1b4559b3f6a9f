//! Values that are rounded on the way to a result, to a coarser format than declared. That can be computed,
//! unlike sums in one: where it gives the result within the declared bound, it is proven, and it is a
//! convention that the side may declare.

use std::{collections::BTreeSet, rc::Rc};

use super::Visit;
use crate::{
    core::{
        arithmetic::{Convention, Phase, Value},
        cause_key::CauseKey,
        format::Format,
        tensor::DType,
    },
    diagnosis::{
        Change, Edits, Evidence, StepEvidence,
        cause::{Rank, Tried},
        replay::{self, Declared, Expected, ReplayError, Spread},
    },
    graph::{Kind, Op, site::Stage},
    model::gguf::{input_format, type_name},
};

/// Formats of single numbers, the finer first.
const NUMBERS: [Format; 8] = [
    Format::Tf32,
    Format::F16,
    Format::Bf16,
    Format::E4m3,
    Format::E5m2,
    Format::Tf32Even,
    Format::Tf32Cut,
    Format::Bf16Cut,
];
/// Formats of rows in blocks.
const BLOCKS: [Format; 7] = [
    Format::Q8_0,
    Format::Int8BlocksF16,
    Format::Q8_1,
    Format::Q8K,
    Format::Int8Blocks,
    Format::Int8Rows,
    Format::Q4_0,
];

/// Formats that only a cache is kept in.
const OF_CACHES: [Format; 3] = [Format::Q4_1, Format::Q5_0, Format::Q5_1];

/// Every value on the way to a site in every format that is coarser than declared; where none alone gives the result,
/// two of them, and all.
pub fn values(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    // What is rounded must be known: of an uncertain number any neighbour may be it.
    if evidence.steps.iter().any(|step| !step.observed.spanned.is_empty()) {
        return Ok(());
    }
    let graph = evidence.graph();
    let of = |id: &_| graph.rounded_values(*id);
    let own: BTreeSet<Value> = evidence.cone().iter().flat_map(of).collect();
    let mut trials = Trials { evidence, phase: only_phase(evidence), order: 0, is_proven: false };
    if own.contains(&Value::Inputs)
        && let Some(text) = as_ggml(evidence)
    {
        let ggml = vec![Convention::everywhere(Value::Inputs, Format::Ggml)];
        trials.offer(text, ggml, CauseKey::InputsRounded, visit)?;
    }
    // Attention is more often kept in f16, of which tf32 gives nearly the same numbers.
    let mut formats = NUMBERS;
    if !own.contains(&Value::Inputs) {
        formats.swap(0, 1);
    }
    for format in formats {
        for &value in own.iter().filter(|&&value| is_plausible(evidence, value, format)) {
            trials.offer_all(&[value], format, visit)?;
        }
        if own.contains(&Value::Angles) && !format.is_tf32() {
            for (text, of) in ANGLES {
                let all = of.iter().map(|&value| Convention::everywhere(value, format)).collect();
                let text = format!("{text} rounded to {format}");
                trials.offer(text, all, CauseKey::RopePrecision, visit)?;
            }
        }
    }
    for format in BLOCKS {
        if own.contains(&Value::Inputs) && is_plausible(evidence, Value::Inputs, format) {
            trials.offer_all(&[Value::Inputs], format, visit)?;
        }
    }
    if trials.is_proven { Ok(()) } else { together(&mut trials, &own, visit) }
}

/// Two values in one format, all of them, and blocks of inputs beside weights of 16 bits.
fn together(
    trials: &mut Trials<'_, '_>,
    own: &BTreeSet<Value>,
    visit: Visit<'_>,
) -> Result<(), ReplayError> {
    let evidence = trials.evidence;
    for format in NUMBERS {
        let is_own = |value: &&Value| is_plausible(evidence, **value, format);
        let mut all: Vec<Value> = own.iter().filter(is_own).copied().collect();
        // What is stored shows what it was rounded to.
        if !all.is_empty() && is_stored_as(evidence, format) {
            all.push(Value::Results);
        }
        for (at, &first) in all.iter().enumerate() {
            for &second in &all[at + 1..] {
                trials.offer_all(&[first, second], format, visit)?;
            }
        }
        if all.len() > 2 {
            trials.offer_all(&all, format, visit)?;
        }
    }
    if !own.contains(&Value::Inputs) {
        return Ok(());
    }
    for blocks in BLOCKS {
        for weights in [Format::Bf16, Format::F16] {
            let both = [(Value::Inputs, blocks), (Value::Weights, weights)];
            if both.iter().all(|&(value, format)| is_plausible(evidence, value, format)) {
                let text =
                    format!("inputs of the product rounded to {blocks} and weights to {weights}");
                let both = both.map(|(value, format)| Convention::everywhere(value, format));
                trials.offer(text, both.to_vec(), CauseKey::InputsRounded, visit)?;
            }
        }
    }
    Ok(())
}

/// Roundings as they are tried, one after another.
struct Trials<'t, 'a> {
    evidence: &'t Evidence<'a>,
    /// The kind of steps that alone have wrong elements.
    phase: Option<Phase>,
    order: u8,
    is_proven: bool,
}

impl Trials<'_, '_> {
    /// Values that are all rounded to one format.
    fn offer_all(
        &mut self,
        values: &[Value],
        format: Format,
        visit: Visit<'_>,
    ) -> Result<(), ReplayError> {
        let text = format!("{} rounded to {format}", listed(values));
        let all = values.iter().map(|&value| Convention::everywhere(value, format)).collect();
        let key = match values {
            [value] => key_of(*value),
            [.., Value::Results] => CauseKey::StoredCoarser,
            _ => CauseKey::InputsRounded,
        };
        self.offer(text, all, key, visit)
    }

    fn offer(
        &mut self,
        text: String,
        conventions: Vec<Convention>,
        key: CauseKey,
        visit: Visit<'_>,
    ) -> Result<(), ReplayError> {
        self.order = self.order.saturating_add(1);
        let rank = if key == CauseKey::RopePrecision { Rank::Mistake } else { Rank::Arithmetic };
        if let Some(phase) = self.phase.filter(|_| rank == Rank::Arithmetic) {
            let only = |&convention: &Convention| Convention { phase: Some(phase), ..convention };
            let text = format!("{text}, in the {} only", in_steps(phase));
            self.offer_in(text, conventions.iter().map(only).collect(), (key, rank), visit)?;
        }
        self.offer_in(text, conventions, (key, rank), visit)
    }

    fn offer_in(
        &mut self,
        text: String,
        declare: Vec<Convention>,
        (key, rank): (CauseKey, Rank),
        visit: Visit<'_>,
    ) -> Result<(), ReplayError> {
        let edit = Declared { conventions: &declare, stage: None };
        let tried = self.evidence.edited(key, text, rank, &edit)?;
        let Some(tried) = tried else { return Ok(()) };
        self.is_proven |= tried.explained.is_proof() && tried.explained.region.is_none();
        visit(Some(Tried { mistakes: self.order, declare, ..tried }));
        Ok(())
    }
}

/// Whether everything that was recorded is in a format.
fn is_stored_as(evidence: &Evidence<'_>, format: Format) -> bool {
    let storage = evidence.run.recording.arithmetic.of(evidence.spec().stage).storage;
    let mut recorded = evidence.steps.iter().flat_map(|step| &step.observed.piece.captured);
    let is_coarser = format.unit_roundoff() > storage.unit_roundoff();
    let is_it = |&x: &f32| !x.is_finite() || format.number(x) == x;
    is_coarser && DType::try_from(format).is_ok() && !format.is_tf32() && recorded.all(is_it)
}

/// `queries and keys`; `inputs and weights of the product`.
fn listed(values: &[Value]) -> String {
    if values == [Value::Inputs, Value::Weights] {
        return "inputs and weights of the product".to_string();
    }
    match values {
        [one] => in_words(*one).to_string(),
        [most @ .., last] => {
            let most: Vec<&str> = most.iter().map(|&value| in_words(value)).collect();
            format!("{} and {}", most.join(", "), in_words(*last))
        }
        [] => String::new(),
    }
}

/// The kind of steps that alone have wrong elements, where steps of both kinds are judged.
fn only_phase(evidence: &Evidence<'_>) -> Option<Phase> {
    let steps = || evidence.steps.iter().zip(&evidence.wrong);
    let of = |step: &StepEvidence<'_>| Phase::of(step.machine.extent.tokens);
    let is_wrong = |wrong: &[bool]| wrong.contains(&true);
    let first = steps().find(|(_, wrong)| is_wrong(wrong)).map(|(step, _)| of(step))?;
    let others = || steps().filter(|(step, _)| of(step) != first);
    (others().count() > 0 && !others().any(|(_, wrong)| is_wrong(wrong))).then_some(first)
}

fn in_steps(phase: Phase) -> &'static str {
    match phase {
        Phase::Prefill => "prefill",
        Phase::Decode => "decode steps",
    }
}

/// Parts of a rotation that a program may compute in one format.
const ANGLES: [(&str, &[Value]); 2] = [
    ("angles, sines and cosines", &[Value::Angles, Value::Tables]),
    ("frequencies, angles, sines and cosines", &[Value::Frequencies, Value::Angles, Value::Tables]),
];

/// An angle that is coarse turns later positions wrongly; other roundings are conventions.
fn key_of(value: Value) -> CauseKey {
    match value {
        Value::Angles | Value::Frequencies => CauseKey::RopePrecision,
        _ => CauseKey::InputsRounded,
    }
}

fn in_words(value: Value) -> &'static str {
    match value {
        Value::Inputs => "inputs of the product",
        Value::Weights => "weights of the product",
        Value::Queries => "queries",
        Value::Keys => "keys",
        Value::Probs => "probabilities",
        Value::Exps => "exponentials before they are normalised",
        Value::Values => "cached values",
        Value::Roots => "the inverse root of the mean square",
        Value::Normed => "the normalised vector before its weight",
        Value::Frequencies => "frequencies",
        Value::Angles => "angles",
        Value::Tables => "sines and cosines",
        Value::Sigmoid => "the sigmoid",
        Value::Activated => "the activation before up",
        Value::Caches => "rows of the cache",
        Value::Results => "results",
    }
}

/// Whether a format is coarser than what the engine declares, and errors as large as its own are there.
fn is_plausible(evidence: &Evidence<'_>, value: Value, format: Format) -> bool {
    let arithmetic = evidence.run.recording.arithmetic;
    let storage = arithmetic.of(evidence.spec().stage).storage.unit_roundoff();
    let declared = match value {
        Value::Weights => arithmetic.weights.unit_roundoff(),
        Value::Inputs
        | Value::Queries
        | Value::Keys
        | Value::Probs
        | Value::Exps
        | Value::Values => storage,
        _ => arithmetic.default.accumulator.unit_roundoff(),
    };
    let u = format.unit_roundoff();
    use Value::{Inputs, Keys, Probs, Queries, Values, Weights};
    // Only the units that multiply matrices know tf32.
    let of_product = matches!(value, Inputs | Weights | Queries | Keys | Probs | Values);
    if format.is_tf32() && !of_product {
        return false;
    }
    let is_of_angles = key_of(value) == CauseKey::RopePrecision;
    let error = evidence.relative_error();
    u > declared && (is_of_angles || (u / 1000.0..=8.0 * u).contains(&error))
}

/// The inputs of a product as ggml's own kernels take them for the type of its weight.
fn as_ggml(evidence: &Evidence<'_>) -> Option<String> {
    let graph = evidence.graph();
    let products = evidence.nodes(|node| matches!(node.op, Op::MulMat | Op::MulMatId));
    let weight = products.iter().find_map(|&id| {
        let root = graph.node(graph.root(graph.node(id).source(0)?));
        (root.kind == Kind::Weight).then_some(&root.name)
    })?;
    let of = evidence.run.file.info(weight).ok()?.ggml_type;
    let is_of_blocks = |format: &Format| !format.is_of_numbers();
    let format = input_format(of).filter(is_of_blocks)?;
    if !is_plausible(evidence, Value::Inputs, format) {
        return None;
    }
    Some(format!("inputs of the product rounded to {format}, as ggml does for {}", type_name(of)))
}

/// Rows of a cache that are kept in a coarser format.
pub fn caches(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    if !matches!(evidence.spec().stage, Stage::KCache | Stage::VCache) {
        return Ok(());
    }
    let dim = evidence.spec().axes.last().map_or(0, |axis| axis.size.fixed as usize);
    for (order, format) in (1..).zip(NUMBERS.into_iter().chain(BLOCKS).chain(OF_CACHES)) {
        if !format.divides(dim) || !is_plausible(evidence, Value::Caches, format) {
            continue;
        }
        let text = format!("{} kept in {format}", in_words(Value::Caches));
        let kept = |step: &StepEvidence<'_>| {
            let right = &step.observed.piece.expected;
            let (value, slack) = replay::rounded_rows(&right.value, None, dim, format);
            let spread = slack.map_or(Spread::None, Spread::Each);
            let single = right.copied(value.clone()).single;
            Some(Expected { value, spread, single, rounding: right.rounding })
        };
        let tried = evidence.predicted(CauseKey::InputsRounded, text, Rank::Arithmetic, kept);
        let declare = vec![Convention::everywhere(Value::Caches, format)];
        visit(tried.map(|tried| Tried { mistakes: order, declare, ..tried }));
    }
    Ok(())
}

/// Results between the nodes of an operation that are rounded.
pub fn between(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let graph = evidence.graph();
    let arithmetic = evidence.run.recording.arithmetic;
    let declared = arithmetic.between.unwrap_or(arithmetic.default.accumulator).unit_roundoff();
    let last = evidence.cone().last().copied();
    for (order, dtype) in (1..).zip([DType::F16, DType::Bf16]) {
        let Some(format) = Format::of(dtype).filter(|_| dtype.unit_roundoff() > declared) else {
            continue;
        };
        for &id in evidence.cone() {
            let node = graph.node(id);
            let is_inner = Some(id) != last && !node.op.is_layout() && !node.op.is_norm();
            if !is_inner {
                continue;
            }
            let result = move |values: &mut [f64], _: [usize; 4]| {
                values.iter_mut().for_each(|x| *x = f64::from(format.number(*x as f32)));
            };
            let text = format!("the result of {} rounded to {dtype} before the next step", node.op);
            let edits = Edits::one(id, Change::Result(Rc::new(result)));
            let key = CauseKey::InputsRounded;
            let tried = evidence.edited(key, text, Rank::Arithmetic, &edits)?;
            visit(tried.map(|tried| Tried { mistakes: order, ..tried }));
        }
    }
    Ok(())
}
