//! Archives of arrays: `.npz`, a zip file of `.npy` files, stored or deflated.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use zip::{ZipArchive, result::ZipError};

use super::{
    error::DumpError,
    files::{Array, MAX_ARRAYS, npy_header},
};
use crate::core::files;

/// A file of an archive.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    archive: ZipArchive<Reopened>,
    index: usize,
}

/// A file that is opened when it is first read. A copy is closed: a dump may have more archives than a process
/// may have open.
#[derive(Debug)]
struct Reopened {
    path: PathBuf,
    file: Option<File>,
}

impl Clone for Reopened {
    fn clone(&self) -> Reopened {
        Reopened { path: self.path.clone(), file: None }
    }
}

impl Reopened {
    fn file(&mut self) -> io::Result<&mut File> {
        let Reopened { path, file } = self;
        match file {
            Some(file) => Ok(file),
            None => Ok(file.insert(files::open(path)?)),
        }
    }
}

impl Read for Reopened {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file()?.read(buffer)
    }
}

impl Seek for Reopened {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file()?.seek(to)
    }
}

/// The arrays of an archive; other files in it are left alone.
pub(super) fn npz(path: &Path, stem: &str) -> Result<Vec<Array>, DumpError> {
    let failed = |error: ZipError| wrong(path, &error.to_string());
    let file = Reopened { path: path.into(), file: None };
    let mut archive = ZipArchive::new(file).map_err(failed)?;
    if archive.len() > MAX_ARRAYS {
        return Err(DumpError::TooMany { path: path.into() });
    }
    if archive.has_duplicate_names() {
        return Err(wrong(path, "two files in it have one name"));
    }
    if archive.has_overlapping_entries().map_err(failed)? {
        return Err(wrong(path, "files in it lie one over the other"));
    }
    let closed = archive.clone();
    let mut arrays = Vec::new();
    for index in 0..archive.len() {
        let mut file = archive.by_index(index).map_err(failed)?;
        let name = file.name().map_err(failed)?;
        let Some(name) = name.strip_suffix(".npy").map(str::to_string) else { continue };
        let length = file.size();
        let mut array = npy_header(&mut file, length, path, format!("{stem}/{name}"))?;
        array.entry = Some(Entry { archive: closed.clone(), index });
        arrays.push(array);
    }
    Ok(arrays)
}

impl Entry {
    /// Its bytes after the first `offset`, `bytes` of them. Reading to the end checks them.
    pub fn read(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut archive = self.archive.clone();
        let mut file = archive.by_index(self.index)?;
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
}

fn wrong(path: &Path, reason: &str) -> DumpError {
    DumpError::Array { path: path.into(), reason: reason.into() }
}
