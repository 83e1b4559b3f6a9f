//! `firstdiff run`: the main job.

use firstdiff::{
    core::{activity, cause_key::CauseKey, exit::Exit, spans, task::first_position},
    diagnosis::{Verdict, album::Album},
    engine::{
        DeviceKind, EngineSpec,
        contract::{Op, Role},
    },
    report::{Asked, DevicesSummary, Report, Summary, View, next, render},
    run::{Kept, Run},
};

use super::{
    args::{FormatArg, ReportArgs, RunArgs},
    error::Error,
    inputs::{self, Inputs},
    lengths::lengths,
    output,
    page::{self, Beside},
    watch,
};

/// Runs both sides and prints the report, once or at each save.
pub fn run(args: &RunArgs) -> Result<Exit, Error> {
    output::traced(args.trace_events.as_deref(), || judged(args))
}

fn judged(args: &RunArgs) -> Result<Exit, Error> {
    let compare = &args.compare;
    inputs::check_factor(compare.factor)?;
    compare.report.check()?;
    if args.watch {
        return watch::watch(args);
    }
    let (engine, second) = inputs::engines(&args.engine)?;
    let bar = output::progress(None, "loading the model and the reference");
    let loads = spans::span("run", || "loads the model and the reference".into());
    let inputs = Inputs::load(&args.model)?;
    drop(loads);
    bar.finish_and_clear();
    if let Some(wanted) = &args.lengths {
        return match second {
            None => lengths(args, &inputs, &engine, wanted),
            Some(_) => Err(Error::Usage("--lengths takes one --device; give one".into())),
        };
    }
    verdict(args, &inputs, (&engine, second.as_ref()), &mut Kept::default())
}

/// One verdict, with what an earlier one has kept.
pub fn verdict(
    args: &RunArgs,
    inputs: &Inputs,
    (engine, second): (&EngineSpec, Option<&EngineSpec>),
    kept: &mut Kept,
) -> Result<Exit, Error> {
    let compare = &args.compare;
    inputs::check_effects(&args.engine, engine, inputs)?;
    if args.rows.is_some()
        && let Some(contract) = engine.kernels.contract(Op::Attention)
        && (contract.has(Role::Scores) || contract.has(Role::Probs))
    {
        let source = contract.source.display();
        return Err(Error::Usage(format!(
            "--rows: {source} writes the scores or probs of every query by its contract; bind these \
             parameters to null, or leave out --rows"
        )));
    }
    let rows = args.rows.as_ref().map(|rows| rows.of(inputs.ids.len())).transpose()?;
    let filter = inputs::filter(&compare.only)?.of_model(&inputs.model.graph)?.with_queries(rows);
    let rule = inputs::rule(compare);
    let run = Run {
        model: &inputs.model,
        reference: &inputs.reference,
        task: inputs.task(),
        engine,
        filter: &filter,
        rule,
        replay: (!args.no_replay).then(|| args.replay.into()),
    };
    let total = run.sites()?.len() as u64;
    let bar = output::progress(Some(total), "comparing sites");
    let mut album = compare.report.html.is_some().then(Album::default);
    if !args.watch {
        activity::leaves_verdict();
    }
    let finished = run.run_again(kept, album.as_mut(), &mut |_| {})?;
    bar.finish_and_clear();
    let devices = match second {
        // Of a run that was told to end there is no more.
        Some(_) if activity::interrupted().is_some() => None,
        Some(second) => {
            let bar = output::progress(Some(total), "comparing devices");
            let (baseline, diagnosis) = (&finished.baseline, finished.diagnosis.as_ref());
            let check = run.cross_check(second, baseline, diagnosis, &mut |_| {})?;
            bar.finish_and_clear();
            let first = |step| first_position(inputs.ids.len(), step);
            Some(DevicesSummary::of(check, &first))
        }
        None => None,
    };
    let mut report = Report::of_run(&run, finished)?;
    if let Some(devices) = devices {
        report.with_devices(devices);
    }
    if needs_checking(engine, &report) {
        report.notes.push(CHECKED.to_string());
    }
    let places = page::places(&report, inputs, engine);
    finish(report, &compare.report, Beside { album: album.as_ref(), places })
}

/// What to try where a kernel's result is explained by nothing that was recorded.
const CHECKED: &str = "for findings without a cause, run again with --device checked: it names races, \
    out-of-bounds accesses and uninitialised memory, with the line of the kernel";

/// Whether a kernel of the engine gives results that nothing explains, and was not watched at its work.
fn needs_checking(engine: &EngineSpec, report: &Report) -> bool {
    let findings = report.diagnosis.iter().flat_map(|diagnosis| &diagnosis.findings);
    let mut own = findings.filter(|finding| finding.verdict == Verdict::EngineWrong);
    let unknown = [CauseKey::Unknown, CauseKey::NotANumber];
    engine.device != DeviceKind::Checked && own.any(|own| unknown.contains(&own.cause.key))
}

/// Writes and prints a report, and gives its exit code.
pub fn finish(mut report: Report, args: &ReportArgs, beside: Beside<'_>) -> Result<Exit, Error> {
    let _span = spans::span("run", || "reports".into());
    let command = page::command();
    let asked = Asked {
        command: &command,
        runs_kernels: command.starts_with("firstdiff run "),
        has_page: args.html.is_some(),
    };
    let next = next(&report, asked);
    let summary = Summary::of(&report, &beside.places, next.clone());
    if args.format == FormatArg::Agent {
        output::print_json(&summary)?;
    }
    report.summary = Some(summary);
    if let Some(path) = &args.json {
        output::write_json(&report, path)?;
    }
    if let Some(path) = &args.html {
        page::write(path, &report, &beside)?;
    }
    let is_printed = args.format == FormatArg::Agent || args.prints_json();
    if !is_printed {
        let view = View { verbose: args.verbose, places: &beside.places, next: &next };
        output::print_wrapped(&render(&report, view))?;
    }
    Ok(report.headline.exit)
}
