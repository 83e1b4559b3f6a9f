//! What a case's result is made of, however it was run.

use crate::{
    ci::check::{
        Case, Config,
        kernel::{Chosen, place_of_error},
    },
    core::{activity::Death, exit::Exit},
    diagnosis::{Certainty, Diagnosis, Finding, Verdict},
    engine::{EngineSpec, fault::Faults},
    graph::site::Stage,
    model::Model,
    report::ci::{CaseResult, Guilty, Place},
};

impl Config {
    /// The engine of a case.
    pub(super) fn engine(&self, case: &Case) -> EngineSpec {
        EngineSpec {
            device: self.device(case),
            storage: case.dtype,
            attention: case.variant,
            faults: Faults::default(),
            kernels: self.kernels.clone(),
            roundings: self.roundings.clone(),
        }
    }

    /// A case of which nothing is known.
    pub(super) fn blank(&self, case: &Case) -> CaseResult {
        CaseResult {
            id: case.id.clone(),
            model: self.models[case.model].name.clone(),
            prompt: self.prompts[case.prompt].name.clone(),
            dtype: case.dtype.to_string(),
            variant: case.variant.to_string(),
            device: self.devices[case.device].0.clone(),
            exit: Exit::NotMeasured,
            text: String::new(),
            first_divergence: None,
            guilty: Vec::new(),
            regressed: Vec::new(),
            improved: Vec::new(),
            place: None,
            coverage: None,
            seconds: 0.0,
        }
    }

    /// A case that an error ended.
    pub(super) fn failed(&self, case: &Case, exit: Exit, text: String) -> CaseResult {
        let place = place_of_error(&self.kernels, &text);
        CaseResult { exit, text, place, ..self.blank(case) }
    }

    /// A case that ended the process which ran it.
    pub(super) fn died(&self, case: &Case, death: Death) -> CaseResult {
        CaseResult { seconds: death.seconds, ..self.failed(case, death.exit, death.text) }
    }

    /// The engine's guilty operations, with their kernels.
    pub(super) fn guilty(
        &self,
        model: &Model,
        case: &Case,
        steps: &[Vec<i32>],
        diagnosis: Option<&Diagnosis>,
    ) -> Vec<Guilty> {
        let findings = diagnosis.map_or(&[][..], |diagnosis| &diagnosis.findings);
        let own = findings.iter().filter(|finding| finding.verdict.is_of_engine());
        let guilty = |finding: &Finding| Guilty {
            text: cause(finding),
            place: guilty_stage(finding)
                .and_then(|(step, stage)| self.place(model, case, steps, step, stage)),
        };
        own.map(guilty).collect()
    }

    /// Where the kernel of a stage stands.
    pub(super) fn place(
        &self,
        model: &Model,
        case: &Case,
        steps: &[Vec<i32>],
        step: u32,
        stage: Stage,
    ) -> Option<Place> {
        let tokens = steps.get(step as usize).map_or(1, Vec::len);
        let rope_pairs = model.config.rope_pairs;
        let chosen = Chosen { dtype: case.dtype, variant: case.variant, rope_pairs };
        chosen.place(&self.kernels, stage, tokens)
    }
}

/// The step and stage of a finding's first operation.
fn guilty_stage(finding: &Finding) -> Option<(u32, Stage)> {
    let step = finding.worst.as_ref().map_or(0, |worst| worst.step);
    Some((step, finding.operations.first()?.stage))
}

/// `q and k rotation, all layers: pairs ... (proven)`.
fn cause(finding: &Finding) -> String {
    let sure = match finding.cause.certainty {
        Certainty::Proven => " (proven)",
        Certainty::Consistent => " (consistent, not proven)",
        Certainty::Partly => " (partly)",
        Certainty::Unknown => "",
    };
    let undeclared = match finding.verdict {
        Verdict::Undeclared => "undeclared arithmetic: ",
        _ => "",
    };
    format!("{undeclared}{}: {}{sure}", finding.what, finding.cause.text)
}
