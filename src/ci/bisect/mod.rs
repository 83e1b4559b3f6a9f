//! Which commit of a kernel folder made a site diverge, or an earlier one.
//!
//! `history` reads commits from git without touching the working tree, `search` finds the change among
//! their scores.

mod history;
mod search;

pub use history::{Commit, History, HistoryError};
pub use search::{Found, Probe, Score, search};
