//! `plan.txt`: what an engine is to run, beside the trace of the reference that ran it.
//!
//! Lines of a key and a value, so that any program reads it with a few lines and no JSON. It is
//! made from the manifest and never read back: an engine that ran something else is refused by its
//! own manifest.

use std::fmt::Write;

use super::manifest::Manifest;

/// The plan's file name.
pub const PLAN_FILE: &str = "plan.txt";

/// The model and the token ids of every step as text.
pub(super) fn plan(manifest: &Manifest) -> String {
    let model = &manifest.model;
    let mut text = String::new();
    // A name with a line feed would end its line.
    let name: String = model.name.chars().filter(|c| !c.is_control()).collect();
    let keys = [("model", &name), ("blake3", &model.blake3), ("architecture", &model.architecture)];
    for (key, value) in keys {
        let _ = writeln!(text, "{key} {value}");
    }
    for (key, value) in model.shapes.named() {
        let _ = writeln!(text, "{key} {value}");
    }
    for step in &manifest.steps {
        text.push_str("tokens");
        for token in &step.tokens {
            let _ = write!(text, " {token}");
        }
        text.push('\n');
    }
    text
}
