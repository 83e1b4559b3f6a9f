//! Matrix product and bias through ndarray: f32 sums, one rounding at the end.

use std::{borrow::Cow, cell::Cell, ops::Range};

use half::{f16, slice::HalfFloatSliceExt};
use ndarray::{ArrayView2, ArrayViewMut2, linalg::general_mat_mul};
use rayon::prelude::*;

use crate::{
    core::tensor::DType,
    engine::device::{FileMatrix, Gemm},
    model::gguf::GgufError,
};

/// Columns of y that one task computes. Fixed, so that results do not depend on the thread count.
const COLUMNS: usize = 128;

thread_local! {
    static ROWS: Cell<Vec<f32>> = Cell::default();
}

/// W (cols, inner).
#[derive(Clone, Copy)]
pub enum Factor<'a> {
    /// Its elements, in the type of the input.
    Bytes(&'a [u8]),
    InFile(&'a FileMatrix),
}

impl Factor<'_> {
    /// Gives some rows to `of`, as f32.
    fn with_rows<T>(
        &self,
        rows: Range<usize>,
        shape: Shape,
        of: impl FnOnce(&[f32]) -> T,
    ) -> Result<T, GgufError> {
        let Shape { inner, input, .. } = shape;
        match self {
            Factor::Bytes(bytes) => {
                let row = inner * input.size();
                Ok(of(&widened(&bytes[rows.start * row..rows.end * row], input)))
            }
            Factor::InFile(matrix) => {
                // In memory that the thread keeps.
                let mut memory = ROWS.take();
                memory.resize(rows.len() * inner, 0.0);
                let result = matrix.widen(rows, &mut memory).map(|()| of(&memory));
                ROWS.set(memory);
                result
            }
        }
    }
}

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
///
/// # Errors
/// W lies in a file, and ggml cannot widen its type.
pub fn multiply(
    (x, w, bias): (&[u8], Factor<'_>, Option<&[u8]>),
    y: &mut [u8],
    shape: Shape,
) -> Result<(), GgufError> {
    let Shape { rows, cols, inner, .. } = shape;
    let x = widened(x, shape.input);
    let x = ArrayView2::from_shape((rows, inner), &x).expect("x has rows times inner elements");
    let starts: Vec<usize> = (0..cols).step_by(COLUMNS).collect();
    let bias: Option<&[f32]> = bias.map(bytemuck::cast_slice);
    let of_columns = |first: usize| {
        let n = COLUMNS.min(cols - first);
        let block = |block: &[f32]| multiply_columns(x, block, n);
        let mut product = w.with_rows(first..first + n, shape, block)?;
        if let Some(bias) = bias {
            let bias = bias[first..first + n].iter().cycle();
            product.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
        }
        Ok(product)
    };
    let products = starts.into_par_iter().map(of_columns).collect::<Result<Vec<_>, _>>()?;
    for (block, product) in products.iter().enumerate() {
        let n = product.len() / rows.max(1);
        for (row, values) in product.chunks_exact(n).enumerate() {
            store(y, shape.output, row * cols + block * COLUMNS, values);
        }
    }
    Ok(())
}

/// Columns of y, (rows, n), of so many rows of W.
fn multiply_columns(x: ArrayView2<'_, f32>, block: &[f32], n: usize) -> Vec<f32> {
    let (rows, inner) = x.dim();
    let block = ArrayView2::from_shape((n, inner), block);
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
