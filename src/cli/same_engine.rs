//! `firstdiff diff --same-engine`: two runs of one engine, which need no reference.

use std::{borrow::Cow, time::Instant};

use firstdiff::{
    core::{
        activity,
        exit::Exit,
        floor::{Floor, SiteFloor},
    },
    diagnosis::album::Album,
    diagnosis::replay::Replay,
    report::{Headline, Report, answer},
    trace::{Common, Manifest, TraceReader, comparable},
};

use super::{
    args::DiffArgs,
    diff,
    error::Error,
    explain, inputs, output,
    page::{self, Beside},
    replayed::{Scope, Subject, diagnose, measured_floor},
    run,
};

/// What the two runs must be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bond {
    /// The same work in the same order: equal bit for bit.
    Rerun,
    /// The same tokens in other steps, so that sums may be made in another order.
    OtherSteps,
    /// A sequence of a batch and a run of it alone: so may these.
    OtherBatch,
}

/// Compares two runs of one engine and prints the report.
pub fn same_engine(args: &DiffArgs) -> Result<Exit, Error> {
    let start = Instant::now();
    inputs::check_factor(args.compare.factor)?;
    let own = &args.compare.report;
    own.check()?;
    let [a, b] = diff::opened(args)?;
    same(a.manifest(), b.manifest())?;
    let (settled_a, settled_b) = (a.clone().settled()?, b.clone().settled()?);
    let common = comparable(settled_a.manifest(), settled_b.manifest())?;
    let is_alone = a.selected().is_none() == b.selected().is_none();
    let manifests = [a.manifest(), b.manifest()];
    let bond = if is_alone { bond(&common, manifests) } else { Bond::OtherBatch };
    // A rerun needs neither a floor nor the model: the causes are sought where the model is there.
    let model = explain::model(args.model.as_deref(), &a, None);
    let model = if bond == Bond::Rerun && args.model.is_none() { model.ok() } else { Some(model?) };
    let filter = inputs::filter(&args.compare.only)?;
    let bar = output::progress(None, "comparing sites");
    let floor = match (bond, diff::floor(a.manifest(), b.manifest()), &model) {
        (Bond::OtherSteps | Bond::OtherBatch, Some(floor), _) => Cow::Borrowed(floor),
        (Bond::OtherSteps | Bond::OtherBatch, None, Some(model)) => {
            bar.set_message("measuring the floor");
            Cow::Owned(measured_floor(&a.manifest().arithmetic, &settled_b, model.file(), &filter)?)
        }
        _ => Cow::Owned(no_floor(&settled_b)),
    };
    let rule = inputs::rule(&args.compare);
    activity::leaves_verdict();
    let mut report = Report::of_traces(&a, &b, filter.clone(), rule, &floor)?;
    let mut album = own.html.is_some().then(Album::default);
    if let Some(model) = &model {
        bar.set_message("replaying every operation");
        let asked = match model {
            Subject::Engine(model) if !filter.wants_all() => Some(filter.places(&model.graph)),
            _ => None,
        };
        let reached = report.partial.as_ref().map(|_| &report.sites[..]);
        let scope = Scope { asked: asked.as_ref(), reached, until_first: rule.until_first };
        let how = (Replay::default(), album.as_mut());
        if activity::interrupted().is_none() {
            report.diagnosis = Some(diagnose(model, (&a, Some(&b)), None, None, how, scope)?);
        }
        let diagnosis = report.diagnosis.take();
        report.note_replay_end(diagnosis.as_ref());
        report.diagnosis = diagnosis;
    }
    let album = page::beside(own.html.is_some(), album, &report, [&a, &b])?;
    if let (Bond::Rerun, Some(compared)) = (bond, &mut report.compared) {
        compared.formula = "equal bit for bit, as both runs have the same steps".to_string();
    }
    if let Some(compared) = &report.compared {
        let found = answer(&report.sites, compared, report.diagnosis.as_ref());
        report.headline = headline(bond, found);
    }
    report.say_end();
    diff::compare_weights(&mut report, &a, &b)?;
    report.notes.push(format!("{} is used as the reference", args.trace_b.display()));
    report.seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    run::finish(report, own, Beside::of_traces(album.as_ref()))
}

/// Refuses runs that are not of one engine.
fn same(a: &Manifest, b: &Manifest) -> Result<(), Error> {
    let by = |m: &Manifest| format!("{} {} on {}", m.producer.name, m.producer.version, m.device);
    let what = if a.side != b.side || by(a) != by(b) {
        format!("recorded by {} and by {}", by(a), by(b))
    } else if a.arithmetic != b.arithmetic {
        "of different declared arithmetic".to_string()
    } else if a.kernels != b.kernels || a.settings != b.settings {
        "of different kernels or settings".to_string()
    } else {
        return Ok(());
    };
    Err(Error::Refused(format!("the traces are {what}; leave out --same-engine")))
}

fn bond(common: &Common, [a, b]: [&Manifest; 2]) -> Bond {
    let is_whole = common.longer.is_none() && a.positions() == b.positions();
    let lengths = |manifest: &Manifest| -> Vec<_> {
        manifest.steps.iter().map(|step| (step.tokens.len(), step.removed)).collect()
    };
    if common.same_steps && is_whole && lengths(a) == lengths(b) {
        Bond::Rerun
    } else {
        Bond::OtherSteps
    }
}

/// No distance is allowed anywhere.
fn no_floor(trace: &TraceReader) -> Floor {
    Floor(trace.model_sites().into_iter().map(|site| (site, SiteFloor::default())).collect())
}

/// The answer, after what was demanded.
fn headline(bond: Bond, found: Headline) -> Headline {
    let demanded = match (bond, found.exit) {
        (Bond::Rerun, Exit::Diverged) => "not repeatable: a rerun must be bit-equal",
        (Bond::Rerun, _) => "rerun",
        (Bond::OtherSteps, Exit::Diverged) => {
            "not consistent: other steps must be equal within the floor"
        }
        (Bond::OtherSteps, _) => "the same tokens in other steps",
        (Bond::OtherBatch, Exit::Diverged) => {
            "not consistent: a sequence in a batch and alone must be equal within the floor"
        }
        (Bond::OtherBatch, _) => "the same sequence in a batch and alone",
    };
    let text = match bond {
        Bond::Rerun => found.text.replace("equal within the floor", "equal bit for bit"),
        _ => found.text.clone(),
    };
    Headline { text: format!("{demanded}: {text}"), ..found }
}
