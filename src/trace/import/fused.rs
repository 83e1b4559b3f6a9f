//! Arrays whose rows are those of several sites, one beside the other: a fused q, k, v, or gate and up, whole or
//! head group by head group.

use std::collections::BTreeSet;

use super::{
    DumpError,
    align::{Candidate, SURE},
    slice::Blocks,
};
use crate::{graph::site::Site, trace::TraceReader};

/// A part of an array's last axis.
pub(super) struct Part {
    pub blocks: Blocks,
    /// The sites with its values.
    pub sites: Vec<Site>,
    /// Their shape.
    pub shape: Vec<usize>,
}

/// The parts of an array, where sites fill all of its last axis; else none.
pub(super) fn parts(
    shape: &[usize],
    values: &[f32],
    candidates: &[Candidate],
    reference: &TraceReader,
) -> Result<Vec<Part>, DumpError> {
    let Some(&width) = shape.last().filter(|&&width| width > 1) else { return Ok(Vec::new()) };
    let rows = values.len() / width;
    let mut parts: Vec<Part> = Vec::new();
    let has_rows = |candidate: &&Candidate| {
        candidate.shape[0] == rows && (1..width).contains(&candidate.row.len())
    };
    let candidates: Vec<&Candidate> = candidates.iter().filter(has_rows).collect();
    // Each fills a part of its own.
    if candidates.iter().map(|candidate| candidate.row.len()).sum::<usize>() < width {
        return Ok(parts);
    }
    for candidate in candidates {
        let mut theirs = None;
        for blocks in places(&values[..width], &candidate.row) {
            if theirs.is_none() {
                theirs = reference.tensor(candidate.site)?;
            }
            let Some(theirs) = &theirs else { break };
            if !is_near(values, width, blocks, &theirs.data, most_off(&theirs.data)) {
                continue;
            }
            match parts.iter_mut().find(|part| part.blocks == blocks) {
                Some(part) => part.sites.push(candidate.site),
                None => parts.push(Part {
                    blocks,
                    sites: vec![candidate.site],
                    shape: candidate.shape.clone(),
                }),
            }
        }
    }
    parts.sort_by_key(|part| part.blocks.first);
    Ok(if fill(&parts, width) && have_own_sites(&parts) { parts } else { Vec::new() })
}

/// Where the values of a site's row may be in a row of an array: in one run, or in one of every so many.
fn places(row: &[f32], own: &[f32]) -> Vec<Blocks> {
    let (width, n, most) = (row.len(), own.len(), most_off(own));
    let mut places = Vec::new();
    for runs in (1..=n).filter(|&runs| n.is_multiple_of(runs) && width.is_multiple_of(runs)) {
        let (run, period) = (n / runs, width / runs);
        for first in 0..=period - run {
            let period = (runs > 1).then_some(period);
            let blocks = Blocks { first, end: first + run, period };
            if is_near(row, width, blocks, own, most) {
                places.push(blocks);
            }
        }
    }
    places
}

fn square(x: f32) -> f64 {
    f64::from(x) * f64::from(x)
}

/// By how much, squared, values may be off that are within rounding what a site has.
fn most_off(theirs: &[f32]) -> f64 {
    SURE * SURE * theirs.iter().map(|&x| square(x)).sum::<f64>()
}

/// Whether that part of the rows of an array is off by less than `most`, squared. Stops at the first element by
/// which it no longer can be.
fn is_near(values: &[f32], width: usize, blocks: Blocks, theirs: &[f32], most: f64) -> bool {
    let period = blocks.period.unwrap_or(width);
    let n = theirs.len() / (values.len() / width);
    let mut off = 0.0;
    for (row, theirs) in values.chunks(width).zip(theirs.chunks(n)) {
        let own = row.chunks(period).flat_map(|one| &one[blocks.first..blocks.end]);
        for (&a, &b) in own.zip(theirs) {
            off += square(a - b);
            if off.is_nan() || off >= most {
                return false;
            }
        }
    }
    true
}

/// Whether each element of a row is in one of the parts.
fn fill(parts: &[Part], width: usize) -> bool {
    let mut times = vec![0; width];
    for Blocks { first, end, period } in parts.iter().map(|part| part.blocks) {
        times.chunks_mut(period.unwrap_or(width)).for_each(|one| {
            one[first..end].iter_mut().for_each(|times| *times += 1);
        });
    }
    times.into_iter().all(|times| times == 1)
}

/// Whether each part can be a site that no part before it is.
fn have_own_sites(parts: &[Part]) -> bool {
    let mut taken = BTreeSet::new();
    parts.iter().all(|part| part.sites.iter().any(|&site| taken.insert(site)))
}
