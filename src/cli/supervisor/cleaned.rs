//! What a worker leaves: processes and unfinished files.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use firstdiff::core::{activity::Page, files};

use super::spawn::Worker;

/// Longest wait for the ends of processes that were killed.
const LIMIT: Duration = Duration::from_secs(5);

/// A folder for the temporary files of the worker, of its compilers and of whatever else it starts, if there
/// is room.
pub fn scratch_folder() -> Option<tempfile::TempDir> {
    files::temporary_folder_beside(&std::env::temp_dir().join("x")).ok()
}

/// Makes this process the parent of those that lose theirs, where the system can.
pub fn adopt_orphans() {
    #[cfg(target_os = "linux")]
    // SAFETY: a plain system call.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
    }
}

/// Ends the worker, its process group, and all that they have started and left.
pub fn end_all(worker: &mut Worker) {
    let pid = worker.pid();
    let start = Instant::now();
    loop {
        // SAFETY: plain system calls. The worker is a child that nobody has waited for, so that its number
        // is still its own, and its group's.
        unsafe {
            libc::kill(-pid, libc::SIGKILL);
            libc::kill(pid, libc::SIGKILL);
        }
        for orphan in children() {
            // SAFETY: a child of this process that nobody has waited for.
            unsafe { libc::kill(orphan, libc::SIGKILL) };
        }
        if !others_end(pid) || start.elapsed() > LIMIT {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    // Its end is known already.
    let _ = worker.child.wait();
}

/// Waits for the ends of children but the worker; whether any is left.
fn others_end(worker: i32) -> bool {
    let mut any = false;
    for child in children().into_iter().filter(|&child| child != worker) {
        any = true;
        // SAFETY: a plain system call.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::WNOHANG) };
    }
    any
}

/// The children of this process, as Linux lists them.
fn children() -> Vec<i32> {
    let own = std::process::id();
    let listed = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
    let listed = listed.unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Removes the unfinished files and folders of a worker that has ended.
pub fn remove_leftovers(worker: &Worker, page: &Page) {
    for folder in page.folders() {
        files::remove_temporaries(Path::new(&folder), |pid| pid == worker.pid());
    }
}
