//! Files of the user's: read within limits, written whole or not at all.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::OnceLock,
};
#[cfg(feature = "full")]
use std::{
    io::Seek,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    time::{Duration, Instant},
};

use tempfile::NamedTempFile;

/// Opens a file, and nothing else: a device never ends, a pipe without a writer is waited for. The shell's
/// own pipes, `/dev/fd/N`, have one.
///
/// # Errors
/// There is none, it cannot be read, it is no file, or nearly all of it is a hole.
pub fn open(path: &Path) -> io::Result<File> {
    let file = open_any(path)?;
    #[cfg(feature = "full")]
    if is_hollow(&file)? {
        let why =
            format!("nothing is stored of nearly all of its {} bytes", file.metadata()?.len());
        return Err(io::Error::new(ErrorKind::InvalidInput, why));
    }
    Ok(file)
}

/// The same of a file whose length the reader holds to its own limits.
///
/// # Errors
/// There is none, it cannot be read, or it is no file.
pub fn open_any(path: &Path) -> io::Result<File> {
    let metadata = fs::metadata(path)?;
    let is_shells = || path.starts_with("/dev/fd") || path == Path::new("/dev/stdin");
    if metadata.is_file() || metadata.file_type().is_fifo() && is_shells() {
        return File::open(path);
    }
    if metadata.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    Err(io::Error::new(ErrorKind::InvalidInput, "it is a device or a pipe, not a file"))
}

/// Shorter files are read, whatever they are.
#[cfg(feature = "full")]
const HOLLOW_BYTES: u64 = 1 << 30;
/// The part of a hollow file that is stored at most.
#[cfg(feature = "full")]
const STORED: u64 = 1024;

/// Whether a file is a long hole with a little in it: a terabyte that takes no space, and whose reader never ends.
#[cfg(feature = "full")]
pub fn is_hollow(file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    let most = metadata.len() / STORED;
    // Some file systems do not know their blocks, so that the file itself is asked too.
    if metadata.len() < HOLLOW_BYTES || metadata.blocks().saturating_mul(512) > most {
        return Ok(false);
    }
    // SAFETY: moves in a file that is open.
    let find = |from: i64, what| unsafe { libc::lseek(file.as_raw_fd(), from, what) };
    let (mut at, mut stored) = (0, 0);
    let is_hollow = loop {
        let start = find(at, libc::SEEK_DATA);
        if start < 0 {
            break io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO);
        }
        at = find(start, libc::SEEK_HOLE);
        stored += at - start;
        if at <= start || stored as u64 > most {
            break false;
        }
    };
    let mut file = file;
    file.rewind()?;
    Ok(is_hollow)
}

/// Reads a file of at most `most` bytes, whole MiB.
///
/// # Errors
/// As [`open`], or it is longer.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    if file.metadata()?.len() > most {
        return Err(too_large(most));
    }
    bounded(file, most)
}

fn bounded(reader: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(too_large(most)) } else { Ok(bytes) }
}

fn too_large(most: u64) -> io::Error {
    io::Error::new(ErrorKind::FileTooLarge, format!("it is over {} MiB", most >> 20))
}

/// Reads a text of at most `most` bytes, from standard input where the path is `-`.
///
/// # Errors
/// As [`read`], or it is no UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    let bytes =
        if path.as_os_str() == "-" { bounded(io::stdin(), most)? } else { read(path, most)? };
    let no_text = |_| io::Error::new(ErrorKind::InvalidData, "it is not UTF-8 text");
    String::from_utf8(bytes).map_err(no_text)
}

/// Writes a file whole or not at all: through a temporary file beside it and a rename. A device or a pipe is
/// written to, and a link followed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut output = Output::create(path)?;
    output.write_all(bytes)?;
    output.finish()
}

/// A file of the user's while it is written, as [`write_atomic`] does.
pub enum Output {
    Beside(NamedTempFile, PathBuf),
    InPlace(File),
}

impl Output {
    /// Begins to write a file.
    pub fn create(path: &Path) -> io::Result<Output> {
        if !is_replaced(path) {
            #[cfg(feature = "full")]
            wait_for_reader(path)?;
            return OpenOptions::new().write(true).open(path).map(Output::InPlace);
        }
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        Ok(Output::Beside(temporary_beside(&path)?, path))
    }

    /// Puts the file in its place.
    pub fn finish(self) -> io::Result<()> {
        match self {
            Output::Beside(file, path) => file.persist(path).map(drop).map_err(|error| error.error),
            Output::InPlace(_) => Ok(()),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::Beside(file, _) => file.write(bytes),
            Output::InPlace(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long a pipe may have no reader.
#[cfg(feature = "full")]
const NO_READER: Duration = Duration::from_secs(10);

/// Waits a little for a program that reads a pipe, which may start after this one.
#[cfg(feature = "full")]
fn wait_for_reader(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    if !fs::metadata(path)?.file_type().is_fifo() {
        return Ok(());
    }
    let start = Instant::now();
    loop {
        match OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {}
            opened => return opened.map(drop),
        }
        if start.elapsed() > NO_READER {
            return Err(io::Error::new(ErrorKind::TimedOut, "no program reads this pipe"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether what is written there takes the place of a file, and not of a device or a pipe.
pub fn is_replaced(path: &Path) -> bool {
    fs::metadata(path).map_or(true, |there| there.is_file() || there.is_dir())
}

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
        let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
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
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
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
        let _ = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
}

/// Announces that a folder gets unfinished files. The first time, those of runs that were killed go.
fn announce(folder: &Path) {
    #[cfg(feature = "full")]
    if super::activity::temporaries_in(folder) {
        // SAFETY: asks whether a process is there.
        let is_gone = |process: i32| unsafe { libc::kill(process, 0) } != 0
            && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH);
        remove_temporaries(folder, |process| process > 0 && is_gone(process));
    }
    #[cfg(not(feature = "full"))]
    let _ = folder;
}

/// The user's temporary directory, in the program's own processes too.
pub fn temporary_directory() -> PathBuf {
    std::env::var_os(OWN_TMPDIR).map_or_else(std::env::temp_dir, PathBuf::from)
}

/// A temporary folder in the folder of `path`, which goes with all that is in it.
pub fn temporary_folder_beside(path: &Path) -> io::Result<tempfile::TempDir> {
    temporary_folder_in(folder_of(path))
}

/// A temporary folder in a folder, which goes with all that is in it.
pub fn temporary_folder_in(folder: &Path) -> io::Result<tempfile::TempDir> {
    announce(folder);
    tempfile::Builder::new().prefix(&temporary_prefix()).tempdir_in(folder)
}

/// A temporary file in the folder of `path`, readable by whom the umask lets, to be renamed to it.
pub fn temporary_beside(path: &Path) -> io::Result<NamedTempFile> {
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
