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
    graph::{
        Size,
        site::{Axis, Stage},
    },
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
    let layers = site_layers(layers)?;
    let axes = axes.split(',').map(Axis::from_word).collect::<Option<Vec<Axis>>>()?;
    let shape = sizes.split(',').map(site_size).collect::<Option<Vec<Length>>>()?;
    Some(SiteGroup { name: Stage::from_name(name)?, layers, axes, shape, section })
}

/// The layers of `0-3,5`, ascending; none of `-`.
fn site_layers(text: &str) -> Option<Vec<u32>> {
    let mut all: Vec<u32> = Vec::new();
    for run in text.split(',').filter(|_| text != "-") {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        let layer = |text| number(text, Limit::Layers.max() - 1);
        let (first, last) = (layer(first)? as u32, layer(last)? as u32);
        if first > last || all.last().is_some_and(|&before| before >= first) {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

/// A size that gives at least one element.
fn site_size(text: &str) -> Option<Length> {
    let size: Size = text.parse().ok()?;
    (!size.is_fixed() || size.fixed > 0).then_some(Length(size))
}

/// A number of digits alone, up to the largest.
fn number(text: &str, most: u64) -> Option<u64> {
    let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| is_digits && *number <= most)
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
    /// It cannot be read, lacks a key or a number, has a line that is none, or ids outside of the vocabulary.
    pub fn open(path: &Path) -> Result<Plan, TraceError> {
        let text = files::read_text(path, MAX_BYTES).map_err(TraceError::io("read", path))?;
        let lines = lines(&text).map_err(|(key, reason)| field(path, key, reason))?;
        let Lines { keys, sites, steps, decode } = lines;
        let key = |key: &str| {
            let reason = "is missing: name a reference's plan.txt";
            let value = keys.get(key).map(|value| value.to_string());
            value.ok_or_else(|| field(path, key.into(), reason.into()))
        };
        let n_vocab = number(&key("n_vocab")?, u64::MAX);
        let is_none = || field(path, "n_vocab".into(), "is not a number".into());
        let n_vocab = n_vocab.ok_or_else(is_none)? as usize;
        let (name, blake3) = (key("model")?, key("blake3")?);
        let model = ModelId { name, blake3, architecture: key("architecture")?, n_vocab, sites };
        Layout::new(path, &model)?;
        if steps.is_empty() {
            return Err(field(path, "tokens".into(), "is missing: no step is to be run".into()));
        }
        if let Some(id) = steps.iter().flatten().find(|&&id| id as usize >= n_vocab) {
            let reason = format!("has id {id}, n_vocab is {n_vocab}");
            return Err(field(path, "tokens".into(), reason));
        }
        Ok(Plan { model, steps, decode })
    }
}

/// What the lines of a plan say, each by itself.
#[derive(Default)]
struct Lines<'t> {
    keys: HashMap<&'t str, &'t str>,
    sites: Vec<SiteGroup>,
    steps: Vec<Vec<i32>>,
    decode: usize,
}

/// Refuses more than a limit while the lines are read, before they take memory.
fn at_most(limit: Limit, found: usize) -> Result<(), (String, String)> {
    let most = limit.max();
    let is_over = found as u64 > most;
    if is_over { Err(("it".into(), format!("has more than {most} {limit}"))) } else { Ok(()) }
}

/// Reads the lines of a plan.
///
/// # Errors
/// A line's key, or `line N` of one that has none, and what is wrong with it.
fn lines(text: &str) -> Result<Lines<'_>, (String, String)> {
    let mut all = Lines::default();
    if let Some(at) = text.find('\0') {
        let line = text[..at].matches('\n').count() + 1;
        return Err((format!("line {line}"), "has a NUL byte".into()));
    }
    if !text.ends_with('\n') {
        let last = text.lines().count().max(1);
        return Err((
            format!("line {last}"),
            "is truncated: the file does not end with a newline".into(),
        ));
    }
    let (mut section, mut sites, mut tokens) = (false, 0, 0);
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        let wrong = |what: &str| (key.to_string(), format!("is {value:?}, not {what}"));
        match key {
            "tokens" => {
                let id = |word| Some(number(word, i32::MAX as u64)? as i32);
                let ids = value.split(' ').map(id).collect::<Option<Vec<i32>>>();
                let ids = ids.ok_or_else(|| wrong("token ids"))?;
                tokens += ids.len();
                all.steps.push(ids);
                at_most(Limit::Steps, all.steps.len())?;
                at_most(Limit::Tokens, tokens)?;
            }
            "section" if line == key => section = true,
            "site" => {
                let group = site_group(value, section).ok_or_else(|| wrong("a site"))?;
                // A few bytes may stand for a thousand layers.
                sites += group.layers.len().max(1);
                at_most(Limit::Sites, sites)?;
                all.sites.push(group);
                section = false;
            }
            "model" | "blake3" | "architecture" | "n_vocab" | "decode" if line != key => {
                if all.keys.insert(key, value).is_some() {
                    return Err((key.into(), "appears twice".into()));
                }
            }
            _ => return Err((format!("line {}", index + 1), "is not a line of a plan".into())),
        }
    }
    if let Some(value) = all.keys.get("decode") {
        let steps = number(value, Limit::Steps.max());
        let wrong = || ("decode".into(), format!("is {value:?}, not a number of steps"));
        all.decode = steps.ok_or_else(wrong)? as usize;
    }
    Ok(all)
}
