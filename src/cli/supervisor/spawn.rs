//! Starting a worker, and being one.

use std::{
    fs::File,
    io::Seek,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
};

use firstdiff::core::{
    activity::{self, Journal, Page},
    exit::Exit,
    files,
};
use memmap2::{MmapMut, MmapOptions};

use super::relay::Relay;
use crate::cli::output;

unsafe extern "C" {
    /// The C library's.
    #[cfg_attr(target_vendor = "apple", link_name = "__stdoutp")]
    static stdout: *mut libc::FILE;
}

/// Tells a process that it is a worker: the file descriptors of the page, the journal, and the user's
/// standard output and standard error.
const WORKER: &str = "FIRSTDIFF_WORKER";

/// What a worker and its parent share.
pub struct Shared {
    page_file: File,
    journal_file: File,
    map: MmapMut,
}

impl Shared {
    pub fn new() -> std::io::Result<Shared> {
        let page_file = memory_file()?;
        page_file.set_len(Page::BYTES as u64)?;
        // SAFETY: the file is ours and the worker's, and stays as long as it is.
        let map = unsafe { MmapOptions::new().map_mut(&page_file) }?;
        Ok(Shared { page_file, journal_file: memory_file()?, map })
    }

    pub fn page(&self) -> &Page {
        Page::of(&self.map)
    }

    /// The journal as it is now.
    pub fn journal(&self) -> std::io::Result<Journal> {
        Journal::read(self.journal_file.try_clone()?)
    }

    /// Makes the page as new.
    pub fn clear(&self) -> std::io::Result<()> {
        self.page_file.set_len(0)?;
        self.page_file.set_len(Page::BYTES as u64)
    }
}

/// A file in memory; where the system has none, one without a name.
fn memory_file() -> std::io::Result<File> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: the name is NUL-terminated; the descriptor is ours alone.
        let file = unsafe { libc::memfd_create(c"firstdiff".as_ptr(), libc::MFD_CLOEXEC) };
        if file >= 0 {
            // SAFETY: as above.
            return Ok(unsafe { File::from_raw_fd(file) });
        }
    }
    tempfile::tempfile()
}

/// A process that runs the command.
pub struct Worker {
    pub child: Child,
    pub relay: Relay,
}

impl Worker {
    /// Its process, which is its process group too.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }
}

/// Starts this program again, with the same arguments, in a process group of its own.
pub fn spawn(shared: &Shared, scratch: Option<&Path>, reads: bool) -> std::io::Result<Worker> {
    let (reader, writer) = std::io::pipe()?;
    let [out, err] = output::streams();
    let files: [RawFd; 4] =
        [&shared.page_file, &shared.journal_file, out, err].map(AsRawFd::as_raw_fd);
    let inherited = files.into_iter().map(inheritable).collect::<std::io::Result<Vec<_>>>()?;
    let numbers: Vec<String> = inherited.iter().map(|file| file.as_raw_fd().to_string()).collect();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1));
    command.env(WORKER, numbers.join(",")).env("GGML_NO_BACKTRACE", "1");
    if let Some(scratch) = scratch {
        command.env(files::OWN_TMPDIR, std::env::temp_dir()).env("TMPDIR", scratch);
    }
    command.stdout(Stdio::from(writer.try_clone()?)).stderr(Stdio::from(writer));
    if !reads {
        command.process_group(0);
    }
    let parent = std::process::id() as i32;
    // SAFETY: only system calls that a forked process may make.
    unsafe { command.pre_exec(move || end_with(parent)) };
    let child = command.spawn()?;
    Ok(Worker { child, relay: Relay::new(reader.into())? })
}

/// A copy of a descriptor that a started program keeps.
fn inheritable(file: RawFd) -> std::io::Result<OwnedFd> {
    // SAFETY: the descriptor is open; its copy is ours alone.
    let copy = unsafe { libc::fcntl(file, libc::F_DUPFD, 10) };
    if copy < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Lets the process end with its parent, where the system can.
fn end_with(parent: i32) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    // SAFETY: plain system calls.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() != parent {
            libc::_exit(0);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = parent;
    Ok(())
}

/// Whether this process is a worker. If so, its notes go to its parent from now on.
pub fn be_worker() -> bool {
    let Some(numbers) = std::env::var_os(WORKER) else { return false };
    // SAFETY: no other thread has been started. A program that this one starts is no worker.
    unsafe { std::env::remove_var(WORKER) };
    let numbers = numbers.to_string_lossy();
    let files: Vec<File> = numbers.split(',').filter_map(inherited).collect();
    let Ok([page, mut journal, out, err]) = <[File; 4]>::try_from(files) else { return false };
    if page.metadata().is_ok_and(|metadata| metadata.len() != Page::BYTES as u64) {
        return false;
    }
    // SAFETY: the file is ours and the parent's.
    let Ok(map) = (unsafe { MmapOptions::new().map_mut(&page) }) else { return false };
    activity::share(Box::leak(Box::new(map)));
    let read = journal.rewind().and_then(|()| Journal::read(journal));
    if let Ok(journal) = read {
        activity::open_journal(journal);
    }
    output::own_streams([out, err]);
    // SAFETY: plain calls. A process in the background may write to the terminal, and what a kernel prints is
    // seen line by line.
    unsafe {
        libc::signal(libc::SIGTTOU, libc::SIG_IGN);
        libc::setvbuf(stdout, std::ptr::null_mut(), libc::_IOLBF, 0);
    }
    activity::watch_faults();
    true
}

/// A descriptor that the parent has passed on, closed for programs that this one starts.
fn inherited(number: &str) -> Option<File> {
    let file: RawFd = number.parse().ok()?;
    // SAFETY: only an open descriptor above the standard ones is taken, and by nobody else.
    unsafe {
        let is_open = file > 2 && libc::fcntl(file, libc::F_SETFD, libc::FD_CLOEXEC) == 0;
        is_open.then(|| File::from_raw_fd(file))
    }
}

/// Ends a worker that came to its end. What foreign code has left to be done at the exit is not done: it may
/// crash or hang.
pub fn finish(exit: Exit) -> ! {
    // SAFETY: plain calls. What kernels have printed is in a buffer of the C library.
    unsafe { libc::fflush(std::ptr::null_mut()) };
    activity::finished(exit as u8);
    // SAFETY: all that is ours is written and dropped.
    unsafe { libc::_exit(exit as i32) }
}
