//! The architectures by name.

use super::table::{Entry, TABLE, VARIANTS, Variant};
use crate::model::synth::SynthError;

/// An architecture that can be made, or a variant of one, as `arch:variant`.
#[derive(Clone, Copy, Debug)]
pub struct Architecture {
    pub(super) entry: &'static Entry,
    pub(super) variant: Option<&'static Variant>,
}

impl Architecture {
    /// The architecture of that name.
    ///
    /// # Errors
    /// An unknown name; the error has the nearest ones.
    pub fn from_name(name: &str) -> Result<Architecture, SynthError> {
        let unknown = || {
            let (name, nearest) = (name.to_string(), nearest(name).join(", "));
            SynthError::Architecture { name, nearest }
        };
        architectures().find(|architecture| architecture.name() == name).ok_or_else(unknown)
    }

    /// The name on the command line.
    pub fn name(self) -> String {
        match self.variant {
            Some(variant) => format!("{}:{}", self.arch(), variant.name),
            None => self.arch().to_string(),
        }
    }

    /// The name in `general.architecture`, which also prefixes the other keys.
    pub fn arch(self) -> &'static str {
        self.entry.arch
    }
}

/// Every architecture, each followed by its variants.
pub fn architectures() -> impl Iterator<Item = Architecture> {
    TABLE.iter().flat_map(|entry| {
        let own = VARIANTS.iter().filter(|variant| variant.arch == entry.arch);
        let variants = own.map(move |variant| Architecture { entry, variant: Some(variant) });
        std::iter::once(Architecture { entry, variant: None }).chain(variants)
    })
}

/// The three names that differ least from one.
fn nearest(name: &str) -> Vec<String> {
    let mut names: Vec<String> = architectures().map(Architecture::name).collect();
    names.sort_by_key(|known| edits(name, known));
    names.truncate(3);
    names
}

/// Letters to insert, delete or replace to make one text of another.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, letter) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_answered_with_near_ones() {
        assert_eq!(edits("kitten", "sitting"), 3);
        let error = Architecture::from_name("qwen3-moe").unwrap_err().to_string();
        assert!(error.contains("qwen3moe"), "{error}");
    }

    #[test]
    fn every_name_is_there_once_and_every_variant_has_its_architecture() {
        let mut names: Vec<String> = architectures().map(Architecture::name).collect();
        let count = names.len();
        assert_eq!(count, TABLE.len() + VARIANTS.len());
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for name in names {
            assert_eq!(Architecture::from_name(&name).unwrap().name(), name);
        }
    }
}
