//! The model's weights on a device.

use std::{cell::RefCell, ops::Range};

use half::{f16, slice::HalfFloatSliceExt};

use crate::{
    core::{
        loaded::{LoadedWeight, sampled_rows},
        tensor::DType,
    },
    engine::{
        EngineError, EngineOptions,
        device::{Buffer, Device, FileMatrix, Matrix, WIDENED},
        fault::Faults,
    },
    model::{LayerNames, LinearNames, Model, ModelError, gguf::TensorInfo},
};

/// y = x W^T + bias; W is (outputs, inputs) in the storage type or the file's, the bias f32.
pub struct Linear {
    pub weight: Matrix,
    pub bias: Option<Buffer>,
    pub outputs: usize,
    pub inputs: usize,
}

/// The weights of one layer. Norm weights are f32.
pub struct Layer {
    pub attn_norm: Buffer,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub q_norm: Option<Buffer>,
    pub k_norm: Option<Buffer>,
    pub o: Linear,
    pub ffn_norm: Buffer,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// All weights of the model.
pub struct Weights {
    /// (V, E) in the storage type.
    pub embedding: Buffer,
    pub layers: Vec<Layer>,
    pub final_norm: Buffer,
    /// (V, E); the embedding, where the output is tied to it.
    pub output: Matrix,
    pub output_bias: Option<Buffer>,
    /// Divisors of rope's angles (D/2) f32.
    pub rope_factors: Option<Buffer>,
    /// All of them, in the order of loading.
    named: Vec<Named>,
}

/// A weight as a device takes it: a matrix (rows, row length) by the name of its tensor.
struct Named {
    name: String,
    matrix: Matrix,
    dtype: DType,
    shape: [usize; 2],
}

/// Reads tensors of a model and puts them on a device, or leaves them in the file where the device reads it.
struct Loader<'a> {
    device: &'a dyn Device,
    model: &'a Model,
    storage: DType,
    faults: &'a Faults,
    named: RefCell<Vec<Named>>,
}

impl Weights {
    /// Loads the weights of the layers that are run, and the head where all are; rounded to the storage.
    pub fn load(
        device: &dyn Device,
        model: &Model,
        options: &EngineOptions,
    ) -> Result<Weights, EngineError> {
        let (storage, faults) = (options.storage, &options.faults);
        let loader = Loader { device, model, storage, faults, named: RefCell::default() };
        let names = &model.names;
        let depth = options.depth.unwrap_or(names.layers.len());
        let layers = names.layers.iter().take(depth).map(|layer| loader.layer(layer));
        let layers = layers.collect::<Result<_, _>>()?;
        let embedding = loader.table(&names.embedding)?;
        let has_output = !names.is_tied() && options.depth.is_none();
        let output = if has_output {
            loader.matrix(&names.output.weight)?
        } else {
            let in_file = loader.in_file(&names.embedding)?.map(Matrix::InFile);
            in_file.unwrap_or_else(|| Matrix::Held(embedding.clone()))
        };
        Ok(Weights {
            embedding,
            layers,
            final_norm: loader.vector(&names.final_norm)?,
            output,
            output_bias: loader.optional_vector(&names.output.bias)?,
            rope_factors: loader.optional_vector(&names.rope_factors)?,
            named: loader.named.take(),
        })
    }

    /// Bytes that a device which reads files holds of a model in memory: the embedding, whose table kernels read.
    pub fn held_bytes(model: &Model, storage: DType) -> Result<u64, EngineError> {
        let info = model.info(&model.names.embedding)?;
        Ok((info.rows() * info.row_length() * storage.size()) as u64)
    }

    /// The weights as the device holds them, read back: of large ones some rows.
    pub fn held(&self, device: &dyn Device) -> Result<Vec<LoadedWeight>, EngineError> {
        let held = |named: &Named| {
            let [all, length] = named.shape;
            let rows = sampled_rows(&named.name, all, length);
            let values = match &rows {
                None => named.values(device, 0..all)?,
                Some(rows) => {
                    let of_row = |&row: &usize| named.values(device, row..row + 1);
                    rows.iter().map(of_row).collect::<Result<Vec<_>, _>>()?.concat()
                }
            };
            Ok(LoadedWeight {
                name: named.name.clone(),
                of: vec![named.name.clone()],
                shape: named.shape.to_vec(),
                rows,
                values,
                sums: Vec::new(),
            })
        };
        self.named.iter().map(held).collect()
    }
}

impl Named {
    /// Rows of it as a device takes them, widened.
    fn values(&self, device: &dyn Device, rows: Range<usize>) -> Result<Vec<f32>, EngineError> {
        let [_, length] = self.shape;
        let buffer = match &self.matrix {
            Matrix::Held(buffer) => buffer,
            Matrix::InFile(matrix) => {
                let mut values = vec![0.0; rows.len() * length];
                matrix.widen(rows, &mut values).map_err(ModelError::from)?;
                return Ok(values);
            }
        };
        let size = length * self.dtype.size();
        let mut bytes = vec![0; rows.len() * size];
        device.download(buffer, rows.start * size, &mut bytes)?;
        Ok(match self.dtype {
            DType::F16 => {
                let pairs = bytes.as_chunks::<2>().0.iter();
                pairs.map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect()
            }
            _ => bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        })
    }
}

impl Loader<'_> {
    fn layer(&self, names: &LayerNames) -> Result<Layer, EngineError> {
        Ok(Layer {
            attn_norm: self.vector(&names.attn_norm)?,
            q: self.linear(&names.q)?,
            k: self.linear(&names.k)?,
            v: self.linear(&names.v)?,
            q_norm: self.optional_vector(&names.q_norm)?,
            k_norm: self.optional_vector(&names.k_norm)?,
            o: self.linear(&names.o)?,
            ffn_norm: self.vector(&names.ffn_norm)?,
            gate: self.linear(&names.gate)?,
            up: self.linear(&names.up)?,
            down: self.linear(&names.down)?,
        })
    }

    fn linear(&self, names: &LinearNames) -> Result<Linear, EngineError> {
        let info = self.model.info(&names.weight)?;
        let (outputs, inputs) = (info.rows(), info.row_length());
        let weight = self.matrix(&names.weight)?;
        let bias = self.optional_vector(&names.bias)?;
        Ok(Linear { weight, bias, outputs, inputs })
    }

    /// A matrix of products.
    fn matrix(&self, name: &str) -> Result<Matrix, EngineError> {
        let Some(matrix) = self.in_file(name)? else { return Ok(Matrix::Held(self.table(name)?)) };
        let matrix = Matrix::InFile(matrix);
        self.note(name, matrix.clone(), self.storage)?;
        Ok(matrix)
    }

    /// A matrix that stays in the file, if the device can read it there and no fault changes it.
    fn in_file(&self, name: &str) -> Result<Option<FileMatrix>, EngineError> {
        if !self.device.reads_files() || self.faults.change_load(name) {
            return Ok(None);
        }
        let (gguf, info) = (self.model.gguf(), self.model.info(name)?);
        Ok(Some(FileMatrix::new(gguf, info, self.storage)))
    }

    /// A matrix in the device's memory, in the storage type. What the file has in f16 leaves the host as it is.
    fn table(&self, name: &str) -> Result<Buffer, EngineError> {
        let (info, gguf) = (self.model.info(name)?, self.model.gguf());
        let elements = info.rows() * info.row_length();
        let buffer = self.device.alloc(elements * self.storage.size(), name)?;
        let faulty = self.faults.load_instead(self.model, name)?;
        match gguf.halves(info).filter(|_| faulty.is_none()) {
            Some(values) if self.storage == DType::F16 => {
                self.device.upload(&buffer, 0, bytemuck::cast_slice(values))?;
            }
            Some(values) => self.device.upload_widened(&buffer, values)?,
            None => self.converted(&buffer, info, faulty.as_deref())?,
        }
        gguf.forget(info);
        self.note(name, Matrix::Held(buffer.clone()), self.storage)?;
        Ok(buffer)
    }

    /// Remembers where a weight is.
    fn note(&self, name: &str, matrix: Matrix, dtype: DType) -> Result<(), EngineError> {
        let info = self.model.info(name)?;
        let shape = [info.rows(), info.row_length()];
        self.named.borrow_mut().push(Named { name: name.to_string(), matrix, dtype, shape });
        Ok(())
    }

    /// Uploads a matrix, or what a fault has made of it, widened and rounded a few rows at a time.
    fn converted(
        &self,
        buffer: &Buffer,
        info: &TensorInfo,
        faulty: Option<&[f32]>,
    ) -> Result<(), EngineError> {
        let (rows, row_length, size) = (info.rows(), info.row_length(), self.storage.size());
        let step = (WIDENED / row_length).clamp(1, rows);
        let mut wide = vec![0f32; step * row_length];
        let mut narrow = Vec::new();
        for first in (0..rows).step_by(step) {
            let last = (first + step).min(rows);
            let wide = &mut wide[..(last - first) * row_length];
            let gguf = self.model.gguf();
            match faulty {
                Some(whole) => wide.copy_from_slice(&whole[first * row_length..last * row_length]),
                None => gguf.widen_rows(info, first..last, wide).map_err(ModelError::from)?,
            }
            let bytes: &[u8] = match self.storage {
                DType::F16 => {
                    narrow.resize(wide.len(), f16::ZERO);
                    narrow.convert_from_f32_slice(wide);
                    bytemuck::cast_slice(&narrow)
                }
                _ => bytemuck::cast_slice(wide),
            };
            self.device.upload(buffer, first * row_length * size, bytes)?;
        }
        Ok(())
    }

    /// A vector in f32: norm weights, biases and rope factors are never narrowed.
    fn vector(&self, name: &str) -> Result<Buffer, EngineError> {
        let data = match self.faults.load_instead(self.model, name)? {
            Some(faulty) => faulty,
            None => self.model.weights(name)?,
        };
        self.upload(name, bytemuck::cast_slice(&data))
    }

    fn optional_vector(&self, name: &Option<String>) -> Result<Option<Buffer>, EngineError> {
        name.as_ref().map(|name| self.vector(name)).transpose()
    }

    fn upload(&self, name: &str, bytes: &[u8]) -> Result<Buffer, EngineError> {
        let buffer = self.device.alloc(bytes.len(), name)?;
        self.device.upload(&buffer, 0, bytes)?;
        self.note(name, Matrix::Held(buffer.clone()), DType::F32)?;
        Ok(buffer)
    }
}
