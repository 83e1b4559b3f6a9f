//! Rounding-sized noise for the second reference run, whose distance to the first is the floor.

use rayon::prelude::*;

use crate::{
    core::{
        arithmetic::{Arithmetic, Convention, Value},
        random::{self, splitmix64},
        tensor::{DType, Tensor},
    },
    graph::{
        Extent, Graph, Node, Op, RopeParams, SiteSpec,
        site::{Site, Stage},
    },
};

/// How large the noise on one stage is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Amplitude {
    /// Relative to the element: the rounding of what is stored.
    pub relative: f64,
    /// Relative to the root mean square of the element's row: the rounding inside its sum.
    pub additive: f64,
}

/// Noise of the size of a declared arithmetic's rounding.
#[derive(Clone, Debug)]
pub struct Noise {
    pub seed: u64,
    pub arithmetic: Arithmetic,
    /// Rounding a weight to `arithmetic.weights` changes it.
    pub weights_are_rounded: bool,
}

/// A site in a step of a graph.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub graph: &'a Graph,
    pub spec: &'a SiteSpec,
    pub extent: Extent,
}

impl Place<'_> {
    /// The first node of the site's operation.
    fn main(&self) -> &Node {
        let mut node = self.graph.node(self.spec.node);
        while node.op != self.spec.op {
            let Some(source) = node.source(0) else { break };
            node = self.graph.node(source);
        }
        node
    }

    /// Elements along an axis of a source of the operation.
    fn source_length(&self, source: usize, axis: usize) -> usize {
        let source = self.main().source(source).map(|source| self.graph.node(source));
        source.map_or(1, |node| node.sizes(self.extent).ne[axis])
    }

    /// Terms summed to make one element; 1 where there is no sum.
    fn terms(&self) -> usize {
        let op = &self.spec.op;
        match op {
            Op::OutProd => self.source_length(0, 1),
            Op::SsmConv => self.source_length(1, 0),
            Op::SoftMax | Op::SumRows | Op::Mean | Op::CumSum => self.source_length(0, 0),
            Op::SsmScan | Op::GatedDeltaNet | Op::GatedLinearAttention => {
                self.source_length(0, 0) + self.extent.tokens
            }
            Op::RwkvWkv6 | Op::RwkvWkv7 => self.source_length(0, 0) + self.extent.tokens,
            _ if op.is_product() || op.is_norm() => self.source_length(0, 0),
            _ => 1,
        }
    }

    /// Whether the operation reads a matrix of the model.
    fn reads_a_matrix(&self) -> bool {
        let op = &self.spec.op;
        let by_weight = self.spec.weight.is_some();
        by_weight && (op.is_product() || matches!(op, Op::GetRows))
    }

    /// The values on the way from the first node of the operation to its last that an engine may round.
    fn rounded_values(&self) -> Vec<Value> {
        let (mut id, mut found) = (self.spec.node, Vec::new());
        loop {
            found.extend(self.graph.rounded_values(id));
            let node = self.graph.node(id);
            match node.source(0).filter(|_| node.op != self.spec.op) {
                Some(source) => id = source,
                None => return found,
            }
        }
    }

    /// Whether the values are those that other operations left there.
    fn is_copy(&self) -> bool {
        self.spec.node != self.spec.reader
            || self.spec.op.is_layout()
            || matches!(self.spec.op, Op::GetRows | Op::Concat | Op::Repeat)
                && !self.reads_a_matrix()
    }
}

impl Noise {
    /// The amplitude for a site.
    ///
    /// Storage rounds each element by at most u_storage of itself. A sum of n products rounds by
    /// about sqrt(n) u_accumulator of the size of its terms, which a row's root mean square stands
    /// for: rounding errors of a sum add up like a random walk (Higham and Mary, 2019). A weight
    /// rounded to a narrower type adds its own unit roundoff, again relative to the row. The caches
    /// hold what k_rope and v already are, so they get none.
    pub fn amplitude(&self, place: Place<'_>) -> Amplitude {
        let op = self.arithmetic.of(place.spec.stage);
        let declared = self.of_conventions(place);
        if place.is_copy() {
            return declared;
        }
        let mut additive = match place.terms() {
            1 => 0.0,
            terms => (terms as f64).sqrt() * op.accumulator.unit_roundoff(),
        };
        if self.weights_are_rounded && place.reads_a_matrix() {
            additive += self.arithmetic.weights.unit_roundoff();
        }
        let mut relative = op.storage.unit_roundoff();
        let is_exact = self.arithmetic.weights == DType::F32 && op.storage == DType::F32;
        if place.spec.op == Op::GetRows && is_exact {
            relative = 0.0; // rows are copied
        }
        if place.spec.op == Op::SoftMax {
            // The exponential turns an absolute error of a score into a relative one.
            relative += 4.0 * op.accumulator.unit_roundoff();
        }
        if matches!(place.spec.op, Op::Gelu | Op::GeluQuick | Op::Geglu | Op::GegluQuick) {
            // ggml reads it from a table over f16; an engine computes it.
            relative += 2.0 * DType::F16.unit_roundoff();
        }
        Amplitude { relative: relative + declared.relative, additive: additive + declared.additive }
    }

    /// What declared roundings on the way to a site add, each a random walk of its own.
    fn of_conventions(&self, place: Place<'_>) -> Amplitude {
        let mut amplitude = Amplitude { relative: 0.0, additive: 0.0 };
        let (values, stage) = (place.rounded_values(), place.spec.stage);
        let is_cache = matches!(stage, Stage::KCache | Stage::VCache);
        // What a cache rounds, those have that read it.
        let is_own = |one: &&Convention| match (one.value, one.stage) {
            (Value::Caches, Some(Stage::KCache)) if values.contains(&Value::Keys) => true,
            (Value::Caches, Some(Stage::VCache)) if values.contains(&Value::Values) => true,
            _ => one.is_of(Some(stage), place.extent.tokens),
        };
        for convention in self.arithmetic.roundings.iter().filter(is_own) {
            // A block's numbers are rounded by a part of its largest, some two or three times their mean.
            let blocks = if convention.format.is_of_numbers() { 1.0 } else { 2.0 };
            let u = blocks * convention.format.unit_roundoff();
            match convention.value {
                Value::Caches => {
                    let reads = [Value::Keys, Value::Values].iter().any(|one| values.contains(one));
                    amplitude.additive += if is_cache || reads { u } else { 0.0 };
                }
                value if !values.contains(&value) => {}
                Value::Roots | Value::Normed | Value::Sigmoid | Value::Activated => {
                    amplitude.relative += u
                }
                Value::Angles | Value::Frequencies => {
                    amplitude.additive += (u * place.extent.cells as f64).min(1.0);
                }
                _ => amplitude.additive += u,
            }
        }
        amplitude
    }

    /// Changes a site's tensor by this run's noise; whether anything is changed.
    pub fn change(&self, site: Site, place: Place<'_>, tensor: &mut Tensor) -> bool {
        if place.is_copy() {
            return false;
        }
        let turns = place.spec.op == Op::Rope && self.turn(place, tensor);
        let amplitude = self.amplitude(place);
        self.add_to(site, amplitude, tensor);
        if place.spec.op == Op::Softplus {
            // log(1 + exp(x)) loses what is below a rounding of 1.
            let random = random::key(self.seed, &format!("{}/softplus", site.tensor_name()));
            for (at, value) in tensor.data.iter_mut().enumerate() {
                let is_positive = splitmix64(random, at as u64) & 1 == 0;
                let off = if is_positive { f32::EPSILON } else { -f32::EPSILON };
                *value += off / 2.0;
            }
        }
        turns || amplitude.relative != 0.0 || amplitude.additive != 0.0
    }

    /// Turns each pair that a ROPE node rotated by the rounding of its angle; the tensor is (T, H, D).
    ///
    /// The frequency of pair i is theta to a power, in f32 whatever the storage: i products, or one
    /// function with a rounded exponent. It is off alike for every token, head and layer, so the angle
    /// is off by some i u of itself, which grows with the position; that of pair 0 is the position.
    /// Scaled frequencies are lower than taken here, but not those of the largest angles.
    fn turn(&self, place: Place<'_>, tensor: &mut Tensor) -> bool {
        let rope = RopeParams::of(place.main().params(place.extent));
        let [_, heads, dim] = tensor.shape[..] else { return false };
        let n = rope.dims.min(dim);
        let random = random::key(self.seed, "the frequencies of rope");
        let first_position = place.extent.cells - place.extent.tokens;
        for (row, token) in tensor.data.chunks_exact_mut(heads * dim).enumerate() {
            for pair in 1..n / 2 {
                let is_positive = splitmix64(random, pair as u64) & 1 == 0;
                let sign = if is_positive { 1.0 } else { -1.0 };
                let off = sign * pair as f64 * DType::F32.unit_roundoff();
                let angle = rope.angle((first_position + row) as f64, pair);
                let (sine, cosine) = (angle * off).sin_cos();
                let (first, second) = rope.elements(pair);
                for head in token.chunks_exact_mut(dim) {
                    let (a, b) = (f64::from(head[first]), f64::from(head[second]));
                    head[first] = (a * cosine - b * sine) as f32;
                    head[second] = (a * sine + b * cosine) as f32;
                }
            }
        }
        n > 2
    }

    /// Adds the noise of a site to its tensor.
    fn add_to(&self, site: Site, amplitude: Amplitude, tensor: &mut Tensor) {
        if amplitude.relative == 0.0 && amplitude.additive == 0.0 {
            return;
        }
        let random = random::key(self.seed, &format!("{}/{}", site.step, site.tensor_name()));
        let row_length = tensor.shape.last().copied().unwrap_or(1).max(1);
        // Rows of a head follow one another in llama.cpp's scores and probabilities.
        let heads_first = match (site.stage, &tensor.shape[..]) {
            (Stage::Scores | Stage::Probs, &[tokens, heads, _]) => Some((tokens, heads)),
            _ => None,
        };
        tensor.data.par_chunks_mut(row_length).enumerate().for_each(|(row, values)| {
            let row = heads_first.map_or(row, |(tokens, heads)| row % heads * tokens + row / heads);
            let squares: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
            let rms = (squares / values.len() as f64).sqrt();
            for (column, value) in values.iter_mut().enumerate() {
                let bits = splitmix64(random, (row * row_length + column) as u64);
                let sign = |bit: u32| if bits >> bit & 1 == 0 { 1.0 } else { -1.0 };
                let own = amplitude.relative * f64::from(*value).abs();
                let noise = sign(0) * own + sign(1) * amplitude.additive * rms;
                *value = (f64::from(*value) + noise) as f32;
            }
        });
    }
}
