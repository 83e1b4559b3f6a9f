//! The shared memory: plain data that two processes map.

use std::{
    cell::UnsafeCell,
    sync::{
        OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

/// Who works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Foreign {
    Llama = 1,
    Kernel = 2,
    Compiler = 3,
    /// A driver or a library of this machine.
    Machine = 4,
    /// llama.cpp, and its servers on other machines.
    Server = 5,
}

impl Foreign {
    fn of(number: u32) -> Option<Foreign> {
        use Foreign::*;
        [Llama, Kernel, Compiler, Machine, Server].into_iter().find(|who| *who as u32 == number)
    }
}

/// Where an engine's thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub step: u32,
    pub layer: Option<u32>,
}

/// Neither a step nor a layer.
const NONE: u32 = u32::MAX;
/// Threads that can be at foreign work at the same time and be noted.
const SLOTS: usize = 256;
/// Folders that can hold unfinished files.
const FOLDERS: usize = 32;

/// A text that one thread writes, and others may read torn.
#[repr(C)]
pub(super) struct Text<const N: usize> {
    length: AtomicU32,
    bytes: UnsafeCell<[u8; N]>,
}

// SAFETY: each text has one writer at a time. A reader copies bytes that may be torn, and takes them for no
// more than a text to show.
unsafe impl<const N: usize> Sync for Text<N> {}

impl<const N: usize> Text<N> {
    pub(super) fn set(&self, text: &[u8]) {
        let n = text.len().min(N);
        self.length.store(0, Relaxed);
        // SAFETY: `n` is at most N, and `text` is other memory.
        unsafe { self.bytes.get().cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), n) };
        self.length.store(n as u32, Relaxed);
    }

    pub(super) fn get(&self) -> String {
        let n = (self.length.load(Relaxed) as usize).min(N);
        let mut bytes = vec![0; n];
        // SAFETY: `n` is at most N, and `bytes` is other memory.
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(self.bytes.get().cast(), n) };
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// What a thread does.
#[repr(C)]
pub(super) struct Slot {
    pub(super) taken: AtomicU32,
    pub(super) who: AtomicU32,
    /// When what it does now began, of [`now`]; 0 where nothing foreign runs.
    pub(super) since: AtomicU64,
    pub(super) step: AtomicU32,
    pub(super) layer: AtomicU32,
    /// The user's file.
    pub(super) subject: Text<1024>,
    /// Such as `computes step 2`.
    pub(super) doing: Text<256>,
    /// The last node of llama.cpp's graph that it was asked of.
    pub(super) node: Text<64>,
    /// The piece of work that this belongs to, and when it began.
    pub(super) unit: Text<256>,
    pub(super) unit_since: AtomicU64,
}

/// A signal that foreign code got, and where.
#[repr(C)]
pub(super) struct FaultNote {
    pub(super) signal: AtomicU32,
    /// Of the thread, from 1; 0 where it has none.
    pub(super) slot: AtomicU32,
    pub(super) address: AtomicU64,
    /// The file that is mapped at the address.
    pub(super) mapped: Text<1024>,
    /// The file of the program that ran, where the thread has no slot.
    pub(super) code: Text<1024>,
}

/// All of it.
#[repr(C)]
pub struct Page {
    /// An exit code and 1.
    pub(super) finished: AtomicU32,
    /// Whether the process ends by itself, with what it has so far, when it is told to.
    pub(super) leaves_verdict: AtomicU32,
    /// The signal by which it is told so; 0 for none.
    pub(super) interrupt: AtomicU32,
    /// Copies of the process that a kernel made, and that were ended.
    pub(super) forks: AtomicU32,
    /// Bytes of the models that were opened.
    pub(super) model_bytes: AtomicU64,
    /// Why ggml ends the process.
    pub(super) abort: Text<512>,
    /// A line for the user that could not be printed.
    pub(super) unsaid: Text<2048>,
    pub(super) fault: FaultNote,
    /// The thread whose foreign code called exit, from 1; 0 for none.
    pub(super) leaving: AtomicU32,
    pub(super) slots: [Slot; SLOTS],
    pub(super) n_folders: AtomicU32,
    pub(super) folders: [Text<1024>; FOLDERS],
}

/// A thread at foreign work, as another process sees it.
#[derive(Clone, Debug)]
pub struct SlotView {
    pub who: Foreign,
    /// 0 where the foreign code has handed over to ours.
    pub since: u64,
    pub place: Option<Place>,
    pub subject: String,
    pub doing: String,
    pub node: String,
    pub unit: String,
}

/// A fatal signal that foreign code raised.
#[derive(Clone, Debug)]
pub struct Fault {
    pub signal: i32,
    pub slot: Option<SlotView>,
    pub address: u64,
    pub mapped: String,
    pub code: String,
}

/// Milliseconds of a clock that all processes share, never 0.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists everywhere, and the struct is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    (time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000).max(1)
}

static PAGE: OnceLock<&'static Page> = OnceLock::new();

/// The memory that notes go to from now on, of at least [`Page::BYTES`]. The first call decides.
pub fn share(map: &'static [u8]) {
    PAGE.get_or_init(|| Page::of(map));
}

pub(super) fn page() -> &'static Page {
    PAGE.get_or_init(|| {
        let bytes = vec![0u64; Page::BYTES.div_ceil(8)].leak();
        Page::of(bytemuck::cast_slice(bytes))
    })
}

impl Slot {
    pub(super) fn set_place(&self, place: Option<Place>) {
        let layer = place.and_then(|place| place.layer);
        self.step.store(place.map_or(NONE, |place| place.step), Relaxed);
        self.layer.store(layer.unwrap_or(NONE), Relaxed);
    }

    pub(super) fn place(&self) -> Option<Place> {
        let number = |value: u32| (value != NONE).then_some(value);
        let layer = number(self.layer.load(Relaxed));
        Some(Place { step: number(self.step.load(Relaxed))?, layer })
    }

    fn view(&self) -> Option<SlotView> {
        Some(SlotView {
            who: Foreign::of(self.who.load(Relaxed))?,
            since: self.since.load(Relaxed),
            place: self.place(),
            subject: self.subject.get(),
            doing: self.doing.get(),
            node: self.node.get(),
            unit: self.unit.get(),
        })
    }
}

/// What the other process reads.
impl Page {
    pub const BYTES: usize = size_of::<Page>();

    /// The page in a map that other processes write too: zeros at first.
    pub fn of(map: &[u8]) -> &Page {
        assert!(map.len() >= Page::BYTES && map.as_ptr().cast::<Page>().is_aligned());
        // SAFETY: large enough and aligned. Any bits are values of the fields, all of which allow that
        // others change them.
        unsafe { &*map.as_ptr().cast::<Page>() }
    }

    /// The exit code of a process that came to its end.
    pub fn exit_code(&self) -> Option<u8> {
        self.finished.load(Relaxed).checked_sub(1).map(|code| code as u8)
    }

    /// Tells the process to end with what it has so far; whether it does so.
    pub fn interrupt(&self, signal: i32) -> bool {
        let leaves_verdict = self.leaves_verdict.load(Relaxed) != 0;
        if leaves_verdict {
            self.interrupt.store(signal as u32, Relaxed);
        }
        leaves_verdict
    }

    /// The threads in which foreign code runs.
    pub fn active(&self) -> Vec<SlotView> {
        let taken = self.slots.iter().filter(|slot| slot.taken.load(Relaxed) != 0);
        taken.filter_map(Slot::view).filter(|view| view.since != 0).collect()
    }

    /// The pieces of work that had begun.
    pub fn units(&self) -> Vec<String> {
        let taken = self.slots.iter().filter(|slot| slot.taken.load(Relaxed) != 0);
        let mut units: Vec<String> = taken.map(|slot| slot.unit.get()).collect();
        units.retain(|unit| !unit.is_empty());
        units.sort();
        units.dedup();
        units
    }

    /// When a piece of work began.
    pub fn unit_since(&self, unit: &str) -> Option<u64> {
        let mut slots = self.slots.iter().filter(|slot| slot.taken.load(Relaxed) != 0);
        let slot = slots.find(|slot| slot.unit.get() == unit)?;
        Some(slot.unit_since.load(Relaxed))
    }

    /// The first fatal signal.
    pub fn fault(&self) -> Option<Fault> {
        let signal = self.fault.signal.load(Relaxed) as i32;
        let slot = self.view_of(&self.fault.slot);
        let address = self.fault.address.load(Relaxed);
        let (mapped, code) = (self.fault.mapped.get(), self.fault.code.get());
        (signal != 0).then_some(Fault { signal, slot, address, mapped, code })
    }

    /// The thread whose foreign code called exit. What the process dies of then is seldom its own fault: the
    /// exit takes apart what other threads still use.
    pub fn leaving(&self) -> Option<SlotView> {
        self.view_of(&self.leaving)
    }

    /// The slot of a number from 1.
    fn view_of(&self, number: &AtomicU32) -> Option<SlotView> {
        self.slots.get((number.load(Relaxed) as usize).checked_sub(1)?)?.view()
    }

    /// Why ggml ended the process; empty where it did not.
    pub fn abort(&self) -> String {
        self.abort.get()
    }

    /// A line for the user that the process could not print; else empty.
    pub fn unsaid(&self) -> String {
        self.unsaid.get()
    }

    /// Copies of the process that kernels made.
    pub fn forks(&self) -> u32 {
        self.forks.load(Relaxed)
    }

    /// Bytes of the models that were opened.
    pub fn model_bytes(&self) -> u64 {
        self.model_bytes.load(Relaxed)
    }

    /// The folders that may hold unfinished files.
    pub fn folders(&self) -> Vec<String> {
        let n = (self.n_folders.load(Relaxed) as usize).min(FOLDERS);
        self.folders[..n].iter().map(Text::get).collect()
    }
}
