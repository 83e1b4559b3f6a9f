//! The report of recorded sides.

use crate::{
    compare::{
        SiteFilter,
        verdict::{Coverage, Outcome, Rule, SiteReport},
    },
    core::{exit::Exit, floor::Floor},
    graph::site::Site,
    report::{
        AskedSites, Compared, Headline, Parted, Report, SideSummary, SiteRow, StepRow, answer,
        formula,
    },
    run::{Pairing, RunError, judge_traces},
    trace::{
        Side, Step, TraceError, TraceReader, caches_in_words, comparable, lint, rows_in_words,
    },
};

impl Report {
    /// Compares two comparable traces. Without the time it took.
    pub fn of_traces(
        engine: &TraceReader,
        reference: &TraceReader,
        filter: SiteFilter,
        rule: Rule,
        floor: &Floor,
    ) -> Result<Report, RunError> {
        let whole = engine;
        let (engine, reference) = (&engine.clone().settled()?, &reference.clone().settled()?);
        let common = comparable(engine.manifest(), reference.manifest())?;
        let pairing = Pairing::new(engine, reference, common);
        let all = pairing.sites();
        filter.check(&all)?;
        let sites: Vec<Site> = all.iter().copied().filter(|&site| filter.wants(site)).collect();
        let asked = AskedSites::of(&filter);
        // Before the comparison: a foreign byte order is a refusal.
        let suspicious = lint::alone(engine, &|site| filter.wants(site))?;
        let (reports, others) = judge_traces(&pairing, &sites, filter, floor, rule)?;
        let is_diverged = |report: &&SiteReport| report.outcome == Outcome::Diverged;
        let diverged: Vec<Site> =
            reports.iter().filter(is_diverged).map(|report| report.site).collect();
        let common = &pairing.common;
        let parted = common.parting.map(|parting| Parted::of(&pairing, &reports, parting));
        let parted = parted.transpose()?;
        let manifest = reference.manifest();
        let model = &manifest.model;
        let mut notes = vec![format!("traces of the same model, {}", model.name)];
        notes.extend(suspicious);
        notes.extend(caches(engine));
        notes.extend((others.count > 0).then(|| others.to_string()));
        if common.same_steps {
            notes.extend(lint::beside(engine, reference, &diverged)?);
        } else {
            notes.push(divided(engine));
        }
        notes.extend(parted.is_some().then(|| OWN_TOKENS.to_string()));
        notes.extend(removed(whole, engine));
        let first_positions = manifest.steps.iter().map(|step| step.first_position).collect();
        let end = manifest.prompt_tokens.unwrap_or(manifest.steps[0].positions());
        let is_of_prompt = |step: &&Step| step.first_position < end;
        let prompt: Vec<&Step> = manifest.steps.iter().take_while(is_of_prompt).collect();
        let longest = all.last().map_or(0, |site| site.step as usize + 1);
        let compared = Compared {
            factor: rule.factor,
            formula: formula(rule.factor),
            coverage: Coverage::of(&reports, all.len(), sites.len()),
            layers: reference.list().layers(),
            prompt_tokens: prompt.iter().map(|step| step.tokens.len()).sum(),
            decode_steps: longest.saturating_sub(prompt.len()),
            first_positions,
            parted,
            rows: None,
            hooks_leave_logits: None,
            runs_repeat: None,
        };
        let sites: Vec<SiteRow> = reports.into_iter().map(SiteRow::from).collect();
        let mut headline = answer(&sites, &compared, None);
        headline.text += copies(&sites, [engine, reference].map(|trace| trace.manifest().side));
        let mut report = Report {
            asked,
            reference: Some(SideSummary::of_trace(reference.manifest())),
            compared: Some(compared),
            steps: steps(&pairing)?,
            sequence: whole.selected(),
            engine_positions: own_positions(whole),
            notes,
            sites,
            ..Report::of_engine(headline, SideSummary::of_trace(engine.manifest()))
        };
        report.note_end();
        Ok(report)
    }

    /// The report of the wanted sites of an engine's trace that is compared with nothing; its headline is yet to come.
    pub fn of_trace(engine: &TraceReader, filter: &SiteFilter) -> Result<Report, TraceError> {
        let manifest = engine.manifest();
        let row = |(index, step): (usize, &Step)| {
            let engine = engine.choice(index)?;
            Ok(StepRow {
                tokens: step.tokens.clone(),
                reference: None,
                engine,
                reference_text: None,
                engine_text: engine.map(|choice| format!("#{}", choice.token)),
            })
        };
        let steps = manifest.steps.iter().enumerate().map(row);
        let headline = Headline::of(Exit::NotMeasured, String::new());
        let mut notes = lint::alone(engine, &|site| filter.wants(site))?;
        notes.extend(rows_in_words(engine.partly()));
        notes.extend(caches(engine));
        let start = manifest.positions().start;
        notes.extend((start > 0).then(|| format!("the trace begins at position {start}")));
        Ok(Report {
            steps: steps.collect::<Result<_, TraceError>>()?,
            sequence: engine.selected(),
            engine_positions: own_positions(engine),
            notes,
            ..Report::of_engine(headline, SideSummary::of_trace(manifest))
        })
    }
}

/// How an engine's caches are kept, where it recorded them in blocks.
fn caches(engine: &TraceReader) -> Option<String> {
    let kept = caches_in_words(engine.manifest())?;
    Some(format!("the engine keeps {kept}, as it recorded them"))
}

/// What a reader must know where the ids are not the same to the end.
const OWN_TOKENS: &str = "later steps run different ids, so they are not compared with the \
                          reference; to compare them, record the reference over the engine's ids: \
                          capture reference --tokens-of";

/// What a reader must know of two sides that are one: their comparison tests no engine.
fn copies(sites: &[SiteRow], sides: [Side; 2]) -> &'static str {
    let differs = |row: &SiteRow| row.difference.as_ref().is_none_or(|found| found.max_abs != 0.0);
    if sides == [Side::Reference; 2] {
        "; both traces are llama.cpp's, so no engine was compared"
    } else if sites.iter().any(|row| row.outcome != Outcome::Equal || differs(row)) {
        ""
    } else {
        "; no element differs at all, which never happens with two programs: is one trace a copy of the other?"
    }
}

/// What a comparison leaves out of a trace whose caches lose positions.
fn removed(whole: &TraceReader, settled: &TraceReader) -> Option<String> {
    let count = |trace: &TraceReader| -> usize {
        trace.manifest().steps.iter().map(|step| step.tokens.len()).sum()
    };
    let left_out = count(whole) - count(settled);
    let reason = "they are only replayed, because later steps remove them or move positions";
    (left_out > 0).then(|| format!("{left_out} tokens are not compared: {reason}"))
}

/// How the engine divides the tokens, where the reference does otherwise.
fn divided(engine: &TraceReader) -> String {
    let steps = &engine.manifest().steps;
    let first: Vec<String> =
        steps.iter().take(4).map(|step| step.tokens.len().to_string()).collect();
    let more = if steps.len() > first.len() { ", ..." } else { "" };
    format!(
        "the sides are compared position by position; steps are those of the reference, and the \
         engine has {} steps, of {}{more} tokens",
        steps.len(),
        first.join(", ")
    )
}

fn own_positions(engine: &TraceReader) -> Vec<usize> {
    engine.manifest().steps.iter().map(|step| step.first_position).collect()
}

/// A trace has no vocabulary, so choices are named by their ids.
fn steps(pairing: &Pairing<'_>) -> Result<Vec<StepRow>, TraceError> {
    let own = &pairing.engine.manifest().steps;
    let common = &pairing.common.positions;
    let row = |(index, step): (usize, &Step)| {
        // The step of the engine after which it says the same token.
        let twin = own.iter().position(|own| own.positions() == step.positions());
        let twin = twin.filter(|_| step.positions() <= common.end);
        let engine = twin.map(|twin| pairing.engine.choice(twin)).transpose()?.flatten();
        let reference = pairing.reference.choice(index)?;
        Ok(StepRow {
            tokens: step.tokens.clone(),
            reference,
            engine,
            reference_text: reference.map(|choice| format!("#{}", choice.token)),
            engine_text: engine.map(|choice| format!("#{}", choice.token)),
        })
    };
    let steps = pairing.reference.manifest().steps.iter().enumerate();
    steps.take_while(|(_, step)| step.first_position < common.end).map(row).collect()
}
