//! What goes to the terminal: results to standard output, progress to standard error.

use std::{
    io::{ErrorKind, IsTerminal, Write},
    path::Path,
    time::Duration,
};

use firstdiff::core::files;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::error::Error;

/// Prints a result. Colours are left out where the output is no terminal or NO_COLOR is set; a
/// reader that has gone (`| head`) is no error.
pub fn print(text: &str) -> Result<(), Error> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
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
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = match length {
        Some(length) => ProgressBar::new(length),
        None => ProgressBar::new_spinner(),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr());
    let template = match length {
        Some(_) => "{msg} {wide_bar} {pos}/{len} {elapsed}",
        None => "{spinner} {msg} {elapsed}",
    };
    bar.set_style(ProgressStyle::with_template(template).expect("a fixed template"));
    bar.enable_steady_tick(Duration::from_millis(120));
    bar.with_message(message)
}
