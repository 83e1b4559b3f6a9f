//! The ranks of a trace: are all there, and did they run the same?

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    comparable::same_steps,
    error::TraceError,
    manifest::{MANIFEST_FILE, Manifest, UNFINISHED_FILE},
    quantised,
    shard::RANK,
};

/// The folders that make up a trace: those of its ranks, or else itself.
pub(super) fn folders(trace: &Path) -> Result<Vec<PathBuf>, TraceError> {
    let mut ranks: Vec<(usize, PathBuf)> = Vec::new();
    // A path that is no folder has its own error, when its manifest is read.
    for entry in fs::read_dir(trace).into_iter().flatten() {
        let path = entry.map_err(TraceError::io("read", trace))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_prefix(RANK)?.parse().ok());
        if let Some(number) = number.filter(|_| path.is_dir()) {
            ranks.push((number, path));
        }
    }
    let whole = [MANIFEST_FILE, UNFINISHED_FILE].iter().any(|name| trace.join(name).exists());
    match (ranks.is_empty(), whole) {
        (true, _) => Ok(vec![trace.into()]),
        (false, true) => Err(TraceError::WholeAndRanks { path: trace.into() }),
        (false, false) => {
            ranks.sort();
            Ok(ranks.into_iter().map(|(_, path)| path).collect())
        }
    }
}

/// One rank's folder, or that of a trace that has no ranks.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub folder: PathBuf,
    pub manifest: Manifest,
}

/// Brings the parts into the order of their ranks, and makes the manifest of the whole.
///
/// # Errors
/// A rank is missing or there twice, or two are not of one run.
pub(super) fn join(trace: &Path, parts: &mut [Part]) -> Result<Manifest, TraceError> {
    let mut whole = joined(trace, parts)?;
    quantised::declare(&mut whole, parts)?;
    Ok(whole)
}

fn joined(trace: &Path, parts: &mut [Part]) -> Result<Manifest, TraceError> {
    if let [Part { folder, manifest }] = parts
        && folder == trace
    {
        return match &manifest.shard {
            None => Ok(manifest.clone()),
            Some(shard) => {
                let (rank, world) = (shard.rank, shard.world);
                Err(TraceError::OneRank { path: trace.into(), rank, world })
            }
        };
    }
    let shard = |part: &Part| part.manifest.shard.clone();
    if let Some(part) = parts.iter().find(|part| shard(part).is_none()) {
        return Err(TraceError::NoRank { path: part.folder.clone() });
    }
    parts.sort_by_key(|part| shard(part).map(|shard| shard.rank));
    for pair in parts.windows(2) {
        same_run(&pair[0], &pair[1])?;
    }
    let first = &parts[0];
    let world = shard(first).map_or(1, |shard| shard.world);
    let has = |rank| parts.iter().any(|part| shard(part).is_some_and(|s| s.rank == rank));
    if let Some(rank) = (0..world).find(|&rank| !has(rank)) {
        return Err(TraceError::MissingRank { path: trace.into(), rank, world });
    }
    let mut whole = first.manifest.clone();
    (whole.shard, whole.weights) = (None, None);
    whole.device = format!("{}, {world} ranks", whole.device);
    // A rank's own choice may be of a part of the vocabulary: the logits say it.
    whole.steps.iter_mut().for_each(|step| step.choice = None);
    Ok(whole)
}

fn same_run(a: &Part, b: &Part) -> Result<(), TraceError> {
    let paths = || (a.folder.clone(), b.folder.clone());
    let other = |reason: String| {
        let (a, b) = paths();
        Err(TraceError::OtherWorld { a, b, reason })
    };
    let (Some(of_a), Some(of_b)) = (&a.manifest.shard, &b.manifest.shard) else { return Ok(()) };
    if of_a.world != of_b.world {
        return other(format!("they belong to runs of {} and {} ranks", of_a.world, of_b.world));
    }
    if of_a.rank == of_b.rank {
        let (a, b) = paths();
        return Err(TraceError::SameRank { a, b, rank: of_a.rank });
    }
    let mut stages = of_a.split.keys().chain(of_b.split.keys());
    if let Some(&stage) = stages.find(|&&stage| of_a.of(stage) != of_b.of(stage)) {
        let (name, a, b) = (stage.name(), of_a.of(stage), of_b.of(stage));
        return other(format!("{name} is split as {a} and as {b}"));
    }
    let (of_a, of_b) = (&a.manifest, &b.manifest);
    if of_a.arithmetic != of_b.arithmetic || of_a.side != of_b.side {
        return other("they declare different arithmetic or sides".into());
    }
    let by = |m: &Manifest| format!("{} {}", m.producer.name, m.producer.version);
    if of_a.producer != of_b.producer {
        return other(format!("they were recorded by {} and {}", by(of_a), by(of_b)));
    }
    if of_a.kernels != of_b.kernels || of_a.settings != of_b.settings {
        return other("they declare different kernels or settings".into());
    }
    same_steps(of_a, of_b).map_err(|source| {
        let (a, b) = paths();
        TraceError::OtherRank { a, b, source: Box::new(source) }
    })?;
    if of_a.steps.len() != of_b.steps.len() {
        return other(format!("they have {} and {} steps", of_a.steps.len(), of_b.steps.len()));
    }
    Ok(())
}
