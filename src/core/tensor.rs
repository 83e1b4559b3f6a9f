//! A dense tensor on the CPU, and the number formats a program may store one in.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Row-major f32 values, last axis fastest.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

impl Tensor {
    /// A tensor of that shape; `data` must hold exactly its elements.
    pub fn new(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Tensor {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), data.len(), "a tensor of shape {shape:?}");
        Tensor { shape, data }
    }

    /// The index on each axis of the element at a place in row-major order.
    pub fn unravel(mut flat: usize, shape: &[usize]) -> Vec<usize> {
        let mut index = vec![0; shape.len()];
        for (axis, &n) in shape.iter().enumerate().rev() {
            index[axis] = flat % n;
            flat /= n;
        }
        index
    }
}

/// A number format for storage or accumulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    F64,
    F32,
    Tf32,
    F16,
    Bf16,
}

impl DType {
    /// The name used in traces and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::Tf32 => "tf32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
        }
    }

    /// Unit roundoff: the largest relative error of rounding one number to nearest.
    pub fn unit_roundoff(self) -> f64 {
        let bits = match self {
            DType::F64 => 53,
            DType::F32 => 24,
            DType::Tf32 | DType::F16 => 11,
            DType::Bf16 => 8,
        };
        2f64.powi(-bits)
    }

    /// Bytes of one stored element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 | DType::Tf32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Reads a number of a report, in which JSON's null stands for NaN and infinities.
pub fn nan_from_null<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::Deserialize<'de> + From<f32>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_else(|| T::from(f32::NAN)))
}
