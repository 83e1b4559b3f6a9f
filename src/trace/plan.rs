//! `plan.txt`: what an engine is to run, beside the trace of the reference that ran it or by itself.
//!
//! Lines of a key and a value, so that any program reads it with a few lines and no JSON. An engine
//! that ran something else is refused by its own manifest.

use std::{
    collections::HashMap,
    fmt::{self, Write},
    path::Path,
};

use super::{
    error::{Limit, TraceError},
    groups::{Length, SiteGroup},
    layout::Layout,
    manifest::{Manifest, ModelId, field},
};
use crate::{
    core::files,
    graph::site::{Axis, Stage},
};

/// A longer file is no plan.
const MAX_BYTES: u64 = 64 << 20;

/// The plan's file name.
pub const PLAN_FILE: &str = "plan.txt";

/// The plan of a recorded run.
pub(super) fn plan(manifest: &Manifest) -> String {
    let steps = manifest.steps.iter().map(|step| step.tokens.clone()).collect();
    Plan { model: manifest.model.clone(), steps, decode: 0 }.to_string()
}

/// The model, its sites and the token ids of every step as text.
fn text(plan: &Plan) -> String {
    let model = &plan.model;
    let mut text = String::new();
    // A name with a line feed would end its line.
    let name: String = model.name.chars().filter(|c| !c.is_control()).collect();
    let keys = [("model", &name), ("blake3", &model.blake3), ("architecture", &model.architecture)];
    for (key, value) in keys {
        let _ = writeln!(text, "{key} {value}");
    }
    let _ = writeln!(text, "n_vocab {}", model.n_vocab);
    for group in &model.sites {
        if group.section {
            text.push_str("section\n");
        }
        let _ = writeln!(text, "site {}", site_line(group));
    }
    for tokens in &plan.steps {
        text.push_str("tokens");
        for token in tokens {
            let _ = write!(text, " {token}");
        }
        text.push('\n');
    }
    if plan.decode > 0 {
        let _ = writeln!(text, "decode {}", plan.decode);
    }
    text
}

/// `q 0-3,5 token,head,dim T,14,64`: name, layers or `-`, axes and sizes without spaces.
fn site_line(group: &SiteGroup) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &layer in &group.layers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => runs.push((layer, layer)),
        }
    }
    let run = |&(first, last): &(u32, u32)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    let layers: Vec<String> = runs.iter().map(run).collect();
    let layers = if layers.is_empty() { "-".to_string() } else { layers.join(",") };
    let axes: Vec<&str> = group.axes.iter().map(|axis| axis.word()).collect();
    let sizes: Vec<String> =
        group.shape.iter().map(|length| length.0.to_string().replace(' ', "")).collect();
    format!("{} {layers} {} {}", group.name.name(), axes.join(","), sizes.join(","))
}

/// The group of such a line.
fn site_group(line: &str, section: bool) -> Option<SiteGroup> {
    let words: Vec<&str> = line.split(' ').collect();
    let [name, layers, axes, sizes] = words[..] else { return None };
    let mut all = Vec::new();
    for run in layers.split(',').filter(|run| *run != "-") {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if u64::from(last) > Limit::Layers.max() {
            return None;
        }
        all.extend(first..=last);
    }
    let axes = axes.split(',').map(Axis::from_word).collect::<Option<Vec<Axis>>>()?;
    let sizes = sizes.split(',').map(|size| size.parse().ok().map(Length));
    let shape = sizes.collect::<Option<Vec<Length>>>()?;
    Some(SiteGroup { name: Stage::from_name(name)?, layers: all, axes, shape, section })
}

/// What an engine is to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub model: ModelId,
    /// The token ids of each step.
    pub steps: Vec<Vec<i32>>,
    /// Steps after those, each of one token of the engine's own choice.
    pub decode: usize,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text(self))
    }
}

impl Plan {
    /// Reads the `plan.txt` of a reference's trace.
    ///
    /// # Errors
    /// It cannot be read, or lacks a key or a number.
    pub fn open(path: &Path) -> Result<Plan, TraceError> {
        let text = files::read_text(path, MAX_BYTES).map_err(TraceError::io("read", path))?;
        let (mut keys, mut steps, mut sites) = (HashMap::new(), Vec::new(), Vec::new());
        let mut section = false;
        for line in text.lines() {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            let wrong = |what: &str| field(path, key.into(), format!("is {value:?}, no {what}"));
            match key {
                "tokens" => {
                    let ids = value.split(' ').map(str::parse).collect::<Result<Vec<i32>, _>>();
                    steps.push(ids.map_err(|_| wrong("ids"))?);
                }
                "section" => section = true,
                "site" => {
                    sites.push(site_group(value, section).ok_or_else(|| wrong("site"))?);
                    section = false;
                }
                _ => drop(keys.insert(key, value)),
            }
        }
        let text = |key: &str| {
            let missing =
                || field(path, key.into(), "is missing: name a reference's plan.txt".into());
            keys.get(key).copied().ok_or_else(missing)
        };
        let n_vocab = text("n_vocab")?.parse();
        let n_vocab = n_vocab.map_err(|_| field(path, "n_vocab".into(), "is no number".into()))?;
        let (name, blake3) = (text("model")?.to_string(), text("blake3")?.to_string());
        let architecture = text("architecture")?.to_string();
        let model = ModelId { name, blake3, architecture, n_vocab, sites };
        Layout::new(path, &model)?;
        let decode = match keys.get("decode") {
            Some(number) => number.parse().map_err(|_| {
                field(path, "decode".into(), format!("is {number:?}, no number of steps"))
            })?,
            None => 0,
        };
        Ok(Plan { model, steps, decode })
    }
}
