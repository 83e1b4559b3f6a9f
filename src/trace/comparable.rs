//! Whether two traces, or a trace and a live side, ran the same model through the same tokens.

use std::{ops::Range, path::Path};

use super::{
    error::TraceError,
    groups::expanded,
    manifest::{Manifest, ModelId, Step},
};
use crate::graph::ListedSite;

/// Which of two traces has more steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Longer {
    A,
    B,
}

/// What two comparable traces share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Common {
    /// The positions that both ran, with the same ids.
    pub positions: Range<usize>,
    /// Where the ids are no longer the same, if there is such a place.
    pub parting: Option<Parting>,
    /// Whether both divide those positions into the same steps.
    pub same_steps: bool,
    /// The trace that goes on after those that the other has, if one does.
    pub longer: Option<Longer>,
}

/// The first id that is not the same in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parting {
    pub position: usize,
    /// The step of the second trace that runs it.
    pub step: usize,
    pub a: i32,
    pub b: i32,
}

/// Checks that two traces can be compared: same model file, the same shape of each site, and the same ids
/// from some position on, up to the end of the prompt at least. They may divide the ids into other steps.
/// Two traces of the same side can be.
///
/// # Errors
/// A refusal with the first difference, named with both values.
pub fn comparable(a: &Manifest, b: &Manifest) -> Result<Common, TraceError> {
    same_model(&a.model, &b.model)?;
    if let Some(batch) = [a, b].into_iter().find(|manifest| !manifest.sequences().is_empty()) {
        let (path, all) = ("a trace of these".into(), batch.sequences());
        return Err(TraceError::Sequences { path, all, number: None });
    }
    let (of_a, of_b) = (a.positions(), b.positions());
    let (start, end) = (of_a.start.max(of_b.start), of_a.end.min(of_b.end));
    if start >= end {
        return Err(TraceError::OtherPositions { a: of_a, b: of_b });
    }
    let ids = |manifest: &Manifest| -> Vec<i32> {
        let ids = manifest.steps.iter().flat_map(|step| step.tokens.iter().copied());
        ids.skip(start - manifest.positions().start).take(end - start).collect()
    };
    let (ids_a, ids_b) = (ids(a), ids(b));
    let differs = ids_a.iter().zip(&ids_b).position(|(a, b)| a != b);
    let parting = differs.map(|offset| {
        let position = start + offset;
        let step = b.steps.iter().position(|step| step.positions() > position).unwrap_or(0);
        Parting { position, step, a: ids_a[offset], b: ids_b[offset] }
    });
    if let Some(Parting { position, step, a: id_a, b: id_b }) = parting
        && position < a.prompt_end().max(b.prompt_end())
    {
        return Err(TraceError::OtherTokens { step, position, a: id_a, b: id_b });
    }
    let positions = start..parting.map_or(end, |parting| parting.position);
    let spans = |manifest: &Manifest| -> Vec<usize> {
        let ends = manifest.steps.iter().map(Step::positions);
        ends.filter(|end| positions.contains(end)).collect()
    };
    let same_steps = of_a.start == of_b.start && spans(a) == spans(b);
    let longer = match of_a.end.cmp(&of_b.end) {
        std::cmp::Ordering::Less => Some(Longer::B),
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Greater => Some(Longer::A),
    };
    Ok(Common { positions, parting, same_steps, longer })
}

/// Refuses two traces that are not of the same steps, as far as both go.
pub(super) fn same_steps(a: &Manifest, b: &Manifest) -> Result<(), TraceError> {
    same_model(&a.model, &b.model)?;
    for (step, (in_a, in_b)) in a.steps.iter().zip(&b.steps).enumerate() {
        same_tokens(step, in_a.first_position, &in_a.tokens, &in_b.tokens)?;
    }
    Ok(())
}

fn same_model(a: &ModelId, b: &ModelId) -> Result<(), TraceError> {
    if a.blake3 != b.blake3 {
        let show = |model: &ModelId| format!("{} (blake3 {})", model.name, model.blake3);
        let alike = a.alike(b);
        return Err(TraceError::OtherModel { a: show(a), b: show(b), alike });
    }
    let other = |what: String, a: String, b: String| Err(TraceError::OtherShapes { what, a, b });
    if a.architecture != b.architecture {
        let (a, b) = (a.architecture.clone(), b.architecture.clone());
        return other("architecture".into(), a, b);
    }
    if a.n_vocab != b.n_vocab {
        return other("n_vocab".into(), a.n_vocab.to_string(), b.n_vocab.to_string());
    }
    if a.sites == b.sites {
        return Ok(());
    }
    // A list may have sites that the other lacks: they count as unmeasured.
    let list = |model: &ModelId| expanded(Path::new("the manifest"), &model.sites);
    let (list_a, list_b) = (list(a)?, list(b)?);
    for of_a in list_a.sites() {
        let site = of_a.site(0);
        if let Some(of_b) = list_b.get(site).filter(|of_b| *of_b != of_a) {
            return other(format!("the shape of {}", site.tensor_name()), text(of_a), text(of_b));
        }
    }
    Ok(())
}

/// `(token T, head 14, dim 64)`
fn text(site: &ListedSite) -> String {
    let axes = site.axes.iter().zip(&site.sizes);
    let axes: Vec<String> = axes.map(|(axis, size)| format!("{} {size}", axis.word())).collect();
    format!("({})", axes.join(", "))
}

fn same_tokens(step: usize, first: usize, a: &[i32], b: &[i32]) -> Result<(), TraceError> {
    if let Some(offset) = a.iter().zip(b).position(|(a, b)| a != b) {
        let position = first + offset;
        return Err(TraceError::OtherTokens { step, position, a: a[offset], b: b[offset] });
    }
    if a.len() != b.len() {
        return Err(TraceError::OtherStepLength { step, a: a.len(), b: b.len() });
    }
    Ok(())
}
