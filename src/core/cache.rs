//! The cache folder: compiled kernels, widened weights, floors. Everything in it can be made again.

use std::{
    fs::Permissions,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

/// How the names of this process's unfinished files and folders begin.
pub fn temporary_prefix() -> String {
    format!(".firstdiff-{}-", std::process::id())
}

/// The cache folder: `$FIRSTDIFF_CACHE`, else `$XDG_CACHE_HOME/firstdiff`, else
/// `~/.cache/firstdiff`, else a folder of the temporary directory.
pub fn root() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(folder) = variable("FIRSTDIFF_CACHE") {
        return folder.into();
    }
    let base = variable("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || variable("HOME").map(|home| Path::new(&home).join(".cache"));
    base.or_else(home).unwrap_or_else(std::env::temp_dir).join("firstdiff")
}

/// A subfolder of the cache, made if need be. Falls back to the temporary directory where the
/// cache cannot be written (a read-only home), so that a run needs no cache to work.
pub fn folder(name: &str) -> std::io::Result<PathBuf> {
    let wanted = root().join(name);
    if is_writable(&wanted) {
        return Ok(wanted);
    }
    let fallback = std::env::temp_dir().join("firstdiff").join(name);
    std::fs::create_dir_all(&fallback)?;
    Ok(fallback)
}

/// Whether files can be made in the folder, which is created if need be.
pub fn is_writable(folder: &Path) -> bool {
    std::fs::create_dir_all(folder).is_ok() && tempfile::tempfile_in(folder).is_ok()
}

/// Writes a file whole or not at all: through a temporary file beside it and a rename.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = temporary_beside(path)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

/// A temporary folder in the folder of `path`, which goes with all that is in it.
pub fn temporary_folder_beside(path: &Path) -> std::io::Result<tempfile::TempDir> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let prefix = temporary_prefix();
    tempfile::Builder::new().prefix(&prefix).tempdir_in(folder.unwrap_or(Path::new(".")))
}

/// A temporary file in the folder of `path`, readable by whom the umask lets, to be renamed to it.
pub fn temporary_beside(path: &Path) -> std::io::Result<NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let prefix = temporary_prefix();
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).permissions(Permissions::from_mode(0o666));
    builder.tempfile_in(folder.unwrap_or(Path::new(".")))
}
