//! Reads `weights.bin`, and trusts nothing in it before its length, its run and its hash are checked.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek},
    path::Path,
};

use half::{bf16, f16};

use super::{
    error::TraceError,
    header::open_file,
    manifest::Manifest,
    ranks::Part,
    weights::{WEIGHTS_FILE, WeightEntry, WeightsFile, head},
};
use crate::core::{loaded::LoadedWeight, tensor::DType};

/// Refuses a file of another length, run or hash than the manifest's.
pub(super) fn check(folder: &Path, manifest: &Manifest) -> Result<(), TraceError> {
    let Some(weights) = &manifest.weights else { return Ok(()) };
    let path = folder.join(WEIGHTS_FILE);
    let (mut file, found) = open_file(&path)?;
    let expected = weights.bytes;
    if found != expected {
        return Err(TraceError::Length { path, expected, found });
    }
    let line = head(manifest.run.as_deref());
    let mut own = vec![0; line.len()];
    file.read_exact(&mut own).map_err(TraceError::io("read", &path))?;
    if own != line.as_bytes() {
        let [found, expected] = [String::from_utf8_lossy(&own).into_owned(), line];
        let [found, expected] = [found, expected].map(|line| format!("weights of {}", line.trim()));
        return Err(TraceError::OtherRun { path, expected, found });
    }
    let Some(expected) = &weights.blake3 else { return Ok(()) };
    let mut hasher = blake3::Hasher::new();
    file.rewind().map_err(TraceError::io("read", &path))?;
    hasher.update_reader(&file).map_err(TraceError::io("read", &path))?;
    let found = hasher.finalize().to_string();
    if found != *expected {
        return Err(TraceError::Checksum { path, expected: expected.clone(), found });
    }
    Ok(())
}

/// The weights that a part of a trace recorded, as f32.
pub(super) fn read(part: &Part) -> Result<Vec<LoadedWeight>, TraceError> {
    let Some(WeightsFile { tensors, .. }) = &part.manifest.weights else { return Ok(Vec::new()) };
    let path = part.folder.join(WEIGHTS_FILE);
    let read = || {
        let mut file = BufReader::new(File::open(&path)?);
        let first = head(part.manifest.run.as_deref()).len();
        io::copy(&mut file.by_ref().take(first as u64), &mut io::sink())?;
        tensors.iter().map(|entry| weight(&mut file, entry)).collect::<io::Result<Vec<_>>>()
    };
    read().map_err(TraceError::io("read", &path))
}

/// Reads the next weight; the file was checked to have as many bytes.
fn weight(file: &mut impl Read, entry: &WeightEntry) -> io::Result<LoadedWeight> {
    let (elements, sums) = entry.counts();
    let mut bytes = vec![0; elements as usize * entry.dtype.size()];
    file.read_exact(&mut bytes)?;
    let mut tail = vec![0; 8 * sums as usize];
    file.read_exact(&mut tail)?;
    let name = entry.name.clone();
    Ok(LoadedWeight {
        of: if entry.of.is_empty() { vec![name.clone()] } else { entry.of.clone() },
        name,
        shape: entry.shape.clone(),
        rows: entry.rows.clone(),
        values: widened(&bytes, entry.dtype),
        sums: tail.as_chunks::<8>().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect(),
    })
}

fn widened(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let pairs = bytes.as_chunks::<2>().0.iter();
    match dtype {
        DType::F16 => pairs.map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
        DType::Bf16 => pairs.map(|&bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
        DType::F64 => {
            bytes.as_chunks::<8>().0.iter().map(|&bytes| f64::from_le_bytes(bytes) as f32).collect()
        }
        DType::F32 | DType::Tf32 => {
            bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
        }
    }
}
