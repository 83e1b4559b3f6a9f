//! The cases of cases.toml, whose head says what each field means.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs,
};

use regex::bytes::{Regex, RegexBuilder};
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{Result, root};

pub const CASES: &str = "benches/wild/cases.toml";

#[derive(Deserialize)]
struct Cases {
    requantise: Requantise,
    case: Vec<Case>,
}

#[derive(Deserialize)]
struct Requantise {
    python: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub name: String,
    pub report: String,
    #[serde(default)]
    pub handed_over: bool,
    pub engine: Engine,
    pub model: String,
    pub args: Vec<String>,
    pub prompt: Option<String>,
    edits: Vec<Edit>,
    pub first: Option<String>,
    guilty: Vec<String>,
    layers: Layers,
    /// Nothing is to be said where it is absent.
    #[serde(deserialize_with = "pattern")]
    pub says: Option<Regex>,
    /// What is true of the numbers, though it is not the mistake's name.
    #[serde(default, deserialize_with = "pattern")]
    pub likeness: Option<Regex>,
    #[serde(default)]
    convention: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    Kernels,
    Numpy,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    file: String,
    from: String,
    to: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Layers {
    /// `all`
    Word(String),
    These(Vec<usize>),
}

/// What a case is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Bug,
    /// A bug that the device finds, which ends the run.
    Stopped,
    /// The engine is right, in an arithmetic that it did not declare.
    Convention,
    /// The engine is right.
    Right,
}

/// All cases, and the program that makes models of 4 and 5 bit.
pub fn load() -> Result<(Vec<Case>, String)> {
    let text = fs::read_to_string(root().join(CASES))?;
    let cases: Cases = toml::from_str(&text)?;
    check(&cases.case)?;
    Ok((cases.case, cases.requantise.python))
}

fn check(cases: &[Case]) -> Result<()> {
    let mut names = BTreeSet::new();
    for case in cases {
        let name = &case.name;
        if !names.insert(name) {
            return Err(format!("{CASES}: two cases are named {name}").into());
        }
        if let Layers::Word(word) = &case.layers
            && word != "all"
        {
            return Err(format!("{name}: layers are \"all\" or numbers, not {word:?}").into());
        }
        case.edited()?;
    }
    Ok(())
}

/// Bytes without Unicode, as no Unicode table is compiled in.
fn pattern<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Regex>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    RegexBuilder::new(&text).unicode(false).build().map(Some).map_err(D::Error::custom)
}

impl Engine {
    /// The folder of its files.
    pub fn folder(self) -> &'static str {
        match self {
            Engine::Kernels => "kernels",
            Engine::Numpy => "examples/numpy_engine",
        }
    }
}

impl Case {
    pub fn kind(&self) -> Kind {
        match (self.convention, self.guilty.is_empty(), &self.says) {
            (true, ..) => Kind::Convention,
            (false, false, _) => Kind::Bug,
            (false, true, Some(_)) => Kind::Stopped,
            (false, true, None) => Kind::Right,
        }
    }

    /// Whether its engine or its model is made by a Python program.
    pub fn needs_python(&self) -> bool {
        self.engine == Engine::Numpy || self.model.contains(" of ")
    }

    /// Files of its engine as its edits leave them.
    pub fn edited(&self) -> Result<BTreeMap<&str, String>> {
        let folder = root().join(self.engine.folder());
        let name = &self.name;
        let mut files = BTreeMap::new();
        for Edit { file, from, to } in &self.edits {
            let text: &mut String = match files.entry(file.as_str()) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let text = fs::read_to_string(folder.join(file));
                    entry.insert(text.map_err(|error| format!("{name}: {file}: {error}"))?)
                }
            };
            let times = text.matches(from.as_str()).count();
            if times != 1 {
                let error = format!("{name}: {file}: {from:?} occurs {times} times; mend {CASES}");
                return Err(error.into());
            }
            *text = text.replacen(from.as_str(), to, 1);
        }
        Ok(files)
    }

    /// The results that are wrong by their own inputs, as a report names them.
    pub fn operations(&self, n_layer: usize) -> BTreeSet<String> {
        let layers: Vec<usize> = match &self.layers {
            Layers::Word(_) => (0..n_layer).collect(),
            Layers::These(layers) => layers.clone(),
        };
        let mut operations = BTreeSet::new();
        for stage in &self.guilty {
            if matches!(stage.as_str(), "embd" | "final_norm" | "logits") {
                operations.insert(stage.clone());
            } else {
                operations.extend(layers.iter().map(|layer| format!("blk.{layer}.{stage}")));
            }
        }
        operations
    }
}
