//! What products multiply by.

use std::{ops::Range, sync::Arc};

use half::{f16, slice::HalfFloatSliceExt};

use super::{Buffer, DeviceError};
use crate::{
    core::tensor::DType,
    model::gguf::{Gguf, GgufError, TensorInfo},
};

/// A matrix (rows, row length).
#[derive(Clone)]
pub enum Matrix {
    /// In memory of the device, in the type of the product's input.
    Held(Buffer),
    /// In the model's file, for a device that [reads files](super::Device::reads_files).
    InFile(FileMatrix),
}

impl Matrix {
    /// The device's memory of it.
    ///
    /// # Errors
    /// It lies in the file, and the device reads none.
    pub fn held(&self) -> Result<&Buffer, DeviceError> {
        match self {
            Matrix::Held(buffer) => Ok(buffer),
            Matrix::InFile(matrix) => {
                let name = &matrix.info.name;
                Err(DeviceError::Failed(format!("{name} is not on the device; please report this")))
            }
        }
    }
}

/// A tensor of a model's file. Rows of it are widened to f32, and rounded to the storage type, when they are needed.
#[derive(Clone)]
pub struct FileMatrix {
    gguf: Arc<Gguf>,
    info: TensorInfo,
    storage: DType,
}

impl FileMatrix {
    pub fn new(gguf: &Arc<Gguf>, info: &TensorInfo, storage: DType) -> FileMatrix {
        FileMatrix { gguf: Arc::clone(gguf), info: info.clone(), storage }
    }

    /// Some rows in f32; `out` holds as many elements.
    ///
    /// # Errors
    /// ggml cannot widen its type.
    pub fn widen(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), GgufError> {
        self.gguf.widen_rows(&self.info, rows, out)?;
        if self.storage == DType::F16 && self.gguf.halves(&self.info).is_none() {
            let mut halves = vec![f16::ZERO; out.len()];
            halves.convert_from_f32_slice(out);
            halves.convert_to_f32_slice(out);
        }
        Ok(())
    }
}
