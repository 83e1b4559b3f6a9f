//! Files of the user's: read within limits, written whole or not at all.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
};

use tempfile::NamedTempFile;

/// Opens a file, and nothing else: a device never ends, a pipe without a writer is waited for. The shell's
/// own pipes, `/dev/fd/N`, have one.
///
/// # Errors
/// There is none, it cannot be read, or it is no file.
pub fn open(path: &Path) -> io::Result<File> {
    let metadata = fs::metadata(path)?;
    let is_shells = || path.starts_with("/dev/fd") || path == Path::new("/dev/stdin");
    if metadata.is_file() || metadata.file_type().is_fifo() && is_shells() {
        return File::open(path);
    }
    Err(match metadata.is_dir() {
        true => ErrorKind::IsADirectory.into(),
        false => io::Error::new(ErrorKind::InvalidInput, "it is a device or a pipe, not a file"),
    })
}

/// Reads a file of at most `most` bytes, whole MiB.
///
/// # Errors
/// As [`open`], or it is longer.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    bounded(open(path)?, most)
}

fn bounded(reader: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let why = format!("it is over {} MiB", most >> 20);
        return Err(io::Error::new(ErrorKind::FileTooLarge, why));
    }
    Ok(bytes)
}

/// Reads a text of at most `most` bytes, from standard input where the path is `-`.
///
/// # Errors
/// As [`read`], or it is no UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    let bytes = match path.as_os_str() == "-" {
        true => bounded(io::stdin(), most)?,
        false => read(path, most)?,
    };
    let no_text = |_| io::Error::new(ErrorKind::InvalidData, "it is no UTF-8 text");
    String::from_utf8(bytes).map_err(no_text)
}

/// How the names of this process's unfinished files and folders begin.
pub fn temporary_prefix() -> String {
    format!(".firstdiff-{}-", std::process::id())
}

/// Writes a file whole or not at all: through a temporary file beside it and a rename. A device or a pipe is
/// written to, and a link followed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if !is_replaced(path) {
        return OpenOptions::new().write(true).open(path)?.write_all(bytes);
    }
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let mut file = temporary_beside(&path)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

/// Whether what is written there takes the place of a file, and not of a device or a pipe.
pub fn is_replaced(path: &Path) -> bool {
    fs::metadata(path).map_or(true, |there| there.is_file() || there.is_dir())
}

/// A temporary folder in the folder of `path`, which goes with all that is in it.
pub fn temporary_folder_beside(path: &Path) -> io::Result<tempfile::TempDir> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let prefix = temporary_prefix();
    tempfile::Builder::new().prefix(&prefix).tempdir_in(folder.unwrap_or(Path::new(".")))
}

/// A temporary file in the folder of `path`, readable by whom the umask lets, to be renamed to it.
pub fn temporary_beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let prefix = temporary_prefix();
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).permissions(Permissions::from_mode(0o666));
    builder.tempfile_in(folder.unwrap_or(Path::new(".")))
}
