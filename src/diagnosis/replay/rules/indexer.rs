//! The scores by which a sparse attention chooses its keys.

use rayon::prelude::*;

use super::{
    Call, Point, Source,
    elementwise::relu,
    place::{index, place},
    point::Dot,
};
use crate::{diagnosis::replay::Expected, model::gguf::GgufError};

/// q (n, heads, tokens, streams), k (n, 1, keys, streams), a weight of each head
/// (heads, tokens, 1, streams) and a mask (keys, tokens, 1, ..): (keys, tokens, 1, streams), the sum over
/// the heads of weight * max(q . k, 0), masked.
pub fn compute(call: &Call<'_, '_>) -> Result<Expected<'static>, GgufError> {
    let source = |index: usize| call.argument(index).source();
    let [q, k, weights, mask] = [source(0)?, source(1)?, source(2)?, source(3)?];
    let u = call.rounding.sum;
    let point = |at: usize| {
        let [key, token, _, stream] = place(call.ne, at);
        let masked = mask.at(index(mask.ne, [key, token, 0, stream % mask.ne[3]]));
        if masked.value == f64::NEG_INFINITY {
            return masked;
        }
        let from = index(k.ne, [0, 0, key, stream]);
        let mut sum = Dot::default();
        for head in 0..q.ne[1] {
            let of_head = product(&q, index(q.ne, [0, head, token, stream]), &k, from, u);
            // max(x, 0) is no further off than x, even where x is below zero.
            let positive = Point { value: relu(of_head.value), ..of_head };
            sum.add(positive.times(weights.at(index(weights.ne, [head, token, 0, stream]))));
        }
        sum.point(u).rounded(u).plus(masked).rounded(u)
    };
    let points: Vec<Point> = (0..call.elements()).into_par_iter().map(point).collect();
    Ok(call.expected(&points))
}

/// The product of a row of q and one of k.
fn product(q: &Source<'_>, q_from: usize, k: &Source<'_>, k_from: usize, u: f64) -> Point {
    let mut dot = Dot::default();
    for i in 0..q.ne[0] {
        dot.add(q.at(q_from + i).times(k.at(k_from + i)));
    }
    dot.point(u)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Given, Node};
    use crate::graph::Op;

    #[test]
    fn keys_are_scored_by_the_heads_that_like_them() {
        let (n, heads, tokens, keys) = (7, 3, 2, 5);
        let (q, k) = (Given::random([n, heads, tokens, 1], 1), Given::random([n, 1, keys, 1], 2));
        let weights = Given::random([heads, tokens, 1, 1], 3);
        let mut mask = Given::of([keys, tokens, 1, 1], vec![0.0; keys * tokens]);
        mask.value[4] = f64::NEG_INFINITY;
        let node = Node::new(Op::LightningIndexer, [keys, tokens, 1, 1]);
        let sources = [q.clone(), k.clone(), weights.clone(), mask.clone()];
        for (at, value) in node.value(&sources).into_iter().enumerate() {
            let (key, token) = (at % keys, at / keys);
            let of_head = |head: usize| {
                let q = &q.value[(token * heads + head) * n..][..n];
                let dot: f64 = q.iter().zip(&k.value[key * n..]).map(|(q, k)| q * k).sum();
                dot.max(0.0) * weights.value[token * heads + head]
            };
            let expected = (0..heads).map(of_head).sum::<f64>() + mask.value[at];
            assert!(value == expected || (value - expected).abs() < 1e-12);
        }
        mask.value[4] = 0.0;
        node.propagates(&[q.uncertain(1e-4), k, weights, mask]);
    }
}
