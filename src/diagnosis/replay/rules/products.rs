//! Products of matrices.

use std::sync::Arc;

use super::{
    Argument, Call, FUNCTION, Values,
    place::{index, place, row_of},
};
use crate::{
    diagnosis::replay::{Expected, Factor, Multiplied, Operand, Pair, Product},
    graph::Op,
    model::gguf::GgufError,
};

/// src0 (k, m, a2, a3) with src1 (k, n, b2, b3): (m, n, b2, b3), each element a sum of k products.
/// src0 is repeated to b2 and b3.
///
/// Of experts, src0 (k, m, experts) with src1 (k, slots or 1, tokens) by the experts that src2 (slots,
/// tokens) names: (m, slots, tokens).
pub fn product<'a>(call: &Call<'_, 'a>) -> Result<Expected<'a>, GgufError> {
    let product = product_of(call)?;
    let multiplied = Product::together(vec![product])?.pop();
    finished(call, multiplied.expect("as many as were given"))
}

/// Whether a call multiplies a weight of the file.
pub fn is_with_weight(call: &Call<'_, '_>) -> bool {
    let is_product = matches!(call.op, Op::MulMat | Op::MulMatId);
    is_product && matches!(call.argument(0).values, Values::Weight(_))
}

/// What a call multiplies.
pub fn product_of<'a>(call: &Call<'_, 'a>) -> Result<Product<'a>, GgufError> {
    let (a, x) = (call.argument(0), call.argument(1));
    let pairs = match call.op {
        Op::MulMatId => {
            let pairs = pairs_of_experts(call)?.into_iter();
            pairs.map(|pair| pair.unwrap_or(Pair { row: 0, block: 0 })).collect()
        }
        _ => {
            let ratio = |axis: usize| (x.ne[axis] / a.ne[axis].max(1)).max(1);
            let (r2, r3) = (ratio(2), ratio(3));
            let pair = |row: usize| {
                let [_, i2, i3, _] = place([x.ne[1], x.ne[2], x.ne[3], 1], row);
                Pair { row, block: i3 / r3 * a.ne[2] + i2 / r2 }
            };
            (0..x.rows()).map(pair).collect()
        }
    };
    let x = x.operand()?;
    let (factor, of_terms) = match &a.values {
        Values::Weight(matrix) => (Factor::Weight(matrix.clone()), 0.0),
        Values::Dense { .. } => (Factor::Dense(Arc::new(a.operand()?)), of_terms(&x)),
    };
    let (x, only) = (Arc::new(x), call.only.clone());
    Ok(Product { x, factor, outputs: call.ne[0], pairs, of_terms, only })
}

/// Whether experts have all the ids that a call names.
pub fn has_all_experts(call: &Call<'_, '_>) -> Result<bool, GgufError> {
    Ok(call.op != Op::MulMatId || pairs_of_experts(call)?.iter().all(Option::is_some))
}

/// The row and the expert of each slot of each token; `None` where no expert has the id.
fn pairs_of_experts(call: &Call<'_, '_>) -> Result<Vec<Option<Pair>>, GgufError> {
    let (a, x, ids) = (call.argument(0), call.argument(1), call.argument(2));
    let experts = a.ne[2];
    let names = ids.value()?;
    let pair = |row: usize| {
        let (slot, token) = (row % call.ne[1], row / call.ne[1]);
        let name = names[index(ids.ne, [slot, token, 0, 0])];
        let row = token * x.ne[1] + slot % x.ne[1];
        Some(Pair { row, block: row_of(name, experts)? })
    };
    Ok((0..call.ne[1] * call.ne[2]).map(pair).collect())
}

/// What a call must give, of its sums.
pub fn finished<'a>(
    call: &Call<'_, 'a>,
    multiplied: Multiplied<'a>,
) -> Result<Expected<'a>, GgufError> {
    let mut expected = multiplied.bounded(call.rounding);
    if matches!(call.argument(0).values, Values::Dense { .. }) {
        // It may be stored before it is scaled.
        let single = 2.0 * call.rounding.sum + call.rounding.between;
        let values = expected.single.iter_mut().zip(&expected.value);
        values.for_each(|(own, y)| *own += single * y.abs());
    }
    if call.op == Op::MulMatId {
        let rows = expected.value.chunks_exact_mut(call.ne[0]).zip(pairs_of_experts(call)?);
        rows.filter(|(_, pair)| pair.is_none()).for_each(|(values, _)| values.fill(f64::NAN));
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
    product(&Call { op: Op::MulMat, arguments, only: None, ..*call })
}

/// Where x is no stage of its own for an engine, its elements are only known to some roundings: a query
/// may be scaled before the product, and the probabilities that values are summed with need not be
/// the ones that were written out.
fn of_terms(x: &Operand) -> f64 {
    let is_score = |&x: &f64| !(x.is_nan() || (0.0..=1.0 + 1e-3).contains(&x));
    if x.value.iter().any(is_score) { 1.0 } else { FUNCTION }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Given, Node, assert_near},
        *,
    };
    use crate::diagnosis::replay::Spread;

    /// The sums, and the sums of their terms' squares.
    fn naive(a: &Given, x: &Given) -> [Vec<f64>; 2] {
        let ([k, m, a2, a3], [_, n, b2, b3]) = (a.ne, x.ne);
        let mut sums = [Vec::new(), Vec::new()];
        for at in 0..m * n * b2 * b3 {
            let [output, row, i2, i3] = place([m, n, b2, b3], at);
            let term = |i: usize| {
                let from = [i, output, i2 / (b2 / a2), i3 / (b3 / a3)];
                a.value[index(a.ne, from)] * x.value[index(x.ne, [i, row, i2, i3])]
            };
            sums[0].push((0..k).map(term).sum());
            sums[1].push((0..k).map(|i| term(i).powi(2)).sum());
        }
        sums
    }

    #[test]
    fn batches_of_weights_and_of_tensors_are_multiplied_alike() {
        let shapes = [
            ([1, 1, 1, 1], [1, 1, 1, 1]),
            ([5, 3, 1, 1], [5, 7, 1, 1]),
            ([64, 131, 1, 1], [64, 2, 1, 1]),
            ([6, 4, 2, 1], [6, 3, 6, 1]),
            ([7, 5, 2, 3], [7, 1, 4, 3]),
        ];
        for (of_a, of_x) in shapes {
            let (a, x) = (Given::random(of_a, 1), Given::random(of_x, 2));
            let [sums, squares] = naive(&a, &x);
            let node = Node::new(Op::MulMat, [of_a[1], of_x[1], of_x[2], of_x[3]]);
            for a in [a.clone(), a.clone().weight()] {
                let expected = node.compute(&[a.clone(), x.clone()]);
                assert_near(&expected.value, &sums, "MUL_MAT");
                let Spread::Product { rounding, most, exact, .. } = &expected.spread else {
                    panic!()
                };
                assert_eq!((rounding.n, rounding.u), (of_a[0], 2f64.powi(-24)));
                for (i, squares) in squares.iter().enumerate() {
                    let terms = exact(i);
                    assert!((terms.squares - squares).abs() <= 1e-12);
                    assert!(most(i) >= squares - 1e-12 && terms.walk >= sums[i].powi(2) - 1e-12);
                }
                // Where src1 is a weight it is read as a tensor.
                let other = node.value(&[a.clone(), x.clone().weight()]);
                assert_near(&other, &sums, "MUL_MAT of two weights");
                node.propagates(&[a, x.clone().uncertain(1e-3)]);
            }
            node.propagates(&[a.uncertain(1e-3), x]);
        }
    }

    #[test]
    fn a_probability_is_only_known_to_some_roundings() {
        let (v, p) = (Given::random([9, 3, 1, 1], 1), Given::random([9, 2, 1, 1], 2));
        let node = Node::new(Op::MulMat, [3, 2, 1, 1]);
        let of_terms = |x: Given| match node.compute(&[v.clone(), x]).spread {
            Spread::Product { rounding, .. } => rounding.of_terms,
            _ => panic!(),
        };
        assert!(of_terms(p.clone().map(f64::abs)) > 4.0 * of_terms(p));
    }

    #[test]
    fn each_slot_of_a_token_goes_to_its_expert() {
        let (k, m, experts, slots, tokens) = (5, 3, 4, 2, 3);
        let a = Given::random([k, m, experts, 1], 1);
        let names = [3.0, 1.0, 0.0, 3.0, 2.0, 7.0];
        let ids = Given::of([slots, tokens, 1, 1], names.to_vec());
        let node = Node::new(Op::MulMatId, [m, slots, tokens, 1]);
        for of_slots in [1, slots] {
            let x = Given::random([k, of_slots, tokens, 1], 2);
            for a in [a.clone(), a.clone().weight()] {
                let value = node.value(&[a.clone(), x.clone(), ids.clone()]);
                for (row, values) in value.chunks(m).enumerate() {
                    if names[row] >= experts as f64 {
                        assert!(values.iter().all(|y| y.is_nan()));
                        continue;
                    }
                    let expert = names[row] as usize * m * k;
                    let part = Given::of([k, m, 1, 1], a.value[expert..expert + m * k].to_vec());
                    let from = (row / slots * of_slots + row % slots % of_slots) * k;
                    let token = Given::of([k, 1, 1, 1], x.value[from..from + k].to_vec());
                    let single = Node::new(Op::MulMat, [m, 1, 1, 1]).value(&[part, token]);
                    assert_near(values, &single, "MUL_MAT_ID");
                }
                let known = Given::of(ids.ne, names.iter().map(|name| name % 4.0).collect());
                node.propagates(&[a, x.clone().uncertain(1e-3), known]);
            }
        }
    }

    #[test]
    fn an_outer_product_sums_over_rows() {
        let (a, x) = (Given::random([3, 7, 1, 1], 1), Given::random([2, 7, 2, 1], 2));
        let node = Node::new(Op::OutProd, [3, 2, 2, 1]);
        let value = node.value(&[a.clone(), x.clone()]);
        for (at, value) in value.iter().enumerate() {
            let [i0, i1, i2, _] = place(node.ne, at);
            let term = |t: usize| a.value[t * 3 + i0] * x.value[(i2 * 7 + t) * 2 + i1];
            assert!((value - (0..7).map(term).sum::<f64>()).abs() < 1e-12);
        }
        node.propagates(&[a.uncertain(1e-3), x]);
    }
}
