//! Rounding-sized noise for the second reference run, whose distance to the first is the floor.

use rayon::prelude::*;

use crate::{
    core::{
        arithmetic::Arithmetic,
        random::{self, splitmix64},
        tensor::DType,
    },
    graph::site::{Site, Stage},
    model::{Config, rope_angle, rope_pair},
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

impl Noise {
    /// The amplitude for a stage with `positions` in the cache.
    ///
    /// Storage rounds each element by at most u_storage of itself. A sum of n products rounds by
    /// about sqrt(n) u_accumulator of the size of its terms, which a row's root mean square stands
    /// for: rounding errors of a sum add up like a random walk (Higham and Mary, 2019). A weight
    /// rounded to a narrower type adds its own unit roundoff, again relative to the row. The caches
    /// hold what k_rope and v already are, so they get none.
    pub fn amplitude(&self, config: &Config, stage: Stage, positions: usize) -> Amplitude {
        let op = self.arithmetic.of(stage);
        if matches!(stage, Stage::KCache | Stage::VCache) {
            return Amplitude { relative: 0.0, additive: 0.0 };
        }
        let terms = config.sum_length(stage, positions);
        let mut additive = match terms {
            1 => 0.0,
            _ => (terms as f64).sqrt() * op.accumulator.unit_roundoff(),
        };
        if self.weights_are_rounded && multiplies_a_matrix(stage) {
            additive += self.arithmetic.weights.unit_roundoff();
        }
        let mut relative = op.storage.unit_roundoff();
        if stage == Stage::Embd && self.arithmetic.weights == DType::F32 {
            relative = 0.0; // rows are copied
        }
        if matches!(stage, Stage::Probs) {
            // The exponential turns an absolute error of a score into a relative one.
            relative += 4.0 * op.accumulator.unit_roundoff();
        }
        Amplitude { relative, additive }
    }

    /// Turns each pair of a rope stage by the rounding of its angle; `values` are (T, H, D), of
    /// tokens from `first_position` on.
    ///
    /// The frequency of pair i is theta to a power, in f32 whatever the storage: i products, or one
    /// function with a rounded exponent. It is off alike for every token, head and layer, so the angle
    /// is off by some i u of itself, which grows with the position; that of pair 0 is the position.
    /// Scaled frequencies (llama 3) are lower than taken here, but not those of the largest angles.
    pub fn turn(&self, config: &Config, first_position: usize, heads: usize, values: &mut [f32]) {
        let (dim, theta) = (config.head_dim, f64::from(config.rope_theta));
        let elements = rope_pair(config.rope_pairs, dim);
        let key = random::key(self.seed, "the frequencies of rope");
        for (row, token) in values.chunks_exact_mut(heads * dim).enumerate() {
            for pair in 1..dim / 2 {
                let sign = if splitmix64(key, pair as u64) & 1 == 0 { 1.0 } else { -1.0 };
                let off = sign * pair as f64 * DType::F32.unit_roundoff();
                let angle = rope_angle(theta, (first_position + row) as f64, pair, dim);
                let (sine, cosine) = (angle * off).sin_cos();
                let (first, second) = elements(pair);
                for head in token.chunks_exact_mut(dim) {
                    let (a, b) = (f64::from(head[first]), f64::from(head[second]));
                    head[first] = (a * cosine - b * sine) as f32;
                    head[second] = (a * sine + b * cosine) as f32;
                }
            }
        }
    }

    /// Adds the noise of a site to its tensor; a row is `row_length` elements.
    pub fn add_to(&self, site: Site, amplitude: Amplitude, values: &mut [f32], row_length: usize) {
        if amplitude.relative == 0.0 && amplitude.additive == 0.0 {
            return;
        }
        let key = random::key(self.seed, &format!("{}/{}", site.step, site.tensor_name()));
        let row_length = row_length.max(1);
        values.par_chunks_mut(row_length).enumerate().for_each(|(row, values)| {
            let squares: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
            let rms = (squares / values.len() as f64).sqrt();
            for (column, value) in values.iter_mut().enumerate() {
                let bits = splitmix64(key, (row * row_length + column) as u64);
                let sign = |bit: u32| if bits >> bit & 1 == 0 { 1.0 } else { -1.0 };
                let own = amplitude.relative * f64::from(*value).abs();
                let noise = sign(0) * own + sign(1) * amplitude.additive * rms;
                *value = (f64::from(*value) + noise) as f32;
            }
        });
    }
}

fn multiplies_a_matrix(stage: Stage) -> bool {
    use Stage::*;
    matches!(stage, Embd | Q | K | V | OProj | FfnGate | FfnUp | FfnDown | Logits)
}
