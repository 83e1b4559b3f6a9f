//! Runs the cases, a model's reference loaded once for all of them.

use std::{collections::BTreeMap, path::PathBuf, time::Instant};

use crate::{
    baseline::Task,
    cache,
    check::{
        Case, CaseResult, Config, Guilty, Partition, Place, Results,
        config::Source,
        kernel::{Chosen, place_of_error},
    },
    compare::SiteFilter,
    diagnosis::{Certainty, Finding, Verdict},
    exit::{Error, Exit},
    fault::Faults,
    model::Model,
    reference::{Reference, ReferenceOptions},
    report::{Compared, SiteRow, answer},
    run::{EngineSpec, Finished, Run},
    site::{Site, Stage},
    synth::{self, Spec},
    verdict::{Coverage, Outcome, Rule, SiteReport},
};

/// The models of a configuration, and what they allow to be refused before anything runs.
pub struct Opened {
    models: Vec<Model>,
}

impl Opened {
    /// Opens every model, writing the random ones into the cache, and checks the tolerances. `fixture`
    /// gives the path of the embedded model.
    pub fn open(
        config: &Config,
        fixture: &dyn Fn() -> Result<PathBuf, Error>,
    ) -> Result<Opened, Error> {
        let mut models = Vec::new();
        for choice in &config.models {
            let path = match &choice.source {
                Source::Fixture => fixture()?,
                Source::Path(path) => path.clone(),
                Source::Synth(spec) => synthesised(spec)?,
            };
            models.push(Model::open(&path)?);
        }
        let sites = |model: &Model| model.config.sites(config.steps + 1);
        let all: Vec<Site> = models.iter().flat_map(sites).collect();
        config.check_tolerances(&all)?;
        Ok(Opened { models })
    }
}

/// A random model in the cache.
fn synthesised(spec: &Spec) -> Result<PathBuf, Error> {
    let write = |source| Error::Write { path: cache::root(), source };
    let folder = cache::folder("synth").map_err(write)?;
    let key = format!("{} {spec:?}", env!("CARGO_PKG_VERSION"));
    let path = folder.join(format!("{}.gguf", &blake3::hash(key.as_bytes()).to_hex()[..24]));
    if !path.is_file() {
        synth::write(spec, &path, &mut |_| {})?;
    }
    Ok(path)
}

/// Runs the cases of a configuration, or a part of them. `done` hears each, and how many there are.
pub fn run(
    config: &Config,
    opened: &Opened,
    partition: Option<Partition>,
    done: &mut dyn FnMut(&CaseResult, usize),
) -> Result<Results, Error> {
    let all = config.cases();
    let plan: Vec<String> = all.iter().map(|case| case.id.clone()).collect();
    let cases = match partition {
        Some(partition) => partition.choose(all),
        None => all,
    };
    let (mut results, mut hashes) = (Vec::new(), BTreeMap::new());
    for of_model in cases.chunk_by(|a, b| a.model == b.model) {
        let index = of_model[0].model;
        let model = &opened.models[index];
        let options = ReferenceOptions { precision: config.reference, threads: None };
        let reference = Reference::load(model, options)?;
        hashes.insert(config.models[index].name.clone(), model.hash());
        for case in of_model {
            let result = Runner { config, model, reference: &reference }.run(case)?;
            done(&result, cases.len());
            results.push(result);
        }
    }
    let partition = partition.map(|partition| partition.to_string());
    Ok(Results::of(config.hash.clone(), partition, hashes, plan, results))
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
    fn run(&self, case: &Case) -> Result<CaseResult, Error> {
        let start = Instant::now();
        let (config, prompt) = (self.config, &self.config.prompts[case.prompt]);
        let ids = self.reference.tokenize(&prompt.text);
        let task = Task { prompt: &ids, decode: config.steps };
        let (wanted, most) = (task.positions(), self.model.config.n_ctx_train);
        let what = format!("{}: prompt {}", config.path.display(), prompt.name);
        if ids.is_empty() {
            return Err(Error::Usage(format!("{what} has no tokens; give it a text")));
        }
        if wanted > most {
            let model = &config.models[case.model].name;
            return Err(Error::Usage(format!(
                "{what} needs {wanted} positions, but {model} was trained for {most}; shorten it"
            )));
        }
        let engine = EngineSpec {
            device: config.device(case),
            storage: case.dtype,
            attention: case.variant,
            faults: Faults::default(),
            kernels: config.kernels.clone(),
        };
        let run = Run {
            model: self.model,
            reference: self.reference,
            task,
            engine: &engine,
            filter: &SiteFilter::default(),
            rule: Rule { factor: config.least_factor(), stop_at_first: false },
            replay: true,
        };
        let mut result = match run.run(&mut |_| {}) {
            Ok(finished) => self.judged(case, ids.len(), finished),
            Err(error) => self.failed(case, &error),
        };
        result.seconds = start.elapsed().as_secs_f64();
        Ok(result)
    }

    fn blank(&self, case: &Case) -> CaseResult {
        CaseResult {
            id: case.id.clone(),
            model: self.config.models[case.model].name.clone(),
            prompt: self.config.prompts[case.prompt].name.clone(),
            dtype: case.dtype.to_string(),
            variant: case.variant.to_string(),
            device: self.config.devices[case.device].0.clone(),
            exit: Exit::NotMeasured,
            text: String::new(),
            first_divergence: None,
            guilty: Vec::new(),
            place: None,
            coverage: None,
            seconds: 0.0,
        }
    }

    fn failed(&self, case: &Case, error: &Error) -> CaseResult {
        let text = error.to_string();
        let place = place_of_error(&self.config.kernels, &text);
        CaseResult { exit: error.exit(), text, place, ..self.blank(case) }
    }

    fn judged(&self, case: &Case, prompt: usize, finished: Finished) -> CaseResult {
        let mut reports = finished.sites;
        reports.iter_mut().for_each(|report| self.judge_again(report));
        let coverage = Coverage::of(&reports, finished.coverage.total, finished.coverage.asked);
        let steps = &finished.baseline.steps;
        let rows: Vec<SiteRow> = reports.into_iter().map(SiteRow::from).collect();
        let compared = Compared {
            factor: self.config.least_factor(),
            formula: String::new(),
            coverage,
            layers: self.model.config.n_layer,
            prompt_tokens: prompt,
            decode_steps: steps.len() - 1,
            hooks_leave_logits: finished.hooks_leave_logits,
            runs_repeat: finished.runs_repeat,
        };
        let diagnosis = finished.diagnosis.as_ref();
        let headline = answer(&rows, &compared, diagnosis);
        let tokens = |step: u32| steps.get(step as usize).map_or(1, Vec::len);
        let place = |step, stage| self.place(case, stage, tokens(step));
        let guilty = |finding: &Finding| Guilty {
            text: cause(finding),
            place: guilty_stage(finding).and_then(|(step, stage)| place(step, stage)),
        };
        let findings = diagnosis.map_or(&[][..], |diagnosis| &diagnosis.findings);
        let own = findings.iter().filter(|finding| finding.verdict == Verdict::EngineWrong);
        let diverged = rows.iter().find(|row| row.outcome == Outcome::Diverged);
        CaseResult {
            exit: headline.exit,
            text: headline.text,
            first_divergence: headline.first_divergence,
            guilty: own.map(guilty).collect(),
            place: diverged.and_then(|row| place(row.place.step, row.place.stage)),
            coverage: Some(coverage),
            ..self.blank(case)
        }
    }

    /// The run compared with the least factor; this is the verdict with the site's own.
    fn judge_again(&self, report: &mut SiteReport) {
        let (own, least) = (self.config.factor(report.site), self.config.least_factor());
        let (Outcome::Diverged, Some(difference)) = (&report.outcome, &mut report.difference)
        else {
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

    fn place(&self, case: &Case, stage: Stage, tokens: usize) -> Option<Place> {
        let rope_pairs = self.model.config.rope_pairs;
        let chosen = Chosen { dtype: case.dtype, variant: case.variant, rope_pairs };
        chosen.place(&self.config.kernels, stage, tokens)
    }
}

/// The step and stage of a finding's first operation.
fn guilty_stage(finding: &Finding) -> Option<(u32, Stage)> {
    let step = finding.worst.as_ref().map_or(0, |worst| worst.step);
    let site = Site::from_tensor_name(step, finding.operations.first()?)?;
    Some((step, site.stage))
}

/// `q and k rotation, all layers: pairs ... (proven)`.
fn cause(finding: &Finding) -> String {
    let sure = match finding.cause.certainty {
        Certainty::Proven => " (proven)",
        Certainty::Partly => " (partly)",
        Certainty::Unknown => "",
    };
    format!("{}: {}{sure}", finding.what, finding.cause.text)
}
