//! Runs a probe or a child process so that neither a panic nor a hang gets out.

use std::{
    any::Any,
    cell::Cell,
    io::Read,
    panic,
    process::{Command, Stdio},
    sync::{
        Once,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use super::probes::Finding;

/// A driver that initialises eight GPUs takes seconds; one that takes this long hangs.
const PROBE_LIMIT: Duration = Duration::from_secs(30);
/// Less than a probe's, so that the message says which command it was.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

thread_local! {
    static SILENT: Cell<bool> = const { Cell::new(false) };
}

/// A probe that was started.
pub(super) struct Run {
    finding: Receiver<Finding>,
    deadline: Instant,
}

/// Starts a probe on a thread of its own.
pub(super) fn start(find: fn() -> Finding) -> Run {
    start_with_limit(find, PROBE_LIMIT)
}

fn start_with_limit(find: fn() -> Finding, limit: Duration) -> Run {
    let (sender, finding) = mpsc::channel();
    let deadline = Instant::now() + limit;
    let work = move || {
        let found = caught(find).unwrap_or_else(|panic| Finding::failed(one_line(&panic)));
        // The receiver is gone after the deadline, and with it the interest in the finding.
        let _ = sender.send(found);
    };
    // Where no thread can be had the sender is dropped, which `finish` reports.
    let _ = thread::Builder::new().name("probe".to_owned()).spawn(work);
    Run { finding, deadline }
}

impl Run {
    /// Waits for the finding, up to the deadline. A thread that hangs is left behind: nothing can
    /// end it, and it ends with the process.
    pub(super) fn finish(self) -> Finding {
        let left = self.deadline.saturating_duration_since(Instant::now());
        self.finding.recv_timeout(left).unwrap_or_else(|error| match error {
            RecvTimeoutError::Timeout => Finding::failed("no answer in time: it hung"),
            RecvTimeoutError::Disconnected => Finding::failed("the probe could not be started"),
        })
    }
}

/// Runs a closure; a panic comes back as its text and prints nothing.
fn caught<T>(work: impl FnOnce() -> T + panic::UnwindSafe) -> Result<T, String> {
    static HOOK: Once = Once::new();
    // The hook is the process's, so it stays in place and passes on every other thread's panic.
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !SILENT.get() {
                previous(info);
            }
        }));
    });
    SILENT.set(true);
    let result = panic::catch_unwind(work);
    SILENT.set(false);
    result.map_err(|payload| message(payload.as_ref()))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or(payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without text").to_owned()
}

/// The text on one line, with the first 300 characters of it.
pub(super) fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ").chars().take(300).collect()
}

/// Runs a command without input and returns its standard output.
///
/// Errors: the command cannot be started, exits with a failure (then its standard error is the
/// text) or does not end in time (then it is killed).
pub(super) fn output(command: &mut Command) -> Result<String, String> {
    output_within(command, COMMAND_LIMIT)
}

fn output_within(command: &mut Command, limit: Duration) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        command.spawn().map_err(|error| format!("{program} does not start: {error}"))?;
    let deadline = Instant::now() + limit;
    // The output of a version or of a small compilation fits into a pipe, so it is read at the end.
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                // It may have ended this very moment; either way it is over.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{program} does not exit"));
            }
            Err(error) => return Err(format!("waiting for {program} failed: {error}")),
        }
    };
    if status.success() {
        Ok(read(child.stdout.take()))
    } else {
        let message = one_line(&read(child.stderr.take()));
        let message = if message.is_empty() { message } else { format!(": {message}") };
        Err(format!("{program}: {status}{message}"))
    }
}

fn read(stream: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    // What could be read is shown; a message cut short is better than none.
    let _ = stream.map(|mut stream| stream.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn a_probe_that_panics_is_a_finding_with_the_panics_text() {
        let found = start(|| panic!("no library\nlibx.so")).finish();
        assert_eq!((found.status, found.detail.as_str()), (Status::Failed, "no library libx.so"));
    }

    #[test]
    fn a_probe_that_hangs_is_a_finding() {
        let hang = || {
            thread::sleep(Duration::from_secs(5));
            Finding::ok("late")
        };
        let found = start_with_limit(hang, Duration::from_millis(20)).finish();
        assert_eq!(found.status, Status::Failed);
        assert!(found.detail.contains("hung"), "{}", found.detail);
    }

    #[test]
    fn a_command_that_hangs_is_killed() {
        let result = output_within(Command::new("sleep").arg("5"), Duration::from_millis(20));
        assert_eq!(result, Err("sleep does not exit".to_owned()));
    }

    #[test]
    fn a_command_that_fails_gives_its_message() {
        let result = output(Command::new("sh").args(["-c", "echo wrong >&2; exit 3"]));
        assert_eq!(result, Err("sh: exit status: 3: wrong".to_owned()));
    }
}
