//! Waiting for a worker: its end, signals to the program, and foreign code that does not come back.

use std::{ffi::c_int, io, time::Duration};

use firstdiff::core::activity::{Foreign, Page, SlotView, now};

use super::{BYTES_A_SECOND, LIMIT, signals::Signals, spawn::Worker};

/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(100);
/// A tick that took so long was none: the program was stopped, and so was the worker.
const STOPPED: u64 = 2_000;

/// How long a worker may take to end with what it has so far, in milliseconds.
const PATIENCE: u64 = 30_000;

/// How the wait ended.
pub enum Ended {
    /// A signal ended the program.
    Interrupted(c_int),
    Died(Cause),
}

/// How a worker ended that did not come to its end.
pub enum Cause {
    Exited(i32),
    Signalled(c_int),
    /// Foreign code did not come back for so many seconds.
    Hung(SlotView, u64),
    /// The system had too little memory and chose it.
    OutOfMemory,
}

/// Waits for the worker; `limit` is the user's, in seconds. A worker that came to its end has noted so on
/// the page, whatever is returned.
pub fn wait(
    worker: &mut Worker,
    page: &Page,
    signals: &Signals,
    limit: Option<f64>,
) -> io::Result<Ended> {
    let killed_before = memory_kills();
    let mut last_tick = now();
    // Foreign work is as old as this at most.
    let mut earliest = 0;
    let mut reads = true;
    // The signal that the worker was told of, and when.
    let mut told = None;
    loop {
        match (signals.ending(), told) {
            (Some(signal), None) if signal != libc::SIGHUP && page.interrupt(signal) => {
                told = Some((signal, now()));
            }
            (Some(signal), _) => return Ok(Ended::Interrupted(signal)),
            (None, Some((signal, since))) if now() - since > PATIENCE => {
                return Ok(Ended::Interrupted(signal));
            }
            (None, _) => {}
        }
        reads = reads && worker.relay.pass_on();
        if let Some(status) = ended(worker.pid())? {
            return Ok(match status {
                Cause::Signalled(signal @ (libc::SIGINT | libc::SIGHUP | libc::SIGTERM))
                    if page.active().is_empty() =>
                {
                    Ended::Interrupted(signal)
                }
                Cause::Signalled(libc::SIGKILL) if memory_kills() > killed_before => {
                    Ended::Died(Cause::OutOfMemory)
                }
                cause => Ended::Died(cause),
            });
        }
        let time = now();
        if time - last_tick > STOPPED {
            earliest = time;
        }
        last_tick = time;
        let limit = limit.map_or_else(
            || LIMIT.as_millis() as u64 + (1e3 * page.model_bytes() as f64 / BYTES_A_SECOND) as u64,
            |seconds| (1e3 * seconds) as u64,
        );
        let age = |view: &SlotView| time.saturating_sub(view.since.max(earliest));
        let oldest = page.active().into_iter().max_by_key(age);
        if let Some(view) = oldest.filter(|view| age(view) > limit) {
            let seconds = (age(&view) + 500) / 1000;
            // All threads are as old then, and llama.cpp never stops the process.
            let kernel = page.active().into_iter().find(|view| view.who == Foreign::Kernel);
            let view = kernel.filter(|_| is_stopped(worker.pid())).unwrap_or(view);
            return Ok(Ended::Died(Cause::Hung(view, seconds)));
        }
        sleep(&[(true, signals.file()), (reads, worker.relay.file())]);
    }
}

/// Waits for a descriptor to have something, a tick at most.
fn sleep(files: &[(bool, c_int)]) {
    let asked = files.iter().filter(|(is_asked, _)| *is_asked);
    let mut polled: Vec<libc::pollfd> =
        asked.map(|&(_, fd)| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: the array is ours, with its own length. Whatever it returns, all is looked at.
    unsafe {
        libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, TICK.as_millis() as i32)
    };
}

/// How a child process ended, if it has. It stays a zombie, so that its number is nobody else's.
fn ended(pid: i32) -> io::Result<Option<Cause>> {
    // SAFETY: the struct is ours.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: as above.
    let result = unsafe { libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, flags) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(None) } else { Err(error) };
    }
    // SAFETY: waitid has filled the struct, or left its zeros.
    let (of, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok((of == pid).then_some(match info.si_code {
        libc::CLD_EXITED => Cause::Exited(status),
        _ => Cause::Signalled(status),
    }))
}

/// Whether a signal has stopped a process, as Linux shows it.
fn is_stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'))
}

/// Processes that Linux has ended for memory since it started; elsewhere always 0.
fn memory_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}
