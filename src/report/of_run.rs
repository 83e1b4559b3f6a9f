//! The report of a finished run.

use crate::{
    core::sink::Choice,
    engine::{EngineSpec, contract::Op},
    model::gguf::GgufError,
    report::{
        AskedSites, Compared, ModelSummary, Report, SideSummary, SiteRow, StepRow, answer, formula,
    },
    run::{Finished, Run},
};

impl Report {
    /// The report of a run, with the notes that are known before it.
    pub fn of_run(run: &Run<'_>, finished: Finished) -> Result<Report, GgufError> {
        let mut notes = Vec::new();
        let steps = steps(run, &finished);
        let decode_steps = steps.len() - 1;
        if decode_steps < run.task.decode as usize {
            notes.push(format!(
                "llama.cpp's own logits are NaN after step {decode_steps}, so decoding ends \
                 there: see weights"
            ));
        }
        notes.extend(recomputed(run.engine));
        let compared = Compared {
            factor: run.rule.factor,
            formula: formula(run.rule.factor),
            coverage: finished.coverage,
            layers: run.model.config.n_layer,
            prompt_tokens: run.task.prompt.len(),
            decode_steps,
            first_positions: Vec::new(),
            parted: None,
            rows: run.filter.prompt_queries().map(<[usize]>::to_vec),
            hooks_leave_logits: finished.hooks_leave_logits,
            runs_repeat: finished.runs_repeat,
        };
        let sites: Vec<SiteRow> = finished.sites.into_iter().map(SiteRow::from).collect();
        let headline = answer(&sites, &compared, finished.diagnosis.as_ref());
        let headline = headline.after_weights(&finished.weights);
        let mut report = Report {
            asked: AskedSites::of(run.filter),
            model: Some(ModelSummary::of(run.model, run.asked().as_ref())?),
            reference: Some(SideSummary::of_reference(run.reference)),
            compared: Some(compared),
            weights: Some(finished.weights),
            diagnosis: finished.diagnosis,
            steps,
            notes,
            sites,
            seconds: finished.seconds,
            ..Report::of_engine(headline, SideSummary::of_engine(run.engine, finished.device))
        };
        report.note_end();
        if run.replay.is_some() && report.partial.is_none() {
            let diagnosis = report.diagnosis.take();
            report.note_replay_end(diagnosis.as_ref());
            report.diagnosis = diagnosis;
        }
        report.say_end();
        Ok(report)
    }
}

/// The steps, with the choices as texts.
fn steps(run: &Run<'_>, finished: &Finished) -> Vec<StepRow> {
    let engine_choices = finished.engine_choices.iter().copied().chain(std::iter::repeat(None));
    let steps = finished.baseline.steps.iter().zip(&finished.baseline.choices).zip(engine_choices);
    let text = |choice: Option<Choice>| choice.map(|choice| run.reference.text(&[choice.token]));
    let row = |((tokens, &reference), engine): ((&Vec<i32>, &Option<Choice>), Option<Choice>)| {
        let (reference_text, engine_text) = (text(reference), text(engine));
        StepRow { tokens: tokens.clone(), reference, engine, reference_text, engine_text }
    };
    steps.map(row).collect()
}

/// What a reader must know of an attention kernel that keeps some of its results to itself.
fn recomputed(engine: &EngineSpec) -> Option<String> {
    let contract = engine.kernels.contract(Op::Attention)?;
    let stages = engine.recomputed();
    let stages: Vec<&str> = stages.iter().map(|stage| stage.name()).collect();
    (!stages.is_empty()).then(|| {
        format!(
            "{} does not expose {}: our kernel recomputes them from the q and the caches that it \
             left, so they say nothing about it; its own results are attn_out and what it appends",
            contract.source.display(),
            stages.join(" and ")
        )
    })
}
