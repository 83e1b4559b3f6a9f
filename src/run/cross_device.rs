//! The same engine on two devices: the same kernels must give the same numbers, but for rounding. What
//! differs beyond it is the doing of a compiler, of a race, or of the runtime that stands in for CUDA.

use std::{collections::BTreeSet, sync::Arc, thread};

use crate::{
    compare::{
        channel,
        verdict::{Coverage, SiteReport, judge},
    },
    diagnosis::{
        Diagnosis,
        replay::{GraphRun, Operation, Recording},
    },
    engine::{EngineError, EngineSpec, device::DeviceError},
    run::{
        Run, RunError,
        baseline::{Baseline, row_tokens},
        open::{Replayable, replayable},
        run_engine,
        two_sides::Recorder,
    },
};

/// Two devices compared, the second one judged by the first.
pub struct CrossCheck {
    /// The names of the first device and of the second.
    pub devices: [String; 2],
    pub sites: Vec<SiteReport>,
    pub coverage: Coverage,
    /// Results of operations beyond their rounding bounds on the first device only, and on the second
    /// only; `None` unless both were replayed.
    pub guilty_on_one: Option<[Vec<Operation>; 2]>,
}

impl Run<'_> {
    /// Runs the engine again, and `second` beside it, over the baseline's tokens. `diagnosis` is that of
    /// the first.
    pub fn cross_check(
        &self,
        second: &EngineSpec,
        baseline: &Baseline,
        diagnosis: Option<&Diagnosis>,
        on_site: &mut dyn FnMut(&SiteReport),
    ) -> Result<CrossCheck, RunError> {
        let (sites, steps) = (self.sites()?, &baseline.steps);
        let mut engines = [self.engine, second].map(|spec| self.build(spec));
        let [Ok(first_engine), Ok(second_engine)] = &mut engines else {
            return Err(engines.into_iter().find_map(Result::err).expect("one failed"));
        };
        let devices = [first_engine.device_name(), second_engine.device_name()];
        let filter = Arc::new(self.filter.clone());
        let (first_sink, first_side) = channel(Arc::clone(&filter), 0);
        let (second_sink, second_side) = channel(filter, 0);
        let mut first_sink = Recorder::new(first_sink, false, Vec::new())?;
        let mut second_sink =
            Recorder::new(second_sink, diagnosis.is_some(), self.unrecorded(second))?;
        let (reports, first_end, second_end) = thread::scope(|scope| {
            let first_run = scope.spawn(move || run_engine(first_engine, steps, &mut first_sink));
            let second_run = scope.spawn(move || {
                let end = run_engine(second_engine, steps, &mut second_sink);
                (end, second_sink.into_spool())
            });
            let tokens = |site| row_tokens(self.filter, self.task.prompt.len(), site);
            let sides = (second_side, first_side);
            let reports = judge(&sites, sides, &baseline.floor, self.rule, &tokens, on_site);
            (reports, first_run.join(), second_run.join())
        });
        let ended_early = || DeviceError::Failed("a device's thread ended early".to_string());
        let (second_end, spool) = second_end.map_err(|_| ended_early())?;
        for end in [first_end.map_err(|_| ended_early())?, second_end] {
            match end {
                Ok(_) | Err(EngineError::Stopped(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let guilty_on_one = match (spool, diagnosis) {
            (Some(spool), Some(first)) => {
                let (tensors, arithmetic) = (spool.finished()?, second.arithmetic());
                let recording = Recording {
                    tensors: &tensors,
                    steps,
                    arithmetic: &arithmetic,
                    attention: second.attending(),
                };
                let Replayable { graph, inputs } = replayable(self.model, self.reference, steps)?;
                let (file, model, inputs) = (self.model.file(), &*graph, &inputs);
                let asked = self.asked();
                let run = GraphRun::new(file, model, inputs, recording);
                let second = GraphRun { only: asked.as_ref(), ..run };
                let second = Diagnosis::of(second, None)?;
                let (first, second) = (guilty(first), guilty(&second));
                let only = |a: &BTreeSet<Operation>, b| {
                    let mut only: Vec<Operation> = a.difference(b).copied().collect();
                    only.sort_by_cached_key(|operation| operation.result());
                    only
                };
                Some([only(&first, &second), only(&second, &first)])
            }
            _ => None,
        };
        let total = self.model.config.sites(self.task.decode + 1).len();
        let coverage = Coverage::of(&reports, total, sites.len());
        Ok(CrossCheck { devices, sites: reports, coverage, guilty_on_one })
    }
}

impl CrossCheck {
    /// Whether every site that was asked for is the same on both, and the same operations are guilty.
    pub fn agree(&self) -> bool {
        let alike = |only: &[Vec<Operation>; 2]| only.iter().all(Vec::is_empty);
        self.coverage.equal == self.coverage.asked && self.guilty_on_one.as_ref().is_none_or(alike)
    }
}

/// An engine's guilty operations.
fn guilty(diagnosis: &Diagnosis) -> BTreeSet<Operation> {
    let findings = diagnosis.findings.iter();
    let own = findings.filter(|finding| finding.verdict.is_of_engine());
    own.flat_map(|finding| finding.operations.iter().copied()).collect()
}
