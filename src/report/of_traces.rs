//! The report of recorded sides.

use crate::{
    compare::{
        SiteFilter,
        verdict::{Coverage, Outcome, Rule, SiteReport},
    },
    core::{exit::Exit, floor::Floor},
    graph::site::Site,
    report::{Compared, Headline, Report, SideSummary, SiteRow, StepRow, answer, formula},
    run::{RunError, judge_traces},
    trace::{Step, TraceError, TraceReader, lint},
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
        let is_shorter = engine.manifest().steps.len() < reference.manifest().steps.len();
        let longer = if is_shorter { reference } else { engine };
        let all = longer.model_sites();
        filter.check(&all)?;
        let sites: Vec<Site> = all.iter().copied().filter(|&site| filter.wants(site)).collect();
        // Before the comparison: a foreign byte order is a refusal.
        let suspicious = lint::alone(engine)?;
        let (reports, others) = judge_traces(engine, reference, &sites, filter, floor, rule)?;
        let is_diverged = |report: &&SiteReport| report.outcome == Outcome::Diverged;
        let diverged: Vec<Site> =
            reports.iter().filter(is_diverged).map(|report| report.site).collect();
        let model = &longer.manifest().model;
        let mut notes = vec![format!("traces of the same model, {}", model.name)];
        notes.extend(suspicious);
        notes.extend((others.count > 0).then(|| others.to_string()));
        notes.extend(lint::beside(engine, reference, &diverged)?);
        let compared = Compared {
            factor: rule.factor,
            formula: formula(rule.factor),
            coverage: Coverage::of(&reports, all.len(), sites.len()),
            layers: longer.list().layers(),
            prompt_tokens: longer.manifest().steps[0].tokens.len(),
            decode_steps: longer.manifest().steps.len() - 1,
            rows: None,
            hooks_leave_logits: None,
            runs_repeat: None,
        };
        let sites: Vec<SiteRow> = reports.into_iter().map(SiteRow::from).collect();
        let headline = answer(&sites, &compared, None);
        Ok(Report {
            reference: Some(SideSummary::of_trace(reference.manifest())),
            compared: Some(compared),
            steps: steps(engine, reference)?,
            notes,
            sites,
            ..Report::of_engine(headline, SideSummary::of_trace(engine.manifest()))
        })
    }

    /// The report of an engine's trace that is compared with nothing; its headline is yet to come.
    pub fn of_trace(engine: &TraceReader) -> Result<Report, TraceError> {
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
        Ok(Report {
            steps: steps.collect::<Result<_, TraceError>>()?,
            notes: lint::alone(engine)?,
            ..Report::of_engine(headline, SideSummary::of_trace(manifest))
        })
    }
}

/// A trace has no vocabulary, so choices are named by their ids.
fn steps(engine: &TraceReader, reference: &TraceReader) -> Result<Vec<StepRow>, TraceError> {
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
