//! The tensors of a file that a weight stands for, as one matrix.

use std::ops::Range;

use super::{
    held::{Slack, as_matrix},
    wrong::starred,
};
use crate::{
    core::{format::Format, loaded::split_rows, tensor::DType},
    model::{
        ModelFile,
        gguf::{Gguf, GgufError, TensorInfo},
    },
};

/// Tensors of a file below one another. A vector is a matrix of one column.
pub struct Target<'f> {
    gguf: &'f Gguf,
    pub parts: Vec<Part<'f>>,
    pub rows: usize,
    pub cols: usize,
    /// Matrices that follow one another, as those of experts; 1 of several tensors.
    pub batch: usize,
}

/// A tensor, or some of its rows.
pub struct Part<'f> {
    pub info: &'f TensorInfo,
    pub rows: Range<usize>,
}

/// Elements read at a time.
const CHUNK: usize = 1 << 22;
const TIED: (&str, &str) = ("output.weight", "token_embd.weight");

impl<'f> Target<'f> {
    /// The tensors of these names.
    ///
    /// # Errors
    /// There is none of a name, or they do not fit below one another, in words.
    pub fn of(file: &'f ModelFile, names: &[String]) -> Result<Target<'f>, String> {
        let gguf = file.gguf();
        let mut parts = Vec::new();
        for text in names {
            let (name, rows) = split_rows(text);
            let tied = || gguf.tensor(TIED.1).filter(|_| name == TIED.0);
            let info = gguf.tensor(name).or_else(tied);
            let info = info.ok_or_else(|| format!("the file has no tensor {}", starred(name)))?;
            let all = matrix(info).0;
            let rows = rows.unwrap_or(0..all);
            if rows.end > all {
                return Err(format!("{name} has {all} rows, not {}", rows.end));
            }
            parts.push(Part { info, rows });
        }
        let cols = parts.first().map_or(1, |part| matrix(part.info).1);
        if let Some(other) = parts.iter().find(|part| matrix(part.info).1 != cols) {
            return Err(format!("{} has rows of another length", other.info.name));
        }
        let rows = parts.iter().map(|part| part.rows.len()).sum();
        let batch = match &parts[..] {
            [part] if part.info.dims.len() > 2 && part.rows.len() == matrix(part.info).0 => {
                part.info.dims[2..].iter().product::<u64>() as usize
            }
            _ => 1,
        };
        Ok(Target { gguf, parts, rows, cols, batch })
    }

    /// The type of the first part that is in blocks.
    pub fn blocks(&self) -> Option<String> {
        let plain = ["f32", "f16", "bf16", "f64"];
        let mut types = self.parts.iter().map(|part| part.info.type_name());
        types.find(|name| !plain.contains(&name.as_str()))
    }

    /// Whether a part of it is in blocks.
    pub fn is_in_blocks(&self) -> bool {
        self.blocks().is_some()
    }

    /// What its numbers were rounded to when the file was made.
    pub fn format(&self) -> Option<Format> {
        let format = |part: &Part<'_>| Format::from_name(&part.info.type_name());
        let narrow = |format: &Format| matches!(format, Format::F16 | Format::Bf16);
        self.parts.iter().filter_map(format).find(narrow)
    }

    /// What a right engine's values may be off: only of what is in blocks.
    pub fn slack(&self) -> Slack {
        let share = 8.0 * DType::F32.unit_roundoff() as f32;
        Slack { absolute: 0.0, of_row: if self.is_in_blocks() { share } else { 0.0 } }
    }

    /// Some rows, one after another.
    pub fn chosen(&self, rows: &[usize]) -> Result<Vec<f32>, GgufError> {
        if rows.len() == self.rows {
            return self.all();
        }
        let mut data = vec![0.0; rows.len() * self.cols];
        for (&row, out) in rows.iter().zip(data.chunks_exact_mut(self.cols)) {
            let (part, row) = self.place(row);
            read(self.gguf, part.info, row..row + 1, out)?;
        }
        // Of each row a system maps more pages than it needs.
        self.parts.iter().for_each(|part| self.gguf.forget(part.info));
        Ok(data)
    }

    /// All rows.
    pub fn all(&self) -> Result<Vec<f32>, GgufError> {
        let mut data = Vec::with_capacity(self.rows * self.cols);
        self.each_chunk(&mut |_, chunk| data.extend_from_slice(chunk))?;
        Ok(data)
    }

    /// Visits all rows, some at a time, with the place of the first of them.
    pub fn each_chunk(&self, visit: &mut dyn FnMut(usize, &[f32])) -> Result<(), GgufError> {
        let some = (CHUNK / self.cols).max(1);
        let (mut first, mut memory) = (0, Vec::new());
        for part in &self.parts {
            for row in part.rows.clone().step_by(some) {
                let rows = row..(row + some).min(part.rows.end);
                memory.resize(rows.len() * self.cols, 0.0);
                read(self.gguf, part.info, rows.clone(), &mut memory)?;
                visit(first, &memory);
                first += rows.len();
            }
            self.gguf.forget(part.info);
        }
        Ok(())
    }

    /// The part of a row, and the row in its tensor.
    pub fn place(&self, row: usize) -> (&Part<'f>, usize) {
        let mut first = 0;
        for part in &self.parts {
            if row - first < part.rows.len() {
                return (part, part.rows.start + row - first);
            }
            first += part.rows.len();
        }
        unreachable!("a row of the matrix")
    }
}

/// Rows and columns of a tensor.
pub fn matrix(info: &TensorInfo) -> (usize, usize) {
    let shape: Vec<usize> = info.dims.iter().rev().map(|&n| n as usize).collect();
    as_matrix(&shape)
}

/// Rows of a tensor as a matrix.
pub fn read(
    gguf: &Gguf,
    info: &TensorInfo,
    rows: Range<usize>,
    out: &mut [f32],
) -> Result<(), GgufError> {
    if matrix(info).1 == info.row_length() {
        return gguf.widen_rows(info, rows, out);
    }
    let mut whole = vec![0.0; info.rows() * info.row_length()];
    gguf.widen_rows(info, 0..info.rows(), &mut whole)?;
    out.copy_from_slice(&whole[rows]);
    Ok(())
}
