//! `manifest.json`: what was run, and what every step file must agree with.
//!
//! All serialised types of the format are here, in `batch`, `groups`, `removed`, `shard` and `weights`. A new field
//! means a new version.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    array::block_types,
    batch,
    batch::Batch,
    error::{Limit, TraceError},
    groups::{SiteGroup, grouped},
    layout::Layout,
    removed::Removed,
    shard::Shard,
    weights::WeightsFile,
};
use crate::{
    core::{
        arithmetic::Arithmetic,
        floor::{DeclaredFloor, SiteFloor},
        format::Format,
        sink::Choice,
        tensor::DType,
    },
    graph::SiteList,
};

/// The version that is written. Versions 2 to 5 are read too, as if they were this one.
pub const FORMAT_VERSION: u32 = 6;
/// The versions before, which lack fields of this one and have no others.
#[cfg(feature = "full")]
const BEFORE: [u64; 2] = [4, 5];
/// The manifest's file name.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The manifest's name while the run that writes it goes on. It lists the steps that are whole.
pub const UNFINISHED_FILE: &str = "manifest.json.unfinished";
/// The file with the manifest's own hash, as `b3sum manifest.json` prints it.
pub const CHECKSUM_FILE: &str = "manifest.json.blake3";

/// The file name of a step: `step-0000.safetensors`.
pub fn step_file(step: usize) -> String {
    format!("step-{step:04}.safetensors")
}

/// The whole manifest. A side fills all but `steps`, which the writer fills.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format_version: u32,
    /// A name that no other run has, and that every step file repeats. A trace with it needs no
    /// hashes, so that a writer in any language needs no blake3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    pub producer: Producer,
    pub side: Side,
    /// When the run was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    pub model: ModelId,
    /// The prompt as text; the token ids of `steps` are what counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Of a prompt that was run in several steps, how many tokens it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<usize>,
    pub arithmetic: Arithmetic,
    /// The device's own name, such as `host (g++ 12.2.0)`.
    pub device: String,
    /// blake3 in hex of each kernel source file, by file name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kernels: BTreeMap<String, String>,
    #[serde(default)]
    pub settings: Settings,
    /// Where this is one rank's part of a trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// The model's graph and the values of its inputs, in files beside the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graph: Option<GraphFiles>,
    /// Weights as the engine held them, in a file beside the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<WeightsFile>,
    /// Measured floors, one for each arithmetic that an engine may declare.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub floors: Vec<DeclaredFloor>,
    pub steps: Vec<Step>,
}

/// The program that wrote the trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Producer {
    pub name: String,
    pub version: String,
}

/// Which side of a comparison was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Reference,
    Engine,
}

/// The model file, and what must be known of it to check a trace without it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelId {
    /// A name for messages, usually the file's.
    pub name: String,
    /// blake3 of the whole GGUF file, 64 lowercase hex digits.
    pub blake3: String,
    /// `general.architecture` of the file, for people.
    pub architecture: String,
    /// Entries of the vocabulary.
    pub n_vocab: usize,
    /// Every tensor that a step may have, in the order of the model's graph.
    pub sites: Vec<SiteGroup>,
}

/// The graph beside a reference's trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphFiles {
    /// `graph.json`.
    pub nodes: FileSeal,
    /// `inputs.safetensors`.
    pub inputs: FileSeal,
}

/// What a file must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSeal {
    pub bytes: u64,
    /// 64 lowercase hex digits.
    pub blake3: String,
}

/// Settings of the run that change its numbers; those that do not apply to the side are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `f32` or `native`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_precision: Option<String>,
    /// The engine's storage format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<DType>,
    /// The attention variant, as on the command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<String>,
    /// The planted fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Whether the reference ran on the experts of an engine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced_routing: bool,
}

/// One step: the prefill of the prompt, or one decoded token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The ids that this step runs through the model.
    pub tokens: Vec<i32>,
    /// The position of the first of them: that of the step before, and its tokens. In the first step the
    /// number of tokens that were in the cache already.
    pub first_position: usize,
    /// Of the first step, the ids of the positions that were in the cache already, where they are known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefix: Vec<i32>,
    /// Positions of the cache that are removed before the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<Removed>,
    /// `step-0000.safetensors` for step 0 and so on.
    pub file: String,
    /// The file's length.
    pub bytes: u64,
    /// The file's blake3, 64 lowercase hex digits; required where the manifest names no run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// Tensors in the file.
    pub sites: usize,
    /// What the side itself would have decoded after the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<Choice>,
    /// Of each tensor that has not a row for every token: which tokens of the step its rows are of, ascending.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rows: BTreeMap<String, Vec<usize>>,
    /// Of each cache that is recorded in the blocks that the engine keeps: their type.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub quantised: BTreeMap<String, Format>,
    /// Whose the rows are, where the step runs several sequences. Then every step has this, and the tokens are
    /// those of all rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Batch>,
}

impl Manifest {
    /// A manifest written by this program, with no steps and every optional field absent.
    pub fn new(side: Side, model: ModelId, arithmetic: Arithmetic, device: String) -> Manifest {
        Manifest {
            format_version: FORMAT_VERSION,
            run: None,
            producer: Producer {
                name: env!("CARGO_PKG_NAME").to_string(),
                version: env!("CARGO_PKG_VERSION").to_string(),
            },
            side,
            created: None,
            model,
            prompt: None,
            prompt_tokens: None,
            arithmetic,
            device,
            kernels: BTreeMap::new(),
            settings: Settings::default(),
            shard: None,
            graph: None,
            weights: None,
            floors: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// The same of one rank: its trace is to lie in `TRACE/rankN`.
    pub fn of_rank(self, shard: Shard) -> Manifest {
        Manifest { shard: Some(shard), ..self }
    }

    /// The positions that the steps run.
    pub fn positions(&self) -> std::ops::Range<usize> {
        let first = self.steps.first().map_or(0, |step| step.first_position);
        first..self.steps.iter().map(Step::positions).max().unwrap_or(0)
    }

    /// The position after the prompt.
    #[cfg(feature = "full")]
    pub fn prompt_end(&self) -> usize {
        let first = self.steps.first().map_or(0, Step::positions);
        self.prompt_tokens.unwrap_or(first)
    }

    /// Parses a manifest of any version that is read, and checks that before any other field is looked at.
    #[cfg(feature = "full")]
    pub(super) fn parse(path: &Path, json: &[u8]) -> Result<Manifest, TraceError> {
        use super::old;
        #[derive(Deserialize)]
        struct Version {
            format_version: u64,
        }
        let syntax = |source| TraceError::Manifest { path: path.into(), source };
        let Version { format_version: found } = serde_json::from_slice(json).map_err(syntax)?;
        if [old::WHOLE, old::RANK].contains(&found) {
            let old = serde_json::from_slice(json).map_err(syntax)?;
            let read: Manifest =
                serde_json::from_value(old::upgraded(path, old, found)?).map_err(syntax)?;
            return Ok(Manifest { arithmetic: read.arithmetic.as_hardware(), ..read });
        }
        if !BEFORE.contains(&found) && found != u64::from(FORMAT_VERSION) {
            return Err(TraceError::Version {
                path: path.into(),
                found,
                supported: FORMAT_VERSION,
            });
        }
        let read: Manifest = serde_json::from_slice(json).map_err(syntax)?;
        let has = |of: fn(&Step) -> bool| read.steps.iter().any(of);
        let later = [
            ("weights", 5, read.weights.is_some()),
            ("steps[].batch", 5, has(|step| step.batch.is_some())),
            ("steps[].removed", 6, has(|step| step.removed.is_some())),
            ("steps[].prefix", 6, has(|step| !step.prefix.is_empty())),
            ("steps[].batch.sequences[].prefix", 6, has(Step::has_prefix_of_batch)),
            ("steps[].quantised", 6, has(|step| !step.quantised.is_empty())),
        ];
        if let Some((name, since, _)) =
            later.iter().find(|(_, since, is_there)| found < *since && *is_there)
        {
            let reason =
                format!("belongs to version {since}, but the manifest has version {found}");
            return Err(field(path, name.to_string(), reason));
        }
        let arithmetic = read.arithmetic.as_hardware();
        Ok(Manifest { arithmetic, format_version: FORMAT_VERSION, ..read })
    }

    /// Checks every field's limits and that the fields fit each other.
    pub(super) fn check(&self, path: &Path) -> Result<(), TraceError> {
        self.check_all_but_steps(path)?;
        if self.steps.is_empty() {
            return Err(field(path, "steps".into(), "is empty".into()));
        }
        self.check_steps(path)
    }

    /// Checks what a writer states before its first step.
    pub(super) fn check_all_but_steps(&self, path: &Path) -> Result<(), TraceError> {
        let layout = Layout::new(path, &self.model)?;
        self.check_names(path)?;
        self.shard.as_ref().map_or(Ok(()), |shard| shard.check(path, layout.list()))?;
        if let Some(GraphFiles { nodes, inputs }) = &self.graph {
            for (name, FileSeal { blake3, .. }) in [("nodes", nodes), ("inputs", inputs)] {
                if !is_hash(blake3) {
                    let reason = format!("is {blake3:?}, not 64 lowercase hex digits");
                    return Err(field(path, format!("graph.{name}.blake3"), reason));
                }
            }
        }
        for (index, declared) in self.floors.iter().enumerate() {
            if let Some((site, floor)) =
                declared.floor.0.iter().find(|(_, floor)| !floor.is_sound())
            {
                let SiteFloor { elementwise, relative_l2 } = floor;
                let name = format!("floors[{index}].floor.{}/{}", site.step, site.tensor_name());
                let reason = format!(
                    "is {elementwise} and {relative_l2}, not from 0 to 1; record the reference again"
                );
                return Err(field(path, name, reason));
            }
        }
        let check = |weights: &WeightsFile| weights.check(path, self.run.as_deref());
        self.weights.as_ref().map_or(Ok(()), check)?;
        match &self.run {
            Some(run) if !is_run(run) => {
                let reason = format!("is {run:?}, not 1 to 64 letters, digits, - or _");
                Err(field(path, "run".into(), reason))
            }
            _ => Ok(()),
        }
    }

    /// Refuses names that a report shows and that would not stay on their line.
    fn check_names(&self, path: &Path) -> Result<(), TraceError> {
        let Manifest { producer, model, settings, .. } = self;
        let texts = [&settings.reference_precision, &settings.attention, &settings.fault];
        let kernels = self.kernels.iter().flat_map(|(file, hash)| [file, hash]);
        let names = [&producer.name, &producer.version, &model.name, &model.architecture];
        let all = names.into_iter().chain([&self.device]).chain(texts.into_iter().flatten());
        match all.chain(kernels).find(|name| name.chars().any(char::is_control)) {
            Some(name) => {
                let shown: String = name.chars().take(80).collect();
                let reason = "has a control character".to_string();
                Err(field(path, format!("{shown:?}"), reason))
            }
            None => Ok(()),
        }
    }

    /// Checks the steps, of which there may be none yet.
    pub(super) fn check_steps(&self, path: &Path) -> Result<(), TraceError> {
        within(path, Limit::Steps, self.steps.len() as u64)?;
        let sum = |of: fn(&Step) -> usize| {
            self.steps.iter().fold(0u64, |sum, step| sum.saturating_add(of(step) as u64))
        };
        within(path, Limit::Tokens, sum(|step| step.tokens.len()))?;
        within(path, Limit::Tensors, sum(|step| step.sites))?;
        let mut position = self.steps.first().map_or(0, |step| step.first_position);
        within(path, Limit::Tokens, position as u64)?;
        let (n_vocab, hashed) = (self.model.n_vocab, self.run.is_none());
        for (index, step) in self.steps.iter().enumerate() {
            if let Some(removed) = step.removed {
                let refuse = |reason| field(path, format!("steps[{index}].removed"), reason);
                if index == 0 {
                    return Err(refuse(
                        "is present in the first step, before which nothing ran".into(),
                    ));
                }
                if step.batch.is_some() {
                    return Err(refuse(
                        "is present beside a batch; state it for each sequence".into(),
                    ));
                }
                position = removed.left_of(position).map_err(refuse)?;
            }
            let expected = StepPlace { index, position, n_vocab, hashed };
            step.check(path, expected)?;
            position += step.tokens.len();
        }
        batch::check(path, &self.steps)
    }
}

impl ModelId {
    /// The identity of a model file, whose steps have those sites.
    pub fn new(
        name: impl Into<String>,
        blake3: impl Into<String>,
        architecture: impl Into<String>,
        n_vocab: usize,
        sites: &SiteList,
    ) -> ModelId {
        let (name, blake3, architecture) = (name.into(), blake3.into(), architecture.into());
        ModelId { name, blake3, architecture, n_vocab, sites: grouped(sites) }
    }

    /// What another file's model has in common with this one, to follow the names of both.
    pub fn alike(&self, other: &ModelId) -> &'static str {
        if self.architecture == other.architecture && self.sites == other.sites {
            ", which have the same shapes: another quantisation or fine-tune"
        } else {
            ""
        }
    }

    /// Checks the model's own fields, but for the sites.
    pub(super) fn check(&self, path: &Path) -> Result<(), TraceError> {
        let refuse = |name: &str, reason: String| Err(field(path, format!("model.{name}"), reason));
        if !is_hash(&self.blake3) {
            return refuse("blake3", format!("is {:?}, not 64 lowercase hex digits", self.blake3));
        }
        within(path, Limit::Dimension, self.n_vocab as u64)?;
        if self.n_vocab == 0 {
            return refuse("n_vocab", "is 0".into());
        }
        if self.sites.is_empty() {
            return refuse("sites", "is empty".into());
        }
        Ok(())
    }
}

/// Whether the ids of a prefix are those of all positions before a sequence's first step.
pub(super) fn check_prefix(ids: &[i32], first: usize, is_first: bool) -> Result<(), String> {
    match ids.len() {
        0 => Ok(()),
        _ if !is_first => Err("is present after the sequence's first step".into()),
        found if found != first => Err(format!("has {found} ids for {first} positions")),
        _ => Ok(()),
    }
}

/// What a step's fields must agree with.
struct StepPlace {
    index: usize,
    position: usize,
    n_vocab: usize,
    /// Whether the step must state its file's hash.
    hashed: bool,
}

impl Step {
    /// Positions in the KV cache after the step.
    pub fn positions(&self) -> usize {
        self.first_position + self.tokens.len()
    }

    #[cfg(feature = "full")]
    fn has_prefix_of_batch(&self) -> bool {
        let sequences = self.batch.iter().flat_map(|batch| &batch.sequences);
        sequences.into_iter().any(|own| !own.prefix.is_empty())
    }

    fn check(&self, path: &Path, place: StepPlace) -> Result<(), TraceError> {
        let StepPlace { index, position, n_vocab, hashed } = place;
        let refuse =
            |name: &str, reason: String| Err(field(path, format!("steps[{index}].{name}"), reason));
        if self.tokens.is_empty() {
            return refuse("tokens", "is empty".into());
        }
        let unknown = |token: i32| usize::try_from(token).map_or(true, |id| id >= n_vocab);
        if let Some(token) = self.tokens.iter().find(|&&token| unknown(token)) {
            return refuse("tokens", format!("has id {token}, n_vocab is {n_vocab}"));
        }
        if let Some(token) = self.prefix.iter().find(|&&token| unknown(token)) {
            return refuse("prefix", format!("has id {token}, n_vocab is {n_vocab}"));
        }
        if let Err(reason) = check_prefix(&self.prefix, self.first_position, index == 0) {
            return refuse("prefix", reason);
        }
        let of_batch = self.batch.iter().flat_map(|batch| &batch.sequences);
        let mut ids = of_batch.flat_map(|own| &own.prefix);
        if let Some(token) = ids.find(|&&token| unknown(token)) {
            return refuse(
                "batch.sequences[].prefix",
                format!("has id {token}, n_vocab is {n_vocab}"),
            );
        }
        if self.first_position != position {
            let found = self.first_position;
            return refuse("first_position", format!("is {found} after {position} tokens"));
        }
        // Only this name: a path of the manifest's choosing could lead out of the folder.
        if self.file != step_file(index) {
            return refuse("file", format!("is {:?}, not {}", self.file, step_file(index)));
        }
        match &self.blake3 {
            Some(hash) if !is_hash(hash) => {
                return refuse("blake3", format!("is {hash:?}, not 64 lowercase hex digits"));
            }
            None if hashed => {
                return refuse("blake3", "is missing, and the manifest names no run".into());
            }
            _ => {}
        }
        self.check_rows(path, index)?;
        self.check_quantised(path, index)?;
        match self.choice {
            Some(Choice { token, .. }) if unknown(token) => {
                refuse("choice.token", format!("is {token}, n_vocab is {n_vocab}"))
            }
            _ => Ok(()),
        }
    }

    /// Checks the types of blocks.
    fn check_quantised(&self, path: &Path, index: usize) -> Result<(), TraceError> {
        let unknown = self.quantised.iter().find(|(_, format)| format.stored_block().is_none());
        let Some((name, format)) = unknown else { return Ok(()) };
        let reason = format!("is {format}; {}", block_types());
        Err(field(path, format!("steps[{index}].quantised.{name}"), reason))
    }

    /// Checks which tokens rows are said to be of.
    fn check_rows(&self, path: &Path, index: usize) -> Result<(), TraceError> {
        let tokens = self.tokens.len();
        for (name, rows) in &self.rows {
            let refuse = |reason| Err(field(path, format!("steps[{index}].rows.{name}"), reason));
            if rows.is_empty() || !rows.is_sorted_by(|a, b| a < b) {
                return refuse("does not list one token or more, ascending".into());
            }
            if let Some(row) = rows.iter().find(|&&row| row >= tokens) {
                return refuse(format!("has token {row} of a step of {tokens}"));
            }
        }
        Ok(())
    }
}

/// Refuses a stated length above its limit.
pub(super) fn within(path: &Path, limit: Limit, found: u64) -> Result<(), TraceError> {
    if found > limit.max() {
        return Err(TraceError::OverLimit { path: path.into(), limit, found });
    }
    Ok(())
}

pub(super) fn field(path: &Path, field: String, reason: String) -> TraceError {
    TraceError::Field { path: path.into(), field, reason }
}

fn is_run(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

pub(super) fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
