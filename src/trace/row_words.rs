//! Tensors that have not a row for every token, in words.

use std::collections::BTreeSet;

use crate::graph::site::{Site, Stage};

/// At most this many are named.
const MAX_NAMED: usize = 4;

/// Of which sites there are only some rows, of so many: `logits: 1 of 12 rows in step 0`. `None` where there is
/// no such site.
pub fn rows_in_words(sites: impl Iterator<Item = (Site, [usize; 2])>) -> Option<String> {
    let mut parts: Vec<(Stage, [usize; 2], BTreeSet<u32>)> = Vec::new();
    for (site, rows) in sites {
        match parts.iter_mut().find(|(known, of, _)| (*known, *of) == (site.stage, rows)) {
            Some((_, _, steps)) => drop(steps.insert(site.step)),
            None => parts.push((site.stage, rows, BTreeSet::from([site.step]))),
        }
    }
    let part = |(stage, [some, all], steps): &(Stage, [usize; 2], BTreeSet<u32>)| {
        let first = steps.first().copied().unwrap_or(0);
        let steps = match steps.len() {
            1 => format!("step {first}"),
            n => format!("{n} steps from {first} on"),
        };
        let rows = if *all == 1 { "row" } else { "rows" };
        format!("{}: {some} of {all} {rows} in {steps}", stage.name())
    };
    let named: Vec<String> = parts.iter().take(MAX_NAMED).map(part).collect();
    let more = match parts.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!("; {more} more"),
    };
    (!named.is_empty()).then(|| format!("{}{more}", named.join("; ")))
}
