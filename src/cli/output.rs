//! What goes to the terminal: results to standard output, progress to standard error.

use std::{
    fs::File,
    io::{ErrorKind, IsTerminal, Write},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::OnceLock,
    time::Duration,
};

use console::Term;
use firstdiff::core::{activity, files};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::error::Error;

/// The user's standard output and standard error. What foreign code prints to the process's own must not
/// get there.
static STREAMS: OnceLock<[File; 2]> = OnceLock::new();

/// Makes these the user's streams, in a worker; the first call decides.
pub fn own_streams(streams: [File; 2]) {
    // A process has one pair.
    let _ = STREAMS.set(streams);
}

/// The user's standard output and standard error.
pub fn streams() -> &'static [File; 2] {
    STREAMS.get_or_init(|| {
        let copy = |stream: BorrowedFd<'_>| stream.try_clone_to_owned().map(File::from);
        let nowhere = |_| File::options().write(true).open("/dev/null");
        let copy = |stream| copy(stream).or_else(nowhere).expect("a process can open a file");
        [copy(std::io::stdout().as_fd()), copy(std::io::stderr().as_fd())]
    })
}

/// Prints a line to standard error.
pub fn say(line: &str) {
    ask(&format!("{line}\n"));
}

/// Prints a text to standard error as it is.
pub fn ask(text: &str) {
    if (&streams()[1]).write_all(text.as_bytes()).is_err() {
        // A kernel can close the stream; a parent process has it still.
        activity::unsaid(text.trim_end());
    }
}

/// Whether a person sees the progress.
pub fn is_seen() -> bool {
    streams()[1].is_terminal()
}

/// Prints a result. Colours are left out where the output is no terminal or NO_COLOR is set; a
/// reader that has gone (`| head`) is no error.
pub fn print(text: &str) -> Result<(), Error> {
    let written = streams()[0].try_clone().and_then(|file| {
        let mut out = anstream::AutoStream::auto(file);
        out.write_all(text.as_bytes()).and_then(|()| out.flush())
    });
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::Write { path: "standard output".into(), source: error })
        }
        _ => Ok(()),
    }
}

/// Writes a value as JSON to a file, or prints it where the path is `-`.
pub fn write_json(value: &impl Serialize, path: &Path) -> Result<(), Error> {
    let mut json = serde_json::to_string_pretty(value).expect("reports are plain data");
    json.push('\n');
    if is_stdout(path) {
        return print(&json);
    }
    files::write_atomic(path, json.as_bytes())
        .map_err(|source| Error::Write { path: path.to_path_buf(), source })
}

/// Writes a file that is no standard output.
pub fn write_file(path: &Path, text: &str) -> Result<(), Error> {
    files::write_atomic(path, text.as_bytes())
        .map_err(|source| Error::Write { path: path.to_path_buf(), source })
}

/// Refuses the path of an output that standard output cannot be, or whose folder cannot take it.
pub fn check_file(flag: &str, path: Option<&Path>) -> Result<(), Error> {
    match path {
        Some(path) if is_stdout(path) => {
            Err(Error::Usage(format!("{flag} writes a file; give it a path")))
        }
        path => check_json(path),
    }
}

/// Refuses a JSON path whose folder cannot take it, before hours of work.
pub fn check_json(path: Option<&Path>) -> Result<(), Error> {
    let Some(path) = path.filter(|path| !is_stdout(path) && files::is_replaced(path)) else {
        return Ok(());
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let writable = tempfile::tempfile_in(folder).map(drop);
    let writable = if path.is_dir() { Err(ErrorKind::IsADirectory.into()) } else { writable };
    writable.map_err(|source| Error::Write { path: path.to_path_buf(), source })
}

/// Whether a path means standard output.
pub fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// A spinner or bar on standard error, where that is a terminal.
pub fn progress(length: Option<u64>, message: &'static str) -> ProgressBar {
    if !is_seen() {
        return ProgressBar::hidden();
    }
    let bar = match length {
        Some(length) => ProgressBar::new(length),
        None => ProgressBar::new_spinner(),
    };
    if let Ok((read, write)) =
        streams()[1].try_clone().and_then(|file| Ok((file.try_clone()?, file)))
    {
        bar.set_draw_target(ProgressDrawTarget::term(Term::read_write_pair(read, write), 20));
    }
    let template = match length {
        Some(_) => "{msg} {wide_bar} {pos}/{len} {elapsed}",
        None => "{spinner} {msg} {elapsed}",
    };
    bar.set_style(ProgressStyle::with_template(template).expect("a fixed template"));
    bar.enable_steady_tick(Duration::from_millis(120));
    bar.with_message(message)
}
