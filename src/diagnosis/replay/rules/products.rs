//! Products of matrices.

use std::sync::Arc;

use super::{
    Argument, Call, FUNCTION, Values,
    place::{index, place, row_of},
};
use crate::{
    diagnosis::replay::{Expected, Factor, Operand, Pair, Product},
    model::gguf::GgufError,
};

/// src0 (k, m, a2, a3) with src1 (k, n, b2, b3): (m, n, b2, b3), each element a sum of k products.
/// src0 is repeated to b2 and b3.
pub fn product<'a>(call: &Call<'_, 'a>) -> Result<Expected<'a>, GgufError> {
    let (a, x) = (call.argument(0), call.argument(1));
    let ratio = |axis: usize| (x.ne[axis] / a.ne[axis].max(1)).max(1);
    let (r2, r3) = (ratio(2), ratio(3));
    let pair = |row: usize| {
        let [_, i2, i3, _] = place([x.ne[1], x.ne[2], x.ne[3], 1], row);
        Pair { row, block: i3 / r3 * a.ne[2] + i2 / r2 }
    };
    let pairs = (0..x.rows()).map(pair).collect();
    multiplied(call, x.operand()?, a, pairs)
}

/// src0 (k, m, experts) with src1 (k, slots or 1, tokens) by the experts that src2 (slots, tokens)
/// names: (m, slots, tokens).
pub fn of_experts<'a>(call: &Call<'_, 'a>) -> Result<Expected<'a>, GgufError> {
    let (a, x, ids) = (call.argument(0), call.argument(1), call.argument(2));
    let experts = a.ne[2];
    let names = ids.value()?;
    let pair = |row: usize| {
        let (slot, token) = (row % call.ne[1], row / call.ne[1]);
        let name = names[index(ids.ne, [slot, token, 0, 0])];
        let row = token * x.ne[1] + slot % x.ne[1];
        Some(Pair { row, block: row_of(name, experts)? })
    };
    let pairs: Vec<Option<Pair>> = (0..call.ne[1] * call.ne[2]).map(pair).collect();
    let known = pairs.iter().map(|pair| pair.unwrap_or(Pair { row: 0, block: 0 })).collect();
    let mut expected = multiplied(call, x.operand()?, a, known)?;
    for (values, pair) in expected.value.chunks_exact_mut(call.ne[0]).zip(&pairs) {
        if pair.is_none() {
            values.fill(f64::NAN);
        }
    }
    Ok(expected)
}

/// src0 (m, k, a2, a3) with src1 (n, k, b2, b3): (m, n, b2, b3), each element a sum of k products.
pub fn outer<'a>(call: &Call<'_, 'a>) -> Result<Expected<'a>, GgufError> {
    let transposed = |argument: &Argument<'_, '_>| -> Result<Argument<'static, 'a>, GgufError> {
        let of = argument.ne;
        let ne = [of[1], of[0], of[2], of[3]];
        let from = |i: usize| {
            let [i0, i1, i2, i3] = place(ne, i);
            index(of, [i1, i0, i2, i3])
        };
        let value = argument.value()?;
        let part = |from_values: &[f64]| {
            (0..value.len()).map(|i| from_values[from(i)]).collect::<Vec<f64>>().into()
        };
        let spread = argument.spread().map(part);
        Ok(Argument { ne, values: Values::Dense { value: part(&value), spread } })
    };
    let sources = [transposed(call.argument(0))?, transposed(call.argument(1))?];
    let arguments = sources.map(Some).into();
    product(&Call { arguments, ..*call })
}

/// Rows of x with blocks of `call.ne[0]` rows of a.
fn multiplied<'a>(
    call: &Call<'_, 'a>,
    x: Operand,
    a: &Argument<'_, 'a>,
    pairs: Vec<Pair>,
) -> Result<Expected<'a>, GgufError> {
    let is_weight = matches!(a.values, Values::Weight(_));
    let factor = match &a.values {
        Values::Weight(matrix) => Factor::Weight(matrix.clone()),
        Values::Dense { .. } => Factor::Dense(Arc::new(a.operand()?)),
    };
    let of_terms = if is_weight { 0.0 } else { of_terms(&x) };
    let outputs = call.ne[0];
    let product = Product { x: Arc::new(x), factor, outputs, pairs, of_terms };
    let mut expected = product.expected(call.rounding)?;
    if !is_weight {
        // It may be stored before it is scaled.
        let single = 2.0 * call.rounding.sum + call.rounding.between;
        expected.single = expected.value.iter().map(|y| single * y.abs()).collect();
    }
    Ok(expected)
}

/// Where x is no stage of its own for an engine, its elements are only known to some roundings: a query
/// may be scaled before the product, and the probabilities that values are summed with need not be
/// the ones that were written out.
fn of_terms(x: &Operand) -> f64 {
    let is_probability = |x: &f64| (0.0..=1.0 + 1e-3).contains(x);
    if x.value.iter().all(is_probability) { FUNCTION } else { 1.0 }
}
