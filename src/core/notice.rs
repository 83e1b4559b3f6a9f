//! What a user should know while a run goes on.

use std::sync::OnceLock;

static SAY: OnceLock<fn(&str)> = OnceLock::new();

/// Lets a program say notices in its own way; by default they go to standard error.
pub fn told_by(say: fn(&str)) {
    // A program has one way.
    let _ = SAY.set(say);
}

/// Says a line.
pub fn notice(text: &str) {
    let line = format!("firstdiff: {text}");
    match SAY.get() {
        Some(say) => say(&line),
        None => eprintln!("{line}"),
    }
}
