//! Archives of arrays: `.npz`, a zip file of `.npy` files, stored or deflated.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use zip::{ZipArchive, result::ZipError};

use super::{
    error::DumpError,
    files::{Array, npy_header},
};
use crate::core::files;

/// The arrays of an archive; other files in it are left alone.
pub(super) fn npz(path: &Path, stem: &str) -> Result<Vec<Array>, DumpError> {
    let mut archive = open(path).map_err(|error| wrong(path, error))?;
    let mut arrays = Vec::new();
    for entry in 0..archive.len() {
        let mut file = archive.by_index(entry).map_err(|error| wrong(path, error))?;
        let name = file.name().map_err(|error| wrong(path, error))?;
        let Some(name) = name.strip_suffix(".npy").map(str::to_string) else { continue };
        let length = file.size();
        let mut array = npy_header(&mut file, length, path, format!("{stem}/{name}"))?;
        array.entry = Some(entry);
        arrays.push(array);
    }
    Ok(arrays)
}

/// The bytes of an entry after its first `offset`, `bytes` of them. Reading to the end checks them.
pub(super) fn entry(path: &Path, index: usize, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut archive = open(path)?;
    let mut file = archive.by_index(index)?;
    io::copy(&mut file.by_ref().take(offset), &mut io::sink())?;
    // It grows as it is read: a length that is only stated takes no memory.
    let mut data = Vec::new();
    file.take(bytes as u64 + 1).read_to_end(&mut data)?;
    if data.len() == bytes {
        Ok(data)
    } else {
        Err(io::Error::other("its length differs from the stated one"))
    }
}

fn open(path: &Path) -> Result<ZipArchive<File>, ZipError> {
    ZipArchive::new(files::open(path)?)
}

fn wrong(path: &Path, error: ZipError) -> DumpError {
    DumpError::Array { path: path.into(), reason: error.to_string() }
}
