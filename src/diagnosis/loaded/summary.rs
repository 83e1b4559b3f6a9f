//! All weights of an engine in a few lines: the same over layers is one.

use std::collections::BTreeSet;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    Form, Standing, WeightVerdict, beside, compare,
    wrong::{starred, without_layer},
};
use crate::{
    core::loaded::{LoadedWeight, split_rows},
    model::{ModelFile, gguf::GgufError},
};

/// What an engine's weights are compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Beside {
    #[default]
    File,
    /// Those of another trace.
    Trace,
}

impl Beside {
    fn is_file(&self) -> bool {
        *self == Beside::File
    }
}

/// What an engine's weights are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadedSummary {
    /// What they are compared with; the file where it is left out.
    #[serde(default, skip_serializing_if = "Beside::is_file")]
    pub beside: Beside,
    /// Weights that were recorded.
    pub recorded: usize,
    /// Those that are the file's (or the other trace's), or that rounded to a type.
    pub right: usize,
    /// Tensors of the file, or of the other trace, that no recorded weight stands for.
    pub unrecorded: usize,
    pub wrong: Vec<WeightGroup>,
    /// The file's in another form: right if the engine takes it for that.
    pub otherwise: Vec<WeightGroup>,
    /// What the right ones are rounded to.
    pub rounded: Vec<WeightGroup>,
    /// The file, or the other trace, has no such tensor.
    pub absent: Vec<WeightGroup>,
}

/// Weights of which the same is said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightGroup {
    /// `blk.*.attn_q.bias`
    pub name: String,
    /// The process that held them, where there are several.
    pub rank: Option<usize>,
    /// What they are.
    pub text: String,
    /// The layers of which that is said; empty outside of layers.
    pub layers: Vec<u32>,
    /// Layers of which such a weight was recorded.
    pub of_layers: usize,
    /// The tensors of the file that they stand for.
    pub tensors: Vec<String>,
}

impl LoadedSummary {
    /// Compares recorded weights, each with the rank that had it, with the file's.
    pub fn of(
        file: &ModelFile,
        weights: &[(Option<usize>, LoadedWeight)],
        form: Form,
    ) -> Result<LoadedSummary, GgufError> {
        LoadedSummary::of_some(file, weights, form, None)
    }

    /// The same of those that are made of some of the file's tensors, or of all.
    pub fn of_some(
        file: &ModelFile,
        weights: &[(Option<usize>, LoadedWeight)],
        form: Form,
        names: Option<&BTreeSet<String>>,
    ) -> Result<LoadedSummary, GgufError> {
        let is_asked = |name: &str| names.is_none_or(|names| names.contains(name));
        let verdict =
            |(rank, weight): &(Option<usize>, LoadedWeight)| compare(file, weight, *rank, form);
        let asked = weights.par_iter();
        let asked = asked.filter(|(_, own)| own.of.iter().any(|name| is_asked(split_rows(name).0)));
        let verdicts = asked.map(verdict).collect::<Result<Vec<_>, _>>()?;
        let all = file.gguf().tensors().iter().map(|info| info.name.as_str());
        let all: Vec<&str> = all.filter(|name| is_asked(name)).collect();
        Ok(LoadedSummary::from_verdicts(Beside::File, &all, &verdicts))
    }

    /// Compares the weights of a trace with those of another.
    pub fn of_traces(
        own: &[(Option<usize>, LoadedWeight)],
        other: &[(Option<usize>, LoadedWeight)],
    ) -> LoadedSummary {
        let verdict =
            |(rank, weight): &(Option<usize>, LoadedWeight)| beside::compare(weight, *rank, other);
        let verdicts: Vec<WeightVerdict> = own.par_iter().map(verdict).collect();
        let names = other.iter().flat_map(|(_, weight)| &weight.of);
        let all: BTreeSet<&str> = names.map(|name| split_rows(name).0).collect();
        let all: Vec<&str> = all.into_iter().collect();
        LoadedSummary::from_verdicts(Beside::Trace, &all, &verdicts)
    }

    fn from_verdicts(beside: Beside, all: &[&str], verdicts: &[WeightVerdict]) -> LoadedSummary {
        let of = |standing: Standing| {
            let own = verdicts.iter().filter(|verdict| verdict.standing == standing);
            grouped(own.filter(|verdict| !verdict.text.is_empty()), verdicts)
        };
        let named = verdicts.iter().flat_map(|verdict| &verdict.weight.of);
        let named: BTreeSet<&str> = named.map(|name| split_rows(name).0).collect();
        let is_right = |verdict: &&WeightVerdict| verdict.standing == Standing::Right;
        LoadedSummary {
            beside,
            recorded: verdicts.len(),
            right: verdicts.iter().filter(is_right).count(),
            unrecorded: all.iter().filter(|name| !named.contains(**name)).count(),
            wrong: of(Standing::Wrong),
            otherwise: of(Standing::Otherwise),
            rounded: of(Standing::Right),
            absent: of(Standing::Absent),
        }
    }

    /// What is wrong first, and how much more is: the begin of a headline.
    pub fn headline(&self) -> Option<String> {
        let (first, more) = self.wrong.split_first()?;
        let more = if more.is_empty() { String::new() } else { format!("; {} more", more.len()) };
        Some(format!("wrong weights: {first}{more}"))
    }

    /// What is said of those of a list of tensors, first of what is wrong. A rank's part explains nothing.
    pub fn said_of(&self, tensors: &[String]) -> Vec<String> {
        let concerns = |group: &&WeightGroup| group.tensors.iter().any(|own| tensors.contains(own));
        let wrong = self.wrong.iter().filter(concerns);
        let wrong = wrong.map(|group| format!("explained by the weight: {}", group.said()));
        let otherwise = self.otherwise.iter().filter(concerns).filter(|group| group.rank.is_none());
        let otherwise =
            otherwise.map(|group| format!("its weight is stored differently: {}", group.said()));
        wrong.chain(otherwise).collect()
    }
}

/// One group of each name and text, in the order of the first weight of each.
fn grouped<'v>(
    verdicts: impl Iterator<Item = &'v WeightVerdict>,
    all: &[WeightVerdict],
) -> Vec<WeightGroup> {
    let mut groups: Vec<WeightGroup> = Vec::new();
    for verdict in verdicts {
        let (name, layer) = name(verdict);
        let tensors = verdict.weight.of.iter().map(|name| split_rows(name).0.to_string());
        let rank = verdict.weight.rank;
        let same = |group: &&mut WeightGroup| {
            (&group.name, group.rank, &group.text) == (&name, rank, &verdict.text)
        };
        match groups.iter_mut().find(same) {
            Some(group) => {
                group.layers.extend(layer);
                group.tensors.extend(tensors);
            }
            None => groups.push(WeightGroup {
                of_layers: all
                    .iter()
                    .filter(|other| other.weight.rank == rank && self::name(other).0 == name)
                    .count(),
                name,
                rank,
                text: verdict.text.clone(),
                layers: layer.into_iter().collect(),
                tensors: tensors.collect(),
            }),
        }
    }
    groups.iter_mut().for_each(|group| {
        group.layers.sort_unstable();
        group.tensors.sort();
        group.tensors.dedup();
    });
    groups
}

/// The name of a weight with a star for its layer, and the layer.
fn name(verdict: &WeightVerdict) -> (String, Option<u32>) {
    let weight = &verdict.weight;
    let layer = weight.of.first().and_then(|name| without_layer(name).0);
    let of: Vec<String> = weight.of.iter().map(|name| starred(name)).collect();
    (of.join(" + "), layer)
}

impl WeightGroup {
    /// The name and what it is.
    fn said(&self) -> String {
        let rank = self.rank.map_or(String::new(), |rank| format!("rank {rank}'s "));
        format!("{rank}{}: {}", self.name, self.text)
    }
}

impl std::fmt::Display for WeightGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.said())?;
        match self.layers.len() {
            0 => Ok(()),
            1 if self.of_layers > 1 => {
                write!(f, " (layer {} of {})", self.layers[0], self.of_layers)
            }
            n => write!(f, " ({n} of {} layers)", self.of_layers),
        }
    }
}
