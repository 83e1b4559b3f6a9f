//! Runs the cases, a model's reference loaded once for all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    time::Instant,
};

use crate::{
    ci::check::{
        Case, CheckError, Config, Lock, Partition, Pinned, Prompt, alone, config::Source,
        hold::hold,
    },
    compare::{
        SiteFilter,
        verdict::{Coverage, Outcome, Rule, SiteReport},
    },
    core::{
        activity,
        cache::{self, Entry},
        task::Task,
    },
    diagnosis::{Diagnosis, loaded::LoadedSummary, replay::Replay},
    engine::EngineSpec,
    graph::site::Site,
    model::{
        Model, ModelFile,
        synth::{self, Spec},
    },
    reference::{Reference, ReferenceOptions},
    report::{
        Compared, SiteRow, answer,
        ci::{CaseResult, Results},
    },
    run::{self, Finished, Run, RunError},
    trace::recording::Spool,
};

/// The models of a configuration, and what they allow to be refused before anything runs.
pub struct Opened {
    pub(super) models: Vec<Model>,
}

impl Opened {
    /// Opens every model, writing the random ones into the cache, and checks the tolerances. `fixture`
    /// gives the path of the embedded model.
    pub fn open(
        config: &Config,
        fixture: &dyn Fn() -> io::Result<PathBuf>,
    ) -> Result<Opened, CheckError> {
        let mut models = Vec::new();
        for choice in &config.models {
            let path = match &choice.source {
                Source::Fixture => fixture().map_err(unwritten)?,
                Source::Path(path) => path.clone(),
                Source::Synth(spec) => synthesised(spec)?,
            };
            models.push(run::open(&path)?);
        }
        let sites = |model: &Model| model.config.sites(config.steps + 1);
        let all: Vec<Site> = models.iter().flat_map(sites).collect();
        config.check_tolerances(&all)?;
        Ok(Opened { models })
    }

    /// The blake3 of each model of some cases.
    pub(super) fn hashes(&self, config: &Config, cases: &[Case]) -> BTreeMap<String, String> {
        let models: BTreeSet<usize> = cases.iter().map(|case| case.model).collect();
        let hash = |index: usize| (config.models[index].name.clone(), self.models[index].hash());
        models.into_iter().map(hash).collect()
    }
}

fn unwritten(source: io::Error) -> CheckError {
    CheckError::Write { path: cache::root(), source }
}

/// A random model in the cache.
fn synthesised(spec: &Spec) -> Result<PathBuf, CheckError> {
    let key = format!("{} {spec:?}", env!("CARGO_PKG_VERSION"));
    let name = format!("{}.gguf", &blake3::hash(key.as_bytes()).to_hex()[..24]);
    let entry = Entry::new("synth", name).map_err(unwritten)?;
    if entry.file().is_none() {
        synth::write(spec, entry.path(), &mut |_| {})?;
        entry.seal().map_err(unwritten)?;
    }
    Ok(entry.path().to_path_buf())
}

/// What is asked of a check.
#[derive(Clone, Copy, Default)]
pub struct Asked<'a> {
    pub partition: Option<Partition>,
    /// A baseline that every operation is held to.
    pub baseline: Option<&'a Lock>,
    /// What stands for llama.cpp, which then does not run.
    pub reference: Option<&'a Pinned>,
}

/// A case whose engine ran to its end.
pub(super) struct Ran<'a> {
    pub model: &'a Model,
    pub engine: &'a EngineSpec,
    /// The token ids of each step.
    pub steps: &'a [Vec<i32>],
    pub recorded: &'a Spool,
}

/// Runs the cases of a configuration, or a part of them. `done` hears each, and how many there are; those that
/// an earlier process has done it has heard there.
pub fn run(
    config: &Config,
    opened: &Opened,
    asked: Asked<'_>,
    done: &mut dyn FnMut(&CaseResult, usize),
) -> Result<Results, CheckError> {
    let (plan, cases) = planned(config, asked.partition);
    let hashes = opened.hashes(config, &cases);
    // What an earlier process has done before it died of another case.
    let mut results: BTreeMap<String, CaseResult> = cases
        .iter()
        .filter_map(|case| Some((case.id.clone(), activity::done(&case.id)?)))
        .collect();
    let is_open = |case: &&Case| !results.contains_key(&case.id);
    let open: Vec<Case> = cases.iter().filter(is_open).cloned().collect();
    each(config, opened, &open, asked.reference, &mut |case, mut result, ran| {
        if let (Some(lock), Some(ran)) = (asked.baseline, ran) {
            let start = Instant::now();
            hold(config, case, &mut result, &ran, lock)?;
            result.seconds += start.elapsed().as_secs_f64();
        }
        activity::keep(&case.id, &result);
        done(&result, cases.len());
        results.insert(case.id.clone(), result);
        Ok(())
    })?;
    let results = cases.iter().filter_map(|case| results.remove(&case.id)).collect();
    let partition = asked.partition.map(|partition| partition.to_string());
    let reference = asked.reference.map(Pinned::described);
    Ok(Results::of(config.hash.clone(), reference, partition, hashes, plan, results))
}

/// The ids of all cases, and those of a part.
pub(super) fn planned(config: &Config, partition: Option<Partition>) -> (Vec<String>, Vec<Case>) {
    let all = config.cases();
    let plan = all.iter().map(|case| case.id.clone()).collect();
    let cases = match partition {
        Some(partition) => partition.choose(all),
        None => all,
    };
    (plan, cases)
}

/// What is done with a case: its result, and its run if its engine and its reference ran.
pub(super) type Visit<'a> =
    dyn FnMut(&Case, CaseResult, Option<Ran<'_>>) -> Result<(), CheckError> + 'a;

/// Runs cases against llama.cpp, or what is kept of it, one after another.
pub(super) fn each(
    config: &Config,
    opened: &Opened,
    cases: &[Case],
    pinned: Option<&Pinned>,
    visit: &mut Visit<'_>,
) -> Result<(), CheckError> {
    for of_model in cases.chunk_by(|a, b| a.model == b.model) {
        let model = &opened.models[of_model[0].model];
        if let Some(pinned) = pinned {
            let runner = alone::Runner { config, model, pinned };
            for case in of_model {
                if let Some(death) = activity::died(&case.id) {
                    visit(case, config.died(case, death), None)?;
                    continue;
                }
                let _unit = activity::unit(&case.id);
                runner.run(case, visit)?;
            }
            continue;
        }
        let options = ReferenceOptions { precision: config.reference, threads: None };
        let mut reference = None;
        for case in of_model {
            if let Some(death) = activity::died(&case.id) {
                visit(case, config.died(case, death), None)?;
                continue;
            }
            // llama.cpp may die of the model as well.
            let _unit = activity::unit(&case.id);
            let reference = match &mut reference {
                Some(reference) => reference,
                none => none.insert(Reference::load(model, options)?),
            };
            Runner { config, model, reference }.run(case, visit)?;
        }
    }
    Ok(())
}

/// A model with its reference.
struct Runner<'a> {
    config: &'a Config,
    model: &'a Model,
    reference: &'a Reference,
}

impl Runner<'_> {
    /// An error of the engine or of the reference is the case's result; a prompt that does not fit is
    /// the configuration's mistake.
    fn run(&self, case: &Case, visit: &mut Visit<'_>) -> Result<(), CheckError> {
        let start = Instant::now();
        let (config, prompt) = (self.config, &self.config.prompts[case.prompt]);
        let ids = tokens(config, self.model, self.reference, case.model, prompt)?;
        let task = Task { prompt: &ids, decode: config.steps };
        let mut longer = None;
        if task.positions() > self.model.planned_positions() {
            // A window may be wider than what the plan was made for.
            let file = ModelFile::open(&self.model.path).map_err(RunError::from)?;
            longer = Some(run::planned(file, self.reference, task.positions())?);
        }
        let model = longer.as_ref().unwrap_or(self.model);
        let engine = config.engine(case);
        let run = Run {
            model,
            reference: self.reference,
            task,
            engine: &engine,
            filter: &SiteFilter::default(),
            rule: Rule { factor: config.least_factor(), until_first: false },
            replay: Some(Replay::Quick),
        };
        match run.run(&mut |_| {}) {
            Ok(mut finished) => {
                let evidence = Evidence::of(&mut finished);
                let mut result = judged(config, self.model, case, evidence);
                result.seconds = start.elapsed().as_secs_f64();
                let (engine, steps) = (&engine, &finished.baseline.steps[..]);
                let recorded = finished.recorded.as_ref();
                let ran = recorded.map(|recorded| Ran { model, engine, steps, recorded });
                visit(case, result, ran)
            }
            Err(error) => {
                let seconds = start.elapsed().as_secs_f64();
                let result = config.failed(case, error.exit(), error.to_string());
                visit(case, CaseResult { seconds, ..result }, None)
            }
        }
    }
}

/// The token ids of a prompt. One that is empty or too long is the configuration's mistake.
pub(super) fn tokens(
    config: &Config,
    model: &Model,
    reference: &Reference,
    index: usize,
    prompt: &Prompt,
) -> Result<Vec<i32>, CheckError> {
    let ids = reference.tokenize(&prompt.text);
    let wanted = Task { prompt: &ids, decode: config.steps }.positions();
    let (path, prompt) = (config.path.clone(), prompt.name.clone());
    let most = model.trained_positions().unwrap_or(usize::MAX);
    if ids.is_empty() {
        return Err(CheckError::EmptyPrompt { path, prompt });
    }
    if wanted > most {
        let model = config.models[index].name.clone();
        return Err(CheckError::LongPrompt { path, prompt, wanted, model, most });
    }
    Ok(ids)
}

/// What a case is judged by.
pub(super) struct Evidence<'a> {
    /// Compared with the least factor.
    pub sites: Vec<SiteReport>,
    pub steps: &'a [Vec<i32>],
    pub diagnosis: Option<&'a Diagnosis>,
    pub weights: &'a LoadedSummary,
    pub hooks_leave_logits: Option<bool>,
    pub runs_repeat: Option<bool>,
}

impl Evidence<'_> {
    fn of(finished: &mut Finished) -> Evidence<'_> {
        Evidence {
            sites: std::mem::take(&mut finished.sites),
            steps: &finished.baseline.steps,
            diagnosis: finished.diagnosis.as_ref(),
            weights: &finished.weights,
            hooks_leave_logits: finished.hooks_leave_logits,
            runs_repeat: finished.runs_repeat,
        }
    }
}

/// The verdict on a case. All sites of its model were asked for.
pub(super) fn judged(
    config: &Config,
    model: &Model,
    case: &Case,
    evidence: Evidence<'_>,
) -> CaseResult {
    let Evidence { sites, steps, diagnosis, weights, hooks_leave_logits, runs_repeat } = evidence;
    let mut reports = sites;
    reports.iter_mut().for_each(|report| judge_again(config, report));
    let total = model.config.sites(config.steps + 1).len();
    let coverage = Coverage::of(&reports, total, total);
    let rows: Vec<SiteRow> = reports.into_iter().map(SiteRow::from).collect();
    let compared = Compared {
        factor: config.least_factor(),
        formula: String::new(),
        coverage,
        layers: model.config.n_layer,
        prompt_tokens: steps[0].len(),
        decode_steps: steps.len() - 1,
        first_positions: Vec::new(),
        parted: None,
        rows: None,
        hooks_leave_logits,
        runs_repeat,
    };
    let headline = answer(&rows, &compared, diagnosis).after_weights(weights);
    let guilty = config.guilty(model, case, steps, diagnosis);
    let diverged = rows.iter().find(|row| row.outcome == Outcome::Diverged);
    CaseResult {
        exit: headline.exit,
        text: headline.text,
        first_divergence: headline.first_divergence,
        guilty,
        place: diverged
            .and_then(|row| config.place(model, case, steps, row.place.step, row.place.stage)),
        coverage: Some(coverage),
        ..config.blank(case)
    }
}

/// The run compared with the least factor; this is the verdict with the site's own.
fn judge_again(config: &Config, report: &mut SiteReport) {
    let (own, least) = (config.factor(report.site), config.least_factor());
    let (Outcome::Diverged, Some(difference)) = (&report.outcome, &mut report.difference) else {
        return;
    };
    if own > least {
        // The first element beyond the least factor may be within this one; the worst is not.
        difference.first = difference.worst.clone();
        if difference.times_floor() <= own {
            report.outcome = Outcome::Equal;
        }
    }
}
