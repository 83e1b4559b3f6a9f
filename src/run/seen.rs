//! Which keys of a recorded reference's scores count: those that a query sees.

use std::{collections::HashMap, ops::Range};

use crate::{
    graph::{
        StepSpan, seen_keys,
        site::{Axis, Site, Stage},
    },
    trace::{TraceError, TraceReader},
};

/// Of each site with keys, those that each token's query sees.
#[derive(Debug, Default)]
pub struct SeenKeys(HashMap<Site, Vec<Range<usize>>>);

impl SeenKeys {
    /// Reads them off the masks of the reference's graph, or, where it has none, off its own probs: what
    /// a query does not see is exactly 0. A site that is not here has a causal mask.
    pub fn of(reference: &TraceReader) -> Result<SeenKeys, TraceError> {
        let graph = reference.graph()?;
        let mut seen = HashMap::new();
        for site in reference.sites() {
            let axes = reference.list().axes(site);
            if axes.first() != Some(&Axis::Token) || axes.last() != Some(&Axis::Key) {
                continue;
            }
            let step = &reference.manifest().steps[site.step as usize];
            let span = StepSpan { tokens: step.tokens.len(), first_position: step.first_position };
            let read = graph.as_ref().and_then(|(model, inputs)| {
                let has_probs = matches!(site.stage, Stage::Scores | Stage::Probs)
                    || axes.contains(&Axis::Head);
                has_probs.then(|| seen_keys(model, inputs, site, span)).flatten()
            });
            let ranges = match read {
                None if graph.is_none() => by_probs(reference, site)?,
                read => read,
            };
            if let Some(mut ranges) = ranges {
                // A weight before the window is an error; only what no query may see is no evidence.
                if site.stage == Stage::Probs {
                    ranges.iter_mut().for_each(|range| range.start = 0);
                }
                seen.insert(site, ranges);
            }
        }
        Ok(SeenKeys(seen))
    }

    /// The keys of each token of the site's step.
    pub fn get(&self, site: Site) -> Option<&[Range<usize>]> {
        self.0.get(&site).map(Vec::as_slice)
    }
}

/// Of each token, the keys from the first to the last that any head gives weight.
fn by_probs(reference: &TraceReader, site: Site) -> Result<Option<Vec<Range<usize>>>, TraceError> {
    let probs = Site { stage: Stage::Probs, ..site };
    let Some(probs) = reference.tensor(probs)? else { return Ok(None) };
    let (tokens, keys) = (probs.shape[0], probs.shape[probs.shape.len() - 1]);
    let mut ranges = Vec::with_capacity(tokens);
    for of_token in probs.data.chunks(probs.data.len() / tokens) {
        let has_weight = |key: &usize| of_token.iter().skip(*key).step_by(keys).any(|p| *p != 0.0);
        let mut seen = (0..keys).filter(has_weight);
        let Some(first) = seen.next() else { return Ok(None) };
        ranges.push(first..seen.next_back().unwrap_or(first) + 1);
    }
    Ok(Some(ranges))
}
