//! Whether two traces, or a trace and a live side, ran the same model through the same tokens.

use super::{
    error::TraceError,
    manifest::{Manifest, ModelId},
};

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

/// Checks that two traces can be compared: same format, same model file, same shapes, and the same
/// token ids in every step that both have. Two traces of the same side can be.
///
/// # Errors
/// A refusal with the first difference, named with both values.
pub fn comparable(a: &Manifest, b: &Manifest) -> Result<Common, TraceError> {
    if a.format_version != b.format_version {
        return Err(TraceError::OtherVersion { a: a.format_version, b: b.format_version });
    }
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
    if a.architecture != b.architecture {
        let (a, b) = (a.architecture.clone(), b.architecture.clone());
        return Err(TraceError::OtherShapes { what: "architecture", a, b });
    }
    for ((what, a), (_, b)) in a.shapes.named().into_iter().zip(b.shapes.named()) {
        if a != b {
            return Err(TraceError::OtherShapes { what, a: a.to_string(), b: b.to_string() });
        }
    }
    Ok(())
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
