//! `firstdiff run`: the main job.

use firstdiff::{
    compare::{SiteFilter, verdict::Rule},
    core::{exit::Exit, sink::Choice, task::first_position},
    engine::{
        EngineSpec,
        contract::{Op, Role},
    },
    model::{Ledger, Model},
    reference::Precision,
    report::{
        Compared, DevicesSummary, ModelSummary, REPORT_VERSION, Report, SideSummary, SiteRow,
        StepRow, answer, render,
    },
    run::{Finished, Kept, Run},
};

use super::{
    args::RunArgs,
    error::Error,
    inputs::{self, Inputs},
    output, watch,
};

/// Runs both sides and prints the report, once or at each save.
pub fn run(args: &RunArgs) -> Result<Exit, Error> {
    let compare = &args.compare;
    inputs::check_factor(compare.factor)?;
    output::check_json(compare.json.as_deref())?;
    if args.watch {
        return watch::watch(args);
    }
    let (engine, second) = inputs::engines(&args.engine)?;
    let bar = output::progress(None, "loading the model and the reference");
    let inputs = Inputs::load(&args.model)?;
    bar.finish_and_clear();
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
    inputs::check_faults(engine, inputs)?;
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
    let filter = inputs::filter(compare.sites.as_deref())?.with_queries(rows);
    let rule = Rule { factor: compare.factor, stop_at_first: compare.stop_at_first };
    let run = Run {
        model: &inputs.model,
        reference: &inputs.reference,
        task: inputs.task(),
        engine,
        filter: &filter,
        rule,
        replay: !args.no_replay,
    };
    let total = run.sites()?.len() as u64;
    let bar = output::progress(Some(total), "comparing sites");
    let finished = run.run_again(kept, &mut |_| bar.inc(1))?;
    bar.finish_and_clear();
    let devices = match second {
        Some(second) => {
            let bar = output::progress(Some(total), "comparing devices");
            let (baseline, diagnosis) = (&finished.baseline, finished.diagnosis.as_ref());
            let check = run.cross_check(second, baseline, diagnosis, &mut |_| bar.inc(1))?;
            bar.finish_and_clear();
            let first = |step| first_position(inputs.ids.len(), step);
            Some(DevicesSummary::of(check, &first))
        }
        None => None,
    };
    let mut report = report(inputs, engine, (compare.factor, &filter), finished)?;
    if let Some(devices) = devices {
        report.with_devices(devices);
    }
    finish(&report, compare.json.as_deref())
}

/// Writes and prints a report, and gives its exit code.
pub fn finish(report: &Report, json: Option<&std::path::Path>) -> Result<Exit, Error> {
    if let Some(path) = json {
        output::write_json(report, path)?;
    }
    if !json.is_some_and(output::is_stdout) {
        output::print(&render(report))?;
    }
    Ok(report.headline.exit)
}

/// The report of a finished run.
fn report(
    inputs: &Inputs,
    engine: &EngineSpec,
    (factor, filter): (f64, &SiteFilter),
    finished: Finished,
) -> Result<Report, Error> {
    let model = &inputs.model;
    let sites: Vec<SiteRow> = finished.sites.into_iter().map(SiteRow::from).collect();
    let engine_choices = finished.engine_choices.iter().copied().chain(std::iter::repeat(None));
    let steps = finished.baseline.steps.iter().zip(&finished.baseline.choices).zip(engine_choices);
    let text = |choice: Option<Choice>| choice.map(|c| inputs.reference.text(&[c.token]));
    let steps = steps.map(|((tokens, &reference), engine)| StepRow {
        tokens: tokens.clone(),
        reference,
        engine,
        reference_text: text(reference),
        engine_text: text(engine),
    });
    let steps: Vec<StepRow> = steps.collect();
    let mut notes = inputs.notes.clone();
    if steps.len() <= inputs.decode as usize {
        notes.push(format!(
            "llama.cpp's own logits are no numbers after step {}, so decoding ends there: see weights",
            steps.len() - 1
        ));
    }
    if let (Some(contract), [_, ..]) =
        (engine.kernels.contract(Op::Attention), &engine.recomputed()[..])
    {
        let stages = engine.recomputed();
        let stages: Vec<&str> = stages.iter().map(|stage| stage.name()).collect();
        notes.push(format!(
            "{} keeps {} to itself: they are recomputed by our kernel from the q and the caches that it \
             left, and say nothing of it; its own results are attn_out and what it appends",
            contract.source.display(),
            stages.join(" and ")
        ));
    }
    let compared = Compared {
        factor,
        formula: formula(factor),
        coverage: finished.coverage,
        layers: model.config.n_layer,
        prompt_tokens: inputs.ids.len(),
        decode_steps: steps.len() - 1,
        rows: filter.prompt_queries().map(<[usize]>::to_vec),
        hooks_leave_logits: finished.hooks_leave_logits,
        runs_repeat: finished.runs_repeat,
    };
    Ok(Report {
        report_version: REPORT_VERSION,
        firstdiff: env!("CARGO_PKG_VERSION").to_string(),
        headline: answer(&sites, &compared, finished.diagnosis.as_ref()),
        model: Some(model_summary(model)?),
        engine: engine_summary(engine, finished.device),
        reference: Some(reference_summary(inputs)),
        compared: Some(compared),
        diagnosis: finished.diagnosis,
        devices: None,
        steps,
        notes,
        sites,
        seconds: finished.seconds,
    })
}

/// The model, and which of its weights are suspicious.
pub fn model_summary(model: &Model) -> Result<ModelSummary, Error> {
    Ok(ModelSummary {
        path: model.path.display().to_string(),
        blake3: model.hash(),
        config: model.config.clone(),
        parameters: model.parameters(),
        ledger: Ledger::read(model)?,
    })
}

/// The tolerance in words.
pub fn formula(factor: f64) -> String {
    format!(
        "|engine - reference| <= {factor} x floor x max|reference| of the token's row, and relative \
         L2 <= {factor} x its floor; floors measured with rounding-sized noise"
    )
}

fn engine_summary(engine: &EngineSpec, device: String) -> SideSummary {
    let mut settings = vec![
        ("dtype".to_string(), engine.storage.to_string()),
        ("attention".to_string(), engine.attention.to_string()),
    ];
    if let Some(folder) = engine.kernels.folder() {
        settings.push(("kernels".to_string(), folder.display().to_string()));
    }
    for contract in engine.kernels.contracts() {
        settings.push((format!("{} kernel", contract.op), contract.path.display().to_string()));
    }
    for fault in &engine.faults.0 {
        settings.push(("planted fault".to_string(), fault.name.to_string()));
    }
    SideSummary { name: device, settings, arithmetic: Some(engine.arithmetic()) }
}

/// How the reference ran.
pub fn reference_summary(inputs: &Inputs) -> SideSummary {
    let options = inputs.reference.options();
    let precision = match options.precision {
        Precision::F32 => "weights widened to f32, f32 KV cache",
        Precision::Native => "the file as it is, f16 KV cache",
    };
    let threads = inputs.reference.threads();
    let settings = vec![
        ("precision".to_string(), precision.to_string()),
        ("threads".to_string(), threads.to_string()),
    ];
    SideSummary { name: "llama.cpp".to_string(), settings, arithmetic: None }
}
