//! `plan.txt`: what an engine is to run, beside the trace of the reference that ran it.
//!
//! Lines of a key and a value, so that any program reads it with a few lines and no JSON. An engine
//! that ran something else is refused by its own manifest.

use std::{collections::HashMap, fmt::Write, fs, path::Path};

use super::{
    error::TraceError,
    manifest::{Manifest, ModelId, Shapes, field},
};

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

/// What an engine is to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub model: ModelId,
    /// The token ids of each step.
    pub steps: Vec<Vec<i32>>,
}

impl Plan {
    /// Reads the `plan.txt` of a reference's trace.
    ///
    /// # Errors
    /// It cannot be read, or lacks a key or a number.
    pub fn open(path: &Path) -> Result<Plan, TraceError> {
        let text = fs::read_to_string(path).map_err(TraceError::io("read", path))?;
        let (mut keys, mut steps) = (HashMap::new(), Vec::new());
        for (key, value) in text.lines().filter_map(|line| line.split_once(' ')) {
            if key == "tokens" {
                let ids = value.split(' ').map(str::parse).collect::<Result<Vec<i32>, _>>();
                let wrong = |_| field(path, "tokens".into(), format!("is {value:?}, no ids"));
                steps.push(ids.map_err(wrong)?);
            } else {
                keys.insert(key, value);
            }
        }
        let text = |key: &str| {
            let missing =
                || field(path, key.into(), "is missing: name a reference's plan.txt".into());
            keys.get(key).copied().ok_or_else(missing)
        };
        let count = |key: &str| {
            let wrong = |_| field(path, key.into(), "is no number".into());
            text(key)?.parse::<usize>().map_err(wrong)
        };
        let shapes = Shapes {
            n_layer: count("n_layer")?,
            n_embd: count("n_embd")?,
            n_head: count("n_head")?,
            n_head_kv: count("n_head_kv")?,
            head_dim: count("head_dim")?,
            n_ff: count("n_ff")?,
            n_vocab: count("n_vocab")?,
        };
        let (name, blake3) = (text("model")?.to_string(), text("blake3")?.to_string());
        let architecture = text("architecture")?.to_string();
        Ok(Plan { model: ModelId { name, blake3, architecture, shapes }, steps })
    }
}
