//! A prefix that was in the cache before a sequence's first step: whether its keys are those of its own ids.
//!
//! The keys of the first layer follow from a token and its position alone, so they are computed from the ids.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    evidence::{Evidence, gather},
    replay::{GraphRun, Recording, ReplayError},
};
use crate::{
    core::tensor::Tensor,
    graph::site::{Axis, Site, Stage},
    trace::{TraceError, recording::Recorded},
};

/// Wrong elements that tell a key from another.
const LEAST_WRONG: usize = 8;

/// What the first layer's keys of a cached prefix say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedPrefix {
    /// Positions of the prefix.
    pub positions: usize,
    /// Positions whose key is not that of its id.
    pub wrong: usize,
    /// The first of them whose key is another token's, which the trace has at the same position.
    pub foreign: Option<ForeignKey>,
}

/// A key of another token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignKey {
    pub position: usize,
    pub token: i32,
    /// The token whose key is there, and the sequence that has it.
    pub found: i32,
    pub sequence: u32,
}

impl CachedPrefix {
    /// The begin of a headline, where a key is another token's.
    pub fn headline(&self) -> Option<String> {
        let ForeignKey { position, token, found, sequence } = self.foreign.as_ref()?;
        Some(format!(
            "prefix of another prompt: its key at position {position} is token {found}'s, as in sequence {sequence}, \
             not {token}'s"
        ))
    }

    /// What a reader must know of it else.
    pub fn note(&self) -> String {
        let CachedPrefix { positions, wrong, .. } = self;
        if *wrong == 0 {
            return format!(
                "the first layer's keys of all {positions} cached positions are those of their ids"
            );
        }
        format!(
            "the first layer's keys of {wrong} of {positions} cached positions are not those of their ids"
        )
    }
}

/// The rows of the first layer's cache of keys that no step wrote, as all that was recorded.
struct FirstKeys {
    site: Site,
    keys: Tensor,
}

impl Recorded for FirstKeys {
    fn tensor(&self, site: Site) -> Result<Option<Tensor>, TraceError> {
        Ok((site == self.site).then(|| self.keys.clone()))
    }

    /// What other layers are made from is taken for recorded, so that nothing of it is computed.
    fn has(&self, site: Site) -> bool {
        site == self.site || site.layer.is_some_and(|layer| layer > 0)
    }
}

/// Compares the first layer's keys of a prefix with those of its ids; `None` where the ids or the keys are not known.
pub(super) fn check(run: GraphRun<'_>) -> Result<Option<CachedPrefix>, ReplayError> {
    let tensors = run.recording.tensors;
    let ids = tensors.prefix();
    let specs = run.model.sites.specs();
    let is_cache = |spec: &crate::graph::SiteSpec| {
        spec.layer == Some(0)
            && spec.stage == Stage::KCache
            && spec.axes.first().is_some_and(|axis| axis.axis == Axis::Position)
    };
    let Some(place) = specs.iter().position(is_cache).filter(|_| !ids.is_empty()) else {
        return Ok(None);
    };
    let site = specs[place].site(0);
    let Some(cache) = tensors.tensor(site)? else { return Ok(None) };
    let width = cache.data.len() / cache.shape[0].max(1);
    let (Some(data), [_, rest @ ..]) = (cache.data.get(..ids.len() * width), &cache.shape[..])
    else {
        return Ok(None);
    };
    let shape = [&[ids.len()], rest].concat();
    let recorded = FirstKeys { site, keys: Tensor::new(shape, data.to_vec()) };
    let Some(wrong) = wrong_positions(run, &recorded, place, ids)? else { return Ok(None) };
    let mut found = CachedPrefix { positions: ids.len(), wrong: wrong.len(), foreign: None };
    if wrong.is_empty() {
        return Ok(Some(found));
    }
    for other in tensors.others()? {
        let trace = other.recorded();
        if trace.first_position() != trace.prefix().len() || trace.removed(0).is_some() {
            continue;
        }
        let of_other = trace.prefix().iter().copied().chain(other.steps().into_iter().flatten());
        // Where the other is shorter its own ids are as good: nothing is said of them.
        let mut theirs: Vec<i32> = of_other.take(ids.len()).collect();
        let known = theirs.len();
        theirs.extend(&ids[known..]);
        let Some(still) = wrong_positions(run, &recorded, place, &theirs)? else { continue };
        let is_theirs = |&&at: &&usize| at < known && !still.contains(&at) && theirs[at] != ids[at];
        if let Some(&position) = wrong.iter().find(is_theirs) {
            let (token, found_id) = (ids[position], theirs[position]);
            let is_first = found.foreign.as_ref().is_none_or(|known| position < known.position);
            if is_first {
                let sequence = other.number;
                found.foreign = Some(ForeignKey { position, token, found: found_id, sequence });
            }
        }
    }
    Ok(Some(found))
}

/// The positions whose recorded keys are not those of the ids; `None` where they cannot be computed.
fn wrong_positions(
    run: GraphRun<'_>,
    recorded: &FirstKeys,
    place: usize,
    ids: &[i32],
) -> Result<Option<BTreeSet<usize>>, ReplayError> {
    let steps = [ids.to_vec()];
    let recording = Recording { tensors: recorded, steps: &steps, ..run.recording };
    if ids.len() > run.inputs.tokens {
        return Ok(None);
    }
    let gathered = gather(GraphRun { recording, ..run }, &BTreeSet::from([place]))?;
    let wrong = |evidence: &Evidence<'_>| {
        let wrong = &evidence.wrong[0];
        let width = wrong.len() / ids.len();
        let count = |row: &[bool]| row.iter().filter(|&&wrong| wrong).count();
        let rows = wrong.chunks(width.max(1)).enumerate();
        rows.filter(|(_, row)| count(row) >= LEAST_WRONG).map(|(at, _)| at).collect()
    };
    // A key of which nothing is expected is not compared.
    let is_known = |evidence: &&Evidence<'_>| {
        evidence.steps[0].observed.piece.expected.value.iter().all(|x| x.is_finite())
    };
    Ok(gathered.first().filter(is_known).map(wrong))
}
