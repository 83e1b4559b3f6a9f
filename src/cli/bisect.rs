//! `firstdiff bisect`: the commit that made a kernel diverge.

use std::path::PathBuf;

use clap::Args;
use firstdiff::{
    ci::bisect::{Commit, Found, History, Probe, Score, search},
    compare::{
        SiteFilter,
        verdict::{Outcome, Rule},
    },
    core::{activity, exit::Exit, floor::DEFAULT_FACTOR},
    diagnosis::replay::Replay,
    engine::{AttentionVariant, EngineSpec, fault::Faults, kernels::KernelSet},
    run::{Finished, Run, RunError},
};

use super::{
    args::{DTypeArg, DeviceArg, ModelArgs},
    error::Error,
    inputs::{self, Inputs},
    output,
};

#[derive(Args)]
pub struct BisectArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Where the kernels run
    #[arg(long, value_enum, default_value_t = DeviceArg::Host)]
    device: DeviceArg,
    /// Storage of weights, activations and KV cache
    #[arg(long, value_enum, default_value_t = DTypeArg::F32)]
    dtype: DTypeArg,
    /// Attention variant, as for `firstdiff run`
    #[arg(long, value_name = "SPEC", default_value_t)]
    attention: AttentionVariant,
    /// Folder of .cu files in a git repository; it is not changed
    #[arg(long, value_name = "DIR", default_value = "kernels")]
    folder: PathBuf,
    /// The good commit: nothing diverges, or only a later site
    good: String,
    /// The bad commit: a site diverges
    bad: String,
}

/// Searches, and prints the commit.
pub fn bisect(args: &BisectArgs) -> Result<Exit, Error> {
    let history = History::read(&args.folder, &args.good, &args.bad)?;
    let commits = &history.commits;
    let bar = output::progress(None, "loading the model and the reference");
    let inputs = Inputs::load(&args.model)?;
    let lab = Lab { args, history: &history, inputs: &inputs };
    let result = search(commits.len(), &mut |index| {
        bar.set_message(format!("{} {}", commits[index].short(), commits[index].subject));
        lab.probe(&commits[index])
    })?;
    let (exit, text) = match result {
        Ok(found) => (Exit::Diverged, lab.answer(&found)?),
        Err(probes) => {
            let said = |index: usize| match &probes[&index] {
                Probe::Scored(score) => format!("first divergence {score}"),
                Probe::Skipped(why) => format!("does not run: {why}"),
            };
            let last = commits.len() - 1;
            return Err(Error::Refused(format!(
                "{} ({}) is not worse than {} ({}); name a good and a bad commit",
                args.bad,
                said(last),
                args.good,
                said(0)
            )));
        }
    };
    bar.finish_and_clear();
    output::print(&text)?;
    Ok(exit)
}

struct Lab<'a> {
    args: &'a BisectArgs,
    history: &'a History,
    inputs: &'a Inputs,
}

impl Lab<'_> {
    fn run(&self, commit: &Commit, replay: bool) -> Result<Finished, Error> {
        let write = |source| Error::Write { path: std::env::temp_dir(), source };
        let folder = tempfile::tempdir().map_err(write)?;
        self.history.extract(commit, folder.path())?;
        let engine = EngineSpec {
            device: inputs::device(self.args.device),
            storage: self.args.dtype.into(),
            attention: self.args.attention,
            faults: Faults::default(),
            kernels: KernelSet::overridden_by(folder.path())?,
            roundings: Vec::new(),
        };
        let finished = Run {
            model: &self.inputs.model,
            reference: &self.inputs.reference,
            task: self.inputs.task(),
            engine: &engine,
            filter: &SiteFilter::default(),
            rule: Rule { factor: DEFAULT_FACTOR, until_first: !replay },
            replay: replay.then(Replay::default),
        }
        .run(&mut |_| {})?;
        Ok(finished)
    }

    /// Kernels that do not compile or run are passed over, as `git bisect skip` does.
    fn probe(&self, commit: &Commit) -> Result<Probe, Error> {
        if let Some(death) = activity::died(commit.short()) {
            return Ok(Probe::Skipped(death.text));
        }
        let _unit = activity::unit(commit.short());
        let finished = match self.run(commit, false) {
            Ok(finished) => finished,
            Err(
                error @ (Error::Run(RunError::Device(_) | RunError::Engine(_)) | Error::Kernel(_)),
            ) => {
                let text = error.to_string();
                return Ok(Probe::Skipped(text.lines().next().unwrap_or_default().to_string()));
            }
            Err(error) => return Err(error),
        };
        let first = finished.sites.iter().find(|report| report.outcome == Outcome::Diverged);
        match first.map(|report| report.site) {
            None if finished.coverage.equal < finished.coverage.total => {
                Ok(Probe::Skipped("not every site was measured".to_string()))
            }
            site => Ok(Probe::Scored(Score(site))),
        }
    }

    /// The commit in the first line, then how it is known.
    fn answer(&self, found: &Found) -> Result<String, Error> {
        let commits = &self.history.commits;
        let named = |index: usize| format!("{} {}", commits[index].short(), commits[index].subject);
        let (bad, good) = (&commits[found.bad], found.good);
        let diagnosis = self.run(bad, true)?.diagnosis;
        let cause = match diagnosis.as_ref().and_then(|diagnosis| diagnosis.first_of_engine()) {
            Some(finding) => format!("{}: {}", finding.what, finding.cause.text),
            None => "no operation is beyond its rounding bound".to_string(),
        };
        let score = |index: usize| match &found.probes[&index] {
            Probe::Scored(score) => score.to_string(),
            Probe::Skipped(why) => format!("does not run: {why}"),
        };
        let doubt = found.bad - good - 1;
        let first = match doubt {
            0 => "first bad commit".to_string(),
            n => format!("first bad commit, or one of the {n} before it that do not run"),
        };
        let mut text = format!(
            "{first}: {}: first divergence {} <- {cause}\n  before it  {}: {}\n  tested     {} of {} \
             commits that change {}\n",
            named(found.bad),
            score(found.bad),
            named(good),
            score(good),
            found.probes.len(),
            commits.len(),
            self.args.folder.display()
        );
        for &index in found.probes.keys() {
            text += &format!("    {}: {}\n", named(index), score(index));
        }
        Ok(text)
    }
}
