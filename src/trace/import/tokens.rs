//! Arrays of one token each, as of a program that dumps token by token: told by a number in their names.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Array, Dump, DumpError,
    map::Reading,
    rows::{Source, row},
};
use crate::{
    graph::site::{Axis, Site},
    trace::{Step, TraceReader},
};

/// Arrays whose names differ in one number, which counts the run's positions from 0.
pub(super) struct Tokens<'a> {
    /// An expression of their names, with the number as its group `t`.
    pub pattern: String,
    pub arrays: Vec<&'a Array>,
}

/// The prompt's arrays as one.
pub(super) struct Stack {
    /// How many axes of each array, of one element and before all others, are not in the shape.
    pub leading: usize,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
    /// Of the site that it may be.
    pub first_axis: Axis,
}

/// The sets of arrays that may be one token each.
pub(super) fn tokens<'a>(dump: &'a Dump, steps: &[Step]) -> Vec<Tokens<'a>> {
    let prompt = steps.first().map_or(0, Step::positions);
    let positions = steps.last().map_or(0, Step::positions);
    let mut sets: BTreeMap<(&str, &str), Option<BTreeMap<usize, &Array>>> = BTreeMap::new();
    for array in &dump.arrays {
        for (before, number, after) in numbers(&array.name) {
            let set = sets.entry((before, after)).or_insert_with(|| Some(BTreeMap::new()));
            // Two spellings of one number are no count.
            if set.as_mut().is_some_and(|set| set.insert(number, array).is_some()) {
                *set = None;
            }
        }
    }
    let counts = |set: &BTreeMap<usize, &Array>| {
        let n = set.len();
        (prompt.max(2)..=positions).contains(&n) && set.keys().copied().eq(0..n)
    };
    let sets = sets.into_iter().filter_map(|(name, set)| Some((name, set?)));
    let sets = sets.filter(|(_, set)| counts(set)).map(|((before, after), set)| Tokens {
        pattern: format!(r"{}(?<t>\d+){}", regex::escape(before), regex::escape(after)),
        arrays: set.into_values().collect(),
    });
    sets.collect()
}

/// Each number in a name, with what stands before and after it.
fn numbers(name: &str) -> Vec<(&str, usize, &str)> {
    let is_digit = |at: usize| name.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    let starts = (0..name.len()).filter(|&at| is_digit(at) && (at == 0 || !is_digit(at - 1)));
    let number = |start: usize| {
        let end = (start..name.len()).find(|&at| !is_digit(at)).unwrap_or(name.len());
        Some((&name[..start], name[start..end].parse().ok()?, &name[end..]))
    };
    starts.filter_map(number).collect()
}

impl<'a> Tokens<'a> {
    /// The arrays of the first `prompt` tokens, in each way in which they may be one.
    ///
    /// # Errors
    /// An array cannot be read.
    pub fn stacks(&self, prompt: usize) -> Result<Vec<Stack>, DumpError> {
        let first = &self.arrays[0].shape;
        let of_prompt = &self.arrays[..prompt];
        let mut stacks = Vec::new();
        if of_prompt.iter().all(|array| array.shape == *first) {
            stacks.push(self.rows(prompt, None)?);
        }
        let growing = (0..first.len()).find(|&axis| self.grows(axis));
        if growing.is_some_and(|axis| axis + 1 == first.len()) {
            stacks.push(self.rows(prompt, Some(prompt))?);
        }
        if growing.is_some() {
            let last = of_prompt[prompt - 1];
            let (shape, values) = (last.shape.clone(), last.read()?);
            stacks.push(Stack { leading: 0, shape, values, first_axis: Axis::Position });
        }
        Ok(stacks)
    }

    /// Whether an axis is as long as there are positions, and the others stay as they are.
    fn grows(&self, axis: usize) -> bool {
        self.arrays.iter().enumerate().all(|(position, array)| {
            let mut shape = self.arrays[0].shape.clone();
            shape[axis] = position + 1;
            array.shape == shape
        })
    }

    /// One below the other; with that many keys in a row, of which the missing ones are masked.
    fn rows(&self, prompt: usize, keys: Option<usize>) -> Result<Stack, DumpError> {
        let own = &self.arrays[prompt - 1].shape;
        let leading = own.iter().take_while(|&&n| n == 1).count();
        let shape = [&[prompt], &own[leading..]].concat();
        let mut values = Vec::with_capacity(shape.iter().product());
        for (position, array) in self.arrays[..prompt].iter().enumerate() {
            let read = array.read()?;
            match keys {
                None => values.extend(read),
                Some(keys) => {
                    for row in read.chunks(position + 1) {
                        values.extend(row);
                        values.resize(values.len() + keys - row.len(), 0.0);
                    }
                }
            }
        }
        Ok(Stack { leading, shape, values, first_axis: Axis::Token })
    }

    /// Of each position that a trace keeps, of a cache each step's last: the site, the position, and the
    /// values of the array read as its line would say.
    ///
    /// # Errors
    /// An array cannot be read so.
    pub fn read(
        &self,
        reading: &Reading,
        reference: &TraceReader,
    ) -> Result<Vec<(Site, usize, Vec<f32>)>, DumpError> {
        let axes = reference.list().axes(reading.site);
        let of_cache = axes[0] == Axis::Position;
        let mut read = Vec::new();
        for (index, step) in reference.manifest().steps.iter().enumerate() {
            let site = Site { step: index as u32, ..reading.site };
            let shape = reference.shape(site)?;
            // Of a cache that grows, that of the step's last token.
            let first = if of_cache { step.positions() - 1 } else { step.first_position };
            for position in (first..step.positions()).take_while(|&p| p < self.arrays.len()) {
                let array = self.arrays[position];
                let values = if of_cache {
                    Source::Whole(array, reading.clone()).read(axes, shape.clone())?.data
                } else {
                    row(array, reading, axes, &shape)?
                };
                read.push((site, position, values));
            }
        }
        Ok(read)
    }

    /// The names of the arrays.
    pub fn names(&self) -> BTreeSet<&'a str> {
        self.arrays.iter().map(|array| array.name.as_str()).collect()
    }
}
