//! The cache folder: compiled kernels, widened weights, floors. Everything in it can be made again.

use std::{
    fs::Permissions,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use tempfile::NamedTempFile;

/// Names the temporary directory of the user where the program's own processes have another.
pub const OWN_TMPDIR: &str = "FIRSTDIFF_TMPDIR";

/// How the names of unfinished files and folders begin; the machine and the process that write them follow.
const TEMPORARY: &str = ".firstdiff-";

/// In an unfinished folder: what its result is about to replace, which is not there twice.
pub const REPLACED: &str = "replaced";

/// How the names of this process's unfinished files and folders begin.
fn temporary_prefix() -> String {
    format!("{TEMPORARY}{}-{}-", machine(), std::process::id())
}

/// A short name of this machine: a process's number means nothing on another, which may write here too.
fn machine() -> &'static str {
    static MACHINE: OnceLock<String> = OnceLock::new();
    MACHINE.get_or_init(|| {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        format!("{:08x}", hash as u32)
    })
}

/// Removes the unfinished files and folders in a folder that processes of this machine left, where
/// `is_over` says so of the process.
#[cfg(feature = "full")]
pub fn remove_temporaries(folder: &Path, is_over: impl Fn(i32) -> bool) {
    let prefix = format!("{TEMPORARY}{}-", machine());
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let process = name.strip_prefix(&prefix).and_then(|rest| rest.split_once('-'));
        let Some(process) = process.and_then(|(process, _)| process.parse().ok()) else { continue };
        if !is_over(process) {
            continue;
        }
        let path = entry.path();
        if path.join(REPLACED).exists() {
            continue;
        }
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        // Nothing more can be done about what cannot be removed.
        let _ = if is_folder { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    }
}

/// Announces that a folder gets unfinished files. The first time, those of runs that were killed go.
fn announce(folder: &Path) {
    #[cfg(feature = "full")]
    if super::activity::temporaries_in(folder) {
        // SAFETY: asks whether a process is there.
        let is_gone = |process: i32| unsafe { libc::kill(process, 0) } != 0
            && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH);
        remove_temporaries(folder, |process| process > 0 && is_gone(process));
    }
    #[cfg(not(feature = "full"))]
    let _ = folder;
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
    base.or_else(home).unwrap_or_else(temporary_directory).join("firstdiff")
}

/// The user's temporary directory, in the program's own processes too.
fn temporary_directory() -> PathBuf {
    std::env::var_os(OWN_TMPDIR).map_or_else(std::env::temp_dir, PathBuf::from)
}

/// A subfolder of the cache, made if need be. Falls back to the temporary directory where the
/// cache cannot be written (a read-only home), so that a run needs no cache to work.
pub fn folder(name: &str) -> std::io::Result<PathBuf> {
    let wanted = root().join(name);
    if is_writable(&wanted) {
        return Ok(wanted);
    }
    let fallback = temporary_directory().join("firstdiff").join(name);
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
    temporary_folder_in(folder_of(path))
}

/// A temporary folder in a folder, which goes with all that is in it.
pub fn temporary_folder_in(folder: &Path) -> std::io::Result<tempfile::TempDir> {
    announce(folder);
    tempfile::Builder::new().prefix(&temporary_prefix()).tempdir_in(folder)
}

/// A temporary file in the folder of `path`, readable by whom the umask lets, to be renamed to it.
pub fn temporary_beside(path: &Path) -> std::io::Result<NamedTempFile> {
    let folder = folder_of(path);
    announce(folder);
    let mut builder = tempfile::Builder::new();
    builder
        .prefix(&temporary_prefix())
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
}

fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}
