//! Caches that were recorded in the blocks that the engine keeps.

use std::collections::BTreeSet;

use super::{
    error::TraceError,
    manifest::{MANIFEST_FILE, Manifest, field},
    ranks::Part,
};
use crate::{
    core::{
        arithmetic::{Convention, Value},
        format::Format,
    },
    graph::site::{Site, Stage},
};

/// Declares that a cache which was recorded in blocks is kept in them: its engine rounds to their type.
///
/// # Errors
/// A cache has blocks of two types, or the arithmetic declares another.
pub(super) fn declare(manifest: &mut Manifest, parts: &[Part]) -> Result<(), TraceError> {
    for part in parts {
        for (index, step) in part.manifest.steps.iter().enumerate() {
            for (name, &format) in &step.quantised {
                let Some(site) = Site::from_tensor_name(index as u32, name) else { continue };
                let stage = Some(site.stage);
                let all = &mut manifest.arithmetic.roundings;
                let is_of = |one: &&Convention| {
                    one.value == Value::Caches && one.is_of(stage, step.tokens.len())
                };
                match all.iter().rev().find(is_of) {
                    None => {
                        let own = Convention::everywhere(Value::Caches, format);
                        all.push(Convention { stage, ..own });
                    }
                    Some(other) if other.format != format => {
                        let reason = format!(
                            "is {format}, and {other} is declared or was recorded before: one type for all layers and steps"
                        );
                        let field_name = format!("steps[{index}].quantised.{name}");
                        return Err(field(&part.folder.join(MANIFEST_FILE), field_name, reason));
                    }
                    Some(_) => {}
                }
            }
        }
    }
    Ok(())
}

/// How caches that were recorded in blocks are kept: `k_cache in q8_0, v_cache in q4_0`. `None` where there are none.
pub fn caches_in_words(manifest: &Manifest) -> Option<String> {
    let quantised = manifest.steps.iter().flat_map(|step| &step.quantised);
    let stage = |(name, &format): (&String, &Format)| {
        Some((Site::from_tensor_name(0, name)?.stage, format))
    };
    let kept: BTreeSet<(Stage, Format)> = quantised.filter_map(stage).collect();
    let parts: Vec<String> =
        kept.iter().map(|(stage, format)| format!("{} in {format}", stage.name())).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}
