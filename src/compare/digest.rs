//! A tensor as a few numbers that are kept, so that another one can be compared with it later.
//!
//! Some elements are kept as they are. All others are in sums with random signs: each element is added
//! to, or taken from, one of [`SUMS`] sums. Where two tensors differ by d, the squares of the differences
//! of their sums add up to ||d||^2 on average, and for one element that differs exactly (the tug-of-war
//! sketch of Alon, Matias and Szegedy, 1996, in the form of Charikar, Chen and Farach-Colton, 2002).

use half::bf16;

use crate::{
    compare::{
        Difference, Element, NonFinite,
        lanes::ulp_distance,
        rows::Rows,
        stats::{element_times_floor, times},
    },
    core::{floor::SiteFloor, random::splitmix64, tensor::Tensor},
    graph::site::Site,
};

/// Elements of a tensor that are kept.
pub const SAMPLES: usize = 6;
/// Sums over all elements. For a difference that is spread over the tensor, ||d||^2 is estimated with
/// a standard deviation of sqrt(2 / SUMS) of itself.
pub const SUMS: usize = 8;
const HASH: usize = 8;

/// What is kept of a reference's tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Digest {
    /// The first bytes of the blake3 of its f32 values.
    pub hash: [u8; HASH],
    totals: Totals,
    samples: [Sample; SAMPLES],
}

/// Sums over the elements that count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Totals {
    non_finite: u32,
    norm: f32,
    sums: [f32; SUMS],
}

/// One element.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sample {
    value: f32,
    /// The largest |value| of its row.
    scale: bf16,
}

impl Digest {
    /// Bytes of [`Digest::to_bytes`].
    pub const BYTES: usize = HASH + 4 + 4 + 4 * SUMS + 6 * SAMPLES;

    /// The digest of a site's tensor. `first_position` is the position of the step's first token.
    pub fn of(site: Site, tensor: &Tensor, first_position: usize) -> Digest {
        let rows = Rows::new(site.stage, &tensor.shape, first_position.into());
        let sample = |flat: usize| {
            let row = flat / rows.length;
            let of_row = &tensor.data[row * rows.length..(row + 1) * rows.length];
            let scale = bf16::from_f64(rows.scale(row, of_row));
            Sample { value: tensor.data[flat], scale }
        };
        let hash = blake3::hash(bytemuck::cast_slice(&tensor.data));
        Digest {
            hash: std::array::from_fn(|index| hash.as_bytes()[index]),
            totals: totals(site, tensor, &rows).0,
            samples: places(site, &rows).map(sample),
        }
    }

    /// How far an engine's tensor is from the one that this is of. The elements are those that were
    /// kept; relative L2 and cosine are estimates.
    pub fn compare(
        &self,
        site: Site,
        engine: &Tensor,
        first_position: usize,
        floor: SiteFloor,
        factor: f64,
    ) -> Difference {
        let rows = Rows::new(site.stage, &engine.shape, first_position.into());
        let (own, elements) = totals(site, engine, &rows);
        let (e, r) = (own.sums.map(f64::from), self.totals.sums.map(f64::from));
        let pairs = || e.iter().zip(&r);
        let distance = pairs().map(|(e, r)| (e - r) * (e - r)).sum::<f64>().sqrt();
        let size = |sums: &[f64; SUMS]| sums.iter().map(|sum| sum * sum).sum::<f64>().sqrt();
        let product = pairs().map(|(e, r)| e * r).sum::<f64>();
        let ratio = |a: f64, b: f64| if a == b { 1.0 } else { a / b };
        let norm = f64::from(self.totals.norm);
        let mismatched = u64::from(own.non_finite.abs_diff(self.totals.non_finite));
        let relative_l2 = match norm {
            _ if mismatched > 0 => f64::INFINITY,
            0.0 if distance == 0.0 => 0.0,
            norm => distance / norm,
        };
        let mut difference = Difference {
            elements,
            max_abs: 0.0,
            relative_l2,
            cosine: ratio(product, size(&e) * size(&r)),
            norm_ratio: ratio(f64::from(own.norm), norm),
            max_ulp: 0,
            non_finite: NonFinite {
                engine: u64::from(own.non_finite),
                reference: u64::from(self.totals.non_finite),
                mismatched,
                in_both: u64::from(own.non_finite.min(self.totals.non_finite)),
            },
            beyond: 0,
            first: None,
            worst: None,
            l2_times_floor: times(relative_l2, floor.relative_l2),
            pattern: None,
        };
        for (flat, sample) in places(site, &rows).into_iter().zip(&self.samples) {
            add(&mut difference, engine, flat, sample, floor.elementwise, factor);
        }
        difference
    }

    /// Little-endian, in the order of the fields.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Totals { non_finite, norm, sums } = self.totals;
        let mut bytes = self.hash.to_vec();
        bytes.extend(non_finite.to_le_bytes());
        bytes.extend(norm.to_le_bytes());
        bytes.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
        for Sample { value, scale } in &self.samples {
            bytes.extend(value.to_le_bytes());
            bytes.extend(scale.to_le_bytes());
        }
        bytes
    }

    /// What [`Digest::to_bytes`] gave; `None` for what no tensor has.
    pub fn from_bytes(bytes: &[u8; Digest::BYTES]) -> Option<Digest> {
        let f32 = |at: usize| f32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let sums = HASH + 8;
        let samples = sums + 4 * SUMS;
        let totals = Totals {
            non_finite: u32::from_le_bytes(std::array::from_fn(|i| bytes[HASH + i])),
            norm: f32(HASH + 4),
            sums: std::array::from_fn(|index| f32(sums + 4 * index)),
        };
        let samples = std::array::from_fn(|index| {
            let at = samples + 6 * index;
            let scale = bf16::from_le_bytes([bytes[at + 4], bytes[at + 5]]);
            Sample { value: f32(at), scale }
        });
        let sound = totals.norm.is_finite()
            && totals.norm >= 0.0
            && totals.sums.iter().all(|sum| sum.is_finite())
            && samples.iter().all(|s: &Sample| s.scale.is_finite() && s.scale >= bf16::ZERO);
        let hash = std::array::from_fn(|index| bytes[index]);
        sound.then_some(Digest { hash, totals, samples })
    }
}

/// Adds a kept element to a comparison.
fn add(
    difference: &mut Difference,
    engine: &Tensor,
    flat: usize,
    sample: &Sample,
    floor: f64,
    factor: f64,
) {
    let (e, r) = (engine.data[flat], sample.value);
    let times_floor = element_times_floor(e, r, floor * sample.scale.to_f64());
    if e.is_finite() && r.is_finite() {
        let distance = (f64::from(e) - f64::from(r)).abs();
        difference.max_abs = difference.max_abs.max(distance);
        difference.max_ulp = difference.max_ulp.max(u64::from(ulp_distance(e, r)));
    }
    let index = Tensor::unravel(flat, &engine.shape);
    let element = Element { index, engine: e, reference: r, times_floor };
    if times_floor > factor {
        difference.beyond += 1;
        difference.first.get_or_insert_with(|| element.clone());
    }
    if difference.worst.as_ref().is_none_or(|worst| times_floor > worst.times_floor) {
        difference.worst = Some(element);
    }
}

/// The sums over the elements that count, and how many these are.
fn totals(site: Site, tensor: &Tensor, rows: &Rows) -> (Totals, u64) {
    let (mut sums, mut squared, mut non_finite, mut elements) = ([0f64; SUMS], 0f64, 0u32, 0u64);
    let seed = seed(site);
    for (flat, &value) in tensor.data.iter().enumerate() {
        if !rows.counts(flat / rows.length, flat % rows.length) {
            continue;
        }
        elements += 1;
        if !value.is_finite() {
            non_finite += 1;
            continue;
        }
        let (value, bits) = (f64::from(value), splitmix64(0, seed ^ flat as u64) as usize);
        squared += value * value;
        sums[bits % SUMS] += if (bits / SUMS).is_multiple_of(2) { value } else { -value };
    }
    let (norm, sums) = (squared.sqrt() as f32, sums.map(|sum| sum as f32));
    (Totals { non_finite, norm, sums }, elements)
}

/// One element at random in each of equal parts, in row-major order.
fn places(site: Site, rows: &Rows) -> [usize; SAMPLES] {
    let n = rows.count * rows.length;
    std::array::from_fn(|index| {
        let (start, end) = (index * n / SAMPLES, (index + 1) * n / SAMPLES);
        let random = splitmix64(0, splitmix64(0, seed(site)) ^ index as u64) as usize;
        rows.counted(start + random % (end - start).max(1))
    })
}

/// Another one for each site.
fn seed(site: Site) -> u64 {
    let layer = site.layer.map_or(u64::from(u16::MAX), u64::from);
    splitmix64(0, u64::from(site.step) << 32 ^ layer << 8 ^ site.stage.index() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::site::Stage;

    const FLOOR: SiteFloor = SiteFloor { elementwise: 1e-6, relative_l2: 1e-6 };

    fn tensor(change: impl Fn(usize, f32) -> f32) -> Tensor {
        let value = |i: usize| (splitmix64(0, i as u64 + 99) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        Tensor::new([5, 3, 40], (0..600).map(|i| change(i, value(i))).collect())
    }

    fn against(stage: Stage, change: impl Fn(usize, f32) -> f32) -> Difference {
        let site = Site::in_layer(1, 2, stage);
        let bytes = Digest::of(site, &tensor(|_, x| x), 7).to_bytes();
        let digest = Digest::from_bytes(&bytes.try_into().unwrap()).unwrap();
        digest.compare(site, &tensor(change), 7, FLOOR, 8.0)
    }

    #[test]
    fn one_wrong_element_anywhere_is_seen_at_its_size() {
        for wrong in 0..600 {
            let difference = against(Stage::Q, |i, x| if i == wrong { x + 0.5 } else { x });
            let norm = tensor(|_, x| x).data.iter().map(|x| x * x).sum::<f32>().sqrt();
            let times = difference.relative_l2 * f64::from(norm) / 0.5;
            assert!((times - 1.0).abs() < 1e-4, "{wrong}: {times}");
            assert!(difference.diverged(8.0), "{wrong}");
        }
    }

    #[test]
    fn a_difference_that_is_spread_is_estimated_within_a_factor_of_three() {
        let same = against(Stage::Q, |_, x| x);
        assert_eq!((same.relative_l2, same.max_abs, same.beyond), (0.0, 0.0, 0));
        for seed in 0..200u64 {
            let sign =
                |i: usize| if splitmix64(0, seed << 32 ^ i as u64) & 1 == 0 { 1.0 } else { -1.0 };
            let moved = against(Stage::Q, |i, x| x * (1.0 + 1e-4 * sign(i)));
            assert!((0.33e-4..3e-4).contains(&moved.relative_l2), "{seed}: {}", moved.relative_l2);
        }
        // What every norm is blind to.
        let turned = against(Stage::Q, |i, _| tensor(|_, x| x).data[i ^ 1]);
        assert!(turned.relative_l2 > 0.3 && (turned.norm_ratio - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_number_that_is_none_is_seen_and_keys_after_the_query_do_not_count() {
        assert!(against(Stage::Q, |i, x| if i == 333 { f32::NAN } else { x }).diverged(8.0));
        // (T, Hq, P): the first query sees keys 0 to 7.
        let padding = |i: usize| i < 120 && i % 40 > 7;
        let changed = |i: usize, x: f32| if padding(i) { f32::NEG_INFINITY } else { x };
        assert!(!against(Stage::Scores, changed).diverged(8.0));
        assert!(against(Stage::Scores, |i, x| if i == 47 { 5.0 } else { x }).diverged(8.0));
    }
}
