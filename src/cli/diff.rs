//! `firstdiff diff`: the comparison of `run`, from two recorded traces.

use std::{sync::Arc, thread, time::Instant};

use firstdiff::{
    compare::{
        SiteFilter, channel,
        verdict::{Coverage, Outcome, Rule, SiteReport, judge},
    },
    core::{
        exit::Exit,
        floor::{DeclaredFloor, Floor},
        task::first_position,
    },
    graph::site::Site,
    report::{Compared, REPORT_VERSION, Report, SideSummary, SiteRow, StepRow, answer},
    trace::{Manifest, Side, Step, TraceReader, comparable, feed, lint},
};

use super::{args::DiffArgs, error::Error, inputs, output, run};

/// Compares two traces and prints the report.
pub fn diff(args: &DiffArgs) -> Result<Exit, Error> {
    let start = Instant::now();
    inputs::check_factor(args.compare.factor)?;
    output::check_json(args.compare.json.as_deref())?;
    let (a, b) = (TraceReader::open(&args.trace_a)?, TraceReader::open(&args.trace_b)?);
    let swapped = a.manifest().side == Side::Reference && b.manifest().side == Side::Engine;
    let (engine, reference) = if swapped { (b, a) } else { (a, b) };
    let filter = inputs::filter(args.compare.sites.as_deref())?;
    let rule = Rule { factor: args.compare.factor, stop_at_first: args.compare.stop_at_first };
    comparable(engine.manifest(), reference.manifest())?;
    let floor = floor(engine.manifest(), reference.manifest()).ok_or_else(|| {
        Error::Refused(format!(
            "the reference trace has no floor for the engine's arithmetic ({} storage); use \
             `firstdiff explain --reference`, which measures it",
            engine.manifest().arithmetic.default.storage
        ))
    })?;
    let mut report = report(&engine, &reference, filter, rule, floor)?;
    let ranks =
        [&engine, &reference].map(lint::ranks).into_iter().collect::<Result<Vec<_>, _>>()?;
    report.headline = report.headline.after(ranks.into_iter().flatten().next());
    report.seconds = start.elapsed().as_secs_f64();
    run::finish(&report, args.compare.json.as_deref())
}

/// The report of two comparable traces, without the time it took.
pub fn report(
    engine: &TraceReader,
    reference: &TraceReader,
    filter: SiteFilter,
    rule: Rule,
    floor: &Floor,
) -> Result<Report, Error> {
    let longer = if engine.manifest().steps.len() < reference.manifest().steps.len() {
        reference
    } else {
        engine
    };
    let all = longer.model_sites();
    filter.check(&all)?;
    let sites: Vec<Site> = all.iter().copied().filter(|&site| filter.wants(site)).collect();
    // Before the comparison: a foreign byte order is a refusal.
    let suspicious = lint::alone(engine)?;
    let reports = judge_traces(engine, reference, &sites, filter, floor, rule)?;
    let is_diverged = |report: &&SiteReport| report.outcome == Outcome::Diverged;
    let diverged: Vec<Site> =
        reports.iter().filter(is_diverged).map(|report| report.site).collect();
    let mut notes = vec![format!("traces of the same model, {}", longer.manifest().model.name)];
    notes.extend(suspicious);
    notes.extend(lint::beside(engine, reference, &diverged)?);
    let coverage = Coverage::of(&reports, all.len(), sites.len());
    let prompt_tokens = longer.manifest().steps[0].tokens.len();
    let rows: Vec<SiteRow> = reports.into_iter().map(SiteRow::from).collect();
    let compared = Compared {
        factor: rule.factor,
        formula: run::formula(rule.factor),
        coverage,
        layers: longer.list().layers(),
        prompt_tokens,
        decode_steps: longer.manifest().steps.len() - 1,
        rows: None,
        hooks_leave_logits: None,
        runs_repeat: None,
    };
    Ok(Report {
        report_version: REPORT_VERSION,
        devices: None,
        firstdiff: env!("CARGO_PKG_VERSION").to_string(),
        headline: answer(&rows, &compared, None),
        model: None,
        engine: summary(engine.manifest()),
        reference: Some(summary(reference.manifest())),
        compared: Some(compared),
        diagnosis: None,
        steps: steps(engine, reference)?,
        notes,
        sites: rows,
        seconds: 0.0,
    })
}

/// Feeds both traces through the comparison, a tensor at a time.
fn judge_traces(
    engine: &TraceReader,
    reference: &TraceReader,
    sites: &[Site],
    filter: SiteFilter,
    floor: &Floor,
    rule: Rule,
) -> Result<Vec<SiteReport>, Error> {
    let prompt = reference.manifest().steps[0].tokens.len();
    let filter = Arc::new(filter);
    let (mut engine_sink, engine_side) = channel(Arc::clone(&filter), 0);
    let (mut reference_sink, reference_side) = channel(filter, 0);
    thread::scope(|scope| {
        let from_engine = scope.spawn(move || feed(engine, &mut engine_sink));
        let from_reference = scope.spawn(move || feed(reference, &mut reference_sink));
        let tokens = |site: Site| first_position(prompt, site.step).into();
        let sides = (engine_side, reference_side);
        let reports = judge(sites, sides, floor, rule, &tokens, &mut |_| {});
        for fed in [from_engine.join(), from_reference.join()] {
            fed.unwrap_or_else(|payload| std::panic::resume_unwind(payload))?;
        }
        Ok(reports)
    })
}

/// The floor for the engine's arithmetic, if the trace it is judged by carries it.
pub fn floor<'a>(engine: &Manifest, reference: &'a Manifest) -> Option<&'a Floor> {
    let fits = |declared: &&DeclaredFloor| declared.arithmetic == engine.arithmetic;
    reference.floors.iter().find(fits).map(|declared| &declared.floor)
}

/// The side that a trace records.
pub fn summary(manifest: &Manifest) -> SideSummary {
    let settings = &manifest.settings;
    let listed = [
        ("dtype", settings.dtype.map(|dtype| dtype.to_string())),
        ("attention", settings.attention.clone()),
        ("planted fault", settings.fault.clone()),
        ("precision", settings.reference_precision.clone()),
        ("recorded by", Some(format!("{} {}", manifest.producer.name, manifest.producer.version))),
    ];
    let present = |(key, value): (&str, Option<String>)| Some((key.to_string(), value?));
    SideSummary {
        name: manifest.device.clone(),
        settings: listed.into_iter().filter_map(present).collect(),
        arithmetic: Some(manifest.arithmetic.clone()),
    }
}

/// A trace has no vocabulary, so choices are named by their ids.
fn steps(engine: &TraceReader, reference: &TraceReader) -> Result<Vec<StepRow>, Error> {
    let steps = engine.manifest().steps.iter().zip(&reference.manifest().steps).enumerate();
    let row = |(step, (_, of_reference)): (usize, (_, &Step))| {
        let (engine, reference) = (engine.choice(step)?, reference.choice(step)?);
        Ok(StepRow {
            tokens: of_reference.tokens.clone(),
            reference,
            engine,
            reference_text: reference.map(|choice| format!("#{}", choice.token)),
            engine_text: engine.map(|choice| format!("#{}", choice.token)),
        })
    };
    steps.map(row).collect()
}
