//! A trace by itself: zeros, equal tensors, a foreign byte order.

use std::collections::HashMap;

use rayon::prelude::*;

use super::notes::Notes;
use crate::{
    core::tensor::Tensor,
    graph::{
        SiteList,
        site::{Axis, Site, Stage},
    },
    trace::{Step, TraceError, TraceReader},
};

/// What is kept of a tensor after it was read.
struct Seen {
    shape: Vec<usize>,
    whole: blake3::Hash,
    last_row: blake3::Hash,
}

/// Reads every tensor that is wanted once; what looks wrong with it, one line each.
///
/// # Errors
/// A tensor cannot be read, or has sane values only when its bytes are swapped.
pub fn alone(trace: &TraceReader, wants: &dyn Fn(Site) -> bool) -> Result<Vec<String>, TraceError> {
    let mut notes = Notes::default();
    let mut last: HashMap<Site, Seen> = HashMap::new();
    for (index, step) in trace.manifest().steps.iter().enumerate() {
        let before = index.checked_sub(1).map(|before| &trace.manifest().steps[before]);
        let mut seen = HashMap::new();
        let mut by_values: HashMap<blake3::Hash, Vec<Site>> = HashMap::new();
        let is_own = |site: &Site| site.step as usize == index && wants(*site);
        let sites: Vec<Site> = trace.sites().filter(is_own).collect();
        let looks: Vec<_> = sites.par_iter().map(|&site| look(trace, site)).collect();
        for (site, looked) in sites.into_iter().zip(looks) {
            let Some(Looked { zeros, values }) = looked? else { continue };
            if let Some(what) = zeros {
                notes.add(what, site);
            }
            let has_last = trace
                .rows(site)
                .is_none_or(|tokens| tokens.last() == Some(&(step.tokens.len() - 1)));
            let Some(found) = values.filter(|_| has_last) else { continue };
            let twins = by_values.entry(found.whole).or_default();
            if let Some(twin) =
                twins.iter().find(|&&twin| !may_be_equal(trace.list(), twin, site, step))
            {
                notes.add(twin_text(*twin, site), site);
            }
            twins.push(site);
            let previous = Site { step: site.step.wrapping_sub(1), ..site };
            if let (Some(before), Some(old)) = (before, last.get(&previous))
                && is_stale(site, trace.list().axes(site), (old, before), (&found, step))
            {
                notes.add(stale_text(site.stage), site);
            }
            seen.insert(site, found);
        }
        last = seen;
    }
    Ok(notes.lines())
}

/// What one tensor shows.
struct Looked {
    zeros: Option<String>,
    values: Option<Seen>,
}

/// Looks at a tensor; `None` where there is none, or nothing says what it may hold.
fn look(trace: &TraceReader, site: Site) -> Result<Option<Looked>, TraceError> {
    let Some(tensor) = trace.tensor(site)? else { return Ok(None) };
    check_byte_order(trace, site, &tensor)?;
    // Of a tensor without a role nothing says what it may hold.
    if matches!(site.stage, Stage::Other(_)) {
        return Ok(None);
    }
    let zeros = zeros(site, trace.list().axes(site), &tensor, trace.rows(site));
    Ok(Some(Looked { zeros, values: Seen::of(&tensor) }))
}

impl Seen {
    /// Nothing of a tensor whose last row is one value: such rows are equal by chance.
    fn of(tensor: &Tensor) -> Option<Seen> {
        let hash = |values: &[f32]| blake3::hash(bytemuck::cast_slice(values));
        let width = tensor.data.len() / tensor.shape[0];
        let last_row = &tensor.data[tensor.data.len() - width..];
        let varies = |values: &[f32]| values.iter().any(|value| *value != values[0]);
        let (whole, last_row) = (varies(last_row)).then(|| (hash(&tensor.data), hash(last_row)))?;
        Some(Seen { shape: tensor.shape.clone(), whole, last_row })
    }
}

/// Zeros where a computation leaves none: everywhere, or whole rows of one of several heads.
fn zeros(site: Site, axes: &[Axis], tensor: &Tensor, tokens: Option<&[usize]>) -> Option<String> {
    let width = tensor.data.len() / tensor.shape[0];
    let is_zero = |row: &[f32]| row.iter().all(|value| *value == 0.0);
    let rows: Vec<usize> = (tensor.data.chunks(width).enumerate())
        .filter(|(_, row)| is_zero(row))
        .map(|(row, _)| tokens.map_or(row, |tokens| tokens[row]))
        .collect();
    let axis = axes[0].name();
    match (rows.as_slice(), tensor.shape[0]) {
        ([], _) => None,
        (rows, all) if rows.len() == all => {
            Some("is all zeros: not computed, or not copied when it was recorded".into())
        }
        // A padding token may have such an embedding.
        _ if site.stage == Stage::Embd => None,
        ([row], _) => {
            Some(format!("is zero at {axis} {row} only: never written, or NaN replaced by zeros"))
        }
        ([first, .., last], all) => Some(format!(
            "is zero at {} of {all} {axis}s, from {first} to {last}: never written, or NaN \
             replaced by zeros",
            rows.len()
        )),
    }
}

/// Whether two sites of a step hold the same values in a right engine.
fn may_be_equal(list: &SiteList, a: Site, b: Site, step: &Step) -> bool {
    use Stage::*;
    // At position 0 nothing turns, and a query sees one value only.
    let only_first = step.positions() == 1;
    // The last of the keys' operations that the layer has: without rope it is the norm, or the product.
    let has = |stage: &Stage| list.get(Site { stage: *stage, ..a }).is_some();
    let last = [KRope, KNorm].into_iter().find(has).unwrap_or(K);
    a.layer == b.layer
        && match (a.stage, b.stage) {
            (K | KNorm | KRope | KCache, K | KNorm | KRope | KCache) => {
                step.first_position == 0 && (only_first || a.stage >= last && b.stage >= last)
            }
            (V, VCache) | (VCache, V) => step.first_position == 0,
            (Q | QNorm, QRope) => only_first,
            (V | VCache, AttnOut) => only_first,
            _ => false,
        }
}

fn twin_text(twin: Site, site: Site) -> String {
    let name = match (twin.layer == site.layer, twin.layer) {
        (false, Some(layer)) => format!("{} of layer {layer}", twin.stage.name()),
        _ => twin.stage.name().to_string(),
    };
    format!(
        "has exactly the values of {name}: one buffer was recorded as both, or the operations between \
         were left out"
    )
}

/// Whether the last row of a step is that of the step before, though it depends on what changed.
fn is_stale(
    site: Site,
    axes: &[Axis],
    (old, before): (&Seen, &Step),
    (new, step): (&Seen, &Step),
) -> bool {
    if axes[0] != Axis::Token || axes.contains(&Axis::Key) || old.shape[1..] != new.shape[1..] {
        return false;
    }
    // Before rope, layer 0 sees nothing but the token.
    let of_token = site.stage == Stage::Embd || site.layer == Some(0) && site.stage < Stage::QRope;
    old.last_row == new.last_row && !(of_token && before.tokens.last() == step.tokens.last())
}

fn stale_text(stage: Stage) -> String {
    let or = match stage {
        Stage::Logits => "prompt logits instead of a decoded token's, or a stale buffer",
        _ => "a buffer recorded before it was recomputed",
    };
    format!("has exactly the values of the previous step's last token: {or}")
}

/// Fewer elements say too little about their magnitudes.
const MIN_ELEMENTS: u32 = 32;
/// More say no more about them.
const MOST_ELEMENTS: u32 = 1 << 12;

/// Refuses a tensor that is sane only when the bytes of its elements are swapped.
fn check_byte_order(trace: &TraceReader, site: Site, tensor: &Tensor) -> Result<(), TraceError> {
    if tensor.data.len() < MIN_ELEMENTS as usize || is_sane(&tensor.data) {
        return Ok(());
    }
    let swapped = trace.byte_swapped(site)?;
    if swapped.is_some_and(|swapped| is_sane(&swapped.data)) {
        Err(TraceError::ByteOrder { path: trace.path(site.step), site })
    } else {
        Ok(())
    }
}

/// Whether magnitudes lie as those of activations do, in enough elements to say so.
///
/// Of normal values log2 |x| has a standard deviation of 1.6. Swapped bytes put mantissa bits into
/// the exponent, which then takes any value: 9 for f16 and 74 for f32 and bf16, or, where the low
/// mantissa bits are zeros as in f32 made from f16, magnitudes that are denormal (of f64, even 0 in
/// f32).
fn is_sane(values: &[f32]) -> bool {
    let (mut not_zero, mut finite, mut sum, mut squares) = (0u32, 0u32, 0.0, 0.0);
    for value in values.iter().filter(|value| **value != 0.0) {
        not_zero += 1;
        if value.is_finite() {
            let log = f64::from(value.abs()).log2();
            (finite, sum, squares) = (finite + 1, sum + log, squares + log * log);
        }
        if not_zero == MOST_ELEMENTS {
            break;
        }
    }
    if not_zero < MIN_ELEMENTS || finite == 0 {
        return false;
    }
    let count = f64::from(finite);
    let mean = sum / count;
    let spread = (squares / count - mean * mean).max(0.0).sqrt();
    spread < 4.0 && mean.abs() < 30.0 && count / f64::from(not_zero) > 0.99
}
