//! What goes to the terminal: results to standard output, progress to standard error.

use std::{
    fs::File,
    io::{ErrorKind, IsTerminal, Write},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use console::Term;
use firstdiff::core::{
    activity,
    exit::Exit,
    files,
    progress::{self, Progress},
    spans,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::{
    error::Error,
    harmless::{harmless, shortened},
};

/// Narrower than this nothing is readable.
const LEAST_WIDTH: usize = 40;

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

/// Prints what ended a command, on one line but for what a compiler said.
pub fn fail(error: &Error) {
    let text = format!("firstdiff: {error}");
    say(&text.replace('\n', if error.may_have_lines() { "\n| " } else { "\\n" }));
}

/// Prints a text to standard error, and what is anybody's in it as [`harmless`] has it.
pub fn ask(text: &str) {
    let lines = text.split_inclusive('\n').map(shortened).collect::<String>();
    tell(&harmless(&lines, false));
}

/// Prints a text to standard error as it is.
pub fn tell(text: &str) {
    if (&streams()[1]).write_all(text.as_bytes()).is_err() {
        // A kernel can close the stream; a parent process has it still.
        activity::unsaid(text.trim_end());
    }
}

/// Whether a person sees the progress.
pub fn is_seen() -> bool {
    streams()[1].is_terminal()
}

/// Prints a result, and what is anybody's in it as [`harmless`] has it.
pub fn print(text: &str) -> Result<(), Error> {
    print_raw(&harmless(text, true))
}

/// Prints a result as it is. Colours are left out where the output is no terminal or NO_COLOR is set; a
/// reader that has gone (`| head`) is no error.
pub fn print_raw(text: &str) -> Result<(), Error> {
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

/// Prints a report, with no line longer than the terminal is wide.
pub fn print_wrapped(text: &str) -> Result<(), Error> {
    let width = streams()[0].try_clone().ok().filter(File::is_terminal).and_then(|file| {
        let copy = file.try_clone().ok()?;
        Some(usize::from(Term::read_write_pair(file, copy).size_checked()?.1))
    });
    match width {
        Some(width) => print(&wrapped(text, width.max(LEAST_WIDTH))),
        None => print(text),
    }
}

/// A text whose lines have at most so many columns; what goes on begins below what it goes on with.
fn wrapped(text: &str, width: usize) -> String {
    let lines = text.lines().flat_map(|line| {
        let indent = " ".repeat(indent(&console::strip_ansi_codes(line)));
        let options = textwrap::Options::new(width).subsequent_indent(&indent);
        textwrap::wrap(line, options)
            .into_iter()
            .map(|line| line.into_owned() + "\n")
            .collect::<Vec<_>>()
    });
    lines.collect()
}

/// The column at which the content of a line begins: behind its label or number.
fn indent(line: &str) -> usize {
    let spaces = line.len() - line.trim_start().len();
    let has_label = spaces == 2 && line.is_char_boundary(13) && line[..13].ends_with(' ');
    let number = line.trim_start().split_once(". ").map_or("", |(number, _)| number);
    match spaces {
        0 => 2,
        _ if has_label => 13,
        _ if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => {
            spaces + number.len() + 2
        }
        _ => spaces,
    }
}

/// Prints a value as JSON.
pub fn print_json(value: &impl Serialize) -> Result<(), Error> {
    print(&json(value))
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("reports are plain data") + "\n"
}

/// Writes a value as JSON to a file, or prints it where the path is `-`.
pub fn write_json(value: &impl Serialize, path: &Path) -> Result<(), Error> {
    if is_stdout(path) {
        return print_json(value);
    }
    let json = json(value);
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

/// Runs a command, and writes where its time went if a file for that is named.
pub fn traced(
    path: Option<&Path>,
    command: impl FnOnce() -> Result<Exit, Error>,
) -> Result<Exit, Error> {
    let Some(path) = path else { return command() };
    check_file("--trace-events", Some(path))?;
    spans::collect();
    spans::lane("main");
    let exit = command()?;
    write_file(path, &spans::trace_events().to_string())?;
    Ok(exit)
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
    let bar = bar.with_message(message);
    *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = Some((bar.clone(), ""));
    bar
}

/// The bar that is shown, and what it counts.
static CURRENT: Mutex<Option<(ProgressBar, &str)>> = Mutex::new(None);

/// Shows on the command's bar how far a run has come, where a person sees it.
pub fn show_progress() {
    if is_seen() {
        progress::told_by(|now| {
            let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((bar, counted)) = current.as_mut() {
                show(bar, counted, now);
            }
        });
    }
}

fn show(bar: &ProgressBar, counted: &mut &'static str, now: &Progress) {
    if now.what != *counted {
        *counted = now.what;
        let template = "{msg} {wide_bar} {pos}/{len} {per_sec} {eta} left";
        bar.set_style(ProgressStyle::with_template(template).expect("a fixed template"));
        bar.reset();
    }
    bar.set_length(now.total as u64);
    bar.set_position(now.done as u64);
    let place = now.at.map_or(String::new(), |site| match site.layer {
        Some(layer) => format!(" step {} layer {layer}", site.step),
        None => format!(" step {}", site.step),
    });
    bar.set_message(format!("{}{place}", now.what));
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn a_long_line_goes_on_below_its_content_in_any_width() {
        let text = "first divergence: step 0 layer 0 q_rope [position 1, head 0, dim 0]\n\n\
                    \x20 \x1b[2mcoverage  \x1b[0m 395 of 395 sites compared: 4 layers, 86 prompt tokens\n\
                    \x20  1. q and k rotation, all layers: \x1b[31mpairs (2i, 2i+1) instead\x1b[0m (proven)\n\
                    \x20     91,119 of 92,160 elements beyond the bound; worst 1.3e8 x bound: step 0\n";
        for width in 40..90 {
            let lines = wrapped(text, width);
            let plain = console::strip_ansi_codes(&lines).into_owned();
            assert!(plain.lines().all(|line| line.chars().count() <= width), "{width}: {plain}");
            let words =
                |text: &str| text.split_whitespace().map(str::to_string).collect::<Vec<_>>();
            assert_eq!(words(&plain), words(&console::strip_ansi_codes(text)), "{width}");
        }
        let narrow = console::strip_ansi_codes(&wrapped(text, 50)).into_owned();
        let [label, number] = [
            "sites compared: 4 layers,\n             86 prompt tokens\n",
            "\n   1. q and k rotation, all layers: pairs (2i,\n      2i+1) instead (proven)\n",
        ];
        assert!(narrow.contains(label) && narrow.contains(number), "{narrow}");
        assert_eq!(wrapped(text, 200), text);
    }
}
