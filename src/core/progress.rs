//! How far a run has come, for a person who waits.

use std::sync::{Mutex, OnceLock, PoisonError};

use crate::graph::site::Site;

/// Where a run is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What is done, such as `comparing`.
    pub what: &'static str,
    /// How many pieces there are, and how many are done.
    pub total: usize,
    pub done: usize,
    /// The last that was done, where the pieces are sites.
    pub at: Option<Site>,
}

static TELL: OnceLock<fn(&Progress)> = OnceLock::new();
static NOW: Mutex<Progress> = Mutex::new(Progress { what: "", total: 0, done: 0, at: None });

/// Lets a program show how far it is; by default nobody is told.
pub fn told_by(tell: fn(&Progress)) {
    // A program has one way.
    let _ = TELL.set(tell);
}

fn change(by: impl FnOnce(&mut Progress)) {
    let Some(tell) = TELL.get() else { return };
    let mut now = NOW.lock().unwrap_or_else(PoisonError::into_inner);
    by(&mut now);
    tell(&now);
}

/// Begins so many pieces of a kind of work; of the same kind that goes on there are as many more.
pub fn begin(what: &'static str, total: usize) {
    change(|now| {
        if now.what == what && now.done < now.total {
            now.total += total;
        } else {
            *now = Progress { what, total, done: 0, at: None };
        }
    });
}

/// Notes a site that is done.
pub fn advance(site: Site) {
    change(|now| {
        now.done += 1;
        now.at = Some(site);
    });
}

/// Notes so many pieces that are done.
pub fn advance_by(pieces: usize) {
    change(|now| now.done += pieces);
}
