//! What one rank of several recorded of each site: all of it, a part along an axis, or a partial sum.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    error::{Limit, TraceError},
    manifest::{field, within},
};
use crate::graph::site::{Axis, Stage};

/// How the folder of a rank is called, before its number.
pub(super) const RANK: &str = "rank";

/// The folder of one rank's trace within that of all.
pub fn rank_folder(trace: &Path, rank: usize) -> PathBuf {
    trace.join(format!("{RANK}{rank}"))
}

/// How the ranks' tensors of a site make up the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Every rank has all of it.
    #[default]
    Replicated,
    /// Every rank has a partial sum, recorded before the all-reduce.
    Partial,
    Head,
    Neuron,
    Vocab,
    Token,
    Position,
}

impl Split {
    const ALL: [Split; 7] = [
        Split::Replicated,
        Split::Partial,
        Split::Head,
        Split::Neuron,
        Split::Vocab,
        Split::Token,
        Split::Position,
    ];

    /// The word used in manifests and by the writers.
    pub fn name(self) -> &'static str {
        match self {
            Split::Replicated => "replicated",
            Split::Partial => "partial",
            Split::Head => "head",
            Split::Neuron => "neuron",
            Split::Vocab => "vocab",
            Split::Token => "token",
            Split::Position => "position",
        }
    }

    /// The axis that is cut, if one is.
    pub fn axis(self) -> Option<Axis> {
        match self {
            Split::Replicated | Split::Partial => None,
            Split::Head => Some(Axis::Head),
            Split::Neuron => Some(Axis::Neuron),
            Split::Vocab => Some(Axis::Vocab),
            Split::Token => Some(Axis::Token),
            Split::Position => Some(Axis::Position),
        }
    }

    /// Whether a site of that stage can be split so.
    fn fits(self, stage: Stage) -> bool {
        self.axis().is_none_or(|axis| stage.axes().contains(&axis))
    }

    fn from_name(name: &str) -> Option<Split> {
        Split::ALL.into_iter().find(|split| split.name() == name)
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which rank of how many a trace is of, and how its sites are split.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// In [0, world).
    pub rank: usize,
    pub world: usize,
    /// Sites that are not named are replicated.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub split: BTreeMap<Stage, Split>,
}

impl Shard {
    /// A rank whose sites are split as `words` say: an axis for all sites that have it, or
    /// `SITE=AXIS`, `SITE=partial`, `SITE=replicated`; later words count. For tensor parallelism:
    /// `head neuron o_proj=partial ffn_down=partial`.
    ///
    /// # Errors
    /// A word says nothing, or a rank is not below `world`.
    pub fn new(rank: usize, world: usize, words: &str) -> Result<Shard, TraceError> {
        let mut shard = Shard { rank, world, split: BTreeMap::new() };
        let refuse = |why: String| Err(TraceError::Misuse(format!("the shard {why}")));
        if rank >= world {
            return refuse(format!("is rank {rank} of {world}"));
        }
        for word in words.split_whitespace() {
            let (site, split) = word.split_once('=').map_or((None, word), |(s, w)| (Some(s), w));
            let stages: Vec<Stage> = match site {
                Some(site) => Stage::from_name(site).into_iter().collect(),
                None => Stage::ALL.into_iter().collect(),
            };
            let Some(split) = Split::from_name(split) else {
                return refuse(format!("is split by {word:?}, which is no axis"));
            };
            let fitting = stages.into_iter().filter(|&stage| split.fits(stage));
            let fitting: Vec<Stage> = fitting.collect();
            if fitting.is_empty() || site.is_none() && split.axis().is_none() {
                return refuse(format!("is split by {word:?}, which fits no site"));
            }
            shard.split.extend(fitting.into_iter().map(|stage| (stage, split)));
        }
        Ok(shard)
    }

    /// How a stage is split.
    pub fn of(&self, stage: Stage) -> Split {
        self.split.get(&stage).copied().unwrap_or_default()
    }

    pub(super) fn check(&self, path: &Path) -> Result<(), TraceError> {
        let refuse = |name: String, reason| Err(field(path, format!("shard.{name}"), reason));
        within(path, Limit::Ranks, self.world as u64)?;
        if self.rank >= self.world {
            return refuse("rank".into(), format!("is {} of {}", self.rank, self.world));
        }
        match self.split.iter().find(|(stage, split)| !split.fits(**stage)) {
            Some((stage, split)) => {
                let axes: Vec<&str> = stage.axes().iter().map(|axis| axis.name()).collect();
                let axes = axes.join(", ");
                let reason = format!("is {split:?}, of which {} has no axis: {axes}", stage.name());
                refuse(format!("split.{}", stage.name()), reason.to_lowercase())
            }
            None => Ok(()),
        }
    }

    /// Whether a rank's tensor of that shape can be its part of the whole.
    pub(super) fn is_part(&self, stage: Stage, found: &[usize], whole: &[usize]) -> bool {
        let cut = cut(self.of(stage), stage);
        let axis = |(axis, (&found, &whole)): (usize, (&usize, &usize))| {
            if cut == Some(axis) { 1 <= found && found <= whole } else { found == whole }
        };
        found.len() == whole.len() && found.iter().zip(whole).enumerate().all(axis)
    }
}

/// The place of the axis that is cut.
pub(super) fn cut(split: Split, stage: Stage) -> Option<usize> {
    let axis = split.axis()?;
    stage.axes().iter().position(|&own| own == axis)
}
