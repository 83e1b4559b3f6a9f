//! Recurrences that correct their state: the gated delta rule and RWKV 7.
//!
//! Both are, for each row s of a head's state and its element v of a token's values,
//!
//! ```text
//! s' = s * w + v k + (s . a) b         y = s' . r
//! ```
//!
//! An error e of s becomes e M with M = diag(w) + a b^T, which shrinks it, while |M| would let it grow
//! without bound. So roundings, which are as good as independent, are propagated as the variances of
//! the elements. What comes with uncertain inputs has a direction: of it the length of e is
//! propagated, by the norm of M.

use super::{
    Argument, Call, FUNCTION, LAMBDA, Op, Point, Source,
    point::exponential,
    states::{Head, Recurrence},
};
use crate::{diagnosis::replay::Expected, model::gguf::GgufError};

/// The vectors of a head at a token.
struct Step {
    w: Vec<Point>,
    a: Vec<Point>,
    b: Vec<Point>,
    k: Vec<Point>,
    r: Vec<Point>,
    v: Vec<Point>,
    /// Roundings of s * w, in unit roundoffs as a standard deviation.
    of_decay: f64,
    /// The norm of M; only known where an input is uncertain.
    norm: f64,
}

/// A row of a state.
struct State {
    values: Vec<f64>,
    /// Variances of rounding errors.
    variances: Vec<f64>,
    /// The variance of the length of the error that came with inputs.
    inherited: f64,
}

/// The result of the rule. `None` where states are kept for several tokens.
pub fn compute(call: &Call<'_, '_>) -> Result<Option<Expected<'static>>, GgufError> {
    let sources = call.arguments.iter().flatten().map(Argument::source);
    let sources = sources.collect::<Result<Vec<_>, _>>()?;
    let is_gated = call.op == Op::GatedDeltaNet;
    if is_gated && call.params.int(0) > 1 {
        return Ok(None);
    }
    let (values, states) = if is_gated { (2, 5) } else { (3, 6) };
    let [width, heads, all, batches] = sources[values].ne;
    let sequences = if is_gated { batches } else { sources[states].ne[1].max(1) };
    let tokens = if is_gated { all } else { all / sequences };
    let sizes = Recurrence { width, heads, tokens, sequences };
    let rule = Rule {
        sizes,
        u: call.rounding.sum,
        is_uncertain: call.is_uncertain(),
        states: &sources[states],
        sources: &sources,
        is_gated,
    };
    Ok(Some(sizes.expected(call, |sequence, head| rule.head(sequence, head))))
}

struct Rule<'f> {
    sizes: Recurrence,
    u: f64,
    is_uncertain: bool,
    states: &'f Source<'f>,
    sources: &'f [Source<'f>],
    is_gated: bool,
}

impl Rule<'_> {
    fn head(&self, sequence: usize, head: usize) -> Head {
        let n = self.sizes.width;
        let first = (sequence * self.sizes.heads + head) * n * n;
        let row = |i: usize| {
            let cells = self.states.row(first + i * n, n);
            State {
                values: cells.iter().map(|cell| cell.value).collect(),
                variances: vec![0.0; n],
                inherited: cells.iter().map(|cell| cell.spread.powi(2)).sum(),
            }
        };
        let mut rows: Vec<State> = (0..n).map(row).collect();
        let mut outputs = Vec::with_capacity(self.sizes.tokens * n);
        for token in 0..self.sizes.tokens {
            let step = if self.is_gated {
                self.gated_step(sequence, token, head)
            } else {
                self.step(sequence, token, head)
            };
            outputs.extend(rows.iter_mut().zip(&step.v).map(|(row, v)| {
                row.advance(&step, *v, self.u);
                row.output(&step.r, self.u)
            }));
        }
        Head { outputs, state: rows.iter().flat_map(State::points).collect() }
    }

    /// RWKV 7: r, w, k, v, a and b are as they are.
    fn step(&self, sequence: usize, token: usize, head: usize) -> Step {
        let n = self.sizes.width;
        let from = self.sizes.row(sequence, token, head) * n;
        let [r, w, k, v, a, b] = std::array::from_fn(|i| self.sources[i].row(from, n));
        let norm = self.norm(&w, &a, &b);
        Step { w, a, b, k, r, v, of_decay: 1.0, norm }
    }

    /// The gated delta rule, of q, k, v, g and beta: w = exp(g), b = beta k takes k's place, and what
    /// the decayed state holds for k is taken away, so a = -w k.
    fn gated_step(&self, sequence: usize, token: usize, head: usize) -> Step {
        let Recurrence { width: n, tokens, sequences, .. } = self.sizes;
        let [q, k, v, g, beta] = std::array::from_fn(|i| &self.sources[i]);
        let shared = |source: &Source<'_>| {
            let batch = sequence / (sequences / source.ne[3].max(1)).max(1);
            let row = (batch * tokens + token) * source.ne[1] + head % source.ne[1];
            source.row(row * n, n)
        };
        let own = self.sizes.row(sequence, token, head);
        let beta = beta.at(own);
        let gates = g.row(own * g.ne[0], g.ne[0]);
        let w: Vec<Point> = (0..n).map(|i| exponential(gates[i % g.ne[0]], self.u)).collect();
        let keys = shared(k);
        let b: Vec<Point> = keys.iter().map(|k| k.times(beta)).collect();
        let a: Vec<Point> = keys
            .iter()
            .zip(&w)
            .map(|(k, w)| Point { value: -k.value * w.value, ..k.times(*w) })
            .collect();
        let scale = Point::exact(1.0 / (n as f64).sqrt());
        let largest = gates.iter().fold(0.0, |all: f64, gate| all.max(gate.value.abs()));
        Step {
            norm: self.norm(&w, &a, &b),
            k: b.clone(),
            r: shared(q).into_iter().map(|q| q.times(scale)).collect(),
            v: v.row(own * n, n),
            of_decay: 1.0 + (FUNCTION + 2.0 * largest) / LAMBDA,
            w,
            a,
            b,
        }
    }

    fn norm(&self, w: &[Point], a: &[Point], b: &[Point]) -> f64 {
        if self.is_uncertain { norm(w, a, b) } else { 0.0 }
    }
}

impl State {
    /// The row after a token whose value for it is `v`.
    fn advance(&mut self, step: &Step, v: Point, u: f64) {
        let n = self.values.len();
        let (mut sum, mut magnitude, mut variance) = (0.0, 0.0, 0.0);
        for (i, a) in step.a.iter().enumerate() {
            sum += self.values[i] * a.value;
            magnitude += (self.values[i] * a.value).abs();
            variance += self.variances[i] * a.value * a.value;
        }
        variance += n as f64 * (u * magnitude).powi(2);
        if step.norm > 0.0 {
            let changed = self.changed(step, v, sum);
            self.inherited = self.inherited * step.norm.powi(2) + changed.powi(2);
        }
        for i in 0..n {
            let (w, b) = (step.w[i].value, step.b[i].value);
            let decayed = self.values[i] * w;
            let (added, corrected) = (v.value * step.k[i].value, sum * b);
            let value = decayed + added + corrected;
            let roundings = (step.of_decay * decayed).powi(2)
                + added.powi(2)
                + corrected.powi(2)
                + value.powi(2);
            self.values[i] = value;
            self.variances[i] = self.variances[i] * w * w + variance * b * b + u * u * roundings;
        }
    }

    /// What uncertain inputs of a token add to the row: the length, as a standard deviation.
    fn changed(&self, step: &Step, v: Point, sum: f64) -> f64 {
        let of_state = |points: &[Point]| {
            let square = |(s, p): (&f64, &Point)| (s * p.spread).powi(2);
            self.values.iter().zip(points).map(square).sum::<f64>().sqrt()
        };
        let spread = |points: &[Point]| length(points, |p| p.spread);
        of_state(&step.w)
            + v.value.abs() * spread(&step.k)
            + v.spread * length(&step.k, |p| p.value)
            + of_state(&step.a) * length(&step.b, |p| p.value)
            + sum.abs() * spread(&step.b)
    }

    /// s . r
    fn output(&self, r: &[Point], u: f64) -> Point {
        let (mut value, mut magnitude, mut own, mut of_r) = (0.0, 0.0, 0.0, 0.0);
        for (i, r) in r.iter().enumerate() {
            let term = self.values[i] * r.value;
            value += term;
            magnitude += term.abs();
            own += self.variances[i] * r.value * r.value;
            of_r += (self.values[i] * r.spread).powi(2);
        }
        let sum = (r.len() as f64).sqrt() * u * magnitude;
        let inherited = self.inherited.sqrt() * length(r, |r| r.value) + of_r.sqrt();
        // r may be scaled before the sum or after it.
        Point {
            value,
            spread: own.sqrt().hypot(sum).hypot(inherited),
            single: 2.0 * u * value.abs(),
        }
    }

    fn points(&self) -> Vec<Point> {
        let point = |(&value, variance): (&f64, &f64)| {
            let spread = (variance + self.inherited).sqrt();
            Point { value, spread, single: 0.0 }
        };
        self.values.iter().zip(&self.variances).map(point).collect()
    }
}

fn length(points: &[Point], part: fn(&Point) -> f64) -> f64 {
    points.iter().map(|point| part(point).powi(2)).sum::<f64>().sqrt()
}

/// The norm of diag(w) + a b^T, from above.
///
/// Its square is the largest eigenvalue of W^2 + b q^T + q b^T with q = w a + |a|^2 b / 2 (element by
/// element). At most one is above the largest w^2; there is one above x if the determinant of the
/// matrix less x has another sign than without b and q.
fn norm(w: &[Point], a: &[Point], b: &[Point]) -> f64 {
    let size = a.iter().map(|a| a.value * a.value).sum::<f64>();
    let q: Vec<f64> =
        (0..w.len()).map(|i| w[i].value * a[i].value + 0.5 * size * b[i].value).collect();
    let largest = w.iter().map(|w| w.value * w.value).fold(0.0, f64::max);
    let (mut bq, mut bb, mut qq) = (0.0, 0.0, 0.0);
    for (b, q) in b.iter().zip(&q) {
        bq += b.value * q;
        bb += b.value * b.value;
        qq += q * q;
    }
    let has_greater = |x: f64| {
        let (mut bq, mut bb, mut qq) = (0.0, 0.0, 0.0);
        for ((b, q), w) in b.iter().zip(&q).zip(w) {
            let inverse = 1.0 / (w.value * w.value - x);
            bq += b.value * q * inverse;
            bb += b.value * b.value * inverse;
            qq += q * q * inverse;
        }
        (1.0 + bq) * (1.0 + bq) - bb * qq < 0.0
    };
    let (mut low, mut high) = (largest, largest + (bq + (bb * qq).sqrt()).max(0.0));
    for _ in 0..16 {
        let middle = 0.5 * (low + high);
        if middle <= largest {
            break;
        }
        if has_greater(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    high.sqrt()
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Given, Node, Random, assert_near},
        *,
    };

    const N: usize = 5;
    const HEADS: usize = 4;
    const TOKENS: usize = 7;

    fn unit(given: Given) -> Given {
        let lengths: Vec<f64> =
            given.value.chunks(N).map(|row| row.iter().map(|x| x * x).sum()).collect();
        let mut given = given;
        given.value.iter_mut().enumerate().for_each(|(i, x)| *x /= lengths[i / N].sqrt());
        given
    }

    /// Four heads of values, two of keys; gates of a head or of each element.
    fn gated_sources(gates: usize) -> Vec<Given> {
        vec![
            unit(Given::random([N, 2, TOKENS, 1], 1)),
            unit(Given::random([N, 2, TOKENS, 1], 2)),
            Given::random([N, HEADS, TOKENS, 1], 3),
            Given::random([gates, HEADS, TOKENS, 1], 4).map(|x| 0.2 * (x - 1.0)),
            Given::random([1, HEADS, TOKENS, 1], 5).map(|x| 0.5 + 0.5 * x),
            Given::random([N, N, HEADS, 1], 6),
        ]
    }

    fn gated_node() -> Node {
        Node::new(Op::GatedDeltaNet, [N * HEADS, TOKENS + N, 1, 1]).int(0, 1)
    }

    #[test]
    fn the_gated_delta_rule_is_its_recurrence() {
        for gates in [1, N] {
            let sources = gated_sources(gates);
            let [q, k, v, g, beta, s] = std::array::from_fn(|i| &sources[i].value);
            let (mut state, mut expected) = (s.clone(), Vec::new());
            for row in 0..TOKENS * HEADS {
                let (token, head) = (row / HEADS, row % HEADS);
                let shared = (token * 2 + head % 2) * N;
                for j in 0..N {
                    let s = &mut state[(head * N + j) * N..][..N];
                    (0..N).for_each(|i| s[i] *= g[row * gates + i % gates].exp());
                    let held: f64 = (0..N).map(|i| s[i] * k[shared + i]).sum();
                    let delta = beta[row] * (v[row * N + j] - held);
                    (0..N).for_each(|i| s[i] += delta * k[shared + i]);
                    let read: f64 = (0..N).map(|i| s[i] * q[shared + i]).sum();
                    expected.push(read / (N as f64).sqrt());
                }
            }
            expected.extend(state);
            assert_near(&gated_node().value(&sources), &expected, "GATED_DELTA_NET");
            for source in 0..6 {
                let mut sources = sources.clone();
                sources[source] = sources[source].clone().uncertain(1e-4);
                gated_node().propagates(&sources);
            }
        }
        assert!(gated_node().int(0, 2).try_compute(&gated_sources(1)).is_none());
    }

    fn wkv_sources(tokens: usize) -> Vec<Given> {
        let row = [N, HEADS, tokens, 1];
        let key = unit(Given::random(row, 5));
        let rate = Given::random(row, 6).map(|x| 0.5 + 0.4 * x);
        let both = key.value.iter().zip(&rate.value).map(|(k, a)| k * a).collect();
        vec![
            Given::random(row, 1),
            Given::random(row, 2).map(|x| 0.8 + 0.2 * x),
            Given::random(row, 3),
            Given::random(row, 4),
            key.clone().map(|k| -k),
            Given::of(row, both),
            Given::random([N * N * HEADS, 1, 1, 1], 7),
        ]
    }

    fn wkv_node(tokens: usize) -> Node {
        Node::new(Op::RwkvWkv7, [N * HEADS, tokens + N, 1, 1])
    }

    #[test]
    fn rwkv_7_is_its_recurrence() {
        let sources = wkv_sources(TOKENS);
        let [r, w, k, v, a, b, s] = std::array::from_fn(|i| &sources[i].value);
        let (mut state, mut expected) = (s.clone(), Vec::new());
        for row in 0..TOKENS * HEADS {
            let at = row * N;
            for i in 0..N {
                let s = &mut state[(row % HEADS * N + i) * N..][..N];
                let held: f64 = (0..N).map(|j| s[j] * a[at + j]).sum();
                for j in 0..N {
                    s[j] = s[j] * w[at + j] + v[at + i] * k[at + j] + held * b[at + j];
                }
                expected.push((0..N).map(|j| s[j] * r[at + j]).sum());
            }
        }
        expected.extend(state);
        assert_near(&wkv_node(TOKENS).value(&sources), &expected, "RWKV_WKV7");
        for source in 0..7 {
            let mut sources = sources.clone();
            sources[source] = sources[source].clone().uncertain(1e-4);
            wkv_node(TOKENS).propagates(&sources);
        }
    }

    #[test]
    fn bounds_stay_near_roundings_however_many_tokens_there_are() {
        let tokens = 400;
        let mut sources = wkv_sources(tokens);
        sources[3] = sources[3].clone().uncertain(1e-6);
        let expected = wkv_node(tokens).compute(&sources);
        let widest = (0..expected.value.len()).map(|i| expected.bound(i)).fold(0.0, f64::max);
        assert!(widest < 1e-3, "{widest}");
    }

    #[test]
    fn the_norm_is_that_of_the_matrix() {
        let mut random = Random(3);
        for n in [1, 2, 7, 31] {
            for size in [0.0, 0.3, 2.0] {
                let mut vector = |scale: f64| -> Vec<Point> {
                    (0..n).map(|_| Point::exact(scale * random.number())).collect()
                };
                let (w, a, b) = (vector(1.0), vector(size), vector(1.0));
                let mut x: Vec<f64> = (0..n).map(|i| 1.0 + i as f64 / 7.0).collect();
                let mut largest = 0.0;
                for _ in 0..2000 {
                    // x (W + a b^T), then the transpose.
                    let times = |x: &[f64], a: &[Point], b: &[Point]| -> Vec<f64> {
                        let dot: f64 = x.iter().zip(a).map(|(x, a)| x * a.value).sum();
                        (0..n).map(|i| x[i] * w[i].value + dot * b[i].value).collect()
                    };
                    x = times(&times(&x, &a, &b), &b, &a);
                    largest = x.iter().map(|x| x * x).sum::<f64>().sqrt();
                    x.iter_mut().for_each(|x| *x /= largest);
                }
                let (norm, largest) = (norm(&w, &a, &b), f64::sqrt(largest));
                assert!(norm >= largest * (1.0 - 1e-9), "{n} {size}: {norm} {largest}");
                // Below the largest w it is not looked for.
                let most = w.iter().fold(largest, |most: f64, w| most.max(w.value.abs()));
                assert!(norm <= most * 1.01 + 1e-9, "{n} {size}: {norm} {largest}");
            }
        }
    }
}
