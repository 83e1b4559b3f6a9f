//! The errors of what was computed on the way, as the next node takes them.

use super::{Machine, Root};
use crate::{
    diagnosis::replay::expected::{Expected, Spread},
    graph::{NodeId, Op},
};

/// The standard deviation of an error that is anywhere within a bound of 1: 1 / sqrt(3).
const ONE_ROUNDING: f64 = 0.577_350_269_189_625_8;

impl Machine<'_> {
    /// What was rounded once before a factor, a term or a scale is bounded after it too, and needs no room for
    /// chance.
    pub(super) fn tell_apart(&self, id: NodeId, result: &mut Expected<'_>) {
        let (graph, node) = (self.graph(), self.graph().node(id));
        if !matches!(node.op, Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Scale) {
            return;
        }
        let sources = node.sources.iter().flatten();
        let uncertain = |source: &&NodeId| {
            let root = self.memory[graph.root(**source).index()].as_ref();
            root.is_some_and(|root| root.spread.is_some())
        };
        let mut uncertain = sources.filter(uncertain);
        let (Some(&source), None) = (uncertain.next(), uncertain.next()) else { return };
        let Some(root) = &self.memory[graph.root(source).index()] else { return };
        let (Some(before), Spread::Each(after)) = (&root.spread, &mut result.spread) else {
            return;
        };
        let is_whole = before.len() == after.len() && graph.shows_in_order(source);
        if root.single.len() != before.len() || !is_whole {
            return;
        }
        let walk = self.walk_of(source).filter(|_| matches!(node.op, Op::Add | Op::Sub));
        result.single.resize(after.len(), 0.0);
        for (i, after) in after.iter_mut().enumerate().filter(|(i, _)| before[*i] > 0.0) {
            let factor = *after / before[i];
            *after = factor * (before[i] - root.single[i] * ONE_ROUNDING).max(0.0);
            result.single[i] += factor * root.single[i];
        }
        if let Some(walk) = walk {
            begun_with(walk, &root.value, &result.value, after);
        }
    }

    /// Of a sum of n products, or of some of its rows, sqrt(n) u: what a sum of any size loses in as many additions.
    fn walk_of(&self, mut id: NodeId) -> Option<f64> {
        let graph = self.graph();
        loop {
            id = graph.root(id);
            let node = graph.node(id);
            let source = node.source(0)?;
            if matches!(node.op, Op::MulMat | Op::MulMatId) {
                let n = graph.node(source).sizes(self.extent).ne[0] as f64;
                return Some(n.sqrt() * self.rounding(id).sum);
            }
            if !(node.op.is_layout() || node.op == Op::GetRows) {
                return None;
            }
            id = source;
        }
    }
}

/// A result as it was computed, with its error.
pub(super) fn uncertain(expected: Expected<'_>) -> Root {
    let errors = errors_of(&expected);
    Root { value: expected.value, ..errors }
}

/// The errors of a result, without its values.
pub(super) fn errors_of(expected: &Expected<'_>) -> Root {
    let n = expected.value.len();
    let single: Vec<f64> = (0..n).map(|i| expected.fixed(i)).collect();
    let spread = |i| expected.most_spread(i) + ONE_ROUNDING * single[i];
    let spread = Some((0..n).map(spread).collect());
    Root { spread, single, ..Root::default() }
}

/// Widens the deviations of sums to which something was added: a program may begin a sum with it, be it a bias or a
/// residual b, and then rounds each partial sum with it. Those are b and a share of the products' sum p, so the mean of
/// their squares is b^2 + b p + p^2 / 3, of which the sum of the products alone has the last.
fn begun_with(walk: f64, sums: &[f64], whole: &[f64], deviations: &mut [f64]) {
    for ((deviation, &whole), &p) in deviations.iter_mut().zip(whole).zip(sums) {
        let b = whole - p;
        let more = walk * walk * (b * b + b * p).max(0.0) / 3.0;
        *deviation = (*deviation * *deviation + more).sqrt();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{core::random::splitmix64, diagnosis::replay::LAMBDA};

    #[test]
    fn sums_that_begin_with_a_bias_or_end_with_it_are_within_the_bound() {
        let random = |key: u64, i: usize| splitmix64(key, i as u64) as f64 / u64::MAX as f64 - 0.5;
        let (n, u) = (896, f64::from(f32::EPSILON) / 2.0);
        let (mut worst, mut worst_without) = (0f64, 0f64);
        for row in 0..200 {
            let products: Vec<f32> = (0..n).map(|i| random(row, i) as f32).collect();
            let bias = 300.0 * random(row, n) as f32;
            let begun = products.iter().fold(bias, |sum, x| sum + x);
            let exact: f64 = products.iter().map(|&x| f64::from(x)).sum();
            let whole = exact + f64::from(bias);
            let squares: f64 = products.iter().map(|&x| f64::from(x).powi(2)).sum();
            let plain = u * (n as f64 * (exact * exact / 9.0 + squares / 6.0)).sqrt();
            let mut deviation = [plain];
            begun_with((n as f64).sqrt() * u, &[exact], &[whole], &mut deviation);
            let last = 2.0 * u * whole.abs();
            let times = |spread: f64| (f64::from(begun) - whole).abs() / (LAMBDA * spread + last);
            (worst, worst_without) =
                (worst.max(times(deviation[0])), worst_without.max(times(plain)));
            let ended = products.iter().fold(0.0, |sum, x| sum + x) + bias;
            assert!((f64::from(ended) - whole).abs() <= LAMBDA * deviation[0] + last);
        }
        assert!(worst < 1.0 && worst_without > 1.0, "{worst} {worst_without}");
    }
}
