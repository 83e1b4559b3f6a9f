//! Results of products that random sums of their outputs clear, after R. Freivalds, "Probabilistic machines can use
//! less running time", 1977.
//!
//! Of a weight W, r^T W is kept for each block of outputs, r being random signs, and with it the sums of the squares
//! of W's columns. A result y = W x has r^T y = (r^T W) x in every block, but for rounding. The deviations of the
//! elements' errors ([`SumRounding`](super::expected)) add up in quadrature, whatever the errors have in common, as
//! the signs are independent of them:
//!
//! ```text
//! |r^T y - (r^T W) x| <= lambda * |deviations of the block|_2           lambda = 6
//! ```
//!
//! Nothing is called wrong here: what is beyond that is computed element by element. What is within is cleared. That
//! does not see an error of a single element below 16, the square root of [`BLOCK`], times the root mean square of the
//! block's bounds. Errors of a block whose 2-norm is twice its bound pass with a chance of at most 13/16 (Paley and
//! Zygmund's inequality, as a sum of random signs has a fourth moment of at most three squares of its second one), and
//! errors like that in each of n blocks with (13/16)^n.

use std::collections::{BTreeMap, BTreeSet};

use memmap2::Mmap;
use ndarray::ArrayView2;
use rayon::prelude::*;

use super::{
    expected::{LAMBDA, Rounding},
    matrix::Matrix,
    product::Registers,
    products::Product,
};
use crate::{
    core::{
        activity,
        cache::Entry,
        progress,
        random::{key, splitmix64},
        tensor::DType,
    },
    graph::ModelGraph,
    model::{ModelError, ModelFile},
};

/// Outputs of a block.
pub const BLOCK: usize = 256;
/// Weights with fewer elements are multiplied at once.
const LEAST_ELEMENTS: usize = 1 << 19;
/// Rows of a weight that are widened at a time.
const ROWS: usize = 32;
/// Partial sums of a sum.
const LANES: usize = 8;
/// Goes up where other numbers are kept.
const VERSION: u32 = 1;

/// How a run is replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replay {
    /// Products with large weights by random sums first; those that these do not clear, element by element.
    #[default]
    Quick,
    /// Every element.
    Full,
}

impl Replay {
    /// What a replay clears the products of a model with: of some sites, by their places, or of all.
    ///
    /// # Errors
    /// As [`RandomSums::of`].
    pub fn sums(
        self,
        file: &ModelFile,
        model: &ModelGraph,
        only: Option<&BTreeSet<usize>>,
    ) -> Result<Option<RandomSums>, ModelError> {
        match self {
            Replay::Quick => RandomSums::of(file, model, only).map(Some),
            Replay::Full => Ok(None),
        }
    }
}

/// The random sums of a model's weights, by tensor.
pub struct RandomSums {
    weights: BTreeMap<String, Weight>,
    values: Values,
}

/// A weight (matrices * outputs, inputs).
#[derive(Clone, Copy)]
struct Weight {
    inputs: usize,
    /// Rows of each of its matrices: of an expert, or of all.
    outputs: usize,
    matrices: usize,
    /// Where its sums begin.
    first: usize,
}

/// Of each block of each matrix: its random sums (inputs), and the sums of its squares (inputs).
enum Values {
    Kept(Mmap),
    Own(Vec<f32>),
}

/// Some outputs of a matrix of a weight.
struct Block<'n> {
    tensor: &'n str,
    weight: Weight,
    matrix: usize,
    /// Within the matrix.
    outputs: std::ops::Range<usize>,
}

impl Weight {
    fn blocks(self) -> usize {
        self.outputs.div_ceil(BLOCK)
    }

    fn values(self) -> usize {
        self.matrices * self.blocks() * 2 * self.inputs
    }

    fn blocks_of<'n>(self, tensor: &'n str) -> impl Iterator<Item = Block<'n>> {
        (0..self.matrices * self.blocks()).map(move |at| {
            let (matrix, first) = (at / self.blocks(), at % self.blocks() * BLOCK);
            let outputs = first..(first + BLOCK).min(self.outputs);
            Block { tensor, weight: self, matrix, outputs }
        })
    }
}

impl RandomSums {
    /// Those of the large weights that a graph multiplies for some sites, by their places, or for all: kept ones, or
    /// made anew.
    ///
    /// # Errors
    /// A weight cannot be read.
    pub fn of(
        file: &ModelFile,
        model: &ModelGraph,
        only: Option<&BTreeSet<usize>>,
    ) -> Result<RandomSums, ModelError> {
        let graph = &model.graph;
        let products = graph.iter().filter_map(|(_, node)| graph.multiplied_weight(node));
        let all: BTreeSet<&str> = products.map(|root| graph.node(root).name.as_str()).collect();
        let asked = only.map(|places| model.weights_of_all(places));
        let Some(asked) = asked else { return RandomSums::of_weights(file, all, true) };
        // Of all weights they may be there already.
        let known = RandomSums::of_weights(file, all.clone(), false)?;
        if !known.weights.is_empty() {
            return Ok(known);
        }
        let some = all.into_iter().filter(|name| asked.contains(*name)).collect();
        RandomSums::of_weights(file, some, true)
    }

    /// Those of these weights; none where they would have to be made and are not to be.
    fn of_weights(
        file: &ModelFile,
        names: BTreeSet<&str>,
        makes: bool,
    ) -> Result<RandomSums, ModelError> {
        let (mut weights, mut first) = (BTreeMap::new(), 0);
        for name in names {
            let info = file.info(name)?;
            let (rows, inputs) = (info.rows(), info.row_length());
            let outputs = info.dims.get(1).map_or(1, |&outputs| outputs as usize).max(1);
            let weight = Weight { inputs, outputs, matrices: rows / outputs, first };
            if rows * inputs >= LEAST_ELEMENTS {
                first += weight.values();
                weights.insert(name.to_string(), weight);
            }
        }
        let entry = (first > 0).then(|| kept(file, &weights)).flatten();
        let kept = || entry.as_ref().and_then(Entry::map).filter(|map| map.len() == 4 * first);
        if let Some(map) = kept() {
            return Ok(RandomSums { weights, values: Values::Kept(map) });
        }
        if !makes {
            return Ok(RandomSums::none());
        }
        let values = made(file, &weights, first)?;
        if activity::interrupted().is_some() {
            // Some sums are missing.
            return Ok(RandomSums::none());
        }
        if let Some(entry) = &entry {
            entry.write(bytemuck::cast_slice(&values));
        }
        // Those in the cache take no memory of the process.
        let values = kept().map_or(Values::Own(values), Values::Kept);
        Ok(RandomSums { weights, values })
    }

    /// Those of no weight.
    fn none() -> RandomSums {
        RandomSums { weights: BTreeMap::new(), values: Values::Own(Vec::new()) }
    }

    fn values(&self) -> &[f32] {
        match &self.values {
            Values::Kept(map) => bytemuck::cast_slice(map),
            Values::Own(values) => values,
        }
    }

    /// Whether there are any of a weight.
    pub fn has(&self, tensor: &str) -> bool {
        self.weights.contains_key(tensor)
    }

    /// How far the results of a product with a weight lie from its random sums, in units of their bound, at most.
    /// `None` of a weight without any, and where inputs are uncertain.
    ///
    /// `results` are (pairs, outputs).
    pub fn times_bound(
        &self,
        tensor: &str,
        product: &Product<'_>,
        results: &[f64],
        rounding: Rounding,
    ) -> Option<f64> {
        let weight = *self.weights.get(tensor)?;
        let x = &product.x;
        if x.spread.is_some() || x.width != weight.inputs || product.outputs != weight.outputs {
            return None;
        }
        let results =
            ArrayView2::from_shape((product.pairs.len(), weight.outputs), results).ok()?;
        let mut rows: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (row, pair) in product.pairs.iter().enumerate() {
            rows.entry(pair.block).or_default().push(row);
        }
        let used: Vec<Block<'_>> =
            weight.blocks_of(tensor).filter(|block| rows.contains_key(&block.matrix)).collect();
        let registers = Registers::of_this_cpu();
        let of_block = |block: &Block<'_>| {
            let (sums, squares) = self.of_block(block);
            let signs = block.signs();
            let of_row = |&row: &usize| {
                let x = x.row(product.pairs[row].row);
                let (sum, square) = registers.run(|| dots(x, sums, squares));
                let results = results.row(row);
                let results = &results.as_slice().expect("rows are dense")[block.outputs.clone()];
                let own: f64 = results.iter().zip(&signs).map(|(y, sign)| sign * y).sum();
                let size: f64 = results.iter().map(|y| y * y).sum();
                (own - sum).abs() / bound(weight.inputs, size, square, results.len(), rounding)
            };
            rows[&block.matrix].iter().map(of_row).fold(0.0, farther)
        };
        Some(used.par_iter().map(of_block).reduce(|| 0.0, farther))
    }

    /// A block's random sums, and the sums of its squares.
    fn of_block(&self, block: &Block<'_>) -> (&[f32], &[f32]) {
        let Weight { inputs, first, .. } = block.weight;
        let at = block.matrix * block.weight.blocks() + block.outputs.start / BLOCK;
        self.values()[first + at * 2 * inputs..][..2 * inputs].split_at(inputs)
    }
}

/// The larger one; what is no number is infinitely far.
fn farther(a: f64, b: f64) -> f64 {
    if b.is_nan() { f64::INFINITY } else { a.max(b) }
}

/// The bound of a random sum of `count` results of sums of `n` products, whose squares sum up to `size`; the squares of
/// all their terms sum up to `terms`.
fn bound(n: usize, size: f64, terms: f64, count: usize, rounding: Rounding) -> f64 {
    let Rounding { sum, storage, smallest, .. } = rounding;
    let of_sums = sum * sum * n as f64 * (size / 9.0 + terms / 6.0);
    // As of one product: the partial sums of lanes and blocks, and the result as it is stored.
    let once = (2.0 * sum + storage) * size.sqrt() + smallest * (count as f64).sqrt();
    LAMBDA * (of_sums + once * once).sqrt()
}

/// The sums over the inputs of x times the random sums, and of x^2 times the sums of squares.
#[inline(always)]
fn dots(x: &[f64], sums: &[f32], squares: &[f32]) -> (f64, f64) {
    let (mut of_sums, mut of_squares) = ([0.0; LANES], [0.0; LANES]);
    let parts = x.chunks(LANES).zip(sums.chunks(LANES)).zip(squares.chunks(LANES));
    for ((x, sums), squares) in parts {
        for (lane, ((x, &sum), &square)) in x.iter().zip(sums).zip(squares).enumerate() {
            of_sums[lane] += x * f64::from(sum);
            of_squares[lane] += x * x * f64::from(square);
        }
    }
    (of_sums.iter().sum(), of_squares.iter().sum())
}

impl Block<'_> {
    /// 1 or -1 for each output.
    fn signs(&self) -> Vec<f64> {
        let key = key(VERSION.into(), self.tensor);
        let first = self.matrix * self.weight.outputs;
        let sign =
            |output| if splitmix64(key, (first + output) as u64) & 1 == 0 { 1.0 } else { -1.0 };
        self.outputs.clone().map(sign).collect()
    }

    /// The sums of the block's rows, each times its sign, and of their squares.
    fn sum(&self, matrix: &Matrix<'_>, out: &mut [f32]) -> Result<(), ModelError> {
        let inputs = self.weight.inputs;
        let (mut sums, mut squares) = (vec![0f64; inputs], vec![0f64; inputs]);
        let (signs, registers) = (self.signs(), Registers::of_this_cpu());
        let first = self.matrix * self.weight.outputs + self.outputs.start;
        for (at, signs) in signs.chunks(ROWS).enumerate() {
            let rows = first + at * ROWS..first + at * ROWS + signs.len();
            matrix.with_rows(rows, |rows| {
                for (row, &sign) in rows.chunks_exact(inputs).zip(signs) {
                    registers.run(|| add(row, sign, &mut sums, &mut squares));
                }
            })?;
        }
        let both = sums.iter().chain(&squares);
        out.iter_mut().zip(both).for_each(|(out, &sum)| *out = sum as f32);
        Ok(())
    }
}

#[inline(always)]
fn add(row: &[f32], sign: f64, sums: &mut [f64], squares: &mut [f64]) {
    for ((&weight, sum), square) in row.iter().zip(sums).zip(squares) {
        let weight = f64::from(weight);
        *sum += sign * weight;
        *square += weight * weight;
    }
}

/// Where the sums of these weights are kept.
fn kept(file: &ModelFile, weights: &BTreeMap<String, Weight>) -> Option<Entry> {
    let mut of = blake3::Hasher::new();
    of.update(format!("{} {VERSION} {BLOCK}", file.hash()).as_bytes());
    weights.keys().for_each(|name| _ = of.update(format!(" {name}").as_bytes()));
    Entry::new("sums", of.finalize().to_hex().as_str()).ok()
}

fn made(
    file: &ModelFile,
    weights: &BTreeMap<String, Weight>,
    count: usize,
) -> Result<Vec<f32>, ModelError> {
    let mut values = vec![0f32; count];
    let mut rest = &mut values[..];
    let mut tasks = Vec::new();
    for (tensor, &weight) in weights {
        let matrix = Matrix::of_file(file, tensor, DType::F32)?;
        for block in weight.blocks_of(tensor) {
            let (own, later) = rest.split_at_mut(2 * weight.inputs);
            rest = later;
            tasks.push((block, matrix.clone(), own));
        }
    }
    progress::begin("summing the weights at random", tasks.len());
    tasks.into_par_iter().try_for_each(|(block, matrix, own)| {
        progress::advance_by(1);
        if activity::interrupted().is_some() { Ok(()) } else { block.sum(&matrix, own) }
    })?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::diagnosis::replay::{
        expected::Operand,
        products::{Factor, Pair},
    };

    const INPUTS: usize = 300;
    const OUTPUTS: usize = 600;

    fn random(seed: u64, i: usize) -> f64 {
        splitmix64(seed, i as u64) as f64 / u64::MAX as f64 - 0.5
    }

    /// A weight of some matrices and its random sums, an odd number of rows of x with the matrices in turn, and what
    /// they give, each sum in f32.
    fn example(matrices: usize) -> (RandomSums, Product<'static>, Vec<f64>) {
        let element = |output, input| random(1, output * INPUTS + input) as f32;
        let matrix = Matrix::of_elements(matrices * OUTPUTS, INPUTS, element);
        let weight = Weight { inputs: INPUTS, outputs: OUTPUTS, matrices, first: 0 };
        let mut values = vec![0f32; weight.values()];
        let parts = values.chunks_exact_mut(2 * INPUTS);
        for (block, out) in weight.blocks_of("w").zip(parts) {
            block.sum(&matrix, out).unwrap();
        }
        let weights = BTreeMap::from([("w".to_string(), weight)]);
        let sums = RandomSums { weights, values: Values::Own(values) };
        let value: Vec<f64> = (0..7 * INPUTS).map(|i| f64::from(random(2, i) as f32)).collect();
        let pairs: Vec<Pair> = (0..7).map(|row| Pair { row, block: row % matrices }).collect();
        let result = |pair: &Pair, output: usize| {
            let x = &value[pair.row * INPUTS..][..INPUTS];
            let weights = (0..INPUTS).map(|input| element(pair.block * OUTPUTS + output, input));
            let sum = x.iter().zip(weights).fold(0f32, |sum, (&x, w)| sum + x as f32 * w);
            f64::from(sum)
        };
        let of_pair = |pair| (0..OUTPUTS).map(move |output| result(pair, output));
        let results = pairs.iter().flat_map(of_pair).collect();
        let x = Arc::new(Operand { width: INPUTS, value: value.clone(), spread: None });
        let factor = Factor::Weight(matrix);
        let product = Product { x, factor, outputs: OUTPUTS, pairs, of_terms: 0.0, only: None };
        (sums, product, results)
    }

    #[test]
    fn right_results_are_within_the_bound_and_wrong_ones_beyond_it() {
        let rounding = Rounding::new(DType::F32, DType::F32);
        for matrices in [1, 3] {
            let (sums, product, results) = example(matrices);
            let times = |results: &[f64]| {
                sums.times_bound("w", &product, results, rounding).expect("it has random sums")
            };
            let right = times(&results);
            assert!((0.001..0.6).contains(&right), "{right}");
            let bounds = product.expected(rounding).unwrap();
            let (sums, product, _) = example(matrices);
            let times =
                |results: &[f64]| sums.times_bound("w", &product, results, rounding).unwrap();
            // In the last block, which is shorter, and in the first.
            for at in [7 * OUTPUTS - 1, 3] {
                let off_by = |bounds_off: f64| {
                    let mut results = results.clone();
                    results[at] += bounds_off * bounds.bound(at);
                    times(&results)
                };
                assert!(off_by(40.0) > 1.0, "{}", off_by(40.0));
                assert!(off_by(4.0) < 1.0, "{}", off_by(4.0));
            }
            // Each by three of its own bounds, in directions that know nothing of the signs.
            let mut all = results.clone();
            for (i, result) in all.iter_mut().enumerate() {
                *result += 3.0 * random(3, i).signum() * bounds.bound(i);
            }
            assert!(times(&all) > 1.0);
            let mut no_number = results.clone();
            no_number[5] = f64::NAN;
            assert_eq!(times(&no_number), f64::INFINITY);
            assert!(sums.times_bound("v", &product, &results, rounding).is_none());
        }
    }
}
