//! `weights.bin`: weights as the engine held them when its run began, beside the steps.
//!
//! A line `run NAME`, then of each weight of the manifest its recorded elements, row after row, and where it says
//! so the sum of each row of the whole in f64. Everything is little-endian.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::{BufWriter, Seek, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    error::{Limit, TraceError},
    manifest::{field, is_hash, within},
    seal,
};
use crate::core::{
    loaded::{LoadedWeight, is_name, is_tensor},
    tensor::DType,
};

/// The file's name.
pub const WEIGHTS_FILE: &str = "weights.bin";
/// The most axes of a weight.
const AXES: usize = 8;
/// The most tensors, or parts of tensors, that a weight stands for: q, k and v of each head in turn are many.
const TENSORS: usize = 1024;

/// The file, and what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightsFile {
    pub bytes: u64,
    /// 64 lowercase hex digits; required where the manifest names no run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// In the order of the file.
    pub tensors: Vec<WeightEntry>,
}

/// A weight of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightEntry {
    /// The engine's own name.
    pub name: String,
    /// The tensors of the GGUF that it stands for, in order; absent where that is its name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub of: Vec<String>,
    /// Slowest axis first.
    pub shape: Vec<usize>,
    pub dtype: DType,
    /// The recorded rows, ascending; absent where all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<Vec<usize>>,
    /// Whether the sums of all rows follow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sums: bool,
}

impl WeightEntry {
    /// Rows and their length; checked not to overflow.
    fn matrix(&self) -> (u64, u64) {
        let (width, rows) = self.shape.split_last().map_or((0, &[][..]), |(w, rows)| (*w, rows));
        (rows.iter().fold(1, |all, &n| u64::saturating_mul(all, n as u64)), width as u64)
    }

    /// Elements that are recorded, and sums.
    pub(super) fn counts(&self) -> (u64, u64) {
        let (rows, width) = self.matrix();
        let recorded = self.rows.as_ref().map_or(rows, |rows| rows.len() as u64);
        (recorded.saturating_mul(width), if self.sums { rows } else { 0 })
    }

    fn bytes(&self) -> u64 {
        let (elements, sums) = self.counts();
        let size = self.dtype.size() as u64;
        elements.saturating_mul(size).saturating_add(sums.saturating_mul(8))
    }

    /// What is wrong with it by itself.
    fn fault(&self) -> Option<String> {
        let (rows, _) = self.matrix();
        let ascend = |chosen: &Vec<usize>| chosen.windows(2).all(|pair| pair[0] < pair[1]);
        let within = |chosen: &Vec<usize>| chosen.last().is_some_and(|&last| (last as u64) < rows);
        if !is_tensor(&self.name) && !is_name(&self.name) {
            Some("is not a valid weight name".into())
        } else if let Some(name) = self.of.iter().find(|name| !is_tensor(name)) {
            Some(format!("stands for {name:?}, which is not a valid tensor name"))
        } else if self.of.len() > TENSORS {
            Some(format!("stands for {} tensors, more than {TENSORS}", self.of.len()))
        } else if self.shape.is_empty() || self.shape.len() > AXES || self.shape.contains(&0) {
            Some(format!("has the shape {:?}", self.shape))
        } else if self.dtype == DType::Tf32 {
            Some("is in tf32, which is not a storage format".into())
        } else if self.rows.as_ref().is_some_and(|rows| !ascend(rows) || !within(rows)) {
            Some(format!("has rows that do not ascend, or exceed its {rows} rows"))
        } else {
            None
        }
    }
}

impl WeightsFile {
    /// Checks every field's limits and that the fields fit each other.
    pub(super) fn check(&self, path: &Path, run: Option<&str>) -> Result<(), TraceError> {
        within(path, Limit::Weights, self.tensors.len() as u64)?;
        let refuse =
            |name: &str, reason: String| Err(field(path, format!("weights.{name}"), reason));
        match &self.blake3 {
            Some(hash) if !is_hash(hash) => {
                return refuse("blake3", format!("is {hash:?}, not 64 lowercase hex digits"));
            }
            None if run.is_none() => {
                return refuse("blake3", "is missing, and the manifest names no run".into());
            }
            _ => {}
        }
        let (mut bytes, mut seen) = (head(run).len() as u64, BTreeSet::new());
        for (at, entry) in self.tensors.iter().enumerate() {
            let place = format!("tensors[{at}] ({})", entry.name);
            if let Some(fault) = entry.fault() {
                return refuse(&place, fault);
            }
            let (rows, width) = entry.matrix();
            within(path, Limit::Elements, rows.saturating_mul(width))?;
            if !seen.insert(&entry.name) {
                return refuse(&place, "is listed twice".into());
            }
            bytes = bytes.saturating_add(entry.bytes());
        }
        if bytes != self.bytes {
            return refuse("bytes", format!("is {}, its tensors need {bytes}", self.bytes));
        }
        Ok(())
    }
}

/// The first line of the file.
pub(super) fn head(run: Option<&str>) -> String {
    format!("run {}\n", run.unwrap_or("-"))
}

/// Writes the file while weights arrive.
#[derive(Debug)]
pub(super) struct WeightsWriter {
    path: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
    tensors: Vec<WeightEntry>,
}

impl WeightsWriter {
    pub fn create(path: PathBuf, run: Option<&str>) -> Result<WeightsWriter, TraceError> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create_new(true);
        let file = options.open(&path).map_err(TraceError::io("create", &path))?;
        let (mut file, head) = (BufWriter::new(file), head(run));
        file.write_all(head.as_bytes()).map_err(TraceError::io("write", &path))?;
        Ok(WeightsWriter { path, file, bytes: head.len() as u64, tensors: Vec::new() })
    }

    /// Appends a weight, its elements in f32.
    pub fn put(&mut self, weight: &LoadedWeight) -> Result<(), TraceError> {
        let LoadedWeight { name, of, shape, rows, values, sums } = weight;
        let entry = WeightEntry {
            name: name.clone(),
            of: if *of == [name.as_str()] { Vec::new() } else { of.clone() },
            shape: shape.clone(),
            dtype: DType::F32,
            rows: rows.clone(),
            sums: !sums.is_empty(),
        };
        let misuse = |what: &str| Err(TraceError::Misuse(format!("the weight {name} {what}")));
        if let Some(fault) = entry.fault() {
            return misuse(&fault);
        }
        if entry.counts() != (values.len() as u64, sums.len() as u64) {
            return misuse("has a number of elements that does not match its shape and rows");
        }
        if self.tensors.iter().any(|other| other.name == *name) {
            return misuse("was put twice");
        }
        let values = values.iter().flat_map(|value| value.to_le_bytes());
        let bytes: Vec<u8> = values.chain(sums.iter().flat_map(|sum| sum.to_le_bytes())).collect();
        self.file.write_all(&bytes).map_err(TraceError::io("write", &self.path))?;
        self.bytes += bytes.len() as u64;
        self.tensors.push(entry);
        Ok(())
    }

    /// Ends the file.
    pub fn close(self) -> Result<WeightsFile, TraceError> {
        let WeightsWriter { path, file, bytes, tensors } = self;
        let sealed = |file: BufWriter<File>| {
            let mut file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            file.rewind()?;
            seal::of_file(&file)
        };
        let blake3 = sealed(file).map_err(TraceError::io("write", path))?;
        Ok(WeightsFile { bytes, blake3, tensors })
    }
}
