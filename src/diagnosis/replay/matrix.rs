//! Weights as the replay reads them: a few rows at a time, rounded as the engine declares.

use std::{cell::Cell, ops::Range, sync::Arc};

use crate::{
    core::{format::Format, tensor::DType},
    model::{ModelError, ModelFile, gguf::GgufError},
};

type ReadRows<'a> =
    Arc<dyn Fn(Range<usize>, &mut [f32]) -> Result<(), GgufError> + Send + Sync + 'a>;

thread_local! {
    static ROWS: Cell<Vec<f32>> = Cell::default();
}

/// A weight matrix (outputs, inputs).
#[derive(Clone)]
pub struct Matrix<'a> {
    pub outputs: usize,
    pub inputs: usize,
    read: ReadRows<'a>,
}

impl<'a> Matrix<'a> {
    /// A matrix of the model's file.
    pub fn of_file(
        model: &'a ModelFile,
        tensor: &str,
        weights: DType,
    ) -> Result<Matrix<'a>, ModelError> {
        let info = model.info(tensor)?;
        let (outputs, inputs) = (info.rows(), info.row_length());
        let read = move |rows: Range<usize>, out: &mut [f32]| {
            model.gguf().widen_rows(info, rows, out)?;
            round(weights, out);
            Ok(())
        };
        Ok(Matrix { outputs, inputs, read: Arc::new(read) })
    }

    /// A matrix whose element (output, input) is `element(output, input)`.
    pub fn of_elements(
        outputs: usize,
        inputs: usize,
        element: impl Fn(usize, usize) -> f32 + Send + Sync + 'a,
    ) -> Matrix<'a> {
        let read = move |rows: Range<usize>, out: &mut [f32]| {
            for (output, row) in rows.zip(out.chunks_exact_mut(inputs)) {
                for (input, value) in row.iter_mut().enumerate() {
                    *value = element(output, input);
                }
            }
            Ok(())
        };
        Matrix { outputs, inputs, read: Arc::new(read) }
    }

    /// A matrix whose rows `rows` writes, one after another.
    pub fn of_rows(
        outputs: usize,
        inputs: usize,
        rows: impl Fn(Range<usize>, &mut [f32]) + Send + Sync + 'a,
    ) -> Matrix<'a> {
        let read = move |range: Range<usize>, out: &mut [f32]| {
            rows(range, out);
            Ok(())
        };
        Matrix { outputs, inputs, read: Arc::new(read) }
    }

    /// The same matrix with each element rounded on its own.
    pub fn rounded(&self, format: Format) -> Matrix<'a> {
        let whole = Arc::clone(&self.read);
        let read = move |rows: Range<usize>, out: &mut [f32]| {
            whole(rows, out)?;
            out.iter_mut().for_each(|x| *x = format.number(*x));
            Ok(())
        };
        Matrix { read: Arc::new(read), ..*self }
    }

    /// Gives rows of the matrix to `of`, in memory that the thread keeps.
    pub fn with_rows<T>(
        &self,
        rows: Range<usize>,
        of: impl FnOnce(&[f32]) -> T,
    ) -> Result<T, GgufError> {
        let mut memory = ROWS.take();
        memory.resize(rows.len() * self.inputs, 0.0);
        let read = (self.read)(rows, &mut memory);
        let result = read.map(|()| of(&memory));
        ROWS.set(memory);
        result
    }

    /// One row in f32.
    pub fn row(&self, row: usize) -> Result<Vec<f32>, GgufError> {
        let mut out = vec![0f32; self.inputs];
        (self.read)(row..row + 1, &mut out)?;
        Ok(out)
    }

    /// The whole matrix in f32, rows one after another.
    pub fn flat(&self) -> Result<Vec<f32>, GgufError> {
        let mut out = vec![0f32; self.outputs * self.inputs];
        (self.read)(0..self.outputs, &mut out)?;
        Ok(out)
    }
}

/// Rounds values to a storage format.
pub fn round(dtype: DType, values: &mut [f32]) {
    if let Some(format) = Format::of(dtype) {
        values.iter_mut().for_each(|x| *x = format.number(*x));
    }
}
