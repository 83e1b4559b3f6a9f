//! What foreign code does now: llama.cpp, kernels and compilers, noted where another process sees it.
//!
//! Foreign code can crash, leave the process or never come back. The program therefore works in a child
//! process (`cli/supervisor`), and this is what the two share: `page` is the memory, `notes` what the child
//! writes there at its work, `fault` its signal handler, and `journal` what survives its death, so that
//! another child goes on behind it. Without a parent the notes go to memory that nobody reads.

mod fault;
mod journal;
mod notes;
mod page;

pub use fault::watch_faults;
pub use journal::{Death, Journal, died, done, journal, keep, open_journal};
pub use notes::{
    Running, Unit, abort_message, after_kernel, finished, interrupted, leaves_verdict, loaded,
    our_turn, place, running, saved_place, temporaries_in, their_turn, unit, unsaid, with_place,
};
pub use page::{Fault, Foreign, Page, Place, SlotView, now, share};

/// The environment variable that lets the program run without a child process.
pub const IN_PROCESS: &str = "FIRSTDIFF_IN_PROCESS";
