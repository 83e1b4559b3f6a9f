//! Rows of x times rows of matrices, each bounded only as far as that decides.

use std::{collections::BTreeMap, sync::Arc};

use ndarray::{Array2, ArrayView1, ArrayView2, Axis, linalg::general_mat_mul, s};
use rayon::prelude::*;

use crate::{
    diagnosis::replay::{
        expected::{Expected, Operand, Rounding, Spread, SumRounding, Terms},
        matrix::Matrix,
        product::Rows,
    },
    model::gguf::GgufError,
};

/// Outputs of a product computed by one task. Fixed, so that results do not depend on the threads.
const COLUMNS: usize = 128;
/// Elements of a bound that one task forms.
const AT_ONCE: usize = 1 << 14;

/// What x is multiplied by: blocks of rows, one block after another.
#[derive(Clone)]
pub enum Factor<'a> {
    Weight(Matrix<'a>),
    Dense(Arc<Operand>),
}

/// What a row of the result is: a row of x times a block of the factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub row: usize,
    pub block: usize,
}

impl Pair {
    /// Every row of x with the only block.
    pub fn rows(rows: usize) -> Vec<Pair> {
        (0..rows).map(|row| Pair { row, block: 0 }).collect()
    }
}

/// x A^T: a row for each pair, of `outputs` elements.
pub struct Product<'a> {
    /// (rows, k).
    pub x: Arc<Operand>,
    /// (blocks * outputs, k).
    pub factor: Factor<'a>,
    /// Rows of a block.
    pub outputs: usize,
    pub pairs: Vec<Pair>,
    /// Roundings of each term beside those of the sum, in unit roundoffs.
    pub of_terms: f64,
    /// The only outputs that are computed where the factor is a weight; the others are NaN.
    pub only: Option<Arc<[usize]>>,
}

/// The rows of a result that one block gives.
struct Part {
    /// Where they are in the result.
    rows: Vec<usize>,
    block: usize,
    /// (rows, outputs).
    value: Array2<f64>,
    /// What uncertain inputs add, in standard deviations.
    inherited: Option<Array2<f64>>,
    /// The squares of the 4-norms of the block's rows.
    norms: Vec<f64>,
}

/// The elements of a product, row after row.
struct Sums {
    value: Vec<f64>,
    /// What uncertain inputs add.
    inherited: Option<Vec<f64>>,
    /// The squares of the 4-norms of the rows of each block that is used.
    norms: Vec<Vec<f64>>,
}

/// A product's sums, whose bounds are not formed yet.
pub struct Multiplied<'a> {
    product: Product<'a>,
    value: Vec<f64>,
    /// What uncertain inputs add.
    inherited: Option<Vec<f64>>,
    /// The squares of the 4-norms of the rows of each block that is used.
    norms: Arc<Vec<Vec<f64>>>,
}

impl<'a> Product<'a> {
    /// The elements (pairs, outputs). Uncertain inputs add up to first order, in quadrature.
    pub fn expected(self, rounding: Rounding) -> Result<Expected<'a>, GgufError> {
        let one = Product::together(vec![self])?.pop();
        Ok(one.expect("as many as were given").bounded(rounding))
    }

    /// Products of one factor, which is read once: each element is the same bits as alone.
    pub fn together(mut products: Vec<Product<'a>>) -> Result<Vec<Multiplied<'a>>, GgufError> {
        let joined = match &products[..] {
            [_] => None,
            all => Some(Product::joined(all)),
        };
        let sums = joined.as_ref().unwrap_or(&products[0]).sums()?;
        let Sums { mut value, mut inherited, norms } = sums;
        let norms = Arc::new(norms);
        let mut all = Vec::with_capacity(products.len());
        // From the last on, so that the first, which may be far the largest, stays where it is.
        while let Some(product) = products.pop() {
            let from = value.len() - product.pairs.len() * product.outputs;
            let inherited = inherited.as_mut().map(|all| all.split_off(from));
            let (value, norms) = (value.split_off(from), Arc::clone(&norms));
            all.push(Multiplied { product, value, inherited, norms });
        }
        all.reverse();
        Ok(all)
    }

    /// The rows of several products, one after another.
    fn joined(products: &[Product<'a>]) -> Product<'a> {
        let Product { x, factor, outputs, of_terms, only, .. } = &products[0];
        let is_uncertain = products.iter().any(|product| product.x.spread.is_some());
        let (mut value, mut spread, mut pairs) = (Vec::new(), Vec::new(), Vec::new());
        for product in products {
            let before = value.len() / x.width.max(1);
            let moved = |pair: &Pair| Pair { row: before + pair.row, ..*pair };
            pairs.extend(product.pairs.iter().map(moved));
            value.extend_from_slice(&product.x.value);
            match &product.x.spread {
                Some(own) => spread.extend_from_slice(own),
                None if is_uncertain => spread.resize(value.len(), 0.0),
                None => {}
            }
        }
        let spread = is_uncertain.then_some(spread);
        let x = Arc::new(Operand { width: x.width, value, spread });
        let (factor, only) = (factor.clone(), only.clone());
        Product { x, factor, outputs: *outputs, pairs, of_terms: *of_terms, only }
    }

    /// The elements, what uncertain inputs add, and the norms of the blocks that are used.
    fn sums(&self) -> Result<Sums, GgufError> {
        let mut blocks: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (at, pair) in self.pairs.iter().enumerate() {
            blocks.entry(pair.block).or_default().push(at);
        }
        let blocks: Vec<(usize, Vec<usize>)> = blocks.into_iter().collect();
        let part = |(block, rows): (usize, Vec<usize>)| match &self.factor {
            Factor::Weight(weight) => match &self.only {
                Some(only) => self.of_outputs(weight, block, rows, only),
                None => self.of_weight(weight, block, rows),
            },
            Factor::Dense(dense) => Ok(self.of_dense(dense, block, rows)),
        };
        let parts = blocks.into_par_iter().map(part).collect::<Result<Vec<_>, _>>()?;
        let last = parts.iter().map(|part| part.block + 1).max().unwrap_or(0);
        let mut norms = vec![Vec::new(); last];
        let elements = self.pairs.len() * self.outputs;
        let (value, inherited) = gather(parts, elements, &mut norms);
        Ok(Sums { value, inherited, norms })
    }

    /// The rows of x that rows of the result are made of.
    fn selected(&self, rows: &[usize]) -> Arc<Operand> {
        let rows: Vec<usize> = rows.iter().map(|&at| self.pairs[at].row).collect();
        if rows.iter().copied().eq(0..self.x.rows()) {
            return Arc::clone(&self.x);
        }
        Arc::new(self.x.select(&rows))
    }

    fn of_weight(
        &self,
        weight: &Matrix<'a>,
        block: usize,
        rows: Vec<usize>,
    ) -> Result<Part, GgufError> {
        let x = self.selected(&rows);
        let squares = x.spread.as_ref().map(|spread| {
            let squares: Vec<f64> = spread.iter().map(|s| s * s).collect();
            Rows::new(x.width, &squares)
        });
        let values = Rows::new(x.width, &x.value);
        let shape = (rows.len(), self.outputs);
        let mut value = Array2::zeros(shape);
        let mut inherited = squares.is_some().then(|| Array2::zeros(shape));
        let mut of_outputs = vec![0.0; self.outputs];
        let inherited_blocks: Vec<_> = match &mut inherited {
            Some(inherited) => inherited.axis_chunks_iter_mut(Axis(1), COLUMNS).map(Some).collect(),
            None => (0..self.outputs).step_by(COLUMNS).map(|_| None).collect(),
        };
        let columns = value.axis_chunks_iter_mut(Axis(1), COLUMNS).into_par_iter();
        let columns = columns.zip(of_outputs.par_chunks_mut(COLUMNS)).zip(inherited_blocks);
        columns.enumerate().try_for_each(|(chunk, ((value, norms), inherited))| {
            let first = block * self.outputs + chunk * COLUMNS;
            weight.with_rows(first..first + norms.len(), |weights| {
                values.norms(weights, norms);
                values.times(weights, |w| w, value);
                if let (Some(squares), Some(inherited)) = (&squares, inherited) {
                    squares.times(weights, |w| w * w, inherited);
                }
            })
        })?;
        let inherited = inherited.map(|squares| squares.mapv_into(f64::sqrt));
        Ok(Part { rows, block, value, inherited, norms: of_outputs })
    }

    /// Some outputs of a weight, one by one.
    fn of_outputs(
        &self,
        weight: &Matrix<'a>,
        block: usize,
        rows: Vec<usize>,
        outputs: &[usize],
    ) -> Result<Part, GgufError> {
        let x = self.selected(&rows);
        let values = Rows::new(x.width, &x.value);
        let mut value = Array2::from_elem((rows.len(), self.outputs), f64::NAN);
        let spread: Option<Vec<f64>> =
            x.spread.as_ref().map(|spread| spread.iter().map(|s| s * s).collect());
        let squares = spread.map(|squares| Rows::new(x.width, &squares));
        let mut inherited = squares.is_some().then(|| Array2::zeros(value.dim()));
        let mut norms = vec![0.0; self.outputs];
        for &output in outputs {
            let at = block * self.outputs + output;
            weight.with_rows(at..at + 1, |weights| {
                values.norms(weights, &mut norms[output..output + 1]);
                values.times(weights, |w| w, value.slice_mut(s![.., output..output + 1]));
                if let (Some(squares), Some(all)) = (&squares, &mut inherited) {
                    squares.times(weights, |w| w * w, all.slice_mut(s![.., output..output + 1]));
                }
            })?;
        }
        let inherited = inherited.map(|squares| squares.mapv_into(f64::sqrt));
        Ok(Part { rows, block, value, inherited, norms })
    }

    fn of_dense(&self, dense: &Operand, block: usize, rows: Vec<usize>) -> Part {
        let x = self.selected(&rows);
        let (first, shape) = (block * self.outputs, (rows.len(), self.outputs));
        let factor = view(dense);
        let factor = factor.slice(s![first..first + self.outputs, ..]);
        let value = times(view(&x), factor);
        let norms = norms(factor);
        if x.spread.is_none() && dense.spread.is_none() {
            return Part { rows, block, value, inherited: None, norms };
        }
        let mut inherited = Array2::zeros(shape);
        if let Some(spread) = spreads(&x) {
            let (of_x, factor) = (spread.mapv(|s| s * s), factor.mapv(|a| a * a));
            inherited += &times(of_x.view(), factor.view());
        }
        if let Some(spread) = spreads(dense) {
            let of_factor = spread.slice(s![first..first + self.outputs, ..]).mapv(|s| s * s);
            inherited += &times(view(&x).mapv(|x| x * x).view(), of_factor.view());
        }
        let inherited = Some(inherited.mapv_into(f64::sqrt));
        Part { rows, block, value, inherited, norms }
    }
}

impl<'a> Multiplied<'a> {
    /// Whether these are the sums of a product of the same factor: of the same rows with the same blocks.
    pub fn are_of(&self, product: &Product<'_>) -> bool {
        let (own, x) = (&self.product, &product.x);
        own.pairs == product.pairs && own.x.value == x.value && own.x.spread == x.spread
    }

    /// The sums with their bounds.
    pub fn bounded(self, rounding: Rounding) -> Expected<'a> {
        let Multiplied { product, value, inherited, norms: norms_of_blocks } = self;
        let Product { x, factor, outputs, pairs, of_terms, .. } = product;
        let of_rows = norms(view(&x));
        let sum = SumRounding::new(x.width, rounding.sum, of_terms);
        let pairs = Arc::new(pairs);
        let all = Arc::clone(&pairs);
        let most = move |index: usize| {
            let Pair { row, block } = all[index / outputs];
            of_rows[row] * norms_of_blocks[block][index % outputs]
        };
        let exact = move |index: usize| {
            let Pair { row, block } = pairs[index / outputs];
            let (row, output) = (x.row(row), block * outputs + index % outputs);
            match &factor {
                Factor::Weight(weight) => {
                    let terms = |weights: &[f32]| {
                        terms(row.iter().zip(weights).map(|(x, &w)| x * f64::from(w)))
                    };
                    let terms = weight.with_rows(output..output + 1, terms);
                    terms.expect("the same row was read for the product")
                }
                Factor::Dense(dense) => {
                    terms(row.iter().zip(dense.row(output)).map(|(x, a)| x * a))
                }
            }
        };
        let (most, exact) = (Box::new(most), Box::new(exact));
        let spread = Spread::Product { rounding: sum, most, exact, inherited };
        // The partial sums of lanes and blocks are added up last.
        let last = 2.0 * rounding.sum;
        let single = value.par_iter().with_min_len(AT_ONCE).map(|y| last * y.abs()).collect();
        Expected { value, spread, single, rounding }
    }
}

/// What the bound wants to know of a sum's terms.
fn terms(products: impl Iterator<Item = f64>) -> Terms {
    let (mut terms, mut partial) = (Terms { squares: 0.0, walk: 0.0 }, 0.0);
    for product in products {
        partial += product;
        terms.squares += product * product;
        terms.walk += partial * partial;
    }
    terms
}

/// The parts as one array of `elements`, and the norms of their blocks.
fn gather(
    mut parts: Vec<Part>,
    elements: usize,
    norms: &mut [Vec<f64>],
) -> (Vec<f64>, Option<Vec<f64>>) {
    let flat = |array: Array2<f64>| array.into_raw_vec_and_offset().0;
    if let [part] = &mut parts[..] {
        norms[part.block] = std::mem::take(&mut part.norms);
        let value = std::mem::take(&mut part.value);
        return (flat(value), part.inherited.take().map(flat));
    }
    let mut value = vec![0.0; elements];
    let uncertain = parts.iter().any(|part| part.inherited.is_some());
    let mut inherited = uncertain.then(|| vec![0.0; elements]);
    for part in parts {
        let outputs = part.value.ncols();
        let scatter = |from: &Array2<f64>, to: &mut [f64]| {
            for (&row, from) in part.rows.iter().zip(from.rows()) {
                let to = &mut to[row * outputs..(row + 1) * outputs];
                to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
        };
        scatter(&part.value, &mut value);
        if let (Some(from), Some(to)) = (&part.inherited, &mut inherited) {
            scatter(from, to);
        }
        norms[part.block] = part.norms;
    }
    (value, inherited)
}

/// x a^T, (rows of x, rows of a).
fn times(x: ArrayView2<'_, f64>, a: ArrayView2<'_, f64>) -> Array2<f64> {
    let mut out = Array2::zeros((x.nrows(), a.nrows()));
    let columns = out.axis_chunks_iter_mut(Axis(1), COLUMNS).into_par_iter();
    columns.zip(a.axis_chunks_iter(Axis(0), COLUMNS)).for_each(|(mut out, a)| {
        general_mat_mul(1.0, &x, &a.t(), 0.0, &mut out);
    });
    out
}

fn view(operand: &Operand) -> ArrayView2<'_, f64> {
    let shape = (operand.rows(), operand.width);
    ArrayView2::from_shape(shape, &operand.value).expect("rows times width elements")
}

fn spreads(operand: &Operand) -> Option<ArrayView2<'_, f64>> {
    let shape = (operand.rows(), operand.width);
    ArrayView2::from_shape(shape, operand.spread.as_ref()?).ok()
}

/// The square of the 4-norm of each row.
fn norms(rows: ArrayView2<'_, f64>) -> Vec<f64> {
    let fourth = |row: ArrayView1<'_, f64>| row.iter().map(|x| (x * x).powi(2)).sum::<f64>();
    rows.outer_iter().map(|row| fourth(row).sqrt()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tensor::DType;

    const OUTPUTS: usize = 131;

    fn number(i: usize) -> f64 {
        ((i * 7919 % 1013) as f64 - 506.0) / 97.0
    }

    /// Rows of x with the blocks of a weight in turn.
    fn product(rows: usize, blocks: usize, seed: usize, is_uncertain: bool) -> Product<'static> {
        const WIDTH: usize = 300;
        let value = (0..rows * WIDTH).map(|i| number(i + seed)).collect();
        let spread =
            is_uncertain.then(|| (0..rows * WIDTH).map(|i| 1e-6 * number(i).abs()).collect());
        let element = |output, input| number(output * WIDTH + input) as f32;
        let weight = Matrix::of_elements(blocks * OUTPUTS, WIDTH, element);
        let pairs = (0..rows).map(|row| Pair { row, block: (row + seed) % blocks }).collect();
        Product {
            x: Arc::new(Operand { width: WIDTH, value, spread }),
            factor: Factor::Weight(weight),
            outputs: OUTPUTS,
            pairs,
            of_terms: 0.0,
            only: None,
        }
    }

    #[test]
    fn products_of_one_weight_are_together_what_they_are_alone() {
        let rounding = Rounding::new(DType::F32, DType::F32);
        for blocks in [1, 3] {
            let all = || {
                let of = |(seed, rows)| product(rows, blocks, seed, seed == 1);
                [33, 1, 7, 1].into_iter().enumerate().map(of).collect::<Vec<_>>()
            };
            let together = Product::together(all()).unwrap();
            for (sums, alone) in together.into_iter().zip(all()) {
                assert!(sums.are_of(&alone));
                let (sums, alone) = (sums.bounded(rounding), alone.expected(rounding).unwrap());
                assert_eq!(sums.value, alone.value);
                for i in 0..alone.value.len() {
                    assert_eq!(sums.bound(i), alone.bound(i));
                    assert_eq!(sums.most_bound(i), alone.most_bound(i));
                }
            }
        }
        let mut other = product(1, 1, 5, false);
        let own = Product::together(vec![product(1, 1, 5, false)]).unwrap().remove(0);
        assert!(own.are_of(&other));
        other.pairs[0].block = 1;
        assert!(!own.are_of(&other) && !own.are_of(&product(1, 1, 6, false)));
    }

    #[test]
    fn some_outputs_are_the_same_bits_and_the_others_no_numbers() {
        let rounding = Rounding::new(DType::F32, DType::F32);
        let whole = product(5, 2, 3, true).expected(rounding).unwrap();
        let part = Product { only: Some([0, 17, 130].into()), ..product(5, 2, 3, true) };
        let part = part.expected(rounding).unwrap();
        for i in 0..whole.value.len() {
            if [0, 17, 130].contains(&(i % OUTPUTS)) {
                assert_eq!((part.value[i], part.bound(i)), (whole.value[i], whole.bound(i)));
            } else {
                assert!(part.value[i].is_nan());
            }
        }
    }
}
