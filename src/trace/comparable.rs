//! Whether two traces, or a trace and a live side, ran the same model through the same tokens.

use std::path::Path;

use super::{
    error::TraceError,
    groups::expanded,
    manifest::{Manifest, ModelId},
};
use crate::graph::ListedSite;

/// Which of two traces has more steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Longer {
    A,
    B,
}

/// What two comparable traces share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Common {
    /// Steps that both have, with the same tokens; the later ones of the longer are unmeasured.
    pub steps: usize,
    /// The trace that goes on after those, if one does.
    pub longer: Option<Longer>,
}

/// Checks that two traces can be compared: same model file, the same shape of each
/// site, and the same token ids in every step that both have. Two traces of the same side can be.
///
/// # Errors
/// A refusal with the first difference, named with both values.
pub fn comparable(a: &Manifest, b: &Manifest) -> Result<Common, TraceError> {
    same_model(&a.model, &b.model)?;
    for (step, (in_a, in_b)) in a.steps.iter().zip(&b.steps).enumerate() {
        same_tokens(step, in_a.first_position, &in_a.tokens, &in_b.tokens)?;
    }
    let longer = match a.steps.len().cmp(&b.steps.len()) {
        std::cmp::Ordering::Less => Some(Longer::B),
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Greater => Some(Longer::A),
    };
    Ok(Common { steps: a.steps.len().min(b.steps.len()), longer })
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
