//! The f32 copy of a model: the same weights, so that llama.cpp computes in f32.
//!
//! On an f16 or quantised file ggml rounds activations to match the weights, which moves the
//! tensors a thousand times further than f32 rounding does. Widening the weights avoids that.

use std::path::PathBuf;

use llama_cpp_sys_2 as sys;

use crate::{
    core::{
        cache::{self, Entry},
        notice::notice,
    },
    model::{
        ModelFile,
        gguf::{Header, WriteError},
    },
};

/// llama.cpp's number for "all tensors f32" in `general.file_type`.
const ALL_F32: u32 = 0;

/// A copy of so many bytes takes seconds to write.
const WORTH_SAYING: u64 = 500_000_000;

/// Elements widened at a time: the copy's memory.
const CHUNK_ELEMENTS: usize = 1 << 22;

/// The path of an f32 copy of the model, made in the cache if it is not there; the model's own
/// path if it is all f32 already.
pub fn widened(model: &ModelFile) -> Result<PathBuf, WriteError> {
    let gguf = model.gguf();
    if gguf.tensors().iter().all(|info| info.ggml_type == sys::GGML_TYPE_F32) {
        return Ok(model.path.clone());
    }
    let mut header = Header::default();
    header.copy_keys(gguf);
    header.set_u32("general.file_type", ALL_F32);
    for info in gguf.tensors() {
        header.add_tensor(&info.name, &info.dims, sys::GGML_TYPE_F32);
    }
    let name = format!("{}-f32.gguf", model.hash());
    let unwritten = |source| header.write_error(&cache::root().join("widened"), source);
    let entry = Entry::new("widened", name).map_err(unwritten)?;
    let path = entry.path().to_path_buf();
    if entry.file().is_some() {
        return Ok(path);
    }
    let bytes = header.file_size();
    if bytes >= WORTH_SAYING {
        let (gigabytes, folder) = (bytes as f64 / 1e9, path.parent().unwrap_or(&path).display());
        notice(&format!(
            "writing an f32 copy of {}, {gigabytes:.1} GB, once, to {folder}; --reference native needs none",
            model.path.display()
        ));
    }
    header.write(&path, |info, out| {
        let source = gguf.tensor(&info.name).expect("the header lists the file's own tensors");
        let (rows, row_length) = (source.rows(), source.row_length().max(1));
        let step = (CHUNK_ELEMENTS / row_length).max(1);
        let mut values = vec![0f32; step.min(rows) * row_length];
        for first in (0..rows).step_by(step) {
            let last = (first + step).min(rows);
            let values = &mut values[..(last - first) * row_length];
            gguf.widen_rows(source, first..last, values).map_err(std::io::Error::other)?;
            out.write_all(bytemuck::cast_slice(values))?;
        }
        gguf.forget(source);
        Ok(())
    })?;
    entry.seal().map_err(unwritten)?;
    Ok(path)
}
