//! Which sequence of a reference runs the ids of which sequence of an engine.

use firstdiff::{
    model::ModelFile,
    reference::Vocabulary,
    trace::{Common, TraceError, TraceReader, comparable},
};

use super::error::Error;

/// Of each sequence the part of the reference that runs it; `None` where none does.
///
/// # Errors
/// None runs any of them, or the traces are of other models.
pub fn paired(
    engines: &[TraceReader],
    reference: &TraceReader,
    model: &ModelFile,
) -> Result<Vec<Option<TraceReader>>, Error> {
    let parts: Vec<TraceReader> = match reference.sequences() {
        none if none.is_empty() => vec![reference.clone()],
        numbers => {
            let part = |number| reference.clone().sequence(Some(number));
            numbers.into_iter().map(part).collect::<Result<_, _>>()?
        }
    };
    let mut found = Vec::with_capacity(engines.len());
    let mut refusals = Vec::new();
    for engine in engines {
        let mut shared = Vec::with_capacity(parts.len());
        for part in &parts {
            shared.push(in_common(engine, part).or_else(|error| match error {
                TraceError::OtherTokens { .. } | TraceError::OtherPositions { .. } => {
                    refusals.push(error);
                    Ok(None)
                }
                error => Err(error),
            })?);
        }
        found.push(shared);
    }
    // Ids that part later on are another sequence's where there is one whose ids do not.
    let is_whole = |part: usize| {
        let mut all = found.iter().filter_map(|shared| shared[part].as_ref());
        all.any(|common| common.parting.is_none())
    };
    let best = |engine: &TraceReader, shared: &[Option<Common>]| {
        let rank = |(part, common): (usize, &Option<Common>)| {
            let common = common.as_ref()?;
            let (number, is_same) = (parts[part].selected(), common.parting.is_none());
            let is_own = number.is_some() && number == engine.selected();
            (is_same || !is_whole(part)).then_some((is_own, is_same, common.positions.len(), part))
        };
        let part =
            shared.iter().enumerate().filter_map(rank).max_by_key(|rank| (rank.0, rank.1, rank.2));
        part.map(|(.., part)| parts[part].clone())
    };
    let chosen: Vec<Option<TraceReader>> =
        engines.iter().zip(&found).map(|(engine, shared)| best(engine, shared)).collect();
    if chosen.iter().any(Option::is_some) {
        return Ok(chosen);
    }
    Err(refused(engines, reference, refusals, model)?)
}

/// What a sequence and a part of the reference share.
fn in_common(engine: &TraceReader, part: &TraceReader) -> Result<Option<Common>, TraceError> {
    let (engine, part) = (engine.clone().settled()?, part.clone().settled()?);
    comparable(engine.manifest(), part.manifest()).map(Some)
}

/// Refuses other token ids, those that are the same the longest, with their texts, which a trace alone does not have.
fn refused(
    engines: &[TraceReader],
    reference: &TraceReader,
    refusals: Vec<TraceError>,
    model: &ModelFile,
) -> Result<Error, Error> {
    let shared = |error: &TraceError| match error {
        TraceError::OtherTokens { position, .. } => *position + 1,
        _ => 0,
    };
    let nearest = refusals.into_iter().reduce(|a, b| if shared(&b) > shared(&a) { b } else { a });
    let Some(error) = nearest else {
        return Ok(Error::Refused(format!("{} has no tokens", reference.folder().display())));
    };
    let text = match error {
        TraceError::OtherTokens { a, b, .. } => {
            let vocabulary = Vocabulary::load(model)?;
            let (a, b) = (vocabulary.text(a), vocabulary.text(b));
            format!("{error} (the engine has {a:?}, the reference {b:?})")
        }
        error => error.to_string(),
    };
    if engines.len() == 1 {
        return Ok(Error::Refused(text));
    }
    let numbers = engines.iter().filter_map(TraceReader::selected);
    let numbers: Vec<String> = numbers.map(|number| number.to_string()).collect();
    Ok(Error::Refused(format!(
        "{} runs none of the sequences {} of {}; the nearest one: {text}",
        reference.folder().display(),
        numbers.join(", "),
        engines[0].folder().display()
    )))
}
