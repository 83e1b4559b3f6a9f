//! Recurrences whose states only decay: state space models and linear attention.
//!
//! All recurrences give a flat array: the outputs (elements of a head, heads, tokens, sequences), then
//! the states they end with.

use rayon::prelude::*;

use super::{
    Call, FUNCTION, Op, Point, Source, functions,
    place::row_of,
    point::{Dot, exponential},
};
use crate::{diagnosis::replay::Expected, model::gguf::GgufError};

/// The sizes of a recurrence.
#[derive(Clone, Copy, Debug)]
pub struct Recurrence {
    /// Elements of a head's output.
    pub width: usize,
    pub heads: usize,
    /// Tokens of each sequence.
    pub tokens: usize,
    pub sequences: usize,
}

/// What one head of one sequence gives.
pub struct Head {
    /// (tokens, width).
    pub outputs: Vec<Point>,
    /// As the result holds it.
    pub state: Vec<Point>,
}

impl Recurrence {
    /// The row of a head at a token in an array (.., heads, tokens, sequences).
    pub fn row(&self, sequence: usize, token: usize, head: usize) -> usize {
        (sequence * self.tokens + token) * self.heads + head
    }

    /// The result of all heads, each computed on its own, given its sequence and its number.
    pub fn expected(
        &self,
        call: &Call<'_, '_>,
        head: impl Fn(usize, usize) -> Head + Sync,
    ) -> Expected<'static> {
        let of = |at: usize| head(at / self.heads, at % self.heads);
        let heads: Vec<Head> = (0..self.heads * self.sequences).into_par_iter().map(of).collect();
        let mut points = Vec::with_capacity(call.elements());
        for sequence in heads.chunks(self.heads) {
            for token in 0..self.tokens {
                let outputs = token * self.width..(token + 1) * self.width;
                points.extend(sequence.iter().flat_map(|head| &head.outputs[outputs.clone()]));
            }
        }
        points.extend(heads.iter().flat_map(|head| &head.state));
        call.expected(&points)
    }
}

/// The scan of a state space model: src0 the states (n, width, heads, ..), x, dt, A (n or 1, heads),
/// B and C (n, groups, tokens, sequences), and which state each sequence starts from. `None` where
/// states are kept for several tokens.
pub fn scan(call: &Call<'_, '_>) -> Result<Option<Expected<'static>>, GgufError> {
    if call.params.int(0) > 1 {
        return Ok(None);
    }
    let source = |index: usize| call.argument(index).source();
    let (x, ids) = (source(1)?, source(6)?);
    let [width, heads, tokens, sequences] = x.ne;
    let sizes = Recurrence { width, heads, tokens, sequences };
    let states = source(0)?;
    let starts = ids.values.iter().map(|&id| row_of(id, states.ne[3]));
    let Some(starts) = starts.collect::<Option<Vec<usize>>>() else { return Ok(None) };
    let scan = Scan {
        sizes,
        n: states.ne[0],
        u: call.rounding.sum,
        starts,
        states,
        x,
        dt: source(2)?,
        a: source(3)?,
        b: source(4)?,
        c: source(5)?,
    };
    Ok(Some(sizes.expected(call, |sequence, head| scan.head(sequence, head))))
}

struct Scan<'f> {
    sizes: Recurrence,
    /// Elements of a state for each element of the output.
    n: usize,
    u: f64,
    starts: Vec<usize>,
    states: Source<'f>,
    x: Source<'f>,
    dt: Source<'f>,
    a: Source<'f>,
    b: Source<'f>,
    c: Source<'f>,
}

impl Scan<'_> {
    fn head(&self, sequence: usize, head: usize) -> Head {
        let Recurrence { width, heads, tokens, .. } = self.sizes;
        let (n, u, groups) = (self.n, self.u, self.b.ne[1]);
        let first = (self.starts[sequence] * heads + head) * width * n;
        let mut state = self.states.row(first, width * n);
        let mut outputs = Vec::with_capacity(tokens * width);
        for token in 0..tokens {
            let row = self.sizes.row(sequence, token, head);
            let step = step_size(self.dt.at(row), u);
            let decays = self.decays(head, step);
            let group = (sequence * tokens + token) * groups + head / (heads / groups);
            let (b, c) = (self.b.row(group * n, n), self.c.row(group * n, n));
            for (i, state) in state.chunks_exact_mut(n).enumerate() {
                let x = self.x.at(row * width + i).times(step).rounded(u);
                let mut dot = Dot::default();
                for (j, cell) in state.iter_mut().enumerate() {
                    let decayed = cell.times(decays[j]).rounded(u);
                    *cell = decayed.plus(b[j].times(x).rounded(u)).rounded(u);
                    dot.add(cell.times(c[j]));
                }
                outputs.push(dot.point(u));
            }
        }
        Head { outputs, state }
    }

    /// exp(step A) for each element of a state.
    fn decays(&self, head: usize, step: Point) -> Vec<Point> {
        let each = self.a.ne[0];
        let decay = |j: usize| {
            let rate = self.a.at(head * each + j % each).times(step).rounded(self.u);
            exponential(rate, self.u)
        };
        (0..self.n).map(decay).collect()
    }
}

/// softplus(dt), which may lose what is below a rounding of 1.
fn step_size(dt: Point, u: f64) -> Point {
    let value = functions::softplus(dt.value);
    let slope = functions::sigmoid(dt.value + super::LAMBDA * dt.spread);
    Point { value, spread: slope * dt.spread, single: u * (FUNCTION * value + 4.0) }
}

/// RWKV 6 and gated linear attention: states of a head are (width, width), the rows decay.
///
/// RWKV_WKV6 has k, v, r, the bonus, the decay and the states; GATED_LINEAR_ATTN has k, v, q, the
/// decay and the states.
pub fn linear_attention(call: &Call<'_, '_>) -> Result<Expected<'static>, GgufError> {
    let source = |index: usize| call.argument(index).source();
    let is_wkv = call.op == Op::RwkvWkv6;
    let k = source(0)?;
    let states = source(if is_wkv { 5 } else { 4 })?;
    let [width, heads, all, _] = k.ne;
    let sequences = states.ne[1].max(1);
    let sizes = Recurrence { width, heads, tokens: all / sequences, sequences };
    let attention = LinearAttention {
        sizes,
        u: call.rounding.sum,
        scale: if is_wkv { 1.0 } else { f64::from(call.params.float(0)) },
        bonus: if is_wkv { Some(source(3)?) } else { None },
        k,
        v: source(1)?,
        r: source(2)?,
        decay: source(if is_wkv { 4 } else { 3 })?,
        states,
    };
    Ok(sizes.expected(call, |sequence, head| attention.head(sequence, head)))
}

struct LinearAttention<'f> {
    sizes: Recurrence,
    u: f64,
    /// Factor of r.
    scale: f64,
    k: Source<'f>,
    v: Source<'f>,
    r: Source<'f>,
    /// Factor of a token's own k v in its output, where the state before it is read.
    bonus: Option<Source<'f>>,
    decay: Source<'f>,
    states: Source<'f>,
}

impl LinearAttention<'_> {
    fn head(&self, sequence: usize, head: usize) -> Head {
        let (n, u) = (self.sizes.width, self.u);
        let first = (sequence * self.sizes.heads + head) * n * n;
        let mut state = self.states.row(first, n * n);
        let mut outputs = Vec::with_capacity(self.sizes.tokens * n);
        let bonus = self.bonus.as_ref().map(|bonus| bonus.row(head * n, n));
        for token in 0..self.sizes.tokens {
            let from = self.sizes.row(sequence, token, head) * n;
            let of = |source: &Source<'_>| source.row(from, n);
            let (k, v, r, decay) = (of(&self.k), of(&self.v), of(&self.r), of(&self.decay));
            let mut dots = vec![Dot::default(); n];
            for (i, state) in state.chunks_exact_mut(n).enumerate() {
                let r = Point::exact(self.scale).times(r[i]).rounded(u);
                for (j, cell) in state.iter_mut().enumerate() {
                    let added = k[i].times(v[j]).rounded(u);
                    let next = cell.times(decay[i]).rounded(u).plus(added).rounded(u);
                    let read = match &bonus {
                        Some(bonus) => cell.plus(added.times(bonus[i]).rounded(u)).rounded(u),
                        None => next,
                    };
                    dots[j].add(read.times(r));
                    *cell = next;
                }
            }
            outputs.extend(dots.into_iter().map(|dot| dot.point(u)));
        }
        Head { outputs, state }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Given, Node, assert_near},
        *,
    };

    const N: usize = 5;
    const WIDTH: usize = 3;
    const HEADS: usize = 4;
    const TOKENS: usize = 6;

    fn scan_sources(tokens: usize, sequences: usize) -> Vec<Given> {
        let of_groups = [N, 2, tokens, sequences];
        let ids = (0..sequences).rev().map(|id| id as f64).collect();
        vec![
            Given::random([N, WIDTH, HEADS, sequences], 1),
            Given::random([WIDTH, HEADS, tokens, sequences], 2),
            Given::random([HEADS, tokens, sequences, 1], 3),
            Given::random([N, HEADS, 1, 1], 4).map(|x| x - 1.5).weight(),
            Given::random(of_groups, 5),
            Given::random(of_groups, 6),
            Given::of([sequences, 1, 1, 1], ids),
        ]
    }

    fn scan_node(tokens: usize, sequences: usize) -> Node {
        let state = N * WIDTH * HEADS * sequences;
        Node::new(Op::SsmScan, [WIDTH * HEADS * tokens * sequences + state, 1, 1, 1]).int(0, 1)
    }

    #[test]
    fn a_scan_is_its_recurrence() {
        let (sequences, sources) = (2, scan_sources(TOKENS, 2));
        let [s, x, dt, a, b, c] = std::array::from_fn(|i| &sources[i].value);
        let value = scan_node(TOKENS, sequences).value(&sources);
        let (outputs, states) = value.split_at(WIDTH * HEADS * TOKENS * sequences);
        for at in 0..N * WIDTH * HEADS * sequences {
            let (j, i, head) = (at % N, at / N % WIDTH, at / N / WIDTH % HEADS);
            let sequence = at / N / WIDTH / HEADS;
            let mut state = s[at % (N * WIDTH * HEADS) + (1 - sequence) * N * WIDTH * HEADS];
            for token in 0..TOKENS {
                let row = (sequence * TOKENS + token) * HEADS + head;
                let step = (1.0 + dt[row].exp()).ln();
                let group = ((sequence * TOKENS + token) * 2 + head / 2) * N + j;
                state =
                    state * (step * a[head * N + j]).exp() + b[group] * x[row * WIDTH + i] * step;
            }
            assert!((states[at] - state).abs() < 1e-12, "state {at}");
        }
        // The last output reads the last state.
        let last = (sequences * TOKENS - 1) * HEADS + HEADS - 1;
        let group = ((sequences * TOKENS - 1) * 2 + 1) * N;
        let dot: f64 = (0..N).map(|j| states[states.len() - N + j] * c[group + j]).sum();
        assert!((outputs[last * WIDTH + WIDTH - 1] - dot).abs() < 1e-12);
    }

    #[test]
    fn a_scan_passes_on_what_any_of_its_sources_may_be_off() {
        for source in [0, 1, 2, 4, 5] {
            let mut sources = scan_sources(TOKENS, 1);
            sources[source] = sources[source].clone().uncertain(1e-4);
            scan_node(TOKENS, 1).propagates(&sources);
        }
        let more = scan_node(TOKENS, 1).int(0, 2);
        assert!(more.try_compute(&scan_sources(TOKENS, 1)).is_none());
    }

    fn attention_sources(op: &Op, tokens: usize) -> Vec<Given> {
        let row = [WIDTH, HEADS, tokens, 1];
        let decay = Given::random(row, 4).map(|x| 0.5 + 0.4 * x);
        let mut sources: Vec<Given> = (1..4).map(|seed| Given::random(row, seed)).collect();
        if *op == Op::RwkvWkv6 {
            sources.push(Given::random([WIDTH, HEADS, 1, 1], 5).weight());
        }
        sources.extend([decay, Given::random([WIDTH * WIDTH * HEADS, 1, 1, 1], 6)]);
        sources
    }

    fn attention_node(op: &Op, tokens: usize) -> Node {
        Node::new(*op, [WIDTH * HEADS, tokens + WIDTH, 1, 1]).float(0, 0.5)
    }

    #[test]
    fn linear_attention_is_its_recurrence() {
        for op in [Op::RwkvWkv6, Op::GatedLinearAttention] {
            let sources = attention_sources(&op, TOKENS);
            let is_wkv = op == Op::RwkvWkv6;
            let decay = &sources[sources.len() - 2].value;
            let [k, v, r] = std::array::from_fn(|i| &sources[i].value);
            let mut state = sources[sources.len() - 1].value.clone();
            let mut expected = vec![0.0; WIDTH * HEADS * TOKENS];
            for token in 0..TOKENS {
                for (at, state) in state.iter_mut().enumerate() {
                    let (j, i, head) = (at % WIDTH, at / WIDTH % WIDTH, at / WIDTH / WIDTH);
                    let row = (token * HEADS + head) * WIDTH;
                    let added = k[row + i] * v[row + j];
                    let next = *state * decay[row + i] + added;
                    expected[row + j] += if is_wkv {
                        r[row + i] * (*state + sources[3].value[head * WIDTH + i] * added)
                    } else {
                        0.5 * r[row + i] * next
                    };
                    *state = next;
                }
            }
            expected.extend(state);
            let node = attention_node(&op, TOKENS);
            assert_near(&node.value(&sources), &expected, op.name());
            for source in [0, 1, 2, sources.len() - 2, sources.len() - 1] {
                let mut sources = sources.clone();
                sources[source] = sources[source].clone().uncertain(1e-4);
                node.propagates(&sources);
            }
        }
    }
}
