//! Signals to the program, as bytes of a pipe that can be waited for.

use std::{
    ffi::c_int,
    io::{PipeReader, PipeWriter, Read},
    os::fd::{AsRawFd, RawFd},
    sync::atomic::{AtomicI32, Ordering::Relaxed},
};

/// The signals that end the program.
const ENDING: [c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// The pipe's end that the handler writes to.
static WRITER: AtomicI32 = AtomicI32::new(-1);

/// Signals since the start.
pub struct Signals {
    reader: PipeReader,
    _writer: PipeWriter,
}

impl Signals {
    /// Listens to the signals that end the program, and to the ends of child processes. A signal that is
    /// ignored, as under nohup, stays so.
    pub fn new() -> std::io::Result<Signals> {
        let (reader, writer) = std::io::pipe()?;
        for file in [reader.as_raw_fd(), writer.as_raw_fd()] {
            set_nonblocking(file)?;
        }
        WRITER.store(writer.as_raw_fd(), Relaxed);
        for signal in ENDING.into_iter().chain([libc::SIGCHLD]) {
            // SAFETY: the action is zeroed and filled; the handler only writes a byte.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, std::ptr::null(), &mut action);
                if action.sa_sigaction == libc::SIG_IGN && signal != libc::SIGCHLD {
                    continue;
                }
                action = std::mem::zeroed();
                action.sa_sigaction = note as *const () as usize;
                action.sa_flags = libc::SA_RESTART;
                libc::sigemptyset(&mut action.sa_mask);
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        }
        Ok(Signals { reader, _writer: writer })
    }

    /// What to wait on.
    pub fn file(&self) -> RawFd {
        self.reader.as_raw_fd()
    }

    /// The first signal that ends the program, if one has come.
    pub fn ending(&self) -> Option<c_int> {
        let mut bytes = [0; 64];
        // An empty pipe is an error here.
        let n = (&self.reader).read(&mut bytes).unwrap_or(0);
        let mut signals = bytes[..n].iter().map(|&byte| c_int::from(byte));
        signals.find(|signal| ENDING.contains(signal))
    }
}

extern "C" fn note(signal: c_int) {
    let byte = signal as u8;
    // SAFETY: one byte of ours to a pipe that lives as long as the program. What was interrupted finds the
    // error number that it left.
    unsafe {
        #[cfg(target_os = "linux")]
        let number = libc::__errno_location();
        #[cfg(not(target_os = "linux"))]
        let number = libc::__error();
        let before = *number;
        libc::write(WRITER.load(Relaxed), std::ptr::from_ref(&byte).cast(), 1);
        *number = before;
    }
}

/// Lets reads and writes of a descriptor return at once.
pub fn set_nonblocking(file: RawFd) -> std::io::Result<()> {
    // SAFETY: the descriptor is open.
    let result = unsafe { libc::fcntl(file, libc::F_SETFL, libc::O_NONBLOCK) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
