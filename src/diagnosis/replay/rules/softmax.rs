//! The softmax of rows of scores, with scale, mask, biases that grow with distance, and sinks.

use super::{
    Argument, Call, FUNCTION, Point,
    place::{index, place},
};
use crate::{
    diagnosis::replay::{Expected, Rounding},
    model::gguf::GgufError,
};

/// Factor of the mask in each head: 1, or 2^(-bias (h + 1) / n) where there is a bias.
fn slope(max_bias: f64, heads: usize, head: usize) -> f64 {
    if max_bias <= 0.0 {
        return 1.0;
    }
    let n = 1usize << heads.max(1).ilog2();
    if head < n {
        return 2f64.powf(-max_bias / n as f64 * (head + 1) as f64);
    }
    // The heads beyond a power of two have slopes between those of the others.
    2f64.powf(-max_bias / 2.0 / n as f64 * (2 * (head - n) + 1) as f64)
}

/// A row's scores as the softmax takes them.
struct Row<'r> {
    /// Factor of `scores`.
    scale: f64,
    scores: &'r [f64],
    /// What is added to each score, if anything.
    added: Option<&'r [f64]>,
    /// Factor of `added`.
    slope: f64,
    /// A score that takes its share, and is not written out.
    sink: Option<f64>,
    /// The largest spread of a score that is seen.
    uncertain: f64,
}

impl Row<'_> {
    fn score(&self, i: usize) -> f64 {
        self.scale * self.scores[i] + self.bias(i)
    }

    fn bias(&self, i: usize) -> f64 {
        self.added.map_or(0.0, |added| if added[i] == 0.0 { 0.0 } else { self.slope * added[i] })
    }

    /// The probabilities; exactly zero where the mask is -inf, and no numbers where it is everywhere.
    fn points(&self, rounding: Rounding) -> impl Fn(usize) -> Point + use<> {
        let scores: Vec<f64> = (0..self.scores.len()).map(|i| self.score(i)).collect();
        let sink = self.sink.unwrap_or(f64::NEG_INFINITY);
        let maximum = scores.iter().copied().fold(sink, f64::max);
        let is_unseen = maximum == f64::NEG_INFINITY;
        let terms: Vec<f64> = scores.iter().map(|score| (score - maximum).exp()).collect();
        let divisor = terms.iter().sum::<f64>() + self.sink.map_or(0.0, |s| (s - maximum).exp());
        let seen = scores.iter().filter(|score| score.is_finite()).count();
        let own = 0.5 * (seen as f64).sqrt() * rounding.sum;
        // A sum of a score and a bias is off by roundings of both, in each term of the divisor too.
        let of_bias = |i: usize| {
            let bias = self.bias(i);
            if bias == 0.0 || !scores[i].is_finite() {
                return 0.0;
            }
            rounding.sum * (4.0 * bias.abs() + 2.0 * (self.scale * self.scores[i]).abs())
        };
        let biases: Vec<f64> = (0..scores.len()).map(of_bias).collect();
        let of_divisor = terms.iter().zip(&biases).map(|(t, bias)| t * bias).sum::<f64>() / divisor;
        let inherited = 2.0 * self.uncertain * self.scale.abs();
        move |i| {
            let score = scores[i];
            if is_unseen {
                return Point::exact(f64::NAN);
            }
            if score == f64::NEG_INFINITY {
                return Point::default();
            }
            let y = terms[i] / divisor;
            let off = exp_error(score, maximum, rounding) + biases[i] + of_divisor;
            Point { value: y, spread: y * (own + inherited), single: y * off }
        }
    }
}

/// How far off exp(score - maximum) may be, relative to itself: its argument is rounded, and may be formed
/// from log2(e) times the score.
fn exp_error(score: f64, maximum: f64, rounding: Rounding) -> f64 {
    rounding.sum * (FUNCTION + 2.0 * (maximum - score) + 2.0 * maximum.abs())
}

/// src0 (keys, queries, heads, batches) with a mask (keys, queries, ..) as src1 and a sink for each
/// head as src2.
pub fn compute(call: &Call<'_, '_>) -> Result<Expected<'static>, GgufError> {
    let (x, mask, sinks) = (call.argument(0), call.optional(1), call.optional(2));
    let (scale, max_bias) = (call.params.float(0), call.params.float(1));
    let [keys, queries, heads, batches] = call.ne;
    let values = x.value()?;
    let masked = mask.map(Argument::value).transpose()?;
    let sinks = sinks.map(Argument::value).transpose()?;
    Ok(call.each_row(|first| {
        let [query, head, batch, _] = place([queries, heads, batches, 1], first / keys);
        let own = first..first + keys;
        let added = mask.zip(masked.as_deref()).map(|(mask, values)| {
            let from = index(mask.ne, [0, query, head % mask.ne[2], batch % mask.ne[3]]);
            &values[from..from + keys]
        });
        let is_seen = |i: usize| added.is_none_or(|added| added[i] != f64::NEG_INFINITY);
        let spread = |i: usize| if is_seen(i) { x.spread_of(own.start + i) } else { 0.0 };
        let uncertain = match x.spread() {
            Some(_) => (0..keys).map(spread).fold(0.0, f64::max),
            None => 0.0,
        };
        let row = Row {
            scale: f64::from(scale),
            scores: &values[own.clone()],
            added,
            slope: slope(f64::from(max_bias), heads, head),
            sink: sinks.as_ref().map(|sinks| sinks[head]),
            uncertain,
        };
        row.points(call.rounding)
    }))
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Given, Node, assert_near},
        *,
    };
    use crate::graph::Op;

    const NONE: f64 = f64::NEG_INFINITY;

    fn naive(scores: &[f64]) -> Vec<f64> {
        let sum: f64 = scores.iter().map(|score| score.exp()).sum();
        scores.iter().map(|score| score.exp() / sum).collect()
    }

    #[test]
    fn slopes_are_powers_of_two_and_those_between() {
        let slopes = |heads| -> Vec<f64> { (0..heads).map(|h| slope(8.0, heads, h)).collect() };
        assert_eq!(slopes(4), [0.25, 0.0625, 2f64.powi(-6), 2f64.powi(-8)]);
        assert_eq!(slopes(6)[4..], [0.5, 0.125]);
        assert_eq!(slope(0.0, 6, 5), 1.0);
    }

    #[test]
    fn a_mask_is_added_with_each_heads_slope_and_its_infinities_give_zero() {
        // keys, queries, heads, batches; the mask has rows to spare.
        let x = Given::random([5, 3, 6, 2], 1).map(|x| 4.0 * x);
        let mut mask = Given::random([5, 4, 1, 1], 2);
        for (i, masked) in mask.value.iter_mut().enumerate() {
            if i % 5 > i / 5 + 1 {
                *masked = NONE;
            }
        }
        for bias in [0.0, 8.0] {
            let node = Node::new(Op::SoftMax, x.ne).float(0, 0.5).float(1, bias);
            let expected = node.compute(&[x.clone(), mask.clone()]);
            for (row, values) in expected.value.chunks(5).enumerate() {
                let slope = slope(f64::from(bias), 6, row / 3 % 6);
                let score =
                    |i: usize| 0.5 * x.value[row * 5 + i] + slope * mask.value[row % 3 * 5 + i];
                let scores: Vec<f64> = (0..5).map(score).collect();
                assert_near(values, &naive(&scores), "SOFT_MAX");
                for i in (0..5).filter(|&i| scores[i] == NONE) {
                    assert_eq!(expected.times_bound(row * 5 + i, 0.0), Some(0.0));
                    assert!(expected.times_bound(row * 5 + i, 1e-30).is_some_and(|x| x > 1.0));
                }
            }
            node.propagates(&[x.clone().uncertain(1e-3), mask.clone()]);
        }
    }

    #[test]
    fn a_sink_takes_its_share() {
        let x = Given::random([3, 1, 2, 1], 3);
        // No mask: the sinks are the third source, after one that adds nothing.
        let mask = Given::of([3, 1, 1, 1], vec![0.0; 3]);
        let sinks = Given::of([2, 1, 1, 1], vec![2.0, -1.0]);
        let node = Node::new(Op::SoftMax, x.ne).float(0, 1.0);
        let value = node.value(&[x.clone(), mask, sinks.clone().weight()]);
        for (head, values) in value.chunks(3).enumerate() {
            let mut scores = x.value[head * 3..(head + 1) * 3].to_vec();
            scores.push(sinks.value[head]);
            assert_near(values, &naive(&scores)[..3], "SOFT_MAX");
        }
    }

    #[test]
    fn nothing_is_expected_of_a_row_that_sees_nothing() {
        let x = Given::random([4, 2, 1, 1], 4).uncertain(1e-3);
        let mut mask = Given::of([4, 2, 1, 1], vec![NONE; 8]);
        mask.value[7] = 0.0;
        let expected = Node::new(Op::SoftMax, x.ne).float(0, 1.0).compute(&[x, mask]);
        for i in 0..4 {
            assert_eq!(expected.times_bound(i, f32::NAN), None);
        }
        assert_eq!(expected.value[4..], [0.0, 0.0, 0.0, 1.0]);
    }
}
