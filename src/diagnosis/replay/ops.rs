//! The operations of a forward pass in f64, each with its rounding bound.
//!
//! What a hypothesis may change is a parameter: which pairs rope rotates, which keys a query sees.
//! Uncertain inputs are propagated to first order, in quadrature.

use std::{ops::Range, sync::Arc};

use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

use crate::{
    diagnosis::replay::{
        expected::{Expected, Operand, Rounding, Spread},
        matrix::Matrix,
        products::{Factor, Pair, Product},
    },
    model::gguf::GgufError,
};

/// What a function such as exp, and the few operations beside it, may be off, in unit roundoffs.
pub const FUNCTION: f64 = 16.0;

/// The heads of an attention operation.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Hq.
    pub query: usize,
    /// Hk.
    pub kv: usize,
    /// D.
    pub dim: usize,
}

fn view(operand: &Operand) -> ArrayView2<'_, f64> {
    let shape = (operand.rows(), operand.width);
    ArrayView2::from_shape(shape, &operand.value).expect("rows times width elements")
}

fn norms(rows: ArrayView2<'_, f64>) -> Vec<f64> {
    rows.outer_iter().map(|row| row.dot(&row).sqrt()).collect()
}

/// The values as they are: embedding rows, cache slots.
pub fn copy(x: &Operand, rounding: Rounding) -> Expected<'static> {
    let spread = x.spread.clone().map_or(Spread::None, Spread::Each);
    Expected { value: x.value.clone(), spread, single: Vec::new(), rounding }
}

/// a + b.
pub fn add(a: &Operand, b: &Operand, rounding: Rounding) -> Expected<'static> {
    let pairs = || a.value.iter().zip(&b.value);
    let spread = match (&a.spread, &b.spread) {
        (None, None) => Spread::None,
        _ => {
            Spread::Each((0..a.value.len()).map(|i| a.spread_of(i).hypot(b.spread_of(i))).collect())
        }
    };
    Expected {
        value: pairs().map(|(a, b)| a + b).collect(),
        spread,
        single: pairs().map(|(a, b)| rounding.sum * (a + b).abs()).collect(),
        rounding,
    }
}

/// x W^T + bias. A bias is added to the stored product, so the product is rounded too.
pub fn linear<'a>(
    x: &Arc<Operand>,
    weight: &Matrix<'a>,
    bias: Option<&[f32]>,
    rounding: Rounding,
) -> Result<Expected<'a>, GgufError> {
    let outputs = weight.outputs;
    let product = Product {
        x: Arc::clone(x),
        factor: Factor::Weight(weight.clone()),
        outputs,
        pairs: Pair::rows(x.rows()),
        of_terms: 0.0,
    };
    let mut expected = product.expected(rounding)?;
    if let Some(bias) = bias {
        let Expected { value, single, .. } = &mut expected;
        single.resize(value.len(), 0.0);
        for (index, (value, single)) in value.iter_mut().zip(single).enumerate() {
            *single = rounding.storage * value.abs();
            *value += f64::from(bias[index % outputs]);
            *single += rounding.sum * value.abs();
        }
    }
    Ok(expected)
}

/// How a norm treats a group of elements: a hidden vector, or a head.
pub struct Norm<'f> {
    /// Factor of each element of a group.
    pub weight: &'f [f64],
    /// What is subtracted from a group's elements.
    pub centre: &'f dyn Fn(&[f64]) -> f64,
    /// What the elements are then multiplied by.
    pub scale: &'f dyn Fn(&[f64]) -> f64,
}

/// 1 / sqrt(mean x^2 + eps).
pub fn inverse_rms(x: &[f64], eps: f64) -> f64 {
    1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt()
}

/// Each group of `weight.len()` elements normalised.
pub fn norm(x: &Operand, norm: &Norm<'_>, rounding: Rounding) -> Expected<'static> {
    let group = norm.weight.len();
    let mut value = Vec::with_capacity(x.value.len());
    let mut spread = Vec::with_capacity(x.value.len());
    let mut single = Vec::with_capacity(x.value.len());
    for (index, elements) in x.value.chunks_exact(group).enumerate() {
        let centre = (norm.centre)(elements);
        let centred: Vec<f64> = elements.iter().map(|x| x - centre).collect();
        let scale = (norm.scale)(&centred);
        let squares: f64 = elements.iter().map(|x| x * x).sum();
        let moment = |i: usize| (elements[i] * x.spread_of(index * group + i)).powi(2);
        let common = match x.spread {
            Some(_) if squares > 0.0 => (0..group).map(moment).sum::<f64>().sqrt() / squares,
            _ => 0.0,
        };
        let own = 0.5 * (group as f64).sqrt() * rounding.sum;
        // A mean is a sum too.
        let magnitude = elements.iter().map(|x| x.abs()).sum::<f64>() / group as f64;
        let of_centre = if centre == 0.0 { 0.0 } else { 2.0 * magnitude };
        for (i, (x_i, weight)) in centred.iter().zip(norm.weight).enumerate() {
            let y = x_i * scale * weight;
            let inherited = (scale * weight * x.spread_of(index * group + i)).abs();
            value.push(y);
            let centring = (scale * weight * centre).abs();
            let once = FUNCTION * rounding.sum + rounding.between;
            single.push(once * (y.abs() + centring));
            spread.push(
                (y.abs() + (scale * weight).abs() * of_centre) * own
                    + inherited.hypot(y.abs() * common),
            );
        }
    }
    Expected { value, spread: Spread::Each(spread), single, rounding }
}

/// Which pairs of a head rotate, and how far.
pub struct Rotation<'f> {
    /// D.
    pub head_dim: usize,
    /// The two elements of pair i in [0, D/2).
    pub pair: &'f dyn Fn(usize) -> (usize, usize),
    /// The angle of a pair at a row of x; `None` leaves it as it is.
    pub angle: &'f dyn Fn(usize, usize) -> Option<f64>,
}

/// Each head rotated pair by pair. The angle is computed as f32 whatever the storage: its error
/// grows with the angle, and with i where powers of theta are multiplied one by one. Between the
/// steps sine and cosine are stored, and each product.
pub fn rotate(x: &Operand, rotation: &Rotation<'_>, rounding: Rounding) -> Expected<'static> {
    let dim = rotation.head_dim;
    let mut value = x.value.clone();
    let mut single = vec![0.0; value.len()];
    let mut spread = x.spread.clone();
    for row in 0..x.rows() {
        for i in 0..dim / 2 {
            let Some(angle) = (rotation.angle)(row, i) else { continue };
            let (sine, cosine) = angle.sin_cos();
            let off = (angle.abs() * (2 * i) as f64 + angle.abs() * FUNCTION + 4.0) * rounding.sum;
            let (first, second) = (rotation.pair)(i);
            for head in (0..x.width).step_by(dim) {
                let (first, second) = (row * x.width + head + first, row * x.width + head + second);
                let (a, b) = (x.value[first], x.value[second]);
                (value[first], value[second]) = (a * cosine - b * sine, a * sine + b * cosine);
                let bound = (a.abs() + b.abs()) * (off.min(2.0) + 2.0 * rounding.between);
                (single[first], single[second]) = (bound, bound);
                if let Some(spread) = &mut spread {
                    let both = x.spread_of(first).hypot(x.spread_of(second));
                    (spread[first], spread[second]) = (both, both);
                }
            }
        }
    }
    Expected { value, spread: spread.map_or(Spread::None, Spread::Each), single, rounding }
}

/// How scores are formed.
pub struct Score<'f> {
    /// The KV head that a query head reads.
    pub kv_head: &'f dyn Fn(usize) -> usize,
    pub scale: f64,
    /// The dims that are summed.
    pub dims: Range<usize>,
}

/// scale * q . k: (T, Hq, P) of q (T, Hq D) and k (P, Hk D).
pub fn scores(
    q: &Arc<Operand>,
    k: &Arc<Operand>,
    heads: Heads,
    score: &Score<'_>,
    rounding: Rounding,
) -> Expected<'static> {
    let (tokens, keys, dim) = (q.rows(), k.rows(), heads.dim);
    let mut value = Array2::zeros((tokens, heads.query * keys));
    let map: Vec<usize> = (0..heads.query).map(score.kv_head).collect();
    let of_head = |operand: &Operand, head: usize| {
        let dims = head * dim + score.dims.start..head * dim + score.dims.end;
        view(operand).slice(s![.., dims]).to_owned()
    };
    let mut q_norms = Vec::with_capacity(heads.query);
    let norms_of =
        |head: usize| if map.contains(&head) { norms(of_head(k, head).view()) } else { Vec::new() };
    let k_norms: Vec<Vec<f64>> = (0..heads.kv).map(norms_of).collect();
    for (head, &kv_head) in map.iter().enumerate() {
        let (q, k) = (of_head(q, head), of_head(k, kv_head));
        q_norms.push(norms(q.view()));
        let product = q.dot(&k.t()) * score.scale;
        value.slice_mut(s![.., head * keys..(head + 1) * keys]).assign(&product);
    }
    let place = move |index: usize| {
        (index / (heads.query * keys), index / keys % heads.query, index % keys)
    };
    let scale = score.scale.abs();
    let terms = {
        let (q, k, map, dims) = (Arc::clone(q), Arc::clone(k), map.clone(), score.dims.clone());
        move |index: usize| {
            let (token, head, key) = place(index);
            let q_at = token * q.width + head * dim;
            let k_at = key * k.width + map[head] * dim;
            dims.clone().map(move |d| (q_at + d, k_at + d)).collect::<Vec<_>>()
        }
    };
    let inherited = (q.spread.is_some() || k.spread.is_some()).then(|| {
        let of = |index: usize| {
            let term = |&(q_at, k_at): &(usize, usize)| {
                let a = q.spread_of(q_at) * k.value[k_at];
                let b = k.spread_of(k_at) * q.value[q_at];
                a * a + b * b
            };
            scale * terms(index).iter().map(term).sum::<f64>().sqrt()
        };
        (0..value.len()).into_par_iter().map(of).collect()
    });
    let most_map = map;
    let most = move |index: usize| {
        let (token, head, key) = place(index);
        scale * q_norms[head][token] * k_norms[most_map[head]][key]
    };
    let (q, k) = (Arc::clone(q), Arc::clone(k));
    let exact = move |index: usize| {
        let products = terms(index).into_iter().map(|(a, b)| (q.value[a] * k.value[b]).abs());
        scale * products.sum::<f64>()
    };
    // A query may be scaled, and rounded, before the product.
    let factor = ((score.dims.len() as f64).sqrt() + 1.0) * rounding.sum;
    let spread =
        Spread::Product { factor, most: Box::new(most), exact: Box::new(exact), inherited };
    let value = value.into_raw_vec_and_offset().0;
    // The product may be stored before it is scaled.
    let single = 2.0 * rounding.sum + rounding.between;
    let single = value.iter().map(|y| single * y.abs()).collect();
    Expected { value, spread, single, rounding }
}

/// How a softmax is taken.
pub struct Softmax<'f> {
    /// P, keys of one head's row.
    pub keys: usize,
    /// The keys that a token sees.
    pub visible: &'f dyn Fn(usize) -> Range<usize>,
    /// Factor on the scores.
    pub temperature: f64,
    /// What the terms exp(score - maximum) of the visible keys are divided by, given them and the
    /// maximum.
    pub divisor: &'f dyn Fn(&[f64], f64) -> f64,
}

/// How far off exp(score - maximum) may be, relative to itself: its argument is rounded, and may be
/// formed from log2(e) times the score.
pub fn exp_error(score: f64, maximum: f64, rounding: Rounding) -> f64 {
    rounding.sum * (FUNCTION + 2.0 * (maximum - score) + 2.0 * maximum.abs())
}

/// The softmax of each head's row of scores (T, Hq P); zero where a token does not see.
pub fn softmax(scores: &Operand, softmax: &Softmax<'_>, rounding: Rounding) -> Expected<'static> {
    let keys = softmax.keys;
    let mut value = vec![0.0; scores.value.len()];
    let mut spread = vec![0.0; scores.value.len()];
    let mut single = vec![0.0; scores.value.len()];
    for (row, start) in (0..scores.value.len()).step_by(keys).enumerate() {
        let visible = (softmax.visible)(row * keys / scores.width.max(1));
        let seen = start + visible.start..start + visible.end.min(keys);
        let scaled: Vec<f64> =
            scores.value[seen.clone()].iter().map(|score| score * softmax.temperature).collect();
        let maximum = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let terms: Vec<f64> = scaled.iter().map(|score| (score - maximum).exp()).collect();
        let divisor = (softmax.divisor)(&terms, maximum);
        let own = 0.5 * (terms.len() as f64).sqrt() * rounding.sum;
        let uncertain = seen.clone().map(|i| scores.spread_of(i)).fold(0.0, f64::max);
        for ((index, term), score) in seen.zip(terms).zip(scaled) {
            let y = term / divisor;
            value[index] = y;
            spread[index] = y * (own + 2.0 * uncertain * softmax.temperature.abs());
            single[index] = y * exp_error(score, maximum, rounding);
        }
    }
    Expected { value, spread: Spread::Each(spread), single, rounding }
}

/// sum over j of p[j] v[j]: (T, Hq D) of probs (T, Hq P) and v (P, Hk D), over the keys of `keys`.
///
/// The probabilities that an engine sums with need not be the ones it wrote out, so they are only
/// known to a rounding each.
pub fn weighted_sum(
    probs: &Operand,
    v: &Operand,
    heads: Heads,
    (kv_head, keys): (&dyn Fn(usize) -> usize, Range<usize>),
    rounding: Rounding,
) -> Expected<'static> {
    let (tokens, positions, dim) = (probs.rows(), v.rows(), heads.dim);
    let mut value = Array2::zeros((tokens, heads.query * dim));
    let mut spread = Array2::zeros((tokens, heads.query * dim));
    let (probs_view, v_view) = (view(probs), view(v));
    let squares = |operand: &Operand| {
        let squares = operand.spread.as_ref()?.iter().map(|s| s * s).collect();
        Array2::from_shape_vec((operand.rows(), operand.width), squares).ok()
    };
    let (p_squares, v_squares) = (squares(probs), squares(v));
    let own = ((positions as f64).sqrt() + FUNCTION) * rounding.sum;
    for head in 0..heads.query {
        let columns = head * positions + keys.start..head * positions + keys.end.min(positions);
        let from = kv_head(head) * dim;
        let rows = keys.start..keys.end.min(positions);
        let p = probs_view.slice(s![.., columns.clone()]);
        let v = v_view.slice(s![rows.clone(), from..from + dim]);
        let at = s![.., head * dim..(head + 1) * dim];
        value.slice_mut(at).assign(&p.dot(&v));
        let mut wide = p.mapv(f64::abs).dot(&v.mapv(f64::abs)) * own;
        if let Some(squares) = &p_squares {
            let squares = squares.slice(s![.., columns]).dot(&v.mapv(|v| v * v));
            wide.zip_mut_with(&squares, |wide, square| *wide = wide.hypot(square.sqrt()));
        }
        if let Some(squares) = &v_squares {
            let squares = p.mapv(|p| p * p).dot(&squares.slice(s![rows, from..from + dim]));
            wide.zip_mut_with(&squares, |wide, square| *wide = wide.hypot(square.sqrt()));
        }
        spread.slice_mut(at).assign(&wide);
    }
    let value = value.into_raw_vec_and_offset().0;
    let spread = Spread::Each(spread.into_raw_vec_and_offset().0);
    let single = value.iter().map(|y: &f64| 2.0 * rounding.sum * y.abs()).collect();
    Expected { value, spread, single, rounding }
}

/// x * sigmoid(x).
pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// activation(gate) * up. An activation written as x times a sum may lose its small values to
/// cancellation, down to roundings of x itself.
pub fn gated(
    gate: &Operand,
    up: &Operand,
    (activation, cancels): (&dyn Fn(f64) -> f64, bool),
    rounding: Rounding,
) -> Expected<'static> {
    let pairs = || gate.value.iter().zip(&up.value);
    let value: Vec<f64> = pairs().map(|(&gate, &up)| activation(gate) * up).collect();
    let single = pairs().zip(&value);
    let single = single.map(|((gate, up), y)| {
        let scale = if cancels { (gate * up).abs() } else { y.abs() };
        scale * (rounding.sum * (FUNCTION + gate.abs()) + rounding.between)
    });
    let single = single.collect();
    let spread = match (&gate.spread, &up.spread) {
        (None, None) => Spread::None,
        // No activation in use is steeper than 1.13.
        _ => Spread::Each(
            (0..value.len())
                .map(|i| {
                    let of_gate = 1.13 * up.value[i] * gate.spread_of(i);
                    of_gate.hypot(activation(gate.value[i]) * up.spread_of(i))
                })
                .collect(),
        ),
    };
    Expected { value, spread, single, rounding }
}
