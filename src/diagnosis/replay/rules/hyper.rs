//! Hyper-connections: a layer reads its input from several residual streams, and writes to them all.

use super::{
    Call, FUNCTION, LAMBDA, Point,
    functions::sigmoid,
    place::{index, place},
    point::Dot,
};
use crate::{diagnosis::replay::Expected, model::gguf::GgufError};

/// scale * the sum of the streams x (n, streams, tokens), each times its weight (streams, tokens), or
/// times the sigmoid of its gates (n, streams, tokens): (n, tokens).
pub fn read(call: &Call<'_, '_>) -> Result<Expected<'static>, GgufError> {
    let (x, weights) = (call.argument(0).source()?, call.argument(1).source()?);
    let (u, scale) = (call.rounding.sum, f64::from(call.params.float(0)));
    let is_gated = call.params.int(1) != 0;
    let [width, streams, ..] = x.ne;
    Ok(call.each(|at| {
        let (i, token) = (at % width, at / width);
        let mut sum = Dot::default();
        for stream in 0..streams {
            let from = index(x.ne, [i, stream, token, 0]);
            let weight = if is_gated {
                gate(weights.at(from), u)
            } else {
                weights.at(token * streams + stream)
            };
            sum.add(x.at(from).times(weight));
        }
        Point::exact(scale).times(sum.point(u)).rounded(2.0 * u)
    }))
}

/// The sigmoid of a gate.
fn gate(x: Point, u: f64) -> Point {
    let value = sigmoid(x.value);
    let single = u * value * (FUNCTION + 2.0 * (-x.value).max(0.0));
    Point { value, spread: 0.25 * x.spread, single }
}

/// x (n, tokens) times each stream's weight (streams, tokens), added to the residual (n, streams,
/// tokens), whose streams are mixed before by (to, from, tokens), if at all: (n, streams, tokens).
pub fn write(call: &Call<'_, '_>) -> Result<Expected<'static>, GgufError> {
    let source = |index: usize| call.argument(index).source();
    let (x, residual, weights) = (source(0)?, source(1)?, source(2)?);
    let mixing = call.optional(3).map(|mixing| mixing.source()).transpose()?;
    let (u, streams) = (call.rounding.sum, residual.ne[1]);
    Ok(call.each(|at| {
        let [i, to, token, _] = place(call.ne, at);
        let mut sum = Dot::default();
        sum.add(x.at(token * x.ne[0] + i).times(weights.at(token * streams + to)).rounded(u));
        match &mixing {
            Some(mixing) => {
                for from in 0..streams {
                    let part = residual.at(index(residual.ne, [i, from, token, 0]));
                    sum.add(part.times(mixing.at(index(mixing.ne, [to, from, token, 0]))));
                }
            }
            None => sum.add(residual.at(at)),
        }
        sum.point(u).rounded(u)
    }))
}

/// How four streams are mixed: the last 16 of a token's `mixes` (24, tokens) times scale[2], and the same
/// of `base` added, whose exponentials are normalised by rows and columns in turn: (to, from, tokens).
///
/// Each normalisation evens out the errors before it; relative to an element, roundings add up at most.
pub fn mix(call: &Call<'_, '_>) -> Result<Expected<'static>, GgufError> {
    const STREAMS: usize = 4;
    const FIRST: usize = 2 * STREAMS;
    let source = |index: usize| call.argument(index).source();
    let (mixes, scale, base) = (source(0)?, source(1)?, source(2)?);
    let (u, eps, turns) = (call.rounding.sum, f64::from(call.params.float(0)), call.params.int(1));
    let scale = scale.at(2);
    let token = |token: usize| {
        let logit = |i: usize| {
            let mixed = mixes.at(token * mixes.ne[0] + FIRST + i).times(scale).rounded(u);
            mixed.plus(base.at(FIRST + i)).rounded(u)
        };
        let logits: Vec<Point> = (0..STREAMS * STREAMS).map(logit).collect();
        let most = |part: fn(&Point) -> f64| logits.iter().map(part).fold(0.0, f64::max);
        let magnitude = most(|logit| logit.value.abs());
        let (spread, single) = (most(|logit| logit.spread), most(|logit| logit.single));
        let own = u * (FUNCTION * (1.0 + f64::from(turns)) + 2.0 * magnitude);
        let element = move |value: f64| Point {
            value,
            spread: 4.0 * spread * value,
            single: (4.0 * single + own + LAMBDA * u) * value,
        };
        let values: Vec<f64> = logits.iter().map(|logit| logit.value).collect();
        balanced(&values, eps, turns).into_iter().map(element).collect::<Vec<_>>()
    };
    let points: Vec<Point> = (0..mixes.ne[1]).flat_map(token).collect();
    Ok(call.expected(&points))
}

/// Four rows of four, their softmax, and then columns and rows divided by their sums in turn, columns
/// last. `eps` is added to each element of the softmax, and to each sum after it.
fn balanced(logits: &[f64], eps: f64, turns: i32) -> Vec<f64> {
    let mut out: Vec<f64> = Vec::with_capacity(logits.len());
    for row in logits.chunks(4) {
        let maximum = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|x| (x - maximum).exp()).sum();
        out.extend(row.iter().map(|x| (x - maximum).exp() / sum + eps));
    }
    let divide = |out: &mut [f64], element: fn(usize, usize) -> usize| {
        for line in 0..4 {
            let sum: f64 = (0..4).map(|i| out[element(line, i)]).sum();
            (0..4).for_each(|i| out[element(line, i)] /= sum + eps);
        }
    };
    for turn in 0..turns.max(1) {
        if turn > 0 {
            divide(&mut out, |row, i| 4 * row + i);
        }
        divide(&mut out, |column, i| 4 * i + column);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Given, Node, assert_near},
        *,
    };
    use crate::graph::Op;

    #[test]
    fn streams_are_read_by_weights_and_by_gates() {
        let x = Given::random([3, 4, 2, 1], 1);
        let weights = Given::random([4, 2, 1, 1], 2);
        let gates = Given::random(x.ne, 3);
        let node = Node::new(Op::HyperRead, [3, 2, 1, 1]).float(0, 0.5);
        let by_weight = |i: usize, stream: usize| weights.value[i / 3 * 4 + stream];
        let element = |i: usize, stream: usize| (i / 3 * 4 + stream) * 3 + i % 3;
        let by_gate = |i: usize, stream: usize| sigmoid(gates.value[element(i, stream)]);
        let sum = |weight: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
            let of = |i| (0..4).map(|s| 0.5 * x.value[element(i, s)] * weight(i, s)).sum();
            (0..6).map(of).collect()
        };
        assert_near(&node.value(&[x.clone(), weights.clone()]), &sum(&by_weight), "weights");
        node.propagates(&[x.clone().uncertain(1e-4), weights]);
        let node = node.int(1, 1);
        assert_near(&node.value(&[x.clone(), gates.clone()]), &sum(&by_gate), "gates");
        node.propagates(&[x, gates.uncertain(1e-4)]);
    }

    #[test]
    fn streams_are_mixed_and_written() {
        let x = Given::random([3, 2, 1, 1], 1);
        let residual = Given::random([3, 4, 2, 1], 2);
        let weights = Given::random([4, 2, 1, 1], 3);
        let mut identity = Given::of([4, 4, 2, 1], vec![0.0; 32]);
        (0..8).for_each(|i| identity.value[i / 4 * 16 + i % 4 * 5] = 1.0);
        let node = Node::new(Op::HyperWrite, residual.ne);
        let sources = [x.clone(), residual.clone(), weights.clone()];
        let plain = node.value(&sources);
        for (i, value) in plain.iter().enumerate() {
            let written = x.value[i / 12 * 3 + i % 3] * weights.value[i / 3];
            assert!((value - residual.value[i] - written).abs() < 1e-12);
        }
        let mixed = node.value(&[&sources[..], &[identity]].concat());
        assert_near(&mixed, &plain, "mixed by the identity");
        node.propagates(&[x, residual.uncertain(1e-4), weights]);
    }

    #[test]
    fn a_mixing_is_balanced() {
        let mixes = Given::random([24, 3, 1, 1], 1);
        let scale = Given::of([3, 1, 1, 1], vec![0.0, 0.0, 2.0]).weight();
        let base = Given::random([24, 1, 1, 1], 2).weight();
        let node = Node::new(Op::HyperMix, [4, 4, 3, 1]).float(0, 1e-6).int(1, 40);
        let value = node.value(&[mixes.clone(), scale.clone(), base.clone()]);
        for matrix in value.chunks(16) {
            for line in 0..4 {
                let row: f64 = matrix[line * 4..][..4].iter().sum();
                let column: f64 = (0..4).map(|i| matrix[i * 4 + line]).sum();
                assert!((row - 1.0).abs() < 1e-4 && (column - 1.0).abs() < 1e-4);
            }
        }
        for turns in [1, 4] {
            let node = node.clone().int(1, turns);
            node.propagates(&[mixes.clone().uncertain(1e-4), scale.clone(), base.clone()]);
        }
    }
}
