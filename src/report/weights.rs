//! The engine's weights as text: what is wrong with them, and how else they are held.

use crate::{
    diagnosis::loaded::{Beside, LoadedSummary, WeightGroup},
    report::terminal::{BAD, line},
};

/// At most this many lines of a kind are written.
const MAX_NAMED: usize = 8;

/// Wrong weights first, then those in another form, then how many are the file's.
pub fn weights(text: &mut String, found: &LoadedSummary) {
    for group in found.wrong.iter().take(MAX_NAMED) {
        line(text, "weights", &format!("{BAD}{group}{BAD:#}"));
    }
    let more = found.wrong.len().saturating_sub(MAX_NAMED);
    if more > 0 {
        line(text, "weights", &format!("{more} more are wrong"));
    }
    for (what, groups) in [("stored differently: ", &found.otherwise), ("", &found.absent)] {
        let (named, more) = groups.split_at(groups.len().min(MAX_NAMED));
        named.iter().for_each(|group| line(text, "weights", &format!("{what}{group}")));
        if !more.is_empty() {
            line(text, "weights", &format!("{what}{} more", more.len()));
        }
    }
    line(text, "loaded", &counts(found));
}

/// `43 of 43 weights match the file, 28 of them rounded to f16`
pub(super) fn counts(found: &LoadedSummary) -> String {
    let LoadedSummary { recorded, right, unrecorded, .. } = found;
    let (whose, of) = match found.beside {
        Beside::File => ("the file", "tensors of the file"),
        Beside::Trace => ("the other trace", "weights of the other trace"),
    };
    let mut parts = vec![format!("{right} of {recorded} weights match {whose}")];
    let mut texts: Vec<&str> = found.rounded.iter().map(|group| group.text.as_str()).collect();
    texts.sort_unstable();
    texts.dedup();
    for text in texts {
        let own = found.rounded.iter().filter(|group| group.text == text);
        let count: usize = own.map(weights_of).sum();
        parts.push(format!("{count} of them {text}"));
    }
    if *unrecorded > 0 {
        parts.push(format!("{unrecorded} {of} were not recorded"));
    }
    parts.join(", ")
}

fn weights_of(group: &WeightGroup) -> usize {
    group.layers.len().max(1)
}
