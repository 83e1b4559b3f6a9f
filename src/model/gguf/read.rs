//! Reading: keys and tensor table through ggml's own reader, data through a memory map.

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    io::Read,
    path::{Path, PathBuf},
};

use half::{f16, slice::HalfFloatSliceExt};
use llama_cpp_sys_2 as sys;
use memmap2::Mmap;
use rayon::prelude::*;

use super::check::{Wrong, check};
use crate::{
    core::{files, format::Format},
    model::llama,
};

/// More bytes after the last tensor are no padding: the whole file is hashed.
const MAX_BEYOND: usize = 1 << 30;

/// Where a tensor's data lies, and what it is.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    pub name: String,
    /// Elements per axis in ggml's order: the first is the fastest.
    pub dims: Vec<u64>,
    pub ggml_type: sys::ggml_type,
    /// First byte in the file.
    pub offset: usize,
    pub bytes: usize,
}

impl TensorInfo {
    /// The name of its type, such as `q4_K`.
    pub fn type_name(&self) -> String {
        type_name(self.ggml_type)
    }

    /// Elements of a row: the first axis.
    pub fn row_length(&self) -> usize {
        self.dims[0] as usize
    }

    /// Number of rows: the product of the other axes.
    pub fn rows(&self) -> usize {
        self.dims[1..].iter().product::<u64>() as usize
    }
}

/// A file that is no GGUF, or not all of one.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    #[error("cannot read {path}: {source}; check the path")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is {what}; {next}")]
    NotGguf { path: PathBuf, what: &'static str, next: String },
    #[error("{path} is a GGUF file with a broken header ({detail}); download it again")]
    BadHeader { path: PathBuf, detail: String },
    #[error("{path}: {key} {why}; convert the model again")]
    BadKey { path: PathBuf, key: String, why: String },
    #[error("{path} ends inside its tensor {tensor} ({has} of {needs} bytes); download it again")]
    Truncated { path: PathBuf, tensor: String, has: u64, needs: u64 },
    #[error(
        "{path} has {beyond} bytes after its last tensor, which ends at {end}; download it again"
    )]
    Beyond { path: PathBuf, beyond: usize, end: usize },
    #[error("{path} has no tensor {tensor}; {hint}")]
    MissingTensor { path: PathBuf, tensor: String, hint: &'static str },
    #[error(
        "tensor {tensor} of {path} has type {ggml_type}, which ggml cannot widen; requantise it"
    )]
    Undequantisable { path: PathBuf, tensor: String, ggml_type: String },
}

/// What a path is that leads to no GGUF file, and what gives one.
fn foreign(path: &Path) -> Option<(&'static str, String)> {
    let shown = path.display();
    let text = shown.to_string();
    let convert = |folder: &Path| {
        let folder = folder.display();
        format!(
            "convert it with llama.cpp's script: python convert_hf_to_gguf.py {folder} --outfile model.gguf"
        )
    };
    if ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme)) {
        return Some(("a URL", format!("download it first: curl -LO {shown}")));
    }
    if path.join("config.json").is_file() {
        return Some(("a folder in Hugging Face format", convert(path)));
    }
    if path.join("manifest.json").is_file() {
        return Some(("a trace", format!("`firstdiff explain {shown}` explains it")));
    }
    if path.is_dir() {
        let mut files = std::fs::read_dir(path).ok()?.flatten().map(|file| file.path());
        let model = files.find(|file| file.extension().is_some_and(|ending| ending == "gguf"));
        let model = model.map_or("a .gguf model".to_string(), |model| model.display().to_string());
        return Some(("a folder", format!("give {model}")));
    }
    let is_safetensors = path.extension().is_some_and(|ending| ending == "safetensors");
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    (is_safetensors && path.is_file())
        .then(|| ("a safetensors file", convert(folder.unwrap_or(Path::new(".")))))
}

/// An open GGUF file.
pub struct Gguf {
    path: PathBuf,
    context: Context,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    map: Mmap,
}

/// Owns ggml's parsed header.
pub(crate) struct Context(pub(crate) *mut sys::gguf_context);

// SAFETY: the context is only read after it is made; ggml's getters keep no state.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the pointer came from gguf_init_* and is freed once.
        unsafe { sys::gguf_free(self.0) }
    }
}

impl Gguf {
    /// Opens a file, checking that its header parses and that it holds all of its tensors' bytes.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        llama::backend();
        let read = |source| GgufError::Read { path: path.to_path_buf(), source };
        if let Some((what, next)) = foreign(path) {
            return Err(GgufError::NotGguf { path: path.to_path_buf(), what, next });
        }
        let mut file = files::open(path).map_err(read)?;
        let mut magic = [0u8; 4];
        if file.read_exact(&mut magic).is_err() || &magic != b"GGUF" {
            let what = "not a GGUF file (it does not begin with \"GGUF\")";
            let next = "give a .gguf model".to_string();
            return Err(GgufError::NotGguf { path: path.to_path_buf(), what, next });
        }
        // SAFETY: the map is read-only. A file that another process shortens meanwhile would
        // fault, as it would in llama.cpp, which maps it too.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        check(&map).map_err(|wrong| match wrong {
            Wrong::Header(detail) => GgufError::BadHeader { path: path.to_path_buf(), detail },
            Wrong::Key { key, why } => GgufError::BadKey { path: path.to_path_buf(), key, why },
        })?;
        let context = parse(path)?;
        let tensors = tensor_table(path, &context, map.len() as u64)?;
        let end = tensors.iter().map(|info| info.offset + info.bytes).max().unwrap_or(0);
        let beyond = map.len().saturating_sub(end);
        if beyond > MAX_BEYOND && !tensors.is_empty() {
            return Err(GgufError::Beyond { path: path.to_path_buf(), beyond, end });
        }
        let names = tensors.iter().enumerate().map(|(index, info)| (info.name.clone(), index));
        let by_name = names.collect();
        Ok(Gguf { path: path.to_path_buf(), context, tensors, by_name, map })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&index| &self.tensors[index])
    }

    /// ggml's parsed header, for copying keys.
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// A tensor's bytes as stored.
    pub fn data(&self, info: &TensorInfo) -> &[u8] {
        &self.map[info.offset..info.offset + info.bytes]
    }

    /// The elements of a tensor in f16; `None` of another type, or where the file's alignment is odd.
    pub fn halves(&self, info: &TensorInfo) -> Option<&[f16]> {
        let is_half = info.ggml_type == sys::GGML_TYPE_F16;
        is_half.then(|| bytemuck::try_cast_slice(self.data(info)).ok()).flatten()
    }

    /// Gives back the memory of a tensor's pages; they are read from the file again when needed.
    pub fn forget(&self, info: &TensorInfo) {
        self.forget_range(info.offset, info.bytes);
    }

    /// Gives back the memory of the whole file's pages.
    pub fn forget_all(&self) {
        self.forget_range(0, self.map.len());
    }

    fn forget_range(&self, offset: usize, bytes: usize) {
        // SAFETY: the map is of a file and read-only, so a dropped page holds nothing that the
        // file does not. The advice may be refused; then the pages just stay.
        let _ = unsafe {
            self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, bytes)
        };
    }

    /// Rows of a tensor widened to f32 by ggml's own dequantiser; `out` holds `rows` times the row
    /// length.
    pub fn widen_rows(
        &self,
        info: &TensorInfo,
        rows: std::ops::Range<usize>,
        out: &mut [f32],
    ) -> Result<(), GgufError> {
        /// Rows widened by one call: large enough to share work, small enough to spread it.
        const ROWS_PER_CALL: usize = 64;
        let row_length = info.row_length();
        assert_eq!(out.len(), rows.len() * row_length, "room for {} rows", rows.len());
        let row_bytes = info.bytes / info.rows().max(1);
        let data = &self.data(info)[rows.start * row_bytes..rows.end * row_bytes];
        if info.ggml_type == sys::GGML_TYPE_F32 {
            bytemuck::cast_slice_mut(out).copy_from_slice(data);
            return Ok(());
        }
        if let Some(halves) = self.halves(info) {
            // ggml's own widens them one by one.
            let halves = &halves[rows.start * row_length..rows.end * row_length];
            let chunks = out.par_chunks_mut(ROWS_PER_CALL * row_length);
            chunks
                .zip(halves.par_chunks(ROWS_PER_CALL * row_length))
                .for_each(|(out, halves)| halves.convert_to_f32_slice(out));
            return Ok(());
        }
        // SAFETY: the type is one that ggml knows (its reader checked); traits are static.
        let to_float = unsafe { (*sys::ggml_get_type_traits(info.ggml_type)).to_float };
        let to_float = to_float.ok_or_else(|| GgufError::Undequantisable {
            path: self.path.clone(),
            tensor: info.name.clone(),
            ggml_type: info.type_name(),
        })?;
        let chunks = out.par_chunks_mut(ROWS_PER_CALL * row_length);
        chunks.zip(data.par_chunks(ROWS_PER_CALL * row_bytes)).for_each(|(out, data)| {
            // SAFETY: `data` holds whole rows of the type, `out` as many elements.
            unsafe { to_float(data.as_ptr().cast(), out.as_mut_ptr(), out.len() as i64) }
        });
        Ok(())
    }

    /// A tensor widened to f32, rows one after another; its pages are given back.
    pub fn widen(&self, info: &TensorInfo) -> Result<Vec<f32>, GgufError> {
        let mut out = vec![0f32; info.rows() * info.row_length()];
        self.widen_rows(info, 0..info.rows(), &mut out)?;
        self.forget(info);
        Ok(out)
    }
}

/// Keys.
impl Gguf {
    fn find(&self, key: &str) -> Option<i64> {
        let name = CString::new(key).ok()?;
        // SAFETY: the context is live and the name NUL-terminated.
        let id = unsafe { sys::gguf_find_key(self.context.0, name.as_ptr()) };
        (id >= 0).then_some(id)
    }

    /// Whether the key is there.
    pub fn has_key(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// A string key.
    pub fn string(&self, key: &str) -> Option<String> {
        let id = self.find(key)?;
        // SAFETY: the id is valid and the getter matches the checked type.
        unsafe {
            if sys::gguf_get_kv_type(self.context.0, id) != sys::GGUF_TYPE_STRING {
                return None;
            }
            let text = CStr::from_ptr(sys::gguf_get_val_str(self.context.0, id));
            Some(text.to_string_lossy().into_owned())
        }
    }

    /// A number of any type; for an array, `None`.
    pub fn number(&self, key: &str) -> Option<f64> {
        let id = self.find(key)?;
        let c = self.context.0;
        // SAFETY: the id is valid and each getter matches the type it is chosen by.
        unsafe {
            Some(match sys::gguf_get_kv_type(c, id) {
                sys::GGUF_TYPE_UINT8 => sys::gguf_get_val_u8(c, id).into(),
                sys::GGUF_TYPE_INT8 => sys::gguf_get_val_i8(c, id).into(),
                sys::GGUF_TYPE_UINT16 => sys::gguf_get_val_u16(c, id).into(),
                sys::GGUF_TYPE_INT16 => sys::gguf_get_val_i16(c, id).into(),
                sys::GGUF_TYPE_UINT32 => sys::gguf_get_val_u32(c, id).into(),
                sys::GGUF_TYPE_INT32 => sys::gguf_get_val_i32(c, id).into(),
                sys::GGUF_TYPE_UINT64 => sys::gguf_get_val_u64(c, id) as f64,
                sys::GGUF_TYPE_INT64 => sys::gguf_get_val_i64(c, id) as f64,
                sys::GGUF_TYPE_FLOAT32 => sys::gguf_get_val_f32(c, id).into(),
                sys::GGUF_TYPE_FLOAT64 => sys::gguf_get_val_f64(c, id),
                _ => return None,
            })
        }
    }
}

/// What ggml's CPU backend rounds the inputs of a product with a weight of that type to; `None` where they
/// stay as they are.
pub fn input_format(ggml_type: sys::ggml_type) -> Option<Format> {
    // SAFETY: the type is one that ggml knows; traits are static.
    let inputs = unsafe { (*sys::ggml_get_type_traits_cpu(ggml_type)).vec_dot_type };
    match inputs {
        sys::GGML_TYPE_F16 => Some(Format::F16),
        sys::GGML_TYPE_BF16 => Some(Format::Bf16),
        sys::GGML_TYPE_Q8_0 => Some(Format::Q8_0),
        sys::GGML_TYPE_Q8_1 => Some(Format::Q8_1),
        sys::GGML_TYPE_Q8_K => Some(Format::Q8K),
        _ => None,
    }
}

/// ggml's name of a type.
pub fn type_name(ggml_type: sys::ggml_type) -> String {
    // SAFETY: ggml returns a static string, or null for a type it does not know.
    let name = unsafe { sys::ggml_type_name(ggml_type) };
    if name.is_null() {
        return format!("type {ggml_type}");
    }
    // SAFETY: not null, static and NUL-terminated.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

fn parse(path: &Path) -> Result<Context, GgufError> {
    let bad = |detail: String| GgufError::BadHeader { path: path.to_path_buf(), detail };
    let name = CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| bad("the path holds a NUL".to_string()))?;
    let params = sys::gguf_init_params { no_alloc: true, ctx: std::ptr::null_mut() };
    llama::take_errors();
    // SAFETY: the name is NUL-terminated; with no ctx only the header is read.
    let context = unsafe { sys::gguf_init_from_file(name.as_ptr(), params) };
    if context.is_null() {
        return Err(bad(llama::take_errors()));
    }
    Ok(Context(context))
}

fn tensor_table(path: &Path, context: &Context, len: u64) -> Result<Vec<TensorInfo>, GgufError> {
    let c = context.0;
    // SAFETY: the context is live; ids stay below the count that it names.
    let (count, data) = unsafe { (sys::gguf_get_n_tensors(c), sys::gguf_get_data_offset(c)) };
    let mut tensors = Vec::new();
    for id in 0..count {
        // SAFETY: as above; names are NUL-terminated and live as long as the context.
        let (name, offset, bytes, ggml_type, ne) = unsafe {
            let name = CStr::from_ptr(sys::gguf_get_tensor_name(c, id));
            let ne = std::slice::from_raw_parts(sys::gguf_get_tensor_ne(c, id), 4);
            let (offset, bytes) =
                (sys::gguf_get_tensor_offset(c, id), sys::gguf_get_tensor_size(c, id));
            (name.to_string_lossy(), offset, bytes, sys::gguf_get_tensor_type(c, id), ne)
        };
        let needs = (data as u64).saturating_add(offset as u64).saturating_add(bytes as u64);
        if needs > len {
            let (path, tensor) = (path.to_path_buf(), name.into_owned());
            return Err(GgufError::Truncated { path, tensor, has: len, needs });
        }
        let axes = ne.iter().rposition(|&n| n != 1).map_or(1, |last| last + 1);
        let dims = ne[..axes].iter().map(|&n| n.max(0) as u64).collect();
        let (name, offset) = (name.into_owned(), data + offset);
        tensors.push(TensorInfo { name, dims, ggml_type, offset, bytes });
    }
    Ok(tensors)
}
