//! Writing the file a few rows at a time.

use std::{io::Write, path::Path};

use llama_cpp_sys_2 as sys;
use rayon::prelude::*;

use crate::model::{
    gguf::{Header, TensorInfo},
    llama,
    synth::{Spec, SynthError, values::Values},
};

/// Bytes made at a time; a row is never more (see [`MAX_SIZE`](crate::model::synth::MAX_SIZE)), so this
/// bounds the writer's memory whatever the model's size.
const CHUNK_BYTES: usize = 4 << 20;

/// Elements that one thread makes in one go.
const TASK_ELEMENTS: usize = 1 << 15;

/// Writes the model, whole or not at all. `progress` hears how many more bytes of weights are
/// written; in all, [`data_bytes`].
///
/// # Errors
/// A shape that llama.cpp or the engine cannot run, or a file that cannot be written; then a file
/// that stood there before is untouched.
pub fn write(spec: &Spec, path: &Path, progress: &mut dyn FnMut(u64)) -> Result<(), SynthError> {
    let header = header(spec)?;
    let tensors = spec.tensors();
    let mut tensors = tensors.iter();
    header.write(path, |info, out| {
        let tensor = tensors.next().expect("the header lists the same tensors");
        let values = Values::new(spec.seed, &tensor.name, tensor.draw);
        write_tensor(info, values, out, progress)
    })?;
    Ok(())
}

/// Bytes of the weights that [`write`] makes, for a progress bar.
///
/// # Errors
/// A shape that llama.cpp or the engine cannot run.
pub fn data_bytes(spec: &Spec) -> Result<u64, SynthError> {
    spec.check()?;
    let bytes = spec.tensors().into_iter().map(|tensor| {
        let rows: u64 = tensor.dims[1..].iter().product();
        let ggml_type = stored(spec, tensor.is_matrix());
        // SAFETY: a pure function of a type that ggml knows; the row is whole blocks.
        rows * unsafe { sys::ggml_row_size(ggml_type, tensor.dims[0] as i64) } as u64
    });
    Ok(bytes.sum())
}

fn header(spec: &Spec) -> Result<Header, SynthError> {
    spec.check()?;
    llama::backend();
    let mut header = Header::default();
    spec.set_keys(&mut header);
    for tensor in spec.tensors() {
        header.add_tensor(&tensor.name, &tensor.dims, stored(spec, tensor.is_matrix()));
    }
    Ok(header)
}

fn stored(spec: &Spec, is_matrix: bool) -> sys::ggml_type {
    if is_matrix { spec.weight_type.ggml() } else { sys::GGML_TYPE_F32 }
}

/// Rows of that many bytes made at a time: at least one.
fn rows_per_chunk(row_bytes: usize) -> usize {
    (CHUNK_BYTES / row_bytes).max(1)
}

pub(super) fn write_tensor(
    info: &TensorInfo,
    values: Values,
    out: &mut dyn Write,
    progress: &mut dyn FnMut(u64),
) -> std::io::Result<()> {
    let row_bytes = info.bytes / info.rows();
    let step = rows_per_chunk(row_bytes);
    let mut chunk = vec![0u8; step.min(info.rows()) * row_bytes];
    for first in (0..info.rows()).step_by(step) {
        let rows = step.min(info.rows() - first);
        let bytes = &mut chunk[..rows * row_bytes];
        make_rows(info, values, first, bytes);
        out.write_all(bytes)?;
        progress(bytes.len() as u64);
    }
    Ok(())
}

/// Makes the rows from `first` on that fill `bytes`, in the tensor's type.
fn make_rows(info: &TensorInfo, values: Values, first: usize, bytes: &mut [u8]) {
    let row_length = info.row_length();
    let row_bytes = info.bytes / info.rows();
    let task_rows = (TASK_ELEMENTS / row_length).max(1);
    let tasks = bytes.par_chunks_mut(task_rows * row_bytes).enumerate();
    tasks.for_each_init(Vec::new, |wide, (task, packed)| {
        let rows = packed.len() / row_bytes;
        let start = (first + task * task_rows) * row_length;
        wide.resize(rows * row_length, 0f32);
        values.fill(start as u64, wide);
        let (from, to, rows) = (wide.as_ptr(), packed.as_mut_ptr().cast(), rows as i64);
        let no_importance = std::ptr::null();
        // SAFETY: `wide` holds that many rows and `packed` their bytes in the type, which is one
        // that needs no importance matrix.
        unsafe {
            let row_length = row_length as i64;
            sys::ggml_quantize_chunk(info.ggml_type, from, to, 0, rows, row_length, no_importance)
        };
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synth::MAX_SIZE;

    #[test]
    fn no_chunk_is_larger_than_the_limit_whatever_the_row() {
        let widest = MAX_SIZE * size_of::<f32>();
        for row_bytes in [1, 34, 144, 3584, 19_456, CHUNK_BYTES / 2 + 1, widest] {
            assert!(rows_per_chunk(row_bytes) * row_bytes <= CHUNK_BYTES, "{row_bytes}");
        }
    }
}
