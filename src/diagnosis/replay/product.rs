//! x W^T in f64: what the replay spends most of its time on.
//!
//! A few rows times a few outputs are summed in registers, over a part of the inputs at a time, each
//! element in the order of its inputs: the same sums on any CPU, for any number of threads. Weights are
//! widened a part at a time, as a block of them in f64 would fall out of the cache.

use std::{array, cell::Cell};

use ndarray::ArrayViewMut2;

/// Rows of x side by side: a register of 512 bits, or two of 256.
const LANES: usize = 8;
/// Inputs that are summed before their sum is added to that of the inputs before.
const DEPTH: usize = 256;

type Lanes = [f64; LANES];

/// The registers that a loop is compiled for.
#[derive(Clone, Copy, Debug)]
pub enum Registers {
    /// 32 of 512 bits.
    #[cfg(target_arch = "x86_64")]
    Wide,
    /// 16 of 256 bits.
    #[cfg(target_arch = "x86_64")]
    Narrow,
    /// Those that the program was compiled for.
    Any,
}

impl Registers {
    pub fn of_this_cpu() -> Registers {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") {
            return Registers::Wide;
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Registers::Narrow;
        }
        Registers::Any
    }

    /// Runs a loop that is compiled for these registers.
    #[inline]
    pub fn run<T>(self, of: impl FnOnce() -> T) -> T {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has what it is compiled for; `of_this_cpu` asked it.
            Registers::Wide => unsafe { wide(of) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Registers::Narrow => unsafe { narrow(of) },
            Registers::Any => of(),
        }
    }

    /// Lanes of a group of rows that are multiplied together, at most.
    fn group(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Registers::Wide => 3,
            _ => 1,
        }
    }
}

/// The rows of x as they are multiplied: by parts of the inputs, then by groups of lanes, then by
/// input.
pub struct Rows {
    inputs: usize,
    /// Lanes of all rows; those of rows that are not there are zero.
    all: usize,
    lanes: Vec<Lanes>,
    registers: Registers,
}

/// Memory of a thread.
#[derive(Default)]
struct Scratch {
    /// Weights of a part of the inputs: (outputs, DEPTH).
    weights: Vec<f64>,
    /// (outputs, lanes of all rows).
    sums: Vec<Lanes>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

impl Rows {
    /// `values` are (rows, inputs).
    pub fn new(inputs: usize, values: &[f64]) -> Rows {
        Rows::with(Registers::of_this_cpu(), inputs, values)
    }

    fn with(registers: Registers, inputs: usize, values: &[f64]) -> Rows {
        let all = values.len().div_ceil(inputs.max(1)).div_ceil(LANES);
        let mut lanes = Vec::with_capacity(all * inputs);
        for (first, part) in parts(inputs, DEPTH) {
            for (from, group) in parts(all, registers.group()) {
                for input in first..first + part {
                    let of_row = |row| values.get(row * inputs + input).copied().unwrap_or(0.0);
                    let of = |at| array::from_fn(|lane| of_row(at * LANES + lane));
                    lanes.extend((from..from + group).map(of));
                }
            }
        }
        Rows { inputs, all, lanes, registers }
    }

    /// x w^T to `out` (rows, outputs); w (outputs, inputs) are `weights`, each changed by `of`.
    pub fn times(&self, weights: &[f32], of: impl Fn(f64) -> f64, mut out: ArrayViewMut2<'_, f64>) {
        let (inputs, all, outputs) = (self.inputs, self.all, out.ncols());
        let mut scratch = SCRATCH.take();
        scratch.sums.clear();
        scratch.sums.resize(outputs * all, [0.0; LANES]);
        scratch.weights.resize(outputs * DEPTH, 0.0);
        for (first, part) in parts(inputs, DEPTH) {
            let wide = scratch.weights.chunks_exact_mut(DEPTH);
            for (wide, row) in wide.zip(weights.chunks_exact(inputs)) {
                self.registers.run(|| widen(&row[first..first + part], &of, wide));
            }
            let mut x = &self.lanes[first * all..(first + part) * all];
            for (from, group) in parts(all, self.registers.group()) {
                let (lanes, rest) = x.split_at(group * part);
                self.add(lanes, group, &scratch.weights, &mut scratch.sums[from..]);
                x = rest;
            }
        }
        let sums = scratch.sums.as_flattened();
        for (row, values) in out.rows_mut().into_iter().enumerate() {
            let sums = sums[row..].iter().step_by(all * LANES);
            values.into_iter().zip(sums).for_each(|(value, sum)| *value = *sum);
        }
        SCRATCH.set(scratch);
    }

    /// The square of the 4-norm of each row of weights (outputs, inputs).
    pub fn norms(&self, weights: &[f32], norms: &mut [f64]) {
        for (norm, row) in norms.iter_mut().zip(weights.chunks_exact(self.inputs)) {
            *norm = self.registers.run(|| fourth_powers(row)).sqrt();
        }
    }

    /// Adds the products of a group of lanes.
    fn add(&self, x: &[Lanes], group: usize, weights: &[f64], sums: &mut [Lanes]) {
        match self.registers {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has what it is compiled for; `of_this_cpu` asked it.
            Registers::Wide => unsafe { add_wide(x, group, weights, sums, self.all) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Registers::Narrow => unsafe { add_narrow(x, weights, sums, self.all) },
            Registers::Any => add::<6, 1>(x, weights, sums, self.all),
        }
    }
}

/// The first of each part, and how many are in it: `most`, or what is left.
fn parts(n: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).step_by(most).map(move |first| (first, most.min(n - first)))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn wide<T>(of: impl FnOnce() -> T) -> T {
    of()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn narrow<T>(of: impl FnOnce() -> T) -> T {
    of()
}

#[inline(always)]
fn widen(weights: &[f32], of: impl Fn(f64) -> f64, wide: &mut [f64]) {
    for (wide, &weight) in wide.iter_mut().zip(weights) {
        *wide = of(f64::from(weight));
    }
}

#[inline(always)]
fn fourth_powers(weights: &[f32]) -> f64 {
    let fourth = |weight: f32| {
        let square = f64::from(weight) * f64::from(weight);
        square * square
    };
    let (whole, rest) = weights.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for weights in whole {
        for lane in 0..LANES {
            sums[lane] += fourth(weights[lane]);
        }
    }
    sums.into_iter().sum::<f64>() + rest.iter().map(|&weight| fourth(weight)).sum::<f64>()
}

/// 24 sums, three lanes of x and a weight fill the registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn add_wide(x: &[Lanes], group: usize, weights: &[f64], sums: &mut [Lanes], all: usize) {
    match group {
        1 => add::<8, 1>(x, weights, sums, all),
        2 => add::<8, 2>(x, weights, sums, all),
        _ => add::<8, 3>(x, weights, sums, all),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn add_narrow(x: &[Lanes], weights: &[f64], sums: &mut [Lanes], all: usize) {
    add::<6, 1>(x, weights, sums, all);
}

/// Adds the products of `G` lanes of x and all outputs, `O` of them at a time.
#[inline(always)]
fn add<const O: usize, const G: usize>(
    x: &[Lanes],
    weights: &[f64],
    sums: &mut [Lanes],
    all: usize,
) {
    let outputs = weights.len() / DEPTH;
    let together = outputs / O * O;
    for output in (0..together).step_by(O) {
        add_tile::<O, G>(x, &weights[output * DEPTH..], &mut sums[output * all..], all);
    }
    for output in together..outputs {
        add_tile::<1, G>(x, &weights[output * DEPTH..], &mut sums[output * all..], all);
    }
}

/// Adds the products of `G` lanes of x and `O` outputs. Loops over iterators instead would keep the sums
/// in memory, which takes four times as long.
#[inline(always)]
fn add_tile<const O: usize, const G: usize>(
    x: &[Lanes],
    weights: &[f64],
    sums: &mut [Lanes],
    all: usize,
) {
    let (x, _) = x.as_chunks::<G>();
    let weights: [&[f64]; O] = array::from_fn(|output| &weights[output * DEPTH..][..x.len()]);
    let mut tile = [[[0.0; LANES]; G]; O];
    for (input, x) in x.iter().enumerate() {
        for output in 0..O {
            let weight = weights[output][input];
            for group in 0..G {
                for lane in 0..LANES {
                    let sum = &mut tile[output][group][lane];
                    *sum = x[group][lane].mul_add(weight, *sum);
                }
            }
        }
    }
    for output in 0..O {
        for group in 0..G {
            for lane in 0..LANES {
                sums[output * all + group][lane] += tile[output][group][lane];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    fn number(i: usize) -> f32 {
        ((i * 7919 % 1013) as f32 - 506.0) / 97.0
    }

    #[test]
    fn a_product_is_the_same_bits_with_any_registers_and_right() {
        for (rows, inputs, outputs) in [(1, 1, 1), (7, 5, 3), (8, 256, 8), (33, 600, 19)] {
            let values: Vec<f64> = (0..rows * inputs).map(|i| f64::from(number(i + 3))).collect();
            let weights: Vec<f32> = (0..outputs * inputs).map(number).collect();
            let product = |registers| {
                let mut out = Array2::from_elem((rows, outputs), f64::NAN);
                Rows::with(registers, inputs, &values).times(&weights, |w| w * w, out.view_mut());
                out
            };
            let any = product(Registers::Any);
            for ((row, output), &value) in any.indexed_iter() {
                let term = |i: usize| {
                    values[row * inputs + i] * f64::from(weights[output * inputs + i]).powi(2)
                };
                let (sum, magnitude) = (0..inputs).fold((0.0, 0.0), |(sum, all): (f64, f64), i| {
                    (sum + term(i), all + term(i).abs())
                });
                // Both sums are of `inputs` roundings at most.
                let bound = 2.0 * inputs as f64 * f64::EPSILON * magnitude;
                assert!(
                    (value - sum).abs() <= bound,
                    "{rows} x {inputs} x {outputs}: {value} {sum}"
                );
            }
            assert_eq!(product(Registers::of_this_cpu()), any);
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                assert_eq!(product(Registers::Narrow), any);
            }
        }
    }
}
