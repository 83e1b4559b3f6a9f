//! `firstdiff align` and `firstdiff import`: dumps that exist already.

use std::{collections::BTreeMap, fmt::Write};

use firstdiff::{
    core::{exit::Exit, files},
    trace::{
        TraceReader,
        import::{Confidence, Dump, Mapping},
    },
};

use super::{
    args::{AlignArgs, ImportArgs},
    error::Error,
    output,
};

/// Names of arrays that are shown.
const MAX_NAMED: usize = 4;

/// Writes the mapping of a dump, found by its values.
pub fn align(args: &AlignArgs) -> Result<Exit, Error> {
    let reference = TraceReader::open(&args.reference)?;
    let dump = Dump::open(&args.dump)?;
    let bar = output::progress(None, "comparing values");
    let found = firstdiff::trace::import::align(&dump, &reference)?;
    bar.finish_and_clear();
    let write = |source| Error::Write { path: args.output.clone(), source };
    files::write_atomic(&args.output, found.to_string().as_bytes()).map_err(write)?;
    // An array of several sites is as sure as the least sure of them.
    let mut arrays = BTreeMap::new();
    for one in &found.matches {
        let (_, is_sure) = arrays.entry(one.name.as_str()).or_insert((one.arrays, true));
        *is_sure &= one.confidence == Confidence::Sure;
    }
    let count = |sure| arrays.values().filter(|(_, is)| *is == sure).map(|(n, _)| n).sum::<usize>();
    let (sure, likely) = (count(true), count(false));
    let mut text = format!(
        "{sure} of {} arrays sure, {likely} likely, {} ambiguous, {} unmatched: {}\n",
        dump.arrays.len(),
        found.ambiguous.len(),
        found.unmatched.len(),
        args.output.display()
    );
    let ambiguous: Vec<&str> = found.ambiguous.iter().map(|(name, _)| name.as_str()).collect();
    let unmatched: Vec<&str> = found.unmatched.iter().map(String::as_str).collect();
    for (label, names) in [("ambiguous", ambiguous), ("unmatched", unmatched)] {
        if !names.is_empty() {
            let _ = writeln!(text, "  {label:<10} {}", named(&names));
        }
    }
    if 2 * found.unmatched.len() > dump.arrays.len() {
        text += "  next       what a bug changed matches nothing: align a correct run, or map the names by hand \
                 (docs/trace-format.md)\n";
    }
    let scaled: Vec<&str> = (found.matches.iter())
        .filter(|found| found.scale != 1.0)
        .map(|found| found.name.as_str())
        .collect();
    if !scaled.is_empty() {
        let _ = writeln!(
            text,
            "  scaled     {}: if the program does not intend it, delete the scale, or it hides the bug",
            named(&scaled)
        );
    }
    output::print(&text)?;
    Ok(if found.matches.is_empty() { Exit::NotMeasured } else { Exit::Equal })
}

/// Writes a dump as a trace.
pub fn import(args: &ImportArgs) -> Result<Exit, Error> {
    let reference = TraceReader::open(&args.reference)?;
    let (dump, mapping) = (Dump::open(&args.dump)?, Mapping::open(&args.map)?);
    let bar = output::progress(None, "writing the trace");
    let storage = args.dtype.into();
    let imported =
        firstdiff::trace::import::import(&dump, &mapping, &reference, storage, &args.output)?;
    bar.finish_and_clear();
    let mut text = format!("imported {} sites to {}\n", imported.sites, args.output.display());
    if !imported.unmapped.is_empty() {
        let names: Vec<&str> = imported.unmapped.iter().map(String::as_str).collect();
        let _ = writeln!(text, "  unmapped   {}", named(&names));
    }
    output::print(&text)?;
    Ok(Exit::Equal)
}

/// The first few names, and how many more there are.
fn named(names: &[&str]) -> String {
    let first = names[..names.len().min(MAX_NAMED)].join(", ");
    match names.len().saturating_sub(MAX_NAMED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}
