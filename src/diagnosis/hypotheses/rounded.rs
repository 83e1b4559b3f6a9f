//! Inputs of a product, and results within an operation, that are rounded to a coarser format than declared.
//! That can be computed, unlike sums in one: where it gives the result within the declared bound, it is proven.

use std::rc::Rc;

use half::f16;

use super::{Visit, near::WeightSource};
use crate::{
    core::{cause_key::CauseKey, tensor::DType},
    diagnosis::{
        Change, Edits, Evidence,
        cause::{Rank, Tried},
        replay::{Machine, Matrix, ReplayError, round},
    },
    graph::{NodeId, Op},
};

/// Results between the nodes of an operation, or factors of a product, that are rounded.
pub fn between(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let graph = evidence.graph();
    let arithmetic = evidence.run.recording.arithmetic;
    let declared = arithmetic.between.unwrap_or(arithmetic.default.accumulator).unit_roundoff();
    let last = evidence.cone().last().copied();
    for (order, dtype) in (1..).zip([DType::F16, DType::Bf16]) {
        if dtype.unit_roundoff() <= declared {
            continue;
        }
        for &id in evidence.cone() {
            let node = graph.node(id);
            if Some(id) != last && !node.op.is_layout() {
                let result = move |values: &mut [f64], _: [usize; 4]| {
                    values.iter_mut().for_each(|x| *x = narrowed(dtype, *x));
                };
                let text =
                    format!("the result of {} rounded to {dtype} before the next step", node.op);
                let edits = Edits::one(id, Change::Result(Rc::new(result)));
                visit(tried(evidence, text, &edits, order)?);
            }
            if node.op == Op::MulMat && evidence.is_of_computed(id) {
                for source in 0..2 {
                    let Some(of) = node.source(source) else { continue };
                    let text =
                        format!("{} rounded to {dtype} before the product", evidence.name_of(of));
                    let change = Change::each(source, move |x| narrowed(dtype, x));
                    visit(tried(evidence, text, &Edits::one(id, change), order)?);
                }
            }
        }
    }
    Ok(())
}

fn narrowed(dtype: DType, x: f64) -> f64 {
    let mut values = [x as f32];
    round(dtype, &mut values);
    f64::from(values[0])
}

/// Products with weights whose inputs, weights or both are rounded.
pub fn inputs(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let arithmetic = evidence.run.recording.arithmetic;
    let declared = arithmetic.of(evidence.spec().stage).storage.unit_roundoff();
    for product in evidence.nodes(|node| node.op == Op::MulMat) {
        let Some(WeightSource { source: 0, name }) = evidence.weight_source(product) else {
            continue;
        };
        // Of two that give the result the finer one is the cause.
        for (order, dtype) in (1..).zip([DType::Tf32, DType::F16, DType::Bf16]) {
            let (x, weight) = (rounded(product, dtype), rounded_weight(product, &name, dtype));
            for (what, edits) in
                [("inputs and weights", x.and(&weight)), ("inputs", x), ("weights", weight)]
            {
                if dtype.unit_roundoff() > declared {
                    let text = format!("{what} of the product rounded to {dtype}");
                    visit(tried(evidence, text, &edits, order)?);
                }
            }
        }
        for (order, (text, blocks)) in (4..).zip(BLOCKS) {
            let values = move |_: &Machine<'_>, x: &[f64], _: [usize; 4]| {
                let rows: Vec<f32> = x.iter().map(|&x| x as f32).collect();
                (x.len().is_multiple_of(32)).then(|| blocks(&rows))
            };
            let edits = Edits::one(product, Change::Values(1, Rc::new(values)));
            let text = format!("inputs of the product in {text}");
            visit(tried(evidence, text, &edits, order)?);
        }
    }
    Ok(())
}

fn tried(
    evidence: &Evidence<'_>,
    text: String,
    edits: &Edits<'_>,
    order: u8,
) -> Result<Option<Tried>, ReplayError> {
    let tried = evidence.edited(CauseKey::InputsRounded, text, Rank::Arithmetic, edits)?;
    Ok(tried.map(|tried| Tried { mistakes: order, ..tried }))
}

fn rounded(product: NodeId, dtype: DType) -> Edits<'static> {
    Edits::one(product, Change::each(1, move |x| narrowed(dtype, x)))
}

fn rounded_weight(product: NodeId, name: &str, dtype: DType) -> Edits<'static> {
    let name = name.to_string();
    Edits::one(product, matrix(move |machine| Ok(Matrix::of_file(machine.run.file, &name, dtype)?)))
}

fn matrix<'c>(
    of: impl for<'a> Fn(&Machine<'a>) -> Result<Matrix<'a>, ReplayError> + 'c,
) -> Change<'c> {
    Change::Matrix(0, Rc::new(of))
}

/// Rows of blocks as integers, widened again.
type Blocks = fn(&[f32]) -> Vec<f64>;

const BLOCKS: [(&str, Blocks); 2] =
    [("int8, a scale for each 32 in f16 (q8_0)", q8_0), ("int8, a scale for each 32", int8)];

/// As ggml's q8_0: the scale is stored as f16, and the integers are those of the scale before that.
fn q8_0(x: &[f32]) -> Vec<f64> {
    by_blocks(x, |scale| f16::from_f32(scale).to_f32())
}

fn int8(x: &[f32]) -> Vec<f64> {
    by_blocks(x, |scale| scale)
}

fn by_blocks(x: &[f32], stored: fn(f32) -> f32) -> Vec<f64> {
    const LENGTH: usize = 32;
    let block = |x: &[f32]| {
        let largest = x.iter().fold(0f32, |most, x| most.max(x.abs()));
        let scale = largest / 127.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let own = f64::from(stored(scale));
        x.iter().map(move |x| own * f64::from((x * inverse).round())).collect::<Vec<f64>>()
    };
    x.chunks(LENGTH).flat_map(block).collect()
}
