//! Which array of a dump is which site, by their values: in any order of axes, scaled by a factor that
//! programs use, in any number format, and with rows in another order.
//!
//! Nothing is assumed. An array that fits two sites, or none, is listed as such.

use std::collections::BTreeSet;

use super::{
    Array, Dump, DumpError, Slice,
    axes::{Order, gather, names, strides},
    fused::{self, Part},
    map::Reading,
    placement,
    signature::Signature,
    tokens::{Tokens, tokens},
};
use crate::{
    graph::site::{Axis, Site, Stage},
    trace::TraceReader,
};

/// Two tensors this close (relative L2) are one, in any number format.
pub(super) const SURE: f64 = 0.02;
/// Two this far apart may be one whose engine is a little wrong.
const LIKELY: f64 = 0.2;
/// A second site is a rival up to so many times the distance of the first.
const RIVAL: f64 = 10.0;
/// A scale this close to 1 is 1: what is left is the engine's difference, which a mapping must not hide.
const NO_SCALE: f64 = 0.1;
/// A scale that programs use is met this closely.
const SCALE: f64 = 1e-3;
/// More rows than this are not sorted.
const MAX_ROWS: usize = 512;

/// How much a match can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confidence {
    /// The only site with these values, within rounding.
    Sure,
    Likely,
}

/// An array that is a site, or arrays of one token each that are one.
#[derive(Clone, Debug)]
pub struct Match {
    /// Of arrays of one token each an expression, whose group `t` is the position.
    pub name: String,
    /// How many arrays it is.
    pub arrays: usize,
    /// That of step 0 where there are several arrays.
    pub site: Site,
    /// The part of the array that is the site, where others are other sites.
    pub slice: Option<Slice>,
    pub order: Order,
    /// What the array's values are to be multiplied by.
    pub scale: f64,
    /// Of each row of the site, the row of the array, where those are in another order.
    pub rows: Option<Vec<usize>>,
    pub confidence: Confidence,
    /// What keeps it from being sure.
    pub doubt: Option<String>,
    /// What is not known of its order, and does not change its values.
    pub note: Option<String>,
}

/// What is known of a dump.
#[derive(Debug, Default)]
pub struct Alignment {
    pub matches: Vec<Match>,
    /// Arrays that have the values of several sites, all of them taken by other arrays.
    pub ambiguous: Vec<(String, Vec<Site>)>,
    pub unmatched: Vec<String>,
}

/// A site of the reference.
pub(super) struct Candidate {
    pub site: Site,
    axes: Vec<Axis>,
    pub shape: Vec<usize>,
    /// The first of its rows, where it has one for each token and all of it counts.
    pub row: Vec<f32>,
    first_position: usize,
    /// Absent for scores, of which a part does not count.
    signature: Option<Signature>,
}

/// One way in which an array may be a site.
#[derive(Clone)]
struct Fit {
    site: Site,
    order: Order,
    scale: Scale,
    rows: Option<Vec<usize>>,
    distance: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Scale {
    One,
    /// A factor that programs use.
    Known(f64),
    Other(f64),
}

impl Scale {
    /// What the array's values are to be multiplied by.
    fn to_site(self) -> f64 {
        match self {
            Scale::One => 1.0,
            Scale::Known(factor) | Scale::Other(factor) => 1.0 / factor,
        }
    }
}

impl Match {
    /// Whether it is that site, which arrays of one token each are in every step.
    fn is(&self, site: Site) -> bool {
        self.site == site || self.arrays > 1 && self.site == Site { step: 0, ..site }
    }
}

/// Finds the sites of a dump's arrays.
///
/// # Errors
/// The dump or the reference cannot be read.
pub fn align(dump: &Dump, reference: &TraceReader) -> Result<Alignment, DumpError> {
    let candidates = candidates(reference)?;
    let mut fits = Vec::new();
    let mut alignment = Alignment::default();
    let mut stacked = BTreeSet::new();
    // What is larger than all sites together is none of them, nor several: it is not read.
    let most: usize = candidates.iter().map(|c| c.shape.iter().product::<usize>()).sum();
    let (known, beyond): (Vec<Array>, Vec<Array>) =
        dump.arrays.iter().cloned().partition(|array| array.elements() <= most);
    let dump = &Dump { arrays: known };
    for tokens in tokens(dump, &reference.manifest().steps) {
        if tokens.names().is_disjoint(&stacked)
            && let Some(found) = stack(&tokens, &candidates, reference, &alignment)?
        {
            stacked.extend(tokens.names());
            alignment.matches.push(found);
        }
    }
    for array in dump.arrays.iter().filter(|array| !stacked.contains(array.name.as_str())) {
        let fits_here = fits_of(&array.shape, &array.read()?, &candidates, reference)?;
        fits.push((&array.name, fits_here));
    }
    // Sure ones first, so that a doubtful one does not take the site of one that is not.
    fits.sort_by(|(_, a), (_, b)| {
        let key = |fits: &[Fit]| {
            let first = fits.first();
            (rivals(fits).len(), first.map_or(f64::INFINITY, |fit| fit.distance))
        };
        let ((a, b), (x, y)) = (key(a), key(b));
        a.cmp(&x).then(b.total_cmp(&y))
    });
    for (name, fits) in fits {
        alignment.add(name, &fits);
    }
    for name in std::mem::take(&mut alignment.unmatched) {
        let place = dump.arrays.binary_search_by(|array| array.name.cmp(&name));
        let array = &dump.arrays[place.expect("a name of the dump, which is sorted")];
        let parts = fused::parts(&array.shape, &array.read()?, &candidates, reference)?;
        if parts.is_empty() {
            alignment.unmatched.push(name);
        } else {
            alignment.add_parts(array, parts, reference);
        }
    }
    alignment.unmatched.extend(beyond.into_iter().map(|array| array.name));
    placement::settle(&mut alignment, dump, reference)?;
    alignment.matches.sort_by_key(|found| found.site);
    alignment.unmatched.sort();
    Ok(alignment)
}

/// The site that arrays of one token each are: by the prompt's, checked by those of every step.
fn stack(
    tokens: &Tokens<'_>,
    candidates: &[Candidate],
    reference: &TraceReader,
    alignment: &Alignment,
) -> Result<Option<Match>, DumpError> {
    let prompt = reference.manifest().steps[0].positions();
    let (mut found, mut all) = (None, Vec::new());
    for stack in tokens.stacks(prompt)? {
        let of_stack = |fit: &Fit| {
            let axis = reference.list().axes(fit.site)[0];
            let fits = fit.site.step == 0 && axis == stack.first_axis && fit.rows.is_none();
            fits && alignment.is_free(fit.site)
        };
        let mut fits = fits_of(&stack.shape, &stack.values, candidates, reference)?;
        fits.retain(of_stack);
        for fit in rivals(&fits) {
            let order = match stack.first_axis {
                Axis::Position => Some(fit.order.clone()),
                _ => fit.order.of_row(stack.leading),
            };
            let Some(order) = order else { continue };
            let reading = Reading {
                site: fit.site,
                position: Some(0),
                slice: None,
                order: order.clone(),
                scale: fit.scale.to_site(),
                rows: None,
            };
            let Some(beyond) = first_other(tokens, &reading, reference)? else { continue };
            all.push(fit.site);
            found.get_or_insert((fit.clone(), order, beyond));
        }
    }
    Ok(found.map(|(fit, order, beyond)| {
        let other = |position| format!("the array of position {position} is another");
        let doubt = doubt(&fit, &all).or(beyond.map(other));
        Match {
            name: tokens.pattern.clone(),
            arrays: tokens.arrays.len(),
            site: fit.site,
            slice: None,
            order,
            scale: fit.scale.to_site(),
            rows: None,
            confidence: if doubt.is_none() { Confidence::Sure } else { Confidence::Likely },
            doubt,
            note: None,
        }
    }))
}

/// The first position whose array is not what the reference has there, if one is; `None` where they
/// cannot be read as that site at all.
fn first_other(
    tokens: &Tokens<'_>,
    reading: &Reading,
    reference: &TraceReader,
) -> Result<Option<Option<usize>>, DumpError> {
    let read = match tokens.read(reading, reference) {
        Err(DumpError::Line { .. }) => return Ok(None),
        read => read?,
    };
    for (site, position, ours) in read {
        let Some(theirs) = reference.tensor(site)? else { continue };
        let first = reference.manifest().steps[site.step as usize].first_position;
        let whole = ours.len() == theirs.data.len();
        let start = if whole { 0 } else { (position - first) * ours.len() };
        let mut shape = theirs.shape;
        shape[0] = shape[0] * ours.len() / theirs.data.len();
        let axes = reference.list().axes(site).to_vec();
        let place = Candidate {
            site,
            axes,
            shape,
            first_position: position,
            row: Vec::new(),
            signature: None,
        };
        let theirs = counted(&place, theirs.data[start..start + ours.len()].to_vec());
        let (_, distance) = scaled_distance(&counted(&place, ours), &theirs, &place.shape);
        if distance >= SURE {
            return Ok(Some(Some(position)));
        }
    }
    Ok(Some(None))
}

fn candidates(reference: &TraceReader) -> Result<Vec<Candidate>, DumpError> {
    let mut candidates = Vec::new();
    for site in reference.sites() {
        let Some(tensor) = reference.tensor(site)? else { continue };
        let axes = reference.list().axes(site).to_vec();
        let masked = is_masked(site, &axes);
        let signature = Signature::of(&tensor.data);
        if masked || signature.is_some() {
            let first_position = reference.manifest().steps[site.step as usize].first_position;
            let signature = signature.filter(|_| !masked);
            let shape = tensor.shape;
            let row = &tensor.data[..tensor.data.len() / shape[0]];
            let is_row = !masked && axes[0] == Axis::Token && row.iter().any(|&x| x != 0.0);
            let row = if is_row { row.to_vec() } else { Vec::new() };
            candidates.push(Candidate { site, axes, shape, row, first_position, signature });
        }
    }
    Ok(candidates)
}

/// Every way in which the array may be a site, the nearest first.
fn fits_of(
    shape: &[usize],
    values: &[f32],
    candidates: &[Candidate],
    reference: &TraceReader,
) -> Result<Vec<Fit>, DumpError> {
    let signature = Signature::of(values);
    let mut fits: Vec<Fit> = Vec::new();
    for most in [SURE, LIKELY] {
        for candidate in
            candidates.iter().filter(|c| c.shape.iter().product::<usize>() == values.len())
        {
            let may_be = match (&signature, &candidate.signature) {
                (Some(a), Some(b)) => a.may_be(b, most),
                (_, None) => true,
                (None, _) => false,
            };
            let Some(tensor) =
                may_be.then(|| reference.tensor(candidate.site)).transpose()?.flatten()
            else {
                continue;
            };
            let theirs = counted(candidate, tensor.data);
            fits.extend(fits_as(shape, values, candidate, &theirs, most));
        }
        if !fits.is_empty() {
            break;
        }
    }
    fits.sort_by(|a, b| a.distance.total_cmp(&b.distance));
    Ok(fits)
}

/// Whether keys after a query's position do not count; in probs they are 0.
fn is_masked(site: Site, axes: &[Axis]) -> bool {
    site.stage != Stage::Probs && axes[0] == Axis::Token && axes.last() == Some(&Axis::Key)
}

/// The values with those that do not count as 0.
fn counted(candidate: &Candidate, mut values: Vec<f32>) -> Vec<f32> {
    if is_masked(candidate.site, &candidate.axes) {
        let last = candidate.shape.len() - 1;
        let heads = candidate.shape[1..last].iter().product::<usize>();
        let keys = candidate.shape[last];
        for (row, scores) in values.chunks_mut(keys).enumerate() {
            let seen = candidate.first_position + row / heads + 1;
            scores[seen.min(keys)..].fill(0.0);
        }
    }
    values
}

/// The ways in which the array may be that site.
fn fits_as(
    shape: &[usize],
    values: &[f32],
    candidate: &Candidate,
    theirs: &[f32],
    most: f64,
) -> Vec<Fit> {
    let site = candidate.site;
    let names = names(&candidate.axes);
    let mut seen: Vec<Vec<usize>> = Vec::new();
    let mut fits = Vec::new();
    for axes in permutations(names.len()) {
        let Some(order) = Order::of(shape, &candidate.shape, &axes, &names) else {
            continue;
        };
        // Where an axis has one element only, several orders are the same.
        let long: Vec<usize> =
            axes.iter().copied().filter(|&axis| candidate.shape[axis] > 1).collect();
        if seen.contains(&long) {
            continue;
        }
        seen.push(long);
        let raw = gather(values, &candidate.shape, &strides(&axes, &candidate.shape));
        let ours = counted(candidate, raw.clone());
        let (scale, distance) = scaled_distance(&ours, theirs, &candidate.shape);
        if distance < most {
            fits.push(Fit { site, order, scale, rows: None, distance });
        } else if let Some(rows) = sorted_rows(&raw, theirs, candidate.shape[0]) {
            let width = raw.len() / rows.len();
            let sorted =
                rows.iter().flat_map(|&row| raw[row * width..][..width].to_vec()).collect();
            let sorted = counted(candidate, sorted);
            let (scale, distance) = scaled_distance(&sorted, theirs, &candidate.shape);
            if distance < SURE {
                fits.push(Fit { site, order, scale, rows: Some(rows), distance });
            }
        }
    }
    fits
}

fn permutations(n: usize) -> Vec<Vec<usize>> {
    match n {
        0 | 1 => vec![(0..n).collect()],
        2 => vec![vec![0, 1], vec![1, 0]],
        3 => [[0, 1, 2], [1, 0, 2], [0, 2, 1], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
            .map(|axes| axes.to_vec())
            .to_vec(),
        // More axes than programs swap.
        _ => vec![(0..n).collect()],
    }
}

/// The scale of `theirs` in `ours`, inverted, and the relative L2 distance that it leaves.
fn scaled_distance(ours: &[f32], theirs: &[f32], shape: &[usize]) -> (Scale, f64) {
    let (mut across, mut square, mut own) = (0.0, 0.0, 0.0);
    for (&a, &b) in ours.iter().zip(theirs) {
        let (a, b) = (f64::from(a), f64::from(b));
        across += a * b;
        square += b * b;
        own += a * a;
    }
    let measured = across / square;
    let scale = match known_scale(measured, shape) {
        _ if (measured - 1.0).abs() < NO_SCALE => Scale::One,
        Some(known) => Scale::Known(known),
        None => Scale::Other(measured),
    };
    let factor = match scale {
        Scale::One => 1.0,
        Scale::Known(factor) | Scale::Other(factor) => factor,
    };
    let left = own - 2.0 * factor * across + factor * factor * square;
    let distance = (left.max(0.0) / square).sqrt() / factor.abs();
    (scale, if distance.is_finite() { distance } else { f64::INFINITY })
}

/// A power of two, alone or times the root of the last dimension or log2 e, if the scale is one.
fn known_scale(measured: f64, shape: &[usize]) -> Option<f64> {
    let root = (*shape.last()? as f64).sqrt();
    let log2_e = std::f64::consts::LOG2_E;
    let known = [1.0, root, 1.0 / root, log2_e, 1.0 / log2_e];
    known.into_iter().find_map(|base| {
        let power = (measured.abs() / base).log2().round();
        let known = base * power.exp2() * measured.signum();
        ((measured / known - 1.0).abs() < SCALE).then_some(known)
    })
}

/// Of each row of theirs, the row of ours that points its way; `None` where one has none. Where theirs
/// is 0, which is where a score does not count, ours may be anything.
fn sorted_rows(ours: &[f32], theirs: &[f32], rows: usize) -> Option<Vec<usize>> {
    if !(3..=MAX_ROWS).contains(&rows) {
        return None;
    }
    let width = ours.len() / rows;
    let cosine = |a: &[f32], b: &[f32]| {
        let (mut across, mut ours, mut theirs) = (0.0, 0.0, 0.0);
        for (&a, &b) in a.iter().zip(b).filter(|(_, b)| **b != 0.0) {
            let (a, b) = (f64::from(a), f64::from(b));
            across += a * b;
            ours += a * a;
            theirs += b * b;
        }
        across / (ours * theirs).sqrt()
    };
    let mut free = vec![true; rows];
    let mut order = Vec::with_capacity(rows);
    for row in theirs.chunks(width) {
        let points = |&index: &usize| {
            let ours = &ours[index * width..][..width];
            free[index] && cosine(ours, row).abs() > 1.0 - SURE * SURE
        };
        let found = (0..rows).find(points)?;
        free[found] = false;
        order.push(found);
    }
    Some(order)
}

/// The fits that the values do not tell from the first, and the first itself; the likeliest first.
fn rivals(fits: &[Fit]) -> Vec<&Fit> {
    let Some(first) = fits.first() else { return Vec::new() };
    let near = |fit: &&Fit| fit.distance <= RIVAL * first.distance + 1e-4;
    let mut rivals: Vec<&Fit> = fits.iter().filter(near).collect();
    // Of two that differ by a scale, the one without is meant more often.
    rivals.sort_by_key(|fit| (fit.scale != Scale::One, fit.rows.is_some()));
    rivals
}

impl Alignment {
    /// Whether nothing is that site yet.
    fn is_free(&self, site: Site) -> bool {
        self.matches.iter().all(|found| !found.is(site))
    }

    fn add(&mut self, name: &str, fits: &[Fit]) {
        let name = name.to_string();
        let rivals = rivals(fits);
        let all: Vec<Site> = rivals.iter().map(|fit| fit.site).collect();
        let Some(&fit) = rivals.iter().find(|fit| self.is_free(fit.site)) else {
            if all.is_empty() {
                self.unmatched.push(name)
            } else {
                self.ambiguous.push((name, all))
            }
            return;
        };
        let doubt = doubt(fit, &all);
        self.matches.push(Match {
            name,
            arrays: 1,
            site: fit.site,
            slice: None,
            order: fit.order.clone(),
            scale: fit.scale.to_site(),
            rows: fit.rows.clone(),
            confidence: if doubt.is_none() { Confidence::Sure } else { Confidence::Likely },
            doubt,
            note: None,
        });
    }

    /// Adds the sites that one array is made of.
    fn add_parts(&mut self, array: &Array, parts: Vec<Part>, reference: &TraceReader) {
        for Part { blocks, sites, shape } in parts {
            let slice = Slice::of_last(blocks);
            let names = names(reference.list().axes(sites[0]));
            let own: Vec<usize> = (0..names.len()).collect();
            let order = slice.shape(&array.shape).ok();
            let order = order.and_then(|array| Order::of(&array, &shape, &own, &names));
            let (Some(&site), Some(order)) =
                (sites.iter().find(|site| self.is_free(**site)), order)
            else {
                self.ambiguous.push((format!("{} [{slice}]", array.name), sites));
                continue;
            };
            let doubt = others(site, &sites);
            self.matches.push(Match {
                name: array.name.clone(),
                arrays: 1,
                site,
                slice: Some(slice),
                order,
                scale: 1.0,
                rows: None,
                confidence: if doubt.is_none() { Confidence::Sure } else { Confidence::Likely },
                doubt,
                note: None,
            });
        }
    }
}

/// The other sites that have a site's values.
fn others(site: Site, all: &[Site]) -> Option<String> {
    let others: Vec<String> = (all.iter().filter(|other| **other != site))
        .map(|site| format!("{}/{}", site.step, site.tensor_name()))
        .collect();
    (!others.is_empty()).then(|| format!("or {}", others.join(", ")))
}

/// What keeps a fit from being sure.
fn doubt(fit: &Fit, all: &[Site]) -> Option<String> {
    if let Some(others) = others(fit.site, all) {
        return Some(others);
    }
    if all.len() > 1 {
        return Some("its axes may be in another order".into());
    }
    if fit.distance >= SURE {
        return Some(format!("{:.0} % off", 100.0 * fit.distance));
    }
    match fit.scale {
        Scale::Other(_) => Some("a scale that programs rarely use".into()),
        _ => None,
    }
}
