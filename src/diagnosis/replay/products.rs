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

impl<'a> Product<'a> {
    /// The elements (pairs, outputs). Uncertain inputs add up to first order, in quadrature.
    pub fn expected(self, rounding: Rounding) -> Result<Expected<'a>, GgufError> {
        let mut blocks: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (at, pair) in self.pairs.iter().enumerate() {
            blocks.entry(pair.block).or_default().push(at);
        }
        let blocks: Vec<(usize, Vec<usize>)> = blocks.into_iter().collect();
        let part = |(block, rows): (usize, Vec<usize>)| match &self.factor {
            Factor::Weight(weight) => self.of_weight(weight, block, rows),
            Factor::Dense(dense) => Ok(self.of_dense(dense, block, rows)),
        };
        let parts = blocks.into_par_iter().map(part).collect::<Result<Vec<_>, _>>()?;
        let last = parts.iter().map(|part| part.block + 1).max().unwrap_or(0);
        let mut norms = vec![Vec::new(); last];
        let elements = self.pairs.len() * self.outputs;
        let (value, inherited) = gather(parts, elements, &mut norms);
        Ok(self.bounded(value, inherited, norms, rounding))
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
                for (norm, weights) in norms.iter_mut().zip(weights.chunks_exact(x.width)) {
                    *norm = sum_of(weights, |_, w| (w * w).powi(2)).sqrt();
                }
                values.times(weights, |w| w, value);
                if let (Some(squares), Some(inherited)) = (&squares, inherited) {
                    squares.times(weights, |w| w * w, inherited);
                }
            })
        })?;
        let inherited = inherited.map(|squares| squares.mapv_into(f64::sqrt));
        Ok(Part { rows, block, value, inherited, norms: of_outputs })
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

    /// `norms` are those of the rows of each block that is used.
    fn bounded(
        self,
        value: Vec<f64>,
        inherited: Option<Vec<f64>>,
        norms_of_blocks: Vec<Vec<f64>>,
        rounding: Rounding,
    ) -> Expected<'a> {
        let Product { x, factor, outputs, pairs, of_terms } = self;
        let of_rows = norms(view(&x));
        let sum = SumRounding { n: x.width, u: rounding.sum, of_terms };
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
        let single = value.iter().map(|y| last * y.abs()).collect();
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

/// The sum over a row of weights, in as many partial sums as are formed at once.
fn sum_of(weights: &[f32], term: impl Fn(usize, f64) -> f64) -> f64 {
    const LANES: usize = 8;
    let (whole, rest) = weights.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (chunk, weights) in whole.iter().enumerate() {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += term(chunk * LANES + lane, f64::from(weights[lane]));
        }
    }
    let first = whole.len() * LANES;
    let rest = rest.iter().enumerate().map(|(lane, &w)| term(first + lane, f64::from(w)));
    sums.into_iter().sum::<f64>() + rest.sum::<f64>()
}
