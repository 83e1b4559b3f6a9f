//! Runs the cases of a model without llama.cpp, against what is kept of it.

use std::time::Instant;

use crate::{
    ci::check::{
        Case, CheckError, Config, Pinned, PinnedPrompt,
        cases::{Evidence, Ran, Visit, judged},
        pinned::text_hash,
        ratchet::record,
    },
    compare::{
        SAMPLES, SUMS,
        verdict::{Outcome, SiteReport},
    },
    core::{exit::Exit, task::first_position, tensor::DType},
    diagnosis::{
        Diagnosis,
        replay::{GraphRun, Recording},
    },
    engine::EngineSpec,
    graph::site::Site,
    model::Model,
    report::ci::CaseResult,
    run,
    trace::recording::{Recorded, Spool},
};

/// A model with what is kept of its reference.
pub struct Runner<'a> {
    pub config: &'a Config,
    pub model: &'a Model,
    pub pinned: &'a Pinned,
}

/// Why a case cannot be compared with a snapshot.
type Unfit = (Exit, String);

impl Runner<'_> {
    /// A snapshot that does not fit the case, and an error of the engine, are the case's result.
    pub fn run(&self, case: &Case, visit: &mut Visit<'_>) -> Result<(), CheckError> {
        let start = Instant::now();
        let (config, engine) = (self.config, self.config.engine(case));
        let prompt = match self.prompt(case) {
            Ok(prompt) => prompt,
            Err((exit, text)) => {
                return visit(case, CaseResult { exit, text, ..config.blank(case) }, None);
            }
        };
        let seconds = || start.elapsed().as_secs_f64();
        match self.compared(case, &engine, prompt) {
            Ok((result, recorded)) => {
                let (model, steps) = (self.model, &prompt.steps[..]);
                let ran = Ran { model, engine: &engine, steps, recorded: &recorded };
                visit(case, CaseResult { seconds: seconds(), ..result }, Some(ran))
            }
            Err(error) => {
                let result = config.failed(case, error.exit(), error.to_string());
                visit(case, CaseResult { seconds: seconds(), ..result }, None)
            }
        }
    }

    /// What is kept of the reference's run of a case.
    fn prompt(&self, case: &Case) -> Result<&PinnedPrompt, Unfit> {
        let (config, pinned) = (self.config, self.pinned);
        let (model, prompt) = (&config.models[case.model].name, &config.prompts[case.prompt]);
        let refused = |what: &str, was: &str, now: &str| {
            let text =
                format!("the reference's snapshot is for a different {what} ({was}, not {now})");
            (Exit::Refused, format!("{text}; `firstdiff bless --reference` rewrites it"))
        };
        let missing = |what: &str| {
            let text = format!("the reference's snapshot has no {what}");
            (Exit::NotMeasured, format!("{text}; `firstdiff bless --reference` rewrites it"))
        };
        if pinned.precision != config.reference {
            let [was, now] = [pinned.precision, config.reference].map(|p| format!("{p:?}"));
            return Err(refused("precision", &was, &now));
        }
        let kept = pinned.models.get(model).ok_or_else(|| missing(&format!("model {model}")))?;
        if kept.blake3 != self.model.hash() {
            return Err(refused("model", &kept.blake3, &self.model.hash()));
        }
        let name = &prompt.name;
        let kept = kept.prompts.get(name).ok_or_else(|| missing(&format!("prompt {name}")))?;
        let text = text_hash(&prompt.text);
        if kept.text != text {
            return Err(refused(&format!("prompt {name}"), &kept.text, &text));
        }
        if kept.decode != config.steps {
            let [was, now] = [kept.decode, config.steps].map(|steps| steps.to_string());
            return Err(refused("number of steps", &was, &now));
        }
        if !kept.dtypes.contains(&case.dtype) {
            return Err(missing(&format!("floors of {}", case.dtype)));
        }
        Ok(kept)
    }

    /// Runs the engine, and judges it by the snapshot and by its own inputs.
    fn compared(
        &self,
        case: &Case,
        engine: &EngineSpec,
        prompt: &PinnedPrompt,
    ) -> Result<(CaseResult, Spool), CheckError> {
        let (config, steps) = (self.config, &prompt.steps[..]);
        let positions: usize = steps.iter().map(Vec::len).sum();
        let mut longer = None;
        if positions > self.model.planned_positions() {
            longer = Some(run::open_for(&self.model.path, positions)?);
        }
        let model = longer.as_ref().unwrap_or(self.model);
        let (spool, weights) = record(model, engine, steps)?;
        let sites = prompt.compare(model, case.dtype, &spool, config.least_factor())?;
        let (arithmetic, attention) = (engine.arithmetic(), engine.attending());
        let recording = Recording { tensors: &spool, steps, arithmetic: &arithmetic, attention };
        let mut diagnosis = Diagnosis::of(GraphRun::of(model, model.inputs(), recording), None)?;
        diagnosis.explain_by(&model.graph, &weights);
        let (diagnosis, weights) = (Some(&diagnosis), &weights);
        let (hooks_leave_logits, runs_repeat) = (None, None);
        let evidence =
            Evidence { sites, steps, diagnosis, weights, hooks_leave_logits, runs_repeat };
        let mut result = judged(config, model, case, evidence);
        result.text += &format!("; {SAMPLES} elements and {SUMS} sums of each compared");
        Ok((result, spool))
    }
}

impl PinnedPrompt {
    /// Every site of a recorded engine against what is kept of the reference.
    pub fn compare(
        &self,
        model: &Model,
        dtype: DType,
        engine: &dyn Recorded,
        factor: f64,
    ) -> Result<Vec<SiteReport>, CheckError> {
        let floor = self.dtypes.iter().position(|&other| other == dtype);
        let length = self.steps[0].len();
        let sites = model.config.sites(self.decode + 1);
        let report = |site: Site| {
            let unmeasured = |what: &str| (Outcome::Unmeasured(what.into()), None, None);
            let first = first_position(length, site.step);
            let (outcome, difference, floor) = match (engine.tensor(site)?, self.sites.get(&site)) {
                (None, _) => unmeasured("the engine does not have it"),
                (_, None) => unmeasured("the reference's snapshot does not have it"),
                (Some(tensor), Some(kept)) => {
                    let tokens = self.steps[site.step as usize].len();
                    let shape = model.config.shape(site.stage, tokens, first + tokens);
                    match floor.map(|index| kept.floors[index]) {
                        None => unmeasured("its floor is not in the reference's snapshot"),
                        Some(floor) if tensor.shape != shape => {
                            let own = &tensor.shape;
                            let why = format!("engine shape {own:?}, reference shape {shape:?}");
                            (Outcome::Refused(why), None, Some(floor))
                        }
                        Some(floor) => {
                            let difference =
                                kept.digest.compare(site, &tensor, first, floor, factor);
                            (Outcome::of(&difference, floor, factor), Some(difference), Some(floor))
                        }
                    }
                }
            };
            Ok(SiteReport { site, outcome, difference, floor, rows: None })
        };
        sites.into_iter().map(report).collect()
    }
}
