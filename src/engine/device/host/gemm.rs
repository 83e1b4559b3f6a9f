//! Matrix product and bias through ndarray: f32 sums, one rounding at the end.

use std::borrow::Cow;

use half::{f16, slice::HalfFloatSliceExt};
use ndarray::{ArrayView2, ArrayViewMut2, linalg::general_mat_mul};
use rayon::prelude::*;

use crate::{core::tensor::DType, engine::device::Gemm};

/// Columns of y that one task computes. Fixed, so that results do not depend on the thread count.
const COLUMNS: usize = 128;

/// The sizes and types of a [`Gemm`].
#[derive(Clone, Copy)]
pub struct Shape {
    rows: usize,
    cols: usize,
    inner: usize,
    input: DType,
    output: DType,
}

impl From<&Gemm<'_>> for Shape {
    fn from(gemm: &Gemm<'_>) -> Shape {
        let Gemm { rows, cols, inner, input, output, .. } = *gemm;
        Shape { rows, cols, inner, input, output }
    }
}

/// Computes `y = x W^T + bias`; the bytes hold exactly the elements of x, W, bias and y.
pub fn multiply((x, w, bias): (&[u8], &[u8], Option<&[u8]>), y: &mut [u8], shape: Shape) {
    let Shape { rows, cols, inner, .. } = shape;
    let x = widened(x, shape.input);
    let x = ArrayView2::from_shape((rows, inner), &x).expect("x has rows times inner elements");
    let starts: Vec<usize> = (0..cols).step_by(COLUMNS).collect();
    let bias: Option<&[f32]> = bias.map(bytemuck::cast_slice);
    let of_columns = |first: usize| {
        let n = COLUMNS.min(cols - first);
        let mut product = multiply_columns(x, w, shape, first, n);
        if let Some(bias) = bias {
            let bias = bias[first..first + n].iter().cycle();
            product.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
        }
        product
    };
    let products: Vec<Vec<f32>> = starts.into_par_iter().map(of_columns).collect();
    for (block, product) in products.iter().enumerate() {
        let n = product.len() / rows.max(1);
        for (row, values) in product.chunks_exact(n).enumerate() {
            store(y, shape.output, row * cols + block * COLUMNS, values);
        }
    }
}

/// Columns `first..first + n` of y: (rows, n).
fn multiply_columns(
    x: ArrayView2<'_, f32>,
    w: &[u8],
    shape: Shape,
    first: usize,
    n: usize,
) -> Vec<f32> {
    let Shape { rows, inner, input, .. } = shape;
    let row_bytes = inner * input.size();
    let block = widened(&w[first * row_bytes..(first + n) * row_bytes], input);
    let block = ArrayView2::from_shape((n, inner), &block);
    let block = block.expect("a block has n times inner elements");
    let mut product = vec![0f32; rows * n];
    if rows == 1 {
        for (value, weights) in product.iter_mut().zip(block.outer_iter()) {
            *value = x.row(0).dot(&weights);
        }
    } else {
        let y = ArrayViewMut2::from_shape((rows, n), &mut product);
        let mut y = y.expect("the product has rows times n elements");
        general_mat_mul(1.0, &x, &block.t(), 0.0, &mut y);
    }
    product
}

/// Elements as f32: as they are, or widened from f16.
fn widened(bytes: &[u8], dtype: DType) -> Cow<'_, [f32]> {
    match dtype {
        DType::F16 => bytemuck::cast_slice::<u8, f16>(bytes).to_f32_vec().into(),
        _ => bytemuck::cast_slice::<u8, f32>(bytes).into(),
    }
}

/// Rounds values to `dtype` and stores them from element `first` on.
fn store(y: &mut [u8], dtype: DType, first: usize, values: &[f32]) {
    let bytes = &mut y[first * dtype.size()..(first + values.len()) * dtype.size()];
    match dtype {
        DType::F16 => bytemuck::cast_slice_mut::<u8, f16>(bytes).convert_from_f32_slice(values),
        _ => bytes.copy_from_slice(bytemuck::cast_slice(values)),
    }
}
