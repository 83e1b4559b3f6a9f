//! `firstdiff diff`: the comparison of `run`, from two recorded traces.

use std::time::Instant;

use firstdiff::{
    core::{
        activity,
        exit::Exit,
        floor::{DeclaredFloor, Floor},
    },
    diagnosis::loaded::LoadedSummary,
    report::Report,
    trace::{Manifest, Side, TraceReader, comparable, lint},
};

use super::{
    args::DiffArgs,
    error::Error,
    inputs,
    page::{self, Beside},
    run,
    same_engine::same_engine,
};

/// Compares two traces and prints the report.
pub fn diff(args: &DiffArgs) -> Result<Exit, Error> {
    if args.same_engine {
        return same_engine(args);
    }
    let start = Instant::now();
    inputs::check_factor(args.compare.factor)?;
    args.compare.report.check()?;
    let [a, b] = opened(args)?;
    let swapped = a.manifest().side == Side::Reference && b.manifest().side == Side::Engine;
    let (engine, reference) = if swapped { (b, a) } else { (a, b) };
    let filter = inputs::filter(&args.compare.only)?;
    let filter = match reference.graph()? {
        Some((graph, _)) => filter.of_model(&graph)?,
        None => filter,
    };
    let rule = inputs::rule(&args.compare);
    // Before the floor: traces that cannot be compared need none.
    let settled = [&engine, &reference].map(|trace| trace.clone().settled());
    let [of_engine, of_reference] = settled;
    comparable(of_engine?.manifest(), of_reference?.manifest())?;
    let floor = floor(engine.manifest(), reference.manifest()).ok_or_else(|| {
        Error::Refused(format!(
            "the reference trace has no floor for the engine's arithmetic ({} storage); use \
             `firstdiff explain --reference`, which measures it",
            engine.manifest().arithmetic.default.storage
        ))
    })?;
    activity::leaves_verdict();
    let mut report = Report::of_traces(&engine, &reference, filter.clone(), rule, floor)?;
    let ranks = [&engine, &reference].map(|trace| lint::ranks(trace, &|site| filter.wants(site)));
    let ranks = ranks.into_iter().collect::<Result<Vec<_>, _>>()?;
    report.headline = report.headline.after(ranks.into_iter().flatten().next());
    compare_weights(&mut report, &engine, &reference)?;
    report.say_end();
    report.seconds = start.elapsed().as_secs_f64();
    let own = &args.compare.report;
    let album = page::beside(own.html.is_some(), None, &report, [&engine, &reference])?;
    run::finish(report, own, Beside::of_traces(album.as_ref()))
}

/// Adds how the recorded weights of two traces stand to one another; what is wrong comes first.
pub fn compare_weights(
    report: &mut Report,
    engine: &TraceReader,
    reference: &TraceReader,
) -> Result<(), Error> {
    let [own, other] = [engine.weights()?, reference.weights()?];
    match (own.len(), other.len()) {
        (0, 0) => {}
        (0, more) | (more, 0) => report.notes.push(format!(
            "{more} weights were recorded in one trace only; `firstdiff explain -m MODEL.gguf` compares them with \
             the file"
        )),
        _ if engine.world() != reference.world() => report.notes.push(format!(
            "weights are not compared, because {} and {} ranks hold different shards of them",
            engine.world(),
            reference.world()
        )),
        _ => {
            let found = LoadedSummary::of_traces(&own, &other);
            report.headline = report.headline.clone().after_weights(&found);
            report.weights = Some(found);
        }
    }
    Ok(())
}

/// Both traces; of one with several sequences, that which is named.
pub fn opened(args: &DiffArgs) -> Result<[TraceReader; 2], Error> {
    let (a, b) = (TraceReader::open(&args.trace_a)?, TraceReader::open(&args.trace_b)?);
    let is_single = |trace: &TraceReader| trace.sequences().is_empty();
    let number = |trace: &TraceReader, other: &TraceReader| {
        // The other one may be a run of that sequence alone.
        args.sequence.filter(|_| !is_single(trace) || is_single(other))
    };
    let (of_a, of_b) = (number(&a, &b), number(&b, &a));
    Ok([a.sequence(of_a)?, b.sequence(of_b)?])
}

/// The floor for the engine's arithmetic, if the trace it is judged by carries it.
pub fn floor<'a>(engine: &Manifest, reference: &'a Manifest) -> Option<&'a Floor> {
    let fits = |declared: &&DeclaredFloor| declared.arithmetic == engine.arithmetic;
    reference.floors.iter().find(fits).map(|declared| &declared.floor)
}
