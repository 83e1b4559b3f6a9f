//! What the working process notes. Cheap enough for every launch and every node of llama.cpp's graph.

use std::{
    cell::Cell,
    fs::File,
    os::fd::AsRawFd,
    path::Path,
    sync::{Mutex, OnceLock, atomic::Ordering::Relaxed},
};

use super::page::{Foreign, Place, Slot, now, page};

/// No slot.
const NONE: usize = usize::MAX;

thread_local! {
    /// The thread's slot. Without a destructor, so that a signal handler may read it.
    static SLOT: Cell<usize> = const { Cell::new(NONE) };
    static RELEASE: Release = const { Release };
}

/// Gives the slot back when the thread ends.
struct Release;

impl Drop for Release {
    fn drop(&mut self) {
        let at_work = |slot: &&Slot| slot.since.load(Relaxed) != 0;
        if page().slots.get(SLOT.get()).filter(at_work).is_some() {
            // A kernel calls exit: it is to blame for what comes of it, in other threads too.
            page().leaving.store(slot_number(), Relaxed);
            return;
        }
        if let Some(slot) = page().slots.get(SLOT.replace(NONE)) {
            slot.who.store(0, Relaxed);
            slot.since.store(0, Relaxed);
            slot.unit.set(b"");
            slot.taken.store(0, Relaxed);
        }
    }
}

/// The slot of this thread, from 1; 0 if it has none.
pub(super) fn slot_number() -> u32 {
    (SLOT.get().wrapping_add(1)) as u32
}

/// The thread's slot, taken at its first note. Where all are taken it goes unnoted.
fn slot() -> Option<&'static Slot> {
    let index = SLOT.get();
    if index != NONE {
        return page().slots.get(index);
    }
    let free = |slot: &Slot| slot.taken.compare_exchange(0, 1, Relaxed, Relaxed).is_ok();
    let index = page().slots.iter().position(free)?;
    SLOT.set(index);
    // Where the thread is ending the slot stays taken.
    let _ = RELEASE.try_with(|_| {});
    let slot = &page().slots[index];
    slot.set_place(None);
    Some(slot)
}

/// Foreign code that runs in this thread for as long as this lives.
pub struct Running {
    slot: Option<&'static Slot>,
    before: (u32, u64),
}

/// Notes that foreign code begins to work on a file: `doing` is a verb with what follows it.
pub fn running(who: Foreign, subject: &str, doing: &str) -> Running {
    let slot = slot();
    let mut before = (0, 0);
    if let Some(slot) = slot {
        before = (slot.who.load(Relaxed), slot.since.load(Relaxed));
        slot.subject.set(subject.as_bytes());
        slot.doing.set(doing.as_bytes());
        slot.node.set(b"");
        slot.who.store(who as u32, Relaxed);
        slot.since.store(now(), Relaxed);
    }
    Running { slot, before }
}

impl Running {
    /// Notes that it has come further, and what it does now.
    pub fn goes_on(&self, doing: &str) {
        if let Some(slot) = self.slot {
            slot.doing.set(doing.as_bytes());
            slot.since.store(now(), Relaxed);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            // What it was called within is under way anew.
            slot.since.store(if self.before.1 == 0 { 0 } else { now() }, Relaxed);
            slot.who.store(self.before.0, Relaxed);
        }
    }
}

/// Notes that foreign code has called ours about a node, which may wait for others before the foreign code
/// goes on.
pub fn our_turn<T>(node: &str, work: impl FnOnce() -> T) -> T {
    let slot = slot();
    if let Some(slot) = slot {
        slot.since.store(0, Relaxed);
    }
    let result = work();
    if let Some(slot) = slot {
        slot.node.set(node.as_bytes());
        slot.since.store(now(), Relaxed);
    }
    result
}

/// Notes that our part of a callback calls the foreign code again, which may not come back.
pub fn their_turn<T>(work: impl FnOnce() -> T) -> T {
    let slot = slot();
    let before = slot.map_or(0, |slot| slot.since.swap(now(), Relaxed));
    let result = work();
    if let Some(slot) = slot {
        slot.since.store(before, Relaxed);
    }
    result
}

/// Notes where the engine of this thread is.
pub fn place(step: u32, layer: Option<usize>) {
    if let Some(slot) = slot() {
        slot.set_place(Some(Place { step, layer: layer.map(|layer| layer as u32) }));
    }
}

/// Where this thread's engine is, to be told to another thread.
pub fn saved_place() -> Option<Place> {
    slot().and_then(Slot::place)
}

/// Notes where the engine is that this thread works for.
pub fn with_place(place: Option<Place>) {
    if let Some(slot) = slot() {
        slot.set_place(place);
    }
}

/// A piece of work for as long as this lives.
pub struct Unit {
    slot: Option<&'static Slot>,
    /// A thread that waits may begin another meanwhile.
    before: String,
}

/// Notes the piece of work that this thread begins.
pub fn unit(name: &str) -> Unit {
    let slot = slot();
    let mut before = String::new();
    if let Some(slot) = slot {
        before = slot.unit.get();
        slot.unit.set(name.as_bytes());
        slot.unit_since.store(now(), Relaxed);
    }
    Unit { slot, before }
}

impl Drop for Unit {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            slot.unit.set(self.before.as_bytes());
        }
    }
}

/// Notes that from now on this process ends by itself when it is told to, with a report of what it has so far.
pub fn leaves_verdict() {
    page().leaves_verdict.store(1, Relaxed);
}

/// The signal by which this process was told to end with what it has so far.
pub fn interrupted() -> Option<i32> {
    let signal = page().interrupt.load(Relaxed);
    (signal != 0).then_some(signal as i32)
}

/// Notes the exit code: the process has come to its end.
pub fn finished(code: u8) {
    page().finished.store(u32::from(code) + 1, Relaxed);
}

/// Notes why ggml ends the process.
pub fn abort_message(text: &str) {
    page().abort.set(text.as_bytes());
}

/// Notes a line for the user that could not be printed.
pub fn unsaid(line: &str) {
    page().unsaid.set(line.as_bytes());
}

/// Notes a model that takes time to be read.
pub fn loaded(bytes: u64) {
    page().model_bytes.fetch_add(bytes, Relaxed);
}

/// Notes a folder in which unfinished files may stay behind; whether it was not noted before.
pub fn temporaries_in(folder: &Path) -> bool {
    static WRITER: Mutex<()> = Mutex::new(());
    let Ok(_writer) = WRITER.lock() else { return false };
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
    let bytes = folder.as_os_str().as_encoded_bytes();
    let page = page();
    if page.folders().iter().any(|known| known.as_bytes() == bytes) {
        return false;
    }
    let n = page.n_folders.load(Relaxed) as usize;
    if let Some(text) = page.folders.get(n) {
        text.set(bytes);
        page.n_folders.store(n as u32 + 1, Relaxed);
    }
    true
}

/// The process that notes and its folder, once it is known to be watched.
static OWN: OnceLock<(u32, Option<File>)> = OnceLock::new();

/// Remembers this process and its folder, for [`after_kernel`].
pub(super) fn remember_process() {
    OWN.get_or_init(|| (std::process::id(), File::open(".").ok()));
}

/// Undoes what a kernel can do to its process without ending it: a copy that it made with fork would do
/// everything a second time, and in another folder files would go astray.
pub fn after_kernel() {
    let Some((own, folder)) = OWN.get() else { return };
    if *own != std::process::id() {
        page().forks.fetch_add(1, Relaxed);
        // SAFETY: ends the copy without running what is the original's to run.
        unsafe { libc::_exit(0) }
    }
    if let Some(folder) = folder {
        // SAFETY: a plain system call. A kernel that has closed the folder stays where it went.
        unsafe { libc::fchdir(folder.as_raw_fd()) };
    }
}
