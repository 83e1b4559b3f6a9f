//! The arrays of a folder: `.npy` files, and those in `.npz` and `.safetensors` files.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use safetensors::{Dtype, tensor::Metadata};

use super::{
    error::DumpError,
    npz::{Entry, npz},
};
use crate::core::files;

/// Longer headers are no headers: of a safetensors file, and of an array of numpy, which reads no longer ones.
const MAX_HEADER: u64 = 16 << 20;
const MAX_NPY_HEADER: u64 = 10_000;
/// Folders within folders that are looked into.
const MAX_DEPTH: usize = 4;
/// Axes of an array: numpy has no more.
const MAX_AXES: usize = 64;
/// More arrays, or files, are no dump of a run that fits in memory.
pub(super) const MAX_ARRAYS: usize = 1 << 17;

/// A folder of arrays.
#[derive(Debug)]
pub struct Dump {
    /// In the order of their names.
    pub arrays: Vec<Array>,
}

/// One array, whose values are still in its file.
#[derive(Clone, Debug)]
pub struct Array {
    /// The file's path in the folder without `.npy`, or the path of an npz or safetensors file without
    /// its ending, a slash, and the array's name.
    pub name: String,
    /// Row-major; of an array in Fortran order, the axes the other way round.
    pub shape: Vec<usize>,
    /// Whether the file has the axes the other way round.
    reversed: bool,
    path: PathBuf,
    format: Format,
    /// Of the first element.
    offset: u64,
    /// Where it is in an archive.
    pub(super) entry: Option<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Format {
    kind: Kind,
    big_endian: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    F16,
    Bf16,
    F32,
    F64,
}

impl Dump {
    /// Lists the arrays of a folder and of the folders in it. Other files are left alone.
    ///
    /// # Errors
    /// The folder cannot be read, holds no array, or one of a format that is none of numbers.
    pub fn open(folder: &Path) -> Result<Dump, DumpError> {
        let mut files = Vec::new();
        list(folder, MAX_DEPTH, &mut BTreeSet::new(), &mut files)?;
        let mut arrays = Vec::new();
        for path in files {
            let within = path.strip_prefix(folder).unwrap_or(&path).with_extension("");
            let name = within.to_string_lossy().replace('\\', "/");
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("npy") => arrays.push(npy(&path, name)?),
                Some("npz") => arrays.extend(npz(&path, &name)?),
                Some("safetensors") => arrays.extend(safetensors(&path, &name)?),
                _ => {}
            }
            if arrays.len() > MAX_ARRAYS {
                return Err(DumpError::TooMany { path: folder.into() });
            }
        }
        arrays.sort_by(|a: &Array, b| a.name.cmp(&b.name));
        if let Some(two) = arrays.windows(2).find(|two| two[0].name == two[1].name) {
            let reason = format!("another file has an array named {} too", two[1].name);
            return Err(DumpError::Array { path: two[1].path.clone(), reason });
        }
        if arrays.is_empty() {
            Err(DumpError::Empty { path: folder.into() })
        } else {
            Ok(Dump { arrays })
        }
    }
}

impl Array {
    /// How many values it holds.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Reads the values as f32, row-major in its own shape.
    pub fn read(&self) -> Result<Vec<f32>, DumpError> {
        let size = self.elements() * self.format.kind.size();
        let path = self.path.clone();
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(self.offset))?;
            let mut bytes = vec![0; size];
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = match &self.entry {
            None => read().map_err(|source| DumpError::Read { path: path.clone(), source })?,
            Some(entry) => entry.read(self.offset, size).map_err(|error| DumpError::Array {
                path: path.clone(),
                reason: format!("{}: {error}", self.name),
            })?,
        };
        let values: Vec<f32> =
            bytes.chunks_exact(self.format.kind.size()).map(|b| self.format.value(b)).collect();
        if !self.reversed {
            return Ok(values);
        }
        // Of an index in the shape, the place in a file whose first axis is the fastest.
        let mut strides = Vec::with_capacity(self.shape.len());
        let mut stride = 1;
        for n in &self.shape {
            strides.push(stride);
            stride *= n;
        }
        let place = |flat| {
            let at = crate::core::tensor::Tensor::unravel(flat, &self.shape);
            at.iter().zip(&strides).map(|(at, stride)| at * stride).sum::<usize>()
        };
        Ok((0..values.len()).map(|flat| values[place(flat)]).collect())
    }
}

impl Kind {
    fn size(self) -> usize {
        match self {
            Kind::F16 | Kind::Bf16 => 2,
            Kind::F32 => 4,
            Kind::F64 => 8,
        }
    }
}

impl Format {
    fn value(self, bytes: &[u8]) -> f32 {
        let mut own = [0; 8];
        let own = &mut own[..bytes.len()];
        own.copy_from_slice(bytes);
        if self.big_endian {
            own.reverse();
        }
        match (self.kind, &*own) {
            (Kind::F16, &[a, b, ..]) => f16::from_le_bytes([a, b]).to_f32(),
            (Kind::Bf16, &[a, b, ..]) => bf16::from_le_bytes([a, b]).to_f32(),
            (Kind::F32, &[a, b, c, d, ..]) => f32::from_le_bytes([a, b, c, d]),
            (Kind::F64, &[a, b, c, d, e, f, g, h]) => {
                f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32
            }
            _ => unreachable!("as many bytes as the format has"),
        }
    }
}

/// Lists the files of a folder and of those in it, each once: links may lead back.
fn list(
    folder: &Path,
    depth: usize,
    seen: &mut BTreeSet<(u64, u64)>,
    files: &mut Vec<PathBuf>,
) -> Result<(), DumpError> {
    let read = |source| DumpError::Read { path: folder.into(), source };
    let own = fs::metadata(folder).map_err(read)?;
    if !seen.insert((own.dev(), own.ino())) {
        return Ok(());
    }
    for entry in fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if files.len() > MAX_ARRAYS {
            return Err(DumpError::TooMany { path: folder.into() });
        }
        if path.is_file() {
            files.push(path);
        } else if path.is_dir() && depth > 1 {
            list(&path, depth - 1, seen, files)?;
        }
    }
    Ok(())
}

fn npy(path: &Path, name: String) -> Result<Array, DumpError> {
    let read = |source| DumpError::Read { path: path.into(), source };
    let mut file = files::open(path).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    npy_header(&mut file, length, path, name)
}

/// Reads the header of an .npy file of that length: magic, version, length, and a Python dictionary.
pub(super) fn npy_header(
    file: &mut impl Read,
    length: u64,
    path: &Path,
    name: String,
) -> Result<Array, DumpError> {
    let of = format!("{name}: ");
    let of = if path.extension().is_some_and(|end| end == "npz") { of.as_str() } else { "" };
    let wrong =
        |reason: &str| DumpError::Array { path: path.into(), reason: format!("{of}{reason}") };
    let mut bytes = |n: u64| {
        let mut bytes = vec![0; n as usize];
        match file.read_exact(&mut bytes) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(wrong("its header is truncated"))
            }
            Err(error) => Err(wrong(&error.to_string())),
        }
    };
    let start = bytes(8)?;
    if &start[..6] != b"\x93NUMPY" {
        return Err(wrong("it is not a .npy file: bad magic"));
    }
    let size = if start[6] == 1 { 2 } else { 4 };
    let header = bytes(size)?.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte));
    if header > MAX_NPY_HEADER.min(length) {
        return Err(wrong("its header length exceeds the file size or the limit of 10,000 bytes"));
    }
    let (at, text) = (8 + size, bytes(header)?);
    let text = String::from_utf8_lossy(&text);
    let value = |key: &str| {
        let rest = text.split_once(key)?.1.trim_start_matches(['\'', '"', ':', ' ']);
        Some(rest)
    };
    let descr: String = value("descr")
        .ok_or_else(|| wrong("its header names no type"))?
        .chars()
        .take_while(|c| !matches!(c, '\'' | '"' | ','))
        .collect();
    let kind = match descr.trim_start_matches(['<', '>', '=', '|']) {
        "f2" => Kind::F16,
        "f4" => Kind::F32,
        "f8" => Kind::F64,
        _ => return Err(wrong(&format!("its type is {descr:?}"))),
    };
    let reversed = value("fortran_order").is_some_and(|rest| rest.starts_with("True"));
    let shape = value("shape").and_then(|rest| rest.strip_prefix('(')?.split_once(')'));
    let shape = shape.ok_or_else(|| wrong("its header states no shape"))?.0;
    let axes = shape.split(',').map(str::trim).filter(|axis| !axis.is_empty());
    let shape: Result<Vec<usize>, _> = axes.map(str::parse).collect();
    let shape = shape.map_err(|_| wrong("its header states no shape"))?;
    if shape.len() > MAX_AXES {
        return Err(wrong(&format!("its shape has {} axes", shape.len())));
    }
    let offset = at + header;
    let format = Format { kind, big_endian: descr.starts_with('>') };
    let bytes = shape.iter().try_fold(kind.size() as u64, |all, &n| all.checked_mul(n as u64));
    if bytes.and_then(|bytes| bytes.checked_add(offset)) != Some(length) {
        return Err(wrong(&format!("its length does not match its shape {shape:?}")));
    }
    Ok(Array { name, shape, reversed, path: path.into(), format, offset, entry: None })
}

fn safetensors(path: &Path, stem: &str) -> Result<Vec<Array>, DumpError> {
    let wrong = |reason: String| DumpError::Array { path: path.into(), reason };
    let read = |source| DumpError::Read { path: path.into(), source };
    let mut file = files::open(path).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    let mut start = [0; 8];
    file.read_exact(&mut start).map_err(|error| wrong(error.to_string()))?;
    let header = u64::from_le_bytes(start);
    if header > MAX_HEADER.min(length) {
        return Err(wrong("its header length exceeds the file size or the 16 MiB limit".into()));
    }
    let mut text = vec![0; header as usize];
    file.read_exact(&mut text).map_err(|error| wrong(error.to_string()))?;
    let metadata: Metadata =
        serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    let data = 8 + header;
    if data.saturating_add(metadata.data_len() as u64) != length {
        return Err(wrong("its length does not match its tensors".into()));
    }
    let array = |name: String| {
        let info = metadata.info(&name).expect("a name of this header");
        let kind = match info.dtype {
            Dtype::F16 => Kind::F16,
            Dtype::BF16 => Kind::Bf16,
            Dtype::F32 => Kind::F32,
            Dtype::F64 => Kind::F64,
            other => return Err(wrong(format!("{name} is of type {other}"))),
        };
        Ok(Array {
            name: format!("{stem}/{name}"),
            shape: info.shape.clone(),
            reversed: false,
            path: path.into(),
            format: Format { kind, big_endian: false },
            offset: data + info.data_offsets.0 as u64,
            entry: None,
        })
    };
    metadata.offset_keys().into_iter().map(array).collect()
}
