//! The cache folder: compiled kernels, graphs, floors. Everything in it can be made again.
//!
//! What lies there is loaded and run. So the folder is its user's alone, and an [`Entry`] is read only as it
//! was written.

mod entry;
mod limit;

use std::{
    fs::DirBuilder,
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Once,
};

use super::{files::temporary_directory, notice::notice};
pub use entry::Entry;
pub use limit::{Removed, limit, prune};

/// The folder that `$FIRSTDIFF_CACHE` names.
fn named() -> Option<PathBuf> {
    variable("FIRSTDIFF_CACHE").map(PathBuf::from)
}

fn variable(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The cache folder: `$FIRSTDIFF_CACHE`, else `$XDG_CACHE_HOME/firstdiff`, else
/// `~/.cache/firstdiff`, else a folder of the temporary directory.
pub fn root() -> PathBuf {
    let base = variable("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || variable("HOME").map(|home| Path::new(&home).join(".cache"));
    let usual = || base.or_else(home).map(|base| base.join("firstdiff"));
    named().or_else(usual).unwrap_or_else(temporary)
}

/// Where the cache is if the usual place cannot be used. The user's id is in the name: the temporary
/// directory is shared.
fn temporary() -> PathBuf {
    let own = tempfile::tempfile().and_then(|file| file.metadata());
    let user = own.map_or_else(|_| String::new(), |own| format!("-{}", own.uid()));
    temporary_directory().join(format!("firstdiff{user}"))
}

/// A subfolder of the cache, made if need be. Where the usual place cannot be used (a read-only home), it is
/// in the temporary directory, which is said once.
///
/// # Errors
/// Neither place can be used, or that which `$FIRSTDIFF_CACHE` names belongs to another user or can be
/// written by others.
pub fn folder(name: &str) -> io::Result<PathBuf> {
    let folder = usable_root()?.join(name);
    own_folder(&folder)?;
    Ok(folder)
}

/// The cache folder, or its place in the temporary directory.
fn usable_root() -> io::Result<PathBuf> {
    static SAID: Once = Once::new();
    let root = root();
    let Err(error) = own_folder(&root) else { return Ok(root) };
    let is_of_others = error.raw_os_error().is_none();
    if is_of_others && named().is_some() {
        return Err(error);
    }
    let other = temporary();
    own_folder(&other)?;
    SAID.call_once(|| {
        let (root, other) = (root.display(), other.display());
        notice(&format!("cannot use the cache in {root}: {error}; using {other} for now"));
    });
    Ok(other)
}

/// Makes a folder that only its user can read and write, or checks that one is so.
///
/// # Errors
/// Files cannot be made in it, or it is another user's, or others can write to it.
pub fn own_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let own = tempfile::tempfile_in(folder)?.metadata()?.uid();
    let metadata = folder.metadata()?;
    let denied = |what: &str| Err(io::Error::new(ErrorKind::PermissionDenied, what));
    if metadata.uid() != own {
        return denied("it belongs to another user");
    }
    if metadata.mode() & 0o022 != 0 {
        return denied(
            "others can write to it, and firstdiff runs its files; delete it or chmod go-w it",
        );
    }
    Ok(())
}
