//! The line that says what a worker died of.

use firstdiff::{
    core::{
        activity::{Fault, Foreign, Page, SlotView},
        cache,
        exit::Exit,
    },
    reference::{Server, ServerError, listed},
};

use super::watched::Cause;

/// A death in words.
#[derive(Clone)]
pub struct Story {
    pub text: String,
    pub code: u8,
    /// The exit code as a result of a piece of work; `None` where all of the run is over.
    pub exit: Option<Exit>,
    /// The pieces of work, one of which it was.
    pub units: Vec<String>,
}

/// Tells a death; `said` is what foreign code printed last.
pub fn story(cause: &Cause, page: &Page, said: &[String]) -> Story {
    let leaving = page.leaving();
    let fault = page.fault().filter(|_| leaving.is_none());
    let is_traced = leaving.is_some()
        || matches!(cause, Cause::Hung(..))
        || fault.as_ref().is_some_and(|fault| fault.slot.is_some());
    let culprit = match (leaving, cause) {
        (Some(view), Cause::Exited(_) | Cause::Signalled(_)) => Some(view),
        _ => culprit(cause, fault.as_ref(), page),
    };
    let mut units: Vec<String> = page.active().into_iter().map(|view| view.unit).collect();
    units.sort();
    units.dedup();
    // A way to end that leaves no trace is that of any thread at work.
    let is_alone = is_traced || units.len() < 2;
    let own_unit = culprit.as_ref().map(|view| view.unit.clone()).filter(|unit| !unit.is_empty());
    let units = own_unit.filter(|_| is_alone).map_or_else(|| page.units(), |unit| vec![unit]);
    let (text, exit) = match (cut_file(fault.as_ref(), culprit.as_ref()), &culprit) {
        (Some(text), _) => (text, Exit::BadInput),
        // Whoever notices it is seldom the one who did it.
        (None, view)
            if view.as_ref().is_none_or(|view| view.who != Foreign::Kernel)
                && is_heap_damaged(said) =>
        {
            let text = "memory is corrupted, for example by a kernel that writes outside its buffers; --device checked and \
                        `firstdiff kernels check` name the line";
            (text.to_string(), Exit::Device)
        }
        (None, Some(view)) => of_foreign(view, cause, fault.as_ref(), page, said),
        (None, None) => return without_culprit(cause, fault.as_ref(), said, units),
    };
    Story { text, code: exit as u8, exit: Some(exit), units }
}

/// The thread whose foreign code ended the worker.
fn culprit(cause: &Cause, fault: Option<&Fault>, page: &Page) -> Option<SlotView> {
    if let Cause::Hung(view, _) = cause {
        return Some(view.clone());
    }
    if let Some(view) = fault.and_then(|fault| fault.slot.clone()) {
        // A thread in our own code has no one to blame.
        return (view.since != 0).then_some(view);
    }
    // A thread that the foreign code has started, or a way to end that leaves no trace. llama.cpp leaves the
    // process by an abort alone.
    let of = |who: Foreign| page.active().into_iter().find(|view| view.who == who);
    let of_llama = || of(Foreign::Server).or_else(|| of(Foreign::Llama));
    match fault {
        // llama.cpp is a part of the program's own file.
        Some(fault) if is_own(&fault.code) => of_llama(),
        Some(_) => of(Foreign::Kernel).or_else(of_llama),
        None if matches!(cause, Cause::OutOfMemory) => None,
        None => of(Foreign::Kernel).or_else(of_llama).or_else(|| of(Foreign::Machine)),
    }
}

/// Whether the path is that of this program.
fn is_own(path: &str) -> bool {
    std::env::current_exe().is_ok_and(|own| own.as_os_str() == path)
}

/// A file that was cut while it was mapped.
fn cut_file(fault: Option<&Fault>, culprit: Option<&SlotView>) -> Option<String> {
    let fault = fault.filter(|fault| fault.signal == libc::SIGBUS && !fault.mapped.is_empty())?;
    let mut file = fault.mapped.trim_end_matches(" (deleted)").to_string();
    let of_llama = culprit.filter(|view| view.who == Foreign::Llama);
    if let Some(view) = of_llama.filter(|_| file.starts_with(&*cache::root().to_string_lossy())) {
        file = format!("the copy of {}, {file},", view.subject);
    }
    Some(format!(
        "{file} was truncated, or its disk failed, while it was read; do not change it during a run"
    ))
}

/// Whether the C library found its heap damaged.
fn is_heap_damaged(said: &[String]) -> bool {
    let words = ["malloc", "free()", "realloc()", "corrupted", "munmap_chunk()"];
    said.iter().any(|line| words.iter().any(|word| line.starts_with(word)))
}

fn of_foreign(
    view: &SlotView,
    cause: &Cause,
    fault: Option<&Fault>,
    page: &Page,
    said: &[String],
) -> (String, Exit) {
    let SlotView { who, subject, doing, .. } = view;
    let how = how(cause, fault);
    match who {
        Foreign::Kernel => {
            let place = view.place.map_or(String::new(), |place| match place.layer {
                Some(layer) => format!(" in layer {layer} of step {}", place.step),
                None => format!(" in step {}", place.step),
            });
            let last = last(said).map_or(String::new(), |line| format!(", and printed {line:?}"));
            let next = match (cause, fault) {
                (Cause::Hung(..), _) => {
                    "fix the endless loop or wait, or allow more with --timeout"
                }
                (_, Some(_)) => {
                    "fix it; --device checked and `firstdiff kernels check` name the line of a bad access"
                }
                _ => "a kernel must not end the program; fix it",
            };
            (format!("{subject}: {doing} {how}{place}{last}; {next}"), Exit::Device)
        }
        Foreign::Compiler => {
            let next = "simplify the kernel, or allow more with --timeout";
            (format!("{subject}: the compiler {how}; {next}"), Exit::Device)
        }
        Foreign::Machine => {
            let next = "`firstdiff doctor` checks this machine";
            (format!("{subject} {how} while it {doing}; {next}"), Exit::Device)
        }
        Foreign::Llama => {
            let next = "check the file with llama.cpp's own tools, or convert it again";
            let why = why(page, said);
            let node = match &view.node[..] {
                "" => String::new(),
                node => format!(" up to its node {node}"),
            };
            let text = if why.is_empty() {
                format!("llama.cpp {how} while it {doing}{node}: {subject}; {next}")
            } else {
                format!(
                    "llama.cpp cannot continue with {subject}: {why}, while it {doing}{node}; {next}"
                )
            };
            (text, Exit::BadInput)
        }
        Foreign::Server => (of_servers(view, &how, &why(page, said)), Exit::Device),
    }
}

/// What came of llama.cpp's servers, the worker's connections to which are closed by now. The abort does not name
/// the one that it is about.
fn of_servers(view: &SlotView, how: &str, why: &str) -> String {
    let SlotView { subject, doing, .. } = view;
    let node = match &view.node[..] {
        "" => String::new(),
        node => format!(" up to its node {node}"),
    };
    if !why.is_empty() && !why.contains("ggml-rpc") {
        return format!(
            "llama.cpp cannot go on with the RPC server {subject}: {why}, as it {doing}{node}; see whether it can \
             without --rpc"
        );
    }
    let servers = subject.split(", ").filter_map(|text| Server::parse(text).ok());
    let failed: Vec<(Server, ServerError)> =
        servers.filter_map(|server| server.greet().err().map(|error| (server, error))).collect();
    // One that is alive may still compute, and be silent.
    let is_gone =
        |(_, error): &&(Server, ServerError)| !matches!(error, ServerError::Silent { .. });
    let gone: Vec<Server> =
        failed.iter().filter(is_gone).map(|(server, _)| server.clone()).collect();
    let silent = failed.iter().map(|(server, _)| server.clone()).collect();
    let named = if gone.is_empty() { silent } else { gone };
    let what = match (&named[..], why) {
        ([], "") => format!("the RPC server {subject} {how}"),
        ([], _) => format!("the RPC server {subject} has closed the connection"),
        (named, _) => format!("the RPC server {} does not answer any more", listed(named)),
    };
    format!(
        "{what}, as llama.cpp {doing}{node}; see what the server printed, start it again, and repeat the command"
    )
}

/// Why llama.cpp ended the process: its assertion, or what it threw.
fn why(page: &Page, said: &[String]) -> String {
    let abort = page.abort();
    if !abort.is_empty() {
        // Without the paths of the machine that built it.
        return abort
            .rsplit_once("/llama.cpp/")
            .map_or(abort.clone(), |(_, rest)| rest.to_string());
    }
    let thrown = said.iter().find_map(|line| line.trim().strip_prefix("what():"));
    let other =
        || said.iter().find(|line| line.contains("terminate called") || line.contains("(): "));
    let line = thrown.or_else(|| other().map(String::as_str));
    line.unwrap_or_default().trim().chars().take(300).collect()
}

fn how(cause: &Cause, fault: Option<&Fault>) -> String {
    match (cause, fault) {
        (Cause::Hung(_, seconds), _) => format!("has not returned for {seconds} s"),
        (_, Some(fault)) if fault.signal == libc::SIGABRT => "aborted".to_string(),
        (_, Some(fault)) => {
            let at = match fault.signal {
                libc::SIGSEGV | libc::SIGBUS => format!(" at address {:#x}", fault.address),
                _ => String::new(),
            };
            format!("crashed ({}{at})", signal_name(fault.signal))
        }
        (Cause::Exited(code), None) => format!("ended the program (exit status {code})"),
        (Cause::Signalled(libc::SIGKILL), None) => {
            "was killed with the program (SIGKILL)".to_string()
        }
        (Cause::Signalled(signal), None) => format!("ended the program ({})", signal_name(*signal)),
        (Cause::OutOfMemory, None) => "used up all memory".to_string(),
    }
}

fn last(said: &[String]) -> Option<&str> {
    said.iter().rev().map(|line| line.trim()).find(|line| !line.is_empty())
}

/// A death of the program's own.
fn without_culprit(
    cause: &Cause,
    fault: Option<&Fault>,
    said: &[String],
    units: Vec<String>,
) -> Story {
    const MEMORY: &str = "use a smaller model, a shorter prompt or a machine with more";
    let no_memory = said.iter().find(|line| line.starts_with("memory allocation of "));
    let (text, code, exit) = match (cause, no_memory) {
        (Cause::OutOfMemory, _) => (
            format!("the system ran out of memory; {MEMORY}"),
            Exit::Device as u8,
            Some(Exit::Device),
        ),
        (_, Some(line)) => (format!("{line}; {MEMORY}"), Exit::Device as u8, Some(Exit::Device)),
        (Cause::Signalled(libc::SIGKILL), _) => {
            let text =
                format!("something killed the run (SIGKILL), such as a memory limit; {MEMORY}");
            (text, Exit::Device as u8, Some(Exit::Device))
        }
        _ => {
            let how = how(cause, fault);
            let last = last(said).map_or(String::new(), |line| format!(": {line}"));
            let text = format!("internal error: the program {how}{last}; please report it");
            (text, Exit::Internal as u8, None)
        }
    };
    Story { text, code, exit, units }
}

fn signal_name(signal: i32) -> String {
    let known = [
        (libc::SIGSEGV, "SIGSEGV"),
        (libc::SIGBUS, "SIGBUS"),
        (libc::SIGILL, "SIGILL"),
        (libc::SIGFPE, "SIGFPE"),
        (libc::SIGABRT, "SIGABRT"),
        (libc::SIGTRAP, "SIGTRAP"),
        (libc::SIGSYS, "SIGSYS"),
        (libc::SIGKILL, "SIGKILL"),
        (libc::SIGTERM, "SIGTERM"),
        (libc::SIGINT, "SIGINT"),
        (libc::SIGHUP, "SIGHUP"),
        (libc::SIGALRM, "SIGALRM"),
        (libc::SIGPIPE, "SIGPIPE"),
        (libc::SIGXCPU, "SIGXCPU"),
        (libc::SIGXFSZ, "SIGXFSZ"),
    ];
    let name = known.iter().find(|(number, _)| *number == signal);
    name.map_or_else(|| format!("signal {signal}"), |(_, name)| name.to_string())
}
