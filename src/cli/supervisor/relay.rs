//! What foreign code prints, on its way to the user's standard error.

use std::{
    collections::VecDeque,
    fs::File,
    io::Read,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use super::signals::set_nonblocking;
use crate::cli::output;

/// Marks what is not the program's own.
const MARK: &str = "| ";
/// How long a line is held back: if the worker dies meanwhile, it goes into the line that says so.
const HELD: Duration = Duration::from_millis(500);
/// Lines that are held back at the same time, and bytes of a line.
const LINES: usize = 64;
const LINE_BYTES: usize = 4096;

/// Lines that foreign code has printed and the user has not seen.
pub struct Relay {
    pipe: File,
    part: Vec<u8>,
    lines: VecDeque<(Instant, String)>,
}

impl Relay {
    pub fn new(pipe: OwnedFd) -> std::io::Result<Relay> {
        set_nonblocking(pipe.as_raw_fd())?;
        Ok(Relay { pipe: File::from(pipe), part: Vec::new(), lines: VecDeque::new() })
    }

    /// What to wait on.
    pub fn file(&self) -> RawFd {
        self.pipe.as_raw_fd()
    }

    /// Reads what is there, and passes on what was held long enough. Whether the pipe is still open.
    pub fn pass_on(&mut self) -> bool {
        let is_open = self.read();
        while self.lines.front().is_some_and(|(since, _)| since.elapsed() >= HELD) {
            self.pass_line();
        }
        is_open
    }

    fn read(&mut self) -> bool {
        let mut bytes = [0; 8192];
        // A flood gets its turn, and the rest of the watch too.
        for _ in 0..64 {
            match self.pipe.read(&mut bytes) {
                Ok(0) => return false,
                Ok(n) => self.take(&bytes[..n]),
                Err(_) => return true,
            }
        }
        true
    }

    fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' || self.part.len() >= LINE_BYTES {
                self.end_line();
            }
            if byte != b'\n' {
                self.part.push(byte);
            }
        }
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.part)).into_owned();
        let shown = line.chars().map(|c| if c.is_control() && c != '\t' { '.' } else { c });
        self.lines.push_back((Instant::now(), shown.collect()));
        if self.lines.len() > LINES {
            self.pass_line();
        }
    }

    fn pass_line(&mut self) {
        if let Some((_, line)) = self.lines.pop_front() {
            output::say(&format!("{MARK}{line}"));
        }
    }

    /// Ends the reading. What is held back is passed on, or is the answer where the worker died.
    pub fn finish(&mut self, died: bool) -> Vec<String> {
        self.read();
        if !self.part.is_empty() {
            self.end_line();
        }
        if died {
            return self.lines.drain(..).map(|(_, line)| line).collect();
        }
        while !self.lines.is_empty() {
            self.pass_line();
        }
        Vec::new()
    }
}
