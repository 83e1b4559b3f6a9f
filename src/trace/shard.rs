//! What one rank of several recorded of each site: all of it, a part along an axis, or a partial sum.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    error::{Limit, TraceError},
    groups::SiteGroup,
    manifest::{ModelId, field, within},
};
use crate::graph::{
    ListedSite, SiteList,
    site::{Axis, Stage},
};

/// How the folder of a rank is called, before its number.
pub(super) const RANK: &str = "rank";

/// The folder of one rank's trace within that of all.
pub fn rank_folder(trace: &Path, rank: usize) -> PathBuf {
    trace.join(format!("{RANK}{rank}"))
}

/// How the ranks' tensors of a site make up the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Split {
    /// Every rank has all of it.
    #[default]
    Replicated,
    /// Every rank has a partial sum, recorded before the all-reduce.
    Partial,
    /// Every rank has a part along an axis.
    Along(Axis),
}

impl Split {
    /// The word used in manifests and by the writers.
    pub fn name(self) -> &'static str {
        match self {
            Split::Replicated => "replicated",
            Split::Partial => "partial",
            Split::Along(axis) => axis.word(),
        }
    }

    /// The axis that is cut, if one is.
    pub fn axis(self) -> Option<Axis> {
        if let Split::Along(axis) = self { Some(axis) } else { None }
    }

    /// The place of the axis that is cut among those of a site.
    pub(super) fn cut(self, axes: &[Axis]) -> Option<usize> {
        let cut = self.axis()?;
        axes.iter().position(|&axis| axis == cut)
    }

    fn from_name(name: &str) -> Option<Split> {
        match name {
            "replicated" => Some(Split::Replicated),
            "partial" => Some(Split::Partial),
            word => Axis::from_word(word).filter(|&axis| can_be_cut(axis)).map(Split::Along),
        }
    }
}

/// Whether ranks can divide an axis. Dims of a head, keys and the slots of experts are summed or chosen
/// over: no rank has a result of a part of them.
fn can_be_cut(axis: Axis) -> bool {
    !matches!(axis, Axis::Dim | Axis::Key | Axis::Slot)
}

impl TryFrom<String> for Split {
    type Error = String;

    fn try_from(name: String) -> Result<Split, String> {
        Split::from_name(&name)
            .ok_or_else(|| format!("{name:?} is not an axis, partial or replicated"))
    }
}

impl From<Split> for String {
    fn from(split: Split) -> String {
        split.name().to_string()
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
    /// A rank of that model's engine whose sites are split as `words` say: an axis for all sites that have
    /// it, or `SITE=AXIS`, `SITE=partial`, `SITE=replicated`; later words count. For tensor parallelism:
    /// `head neuron o_proj=partial ffn_down=partial`.
    ///
    /// # Errors
    /// A word says nothing, or a rank is not below `world`.
    pub fn new(
        rank: usize,
        world: usize,
        words: &str,
        model: &ModelId,
    ) -> Result<Shard, TraceError> {
        let mut shard = Shard { rank, world, split: BTreeMap::new() };
        let refuse = |why: String| Err(TraceError::Misuse(format!("the shard {why}")));
        if rank >= world {
            return refuse(format!("is rank {rank} of {world}"));
        }
        for word in words.split_whitespace() {
            let (site, split) = word.split_once('=').map_or((None, word), |(s, w)| (Some(s), w));
            let Some(split) = Split::from_name(split) else {
                return refuse(format!("is split by {word:?}, which is not an axis"));
            };
            let fits = |group: &&SiteGroup| {
                let is_named = site.is_none_or(|site| group.name.name() == site);
                is_named && (split.axis().is_none() || split.cut(&group.axes).is_some())
            };
            let mut fitting = model.sites.iter().filter(fits).map(|group| group.name).peekable();
            if fitting.peek().is_none() || site.is_none() && split.axis().is_none() {
                return refuse(format!("is split by {word:?}, which fits no site"));
            }
            shard.split.extend(fitting.map(|stage| (stage, split)));
        }
        Ok(shard)
    }

    /// How a stage is split.
    pub fn of(&self, stage: Stage) -> Split {
        self.split.get(&stage).copied().unwrap_or_default()
    }

    pub(super) fn check(&self, path: &Path, list: &SiteList) -> Result<(), TraceError> {
        let refuse = |name: String, reason| Err(field(path, format!("shard.{name}"), reason));
        within(path, Limit::Ranks, self.world as u64)?;
        if self.rank >= self.world {
            return refuse("rank".into(), format!("is {} of {}", self.rank, self.world));
        }
        for (&stage, &split) in &self.split {
            let mut sites = list.sites().iter().filter(|site| site.stage == stage).peekable();
            let Some(first) = sites.peek() else {
                if matches!(stage, Stage::Other(_)) {
                    let name = format!("split.{}", stage.name());
                    return refuse(name, "is not a site of the model".into());
                }
                // A role that this model does not have.
                continue;
            };
            let axes: Vec<&str> = first.axes.iter().map(|axis| axis.name()).collect();
            if split.axis().is_some() && sites.all(|site| split.cut(&site.axes).is_none()) {
                let (name, axes) = (stage.name(), axes.join(", "));
                let reason = format!("is {split}, an axis that {name} does not have: {axes}");
                return refuse(format!("split.{name}"), reason);
            }
        }
        Ok(())
    }

    /// Whether a rank's tensor of that shape can be its part of the whole.
    pub(super) fn is_part(&self, site: &ListedSite, found: &[usize], whole: &[usize]) -> bool {
        let cut = self.of(site.stage).cut(&site.axes);
        let axis = |(axis, (&found, &whole)): (usize, (&usize, &usize))| {
            if cut == Some(axis) { 1 <= found && found <= whole } else { found == whole }
        };
        found.len() == whole.len() && found.iter().zip(whole).enumerate().all(axis)
    }
}
