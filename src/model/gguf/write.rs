//! Writing: keys and tensor table through ggml's own writer, data streamed one tensor at a time.

use std::{
    ffi::{CStr, CString},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use llama_cpp_sys_2 as sys;

use crate::{
    core::files,
    model::gguf::{Gguf, TensorInfo, read::Context},
};

/// A file that could not be written; nothing is left of it.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path} ({bytes} bytes): {source}; free some space or choose another folder")]
pub struct WriteError {
    pub path: PathBuf,
    pub bytes: u64,
    pub source: std::io::Error,
}

/// Keys and tensor table of a file to be written.
pub struct Header {
    context: Context,
    tensors: Vec<TensorInfo>,
}

fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "")).expect("no NUL is left")
}

impl Default for Header {
    fn default() -> Header {
        // SAFETY: makes an empty context that Context frees.
        Header { context: Context(unsafe { sys::gguf_init_empty() }), tensors: Vec::new() }
    }
}

impl Header {
    /// Copies every key of a file.
    pub fn copy_keys(&mut self, from: &Gguf) {
        // SAFETY: both contexts are live.
        unsafe { sys::gguf_set_kv(self.context.0, from.context().0) }
    }

    /// Keeps the first `to` of every array that has `from` elements, under keys that begin so.
    pub fn shorten_arrays(&mut self, prefix: &str, from: usize, to: usize) {
        // SAFETY: the context is live, every index is below its number of keys, and an array of numbers has as many
        // elements as ggml says. They are copied before the key is set anew.
        unsafe {
            for key in 0..sys::gguf_get_n_kv(self.context.0) {
                let name = CStr::from_ptr(sys::gguf_get_key(self.context.0, key)).to_owned();
                let is_own = name.to_str().is_ok_and(|name| name.starts_with(prefix));
                if !is_own || sys::gguf_get_kv_type(self.context.0, key) != sys::GGUF_TYPE_ARRAY {
                    continue;
                }
                let of = sys::gguf_get_arr_type(self.context.0, key);
                let size = element_size(of);
                if size == 0 || sys::gguf_get_arr_n(self.context.0, key) != from {
                    continue;
                }
                let data = sys::gguf_get_arr_data(self.context.0, key).cast::<u8>();
                let kept = std::slice::from_raw_parts(data, to * size).to_vec();
                sys::gguf_set_arr_data(self.context.0, name.as_ptr(), of, kept.as_ptr().cast(), to);
            }
        }
    }

    pub fn set_string(&mut self, key: &str, value: &str) {
        let (key, value) = (c_string(key), c_string(value));
        // SAFETY: the context is live and copies both NUL-terminated strings.
        unsafe { sys::gguf_set_val_str(self.context.0, key.as_ptr(), value.as_ptr()) }
    }

    pub fn set_u32(&mut self, key: &str, value: u32) {
        let key = c_string(key);
        // SAFETY: as above.
        unsafe { sys::gguf_set_val_u32(self.context.0, key.as_ptr(), value) }
    }

    pub fn set_f32(&mut self, key: &str, value: f32) {
        let key = c_string(key);
        // SAFETY: as above.
        unsafe { sys::gguf_set_val_f32(self.context.0, key.as_ptr(), value) }
    }

    pub fn set_bool(&mut self, key: &str, value: bool) {
        let key = c_string(key);
        // SAFETY: as above.
        unsafe { sys::gguf_set_val_bool(self.context.0, key.as_ptr(), value) }
    }

    pub fn set_strings(&mut self, key: &str, values: &[String]) {
        let key = c_string(key);
        let values: Vec<CString> = values.iter().map(|value| c_string(value)).collect();
        let mut pointers: Vec<_> = values.iter().map(|value| value.as_ptr()).collect();
        let (data, n) = (pointers.as_mut_ptr(), pointers.len());
        // SAFETY: `n` NUL-terminated strings, which the context copies.
        unsafe { sys::gguf_set_arr_str(self.context.0, key.as_ptr(), data, n) }
    }

    pub fn set_i32s(&mut self, key: &str, values: &[i32]) {
        let key = c_string(key);
        let (data, n) = (values.as_ptr().cast(), values.len());
        // SAFETY: `n` elements of the named type, which the context copies.
        unsafe {
            sys::gguf_set_arr_data(self.context.0, key.as_ptr(), sys::GGUF_TYPE_INT32, data, n)
        }
    }

    pub fn set_f32s(&mut self, key: &str, values: &[f32]) {
        let key = c_string(key);
        let (data, n) = (values.as_ptr().cast(), values.len());
        // SAFETY: as above.
        unsafe {
            sys::gguf_set_arr_data(self.context.0, key.as_ptr(), sys::GGUF_TYPE_FLOAT32, data, n)
        }
    }

    pub fn set_bools(&mut self, key: &str, values: &[bool]) {
        let key = c_string(key);
        let (data, n) = (values.as_ptr().cast(), values.len());
        // SAFETY: as above; a bool is one byte, 0 or 1.
        unsafe {
            sys::gguf_set_arr_data(self.context.0, key.as_ptr(), sys::GGUF_TYPE_BOOL, data, n)
        }
    }

    /// ggml's header, to be read as long as this one lives.
    pub(crate) fn raw(&self) -> *mut sys::gguf_context {
        self.context.0
    }

    /// Adds a tensor; dims in ggml's order, the first a multiple of the type's block. Names are
    /// unique and shorter than 64 bytes.
    pub fn add_tensor(&mut self, name: &str, dims: &[u64], ggml_type: sys::ggml_type) {
        // SAFETY: an all-zero ggml_tensor is valid plain data: null pointers and numbers.
        let mut tensor: sys::ggml_tensor = unsafe { std::mem::zeroed() };
        tensor.type_ = ggml_type;
        for (to, from) in tensor.name[..63].iter_mut().zip(name.bytes()) {
            *to = from as std::ffi::c_char;
        }
        tensor.ne = std::array::from_fn(|axis| dims.get(axis).map_or(1, |&n| n as i64));
        // SAFETY: pure functions of a type that ggml knows.
        unsafe {
            tensor.nb[0] = sys::ggml_type_size(ggml_type);
            tensor.nb[1] = sys::ggml_row_size(ggml_type, tensor.ne[0]);
        }
        for axis in 2..4 {
            tensor.nb[axis] = tensor.nb[axis - 1] * tensor.ne[axis - 1] as usize;
        }
        let bytes = tensor.nb[3] * tensor.ne[3] as usize;
        // SAFETY: the context is live and copies the tensor's description.
        unsafe { sys::gguf_add_tensor(self.context.0, &tensor) };
        let (name, dims) = (name.to_string(), dims.to_vec());
        self.tensors.push(TensorInfo { name, dims, ggml_type, offset: 0, bytes });
    }

    /// Bytes of the whole file.
    pub fn file_size(&self) -> u64 {
        // SAFETY: the context is live.
        let meta = unsafe { sys::gguf_get_meta_size(self.context.0) } as u64;
        let data = self.tensors.iter().map(|info| self.padded(info.bytes) as u64);
        meta + data.sum::<u64>()
    }

    /// Why the file could not be written.
    pub(crate) fn write_error(&self, path: &Path, source: std::io::Error) -> WriteError {
        WriteError { path: path.to_path_buf(), bytes: self.file_size(), source }
    }

    fn padded(&self, bytes: usize) -> usize {
        // SAFETY: the context is live.
        bytes.next_multiple_of(unsafe { sys::gguf_get_alignment(self.context.0) })
    }

    /// Writes the file, whole or not at all. `data` writes each tensor's bytes in turn.
    pub fn write<F>(&self, path: &Path, mut data: F) -> Result<(), WriteError>
    where
        F: FnMut(&TensorInfo, &mut dyn Write) -> std::io::Result<()>,
    {
        let failed = |source| self.write_error(path, source);
        let file = files::Output::create(path).map_err(failed)?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        // SAFETY: the buffer has the size that the context asks for.
        let meta = unsafe {
            let mut meta = vec![0u8; sys::gguf_get_meta_size(self.context.0)];
            sys::gguf_get_meta_data(self.context.0, meta.as_mut_ptr().cast());
            meta
        };
        out.write_all(&meta).map_err(failed)?;
        for info in &self.tensors {
            let mut counted = Counted { out: &mut out, bytes: 0 };
            data(info, &mut counted).map_err(failed)?;
            assert_eq!(counted.bytes, info.bytes, "bytes of tensor {}", info.name);
            let padding = self.padded(info.bytes) - info.bytes;
            out.write_all(&vec![0; padding]).map_err(failed)?;
        }
        let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
        file.finish().map_err(failed)
    }
}

/// Bytes of a number of a GGUF type; 0 of what is no number.
fn element_size(of: sys::gguf_type) -> usize {
    match of {
        sys::GGUF_TYPE_UINT8 | sys::GGUF_TYPE_INT8 | sys::GGUF_TYPE_BOOL => 1,
        sys::GGUF_TYPE_UINT16 | sys::GGUF_TYPE_INT16 => 2,
        sys::GGUF_TYPE_UINT32 | sys::GGUF_TYPE_INT32 | sys::GGUF_TYPE_FLOAT32 => 4,
        sys::GGUF_TYPE_UINT64 | sys::GGUF_TYPE_INT64 | sys::GGUF_TYPE_FLOAT64 => 8,
        _ => 0,
    }
}

struct Counted<'a, W: Write> {
    out: &'a mut W,
    bytes: usize,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(data)?;
        self.bytes += written;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
