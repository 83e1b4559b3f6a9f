//! Formats that a program rounds numbers to on its way, and widens again.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::core::tensor::DType;

/// A format of single numbers, or of blocks of them along a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub enum Format {
    /// Ten bits of fraction, ties away from zero.
    Tf32,
    /// The same, ties to even.
    Tf32Even,
    /// The same, cut off: what a matrix unit sees of an f32 that was not rounded.
    Tf32Cut,
    F16,
    Bf16,
    /// The upper half of an f32.
    Bf16Cut,
    /// 8 bits: 4 of exponent and 3 of fraction, up to 448.
    E4m3,
    /// 8 bits: 5 of exponent and 2 of fraction, up to 57344.
    E5m2,
    /// ggml's blocks of 32 integers of 8 bits, with a scale in f16.
    Q8_0,
    /// The same, with the sum of each block in f16 beside it.
    Q8_1,
    /// ggml's blocks of 256 integers of 8 bits, with a scale in f32.
    Q8K,
    /// ggml's blocks of 32 integers of 4 bits, with a scale in f16.
    Q4_0,
    /// ggml's blocks of 32 integers of 4 bits, with a scale and a minimum in f16.
    Q4_1,
    /// ggml's blocks of 32 integers of 5 bits, with a scale in f16.
    Q5_0,
    /// The same with a minimum too.
    Q5_1,
    /// Blocks of 32 integers of 8 bits, with a scale in f32.
    Int8Blocks,
    /// Blocks of 32 integers of 8 bits, with a scale in f16 by which they are divided.
    Int8BlocksF16,
    /// Integers of 8 bits, with a scale in f32 for each row: of a token, or of a head of it.
    Int8Rows,
    /// What ggml rounds the inputs of a product to, by the type of its weight.
    Ggml,
}

/// Numbers that lie together in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredBlock {
    pub elements: usize,
    pub bytes: usize,
}

impl Format {
    pub const ALL: [Format; 19] = [
        Format::Tf32,
        Format::Tf32Even,
        Format::Tf32Cut,
        Format::F16,
        Format::Bf16,
        Format::Bf16Cut,
        Format::E4m3,
        Format::E5m2,
        Format::Q8_0,
        Format::Q8_1,
        Format::Q8K,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Int8Blocks,
        Format::Int8BlocksF16,
        Format::Int8Rows,
        Format::Ggml,
    ];

    /// The name used in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Format::Tf32 => "tf32",
            Format::Tf32Even => "tf32-even",
            Format::Tf32Cut => "tf32-cut",
            Format::F16 => "f16",
            Format::Bf16 => "bf16",
            Format::Bf16Cut => "bf16-cut",
            Format::E4m3 => "e4m3",
            Format::E5m2 => "e5m2",
            Format::Q8_0 => "q8_0",
            Format::Q8_1 => "q8_1",
            Format::Q8K => "q8_k",
            Format::Q4_0 => "q4_0",
            Format::Q4_1 => "q4_1",
            Format::Q5_0 => "q5_0",
            Format::Q5_1 => "q5_1",
            Format::Int8Blocks => "int8-blocks",
            Format::Int8BlocksF16 => "int8-blocks-f16",
            Format::Int8Rows => "int8-rows",
            Format::Ggml => "ggml",
        }
    }

    /// The format of a storage narrower than f32.
    pub fn of(dtype: DType) -> Option<Format> {
        let is_it = |format: &Format| DType::try_from(*format) == Ok(dtype);
        Format::ALL.into_iter().find(is_it)
    }

    /// The format of a name.
    pub fn from_name(name: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|format| format.name() == name)
    }

    /// The formats whose bytes a trace may have of a cache.
    pub fn stored() -> impl Iterator<Item = (Format, StoredBlock)> {
        Format::ALL.into_iter().filter_map(|format| Some((format, format.stored_block()?)))
    }

    /// How a program keeps numbers of it in memory; `None` where that is not one way for all.
    pub fn stored_block(self) -> Option<StoredBlock> {
        let (elements, bytes) = match self {
            Format::E4m3 | Format::E5m2 => (1, 1),
            Format::Q4_0 => (32, 18),
            Format::Q4_1 => (32, 20),
            Format::Q5_0 => (32, 22),
            Format::Q5_1 => (32, 24),
            Format::Q8_0 => (32, 34),
            _ => return None,
        };
        Some(StoredBlock { elements, bytes })
    }

    /// Whether each number is rounded on its own.
    pub fn is_of_numbers(self) -> bool {
        use Format::*;
        self.is_tf32() || matches!(self, F16 | Bf16 | Bf16Cut | E4m3 | E5m2)
    }

    /// Whether it is one of the formats that only the units which multiply matrices know.
    pub fn is_tf32(self) -> bool {
        matches!(self, Format::Tf32 | Format::Tf32Even | Format::Tf32Cut)
    }

    /// The largest error of rounding a number, relative to it, or of a block to its largest number.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            Format::Tf32 | Format::Tf32Even | Format::F16 => 2f64.powi(-11),
            Format::Tf32Cut => 2f64.powi(-10),
            Format::Bf16 => 2f64.powi(-8),
            Format::Bf16Cut => 2f64.powi(-7),
            Format::E4m3 => 2f64.powi(-4),
            Format::E5m2 => 2f64.powi(-3),
            Format::Q4_0 => 1.0 / 16.0,
            Format::Q5_0 => 1.0 / 32.0,
            // Half a step of the range, which is up to twice the largest number.
            Format::Q4_1 => 1.0 / 15.0,
            Format::Q5_1 => 1.0 / 31.0,
            // Half a step of 127.
            _ => 1.0 / 254.0,
        }
    }
}

impl TryFrom<Format> for DType {
    type Error = ();

    /// A format of single numbers that a program may store.
    fn try_from(format: Format) -> Result<DType, ()> {
        match format {
            Format::Tf32 => Ok(DType::Tf32),
            Format::F16 => Ok(DType::F16),
            Format::Bf16 => Ok(DType::Bf16),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl From<Format> for &'static str {
    fn from(format: Format) -> &'static str {
        format.name()
    }
}

impl TryFrom<String> for Format {
    type Error = String;

    fn try_from(name: String) -> Result<Format, String> {
        Format::from_name(&name).ok_or_else(|| {
            let names: Vec<&str> = Format::ALL.iter().map(|format| format.name()).collect();
            format!("{name:?} is not a number format; choose from {}", names.join(", "))
        })
    }
}
