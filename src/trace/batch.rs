//! Several sequences in a step: whose the rows of its tensors are, and where each finds its cache and its keys.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{
    error::{Limit, TraceError},
    manifest::{Step, check_prefix, field, within},
    removed::Removed,
};

/// The sequences of a step. Its tokens are those of all rows, padding among them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Rows of the step's caches, of all sequences and pages; 0 where no cache is recorded.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub slots: usize,
    /// Slots of a block.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub block_size: usize,
    /// Length of the axis of keys; the positions of the longest sequence where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<usize>,
    pub sequences: Vec<BatchedSequence>,
}

/// A sequence's part of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchedSequence {
    /// Its number, the same in every step.
    pub sequence: u32,
    /// The position of its first row; the rows follow one another from there.
    pub first_position: usize,
    /// In its first step, the ids of the positions that were in the cache already, where they are known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefix: Vec<i32>,
    /// Positions of its cache that are removed before the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<Removed>,
    /// Rows of the step's tensors, in the order of their positions.
    pub rows: Vec<usize>,
    /// The blocks that hold its positions, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<usize>,
    /// The key of each position; the positions themselves where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<usize>>,
}

/// The longest axes of a step's tensors.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepAxes {
    pub slots: usize,
    pub keys: usize,
    pub sequences: usize,
}

fn one() -> usize {
    1
}

fn is_one(size: &usize) -> bool {
    *size == 1
}

fn is_zero(size: &usize) -> bool {
    *size == 0
}

impl BatchedSequence {
    /// Its positions after the step.
    pub fn positions(&self) -> usize {
        self.first_position.saturating_add(self.rows.len())
    }

    /// The key of a position.
    #[cfg(feature = "full")]
    pub(super) fn key(&self, position: usize) -> usize {
        self.keys.as_ref().map_or(position, |keys| keys[position])
    }

    /// The slot of a position.
    #[cfg(feature = "full")]
    pub(super) fn slot(&self, position: usize, block_size: usize) -> usize {
        self.blocks[position / block_size] * block_size + position % block_size
    }
}

impl Batch {
    pub(super) fn axes(&self) -> StepAxes {
        let longest = self.sequences.iter().map(BatchedSequence::positions).max().unwrap_or(0);
        let keys = self.keys.unwrap_or(longest);
        StepAxes { slots: self.slots, keys, sequences: self.sequences.len() }
    }

    /// Checks the sequences of a step of so many rows by themselves.
    fn check(&self, path: &Path, index: usize, tokens: usize) -> Result<(), TraceError> {
        let refuse = |name: &str, reason: String| {
            Err(field(path, format!("steps[{index}].batch.{name}"), reason))
        };
        if self.sequences.is_empty() {
            return refuse("sequences", "is empty".into());
        }
        if self.block_size == 0 {
            return refuse("block_size", "is 0".into());
        }
        within(path, Limit::Elements, self.slots as u64)?;
        let width = self.axes().keys;
        within(path, Limit::Tokens, width as u64)?;
        let mut numbers = BTreeSet::new();
        let mut owners: BTreeMap<usize, u32> = BTreeMap::new();
        for (place, own) in self.sequences.iter().enumerate() {
            let number = own.sequence;
            let name = |of: &str| format!("sequences[{place}].{of}");
            if !numbers.insert(number) {
                return refuse(&name("sequence"), format!("is {number} a second time"));
            }
            within(path, Limit::Tokens, own.positions() as u64)?;
            if own.rows.is_empty() {
                return refuse(&name("rows"), "is empty".into());
            }
            for &row in &own.rows {
                if row >= tokens {
                    let reason = format!("has row {row} of a step of {tokens}");
                    return refuse(&name("rows"), reason);
                }
                if let Some(owner) = owners.insert(row, number) {
                    let reason = format!("has row {row}, which also belongs to sequence {owner}");
                    return refuse(&name("rows"), reason);
                }
            }
            if let Err(reason) = self.check_blocks(own) {
                return refuse(&name("blocks"), reason);
            }
            if let Err(reason) = check_keys(own, width) {
                return refuse(&name("keys"), reason);
            }
        }
        Ok(())
    }

    fn check_blocks(&self, own: &BatchedSequence) -> Result<(), String> {
        let Batch { slots, block_size, .. } = *self;
        let positions = own.positions();
        let needed = if slots == 0 { 0 } else { positions.div_ceil(block_size) };
        if own.blocks.len() != needed {
            let found = own.blocks.len();
            return Err(format!(
                "has {found} blocks; {positions} positions in a cache of {slots} slots, {block_size} a \
                 block, take {needed}"
            ));
        }
        let all = slots / block_size;
        if let Some(block) = own.blocks.iter().find(|&&block| block >= all) {
            return Err(format!("has block {block}, but the cache has {all}"));
        }
        match twice(&own.blocks) {
            Some(block) => Err(format!("has block {block} twice")),
            None => Ok(()),
        }
    }
}

/// Checks the keys of a sequence, of an axis of that length.
fn check_keys(own: &BatchedSequence, width: usize) -> Result<(), String> {
    let positions = own.positions();
    let Some(keys) = &own.keys else {
        if positions > width {
            return Err(format!("are not given: {positions} positions have more than {width}"));
        }
        return Ok(());
    };
    if keys.len() != positions {
        return Err(format!("has {} keys of {positions} positions", keys.len()));
    }
    if let Some(key) = keys.iter().find(|&&key| key >= width) {
        return Err(format!("has key {key} of {width}"));
    }
    match twice(keys) {
        Some(key) => Err(format!("has key {key} twice")),
        None => Ok(()),
    }
}

/// The first number that is there a second time.
fn twice(numbers: &[usize]) -> Option<usize> {
    let mut seen = BTreeSet::new();
    numbers.iter().copied().find(|&number| !seen.insert(number))
}

/// Checks the batches of all steps: all have one or none, and each sequence goes on where it was.
pub(super) fn check(path: &Path, steps: &[Step]) -> Result<(), TraceError> {
    let mut ends: BTreeMap<u32, usize> = BTreeMap::new();
    let is_batched = steps.first().is_some_and(|step| step.batch.is_some());
    for (index, step) in steps.iter().enumerate() {
        let name = |of: &str| format!("steps[{index}].batch{of}");
        let Some(batch) = &step.batch else {
            if is_batched {
                return Err(field(path, name(""), "is missing, but step 0 has one".into()));
            }
            continue;
        };
        if !is_batched {
            return Err(field(path, name(""), "is present, but step 0 has none".into()));
        }
        batch.check(path, index, step.tokens.len())?;
        for (place, own) in batch.sequences.iter().enumerate() {
            let refuse = |of: &str, reason| {
                Err(field(path, name(&format!(".sequences[{place}].{of}")), reason))
            };
            let first = own.first_position;
            let is_first = !ends.contains_key(&own.sequence);
            if let Err(reason) = check_prefix(&own.prefix, first, is_first) {
                return refuse("prefix", reason);
            }
            let end = match (ends.insert(own.sequence, own.positions()), own.removed) {
                (None, None) => continue,
                (None, Some(_)) => {
                    return refuse(
                        "removed",
                        "is present, but no step ran the sequence before".into(),
                    );
                }
                (Some(end), None) => end,
                (Some(end), Some(removed)) => match removed.left_of(end) {
                    Ok(left) => left,
                    Err(reason) => return refuse("removed", reason),
                },
            };
            if end != first {
                let reason = format!("is {first}, but the sequence continues at position {end}");
                return refuse("first_position", reason);
            }
        }
    }
    if is_batched && steps[0].first_position > 0 {
        let reason = "is not 0; in a batch each sequence has its own".into();
        return Err(field(path, "steps[0].first_position".into(), reason));
    }
    Ok(())
}
