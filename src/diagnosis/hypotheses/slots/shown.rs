//! What lies in each slot of a wrong cache, as it is drawn.

use super::{Content, Shape, Slot, is_cache, read_off};
use crate::diagnosis::{
    Evidence,
    reading::{Cells, Reading, Shown},
};

/// What lies in each slot of a wrong cache, in the first step where one is wrong.
pub fn contents_of_slots(evidence: &Evidence<'_>) -> Option<Reading> {
    let found = if is_cache(evidence) { read_off(evidence) } else { None }?;
    let first = found.slots.iter().map(|(slot, _)| slot.step).min()?;
    let step = &evidence.steps[first];
    let Shape { heads, dim } = found.shape;
    let positions = step.observed.piece.captured.len() / (heads * dim).max(1);
    let mut kinds = vec!["its own row".to_string()];
    // Heads are the rows: there are few of them.
    let mut of = vec![0; positions * heads];
    for (slot, content) in found.slots.iter().filter(|(slot, _)| slot.step == first) {
        let text = kind_of(content, *slot, &found.names);
        let kind = kinds.iter().position(|kind| *kind == text).unwrap_or_else(|| {
            kinds.push(text);
            kinds.len() - 1
        });
        of[slot.head * positions + slot.position] = kind.min(u8::MAX as usize) as u8;
    }
    let cells = Cells::new(["head", "slot"], 0, positions, kinds, &of);
    Some(Reading {
        title: "What lies in each slot of the cache",
        step: step.observed.step,
        shown: Shown::Cells(cells),
    })
}

/// What a slot holds, without numbers, so that few kinds are told apart.
fn kind_of(content: &Content, slot: Slot, names: &[String]) -> String {
    match content {
        Content::Zero => "zeros".to_string(),
        Content::Constant(_) => "a constant".to_string(),
        Content::Row { position, .. } if *position == slot.position => {
            "another head's row".to_string()
        }
        Content::Row { position, .. } if *position < slot.position => {
            "an earlier position's row".to_string()
        }
        Content::Row { .. } => "a later position's row".to_string(),
        Content::Removed { .. } => "a row that was removed".to_string(),
        Content::Other { name, .. } => {
            format!("a row of {}", names.get(*name).map_or("another tensor", String::as_str))
        }
        Content::Neighbour { .. } => "another sequence's row".to_string(),
        Content::Turned(_) => "its own row, rotated".to_string(),
        Content::Integers => "integers without their scale".to_string(),
        Content::Rounded(_) => "its own row, rounded".to_string(),
        Content::Padding => "padding".to_string(),
        Content::PageEnd => "the end of a page".to_string(),
        Content::Foreign => "nothing that is known".to_string(),
    }
}
