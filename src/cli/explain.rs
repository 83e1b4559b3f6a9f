//! `firstdiff explain`: the diagnosis of `run`, from a recorded engine.

use std::{
    borrow::Cow,
    cell::LazyCell,
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Instant,
};

use indicatif::ProgressBar;

use firstdiff::{
    compare::{SiteFilter, verdict::Rule},
    core::{activity, exit::Exit, floor::DEFAULT_FACTOR, spans},
    diagnosis::{
        Diagnosis,
        album::Album,
        loaded::{Form, LoadedSummary},
        replay::Replay,
    },
    engine::Plan,
    graph::{
        SiteList,
        site::{Site, Stage},
    },
    model::{Config, ModelError, ModelFile},
    reference::Vocabulary,
    report::{Headline, ModelSummary, Report, answer, guilt},
    run::RunError,
    trace::{BatchedSequence, Manifest, Side, TraceReader, lint},
};

use super::{
    args::{ExplainArgs, UntilArg},
    diff,
    error::Error,
    inputs, output,
    page::{self, Beside},
    paired::paired,
    replayed::{Carried, Scope, Subject, diagnose, imported, measured_floor},
    run,
};

/// What a reader must know where the ranks disagree.
const NOT_REPLAYED: &str = "no operation was replayed, because the ranks ran on different values: resolve their \
    disagreement first";

/// What another file may be.
const ALIKE: &str = ", which have the same shapes: another quantisation or fine-tune";

/// What a reader must know of a sequence that the reference has not.
const ALONE: &str = "the reference does not run this sequence: its operations are replayed, but nothing is compared";

/// What a reader must know of a trace that lacks results.
const SPANNED: &str = "a result that was not recorded is judged together with the next recorded one, with a \
    wider bound: record all sites for a verdict on each";

/// Replays a trace, compares it with the reference's if there is one, and prints the report.
pub fn explain(args: &ExplainArgs) -> Result<Exit, Error> {
    output::traced(args.trace_events.as_deref(), || explained(args))
}

fn explained(args: &ExplainArgs) -> Result<Exit, Error> {
    let start = Instant::now();
    args.report.check()?;
    let bar = output::progress(None, "checking the traces");
    let checks = spans::span("run", || "checks the traces and the model".into());
    let batch = open(&args.trace, Side::Engine)?;
    let numbers = args.sequence.map_or_else(|| batch.sequences(), |number| vec![number]);
    let engines: Vec<TraceReader> = if numbers.len() < 2 {
        vec![batch.clone().sequence(args.sequence)?]
    } else {
        let own = numbers.iter().map(|&number| batch.clone().sequence(Some(number)));
        own.collect::<Result<_, _>>()?
    };
    let reference = args.reference.as_deref().map(|path| open(path, Side::Reference));
    let reference = reference.transpose()?;
    // With the graph that a reference carries, llama.cpp need not load the model.
    let carried = reference.as_ref().map(TraceReader::graph).transpose()?.flatten();
    let model = model(args.model.as_deref(), &batch, carried.as_ref())?;
    let filter = inputs::filter(&args.only)?;
    // Which sites are asked for follows from the graph.
    let carried = match (carried, &model) {
        (None, Subject::Graph(file)) if !filter.wants_all() => {
            Some(imported(file, longest(batch.manifest()))?)
        }
        (carried, _) => carried,
    };
    let graph = match (&carried, &model) {
        (Some((graph, _)), _) => Some(graph),
        (None, Subject::Engine(model)) => Some(&model.graph),
        (None, Subject::Graph(_)) => None,
    };
    let filter = graph.map_or(Ok(filter.clone()), |graph| filter.of_model(graph))?;
    let asked = graph.filter(|_| !filter.wants_all()).map(|graph| filter.places(graph));
    if let (Some(graph), false) = (graph, filter.wants_all()) {
        filter.check(&graph.sites.of_run(batch.manifest().steps.len() as u32))?;
    }
    let names = graph.zip(asked.as_ref()).map(|(graph, asked)| graph.weights_of_all(asked));
    let references = match &reference {
        Some(reference) => Some(paired(&engines, reference, model.file())?),
        None => None,
    };
    drop(checks);
    bar.set_message("comparing weights");
    let reads = spans::span("run", || "weights compared".into());
    let weights = loaded(&batch, model.file(), names.as_ref())?;
    drop(reads);
    let subject = Explaining {
        model: &model,
        weights: weights.as_ref(),
        filter: &filter,
        asked: asked.as_ref(),
        until_first: args.until == UntilArg::First,
        replay: args.replay.into(),
        bar: &bar,
    };
    activity::leaves_verdict();
    let mut reports = Vec::with_capacity(engines.len());
    // Of several sequences the page shows the one that is reported, and no other's album is kept.
    let mut shown: Option<((u8, bool), Album)> = None;
    for (at, engine) in engines.iter().enumerate() {
        let reference = references.as_ref().and_then(|all| all[at].as_ref());
        let mut album = args.report.html.is_some().then(Album::default);
        let report = subject.report(engine, reference, carried.clone(), album.as_mut());
        let mut report = match report {
            // What there is of the others is shown.
            Err(_) if activity::interrupted().is_some() && !reports.is_empty() => break,
            report => report?,
        };
        let album = match reference {
            Some(reference) => page::beside(album.is_some(), album, &report, [engine, reference])?,
            None => album,
        };
        let is_worst = shown.as_ref().is_none_or(|(worst, _)| report.standing() > *worst);
        if let Some(album) = album.filter(|_| is_worst) {
            shown = Some((report.standing(), album));
        }
        if references.is_some() && reference.is_none() {
            report.notes.push(ALONE.to_string());
        }
        reports.push(report);
        if activity::interrupted().is_some() {
            break;
        }
    }
    let done = reports.len();
    let mut report = if numbers.len() < 2 {
        reports.remove(0)
    } else {
        let all = numbers.len();
        let mut report = Report::of_sequences(numbers.into_iter().zip(reports).collect());
        if let Some(signal) = activity::interrupted().filter(|_| done < all) {
            let by = format!("a signal after {done} of {all} sequences");
            report.end_early(&by, Exit::of_signal(signal));
        }
        report
    };
    report.weights = weights;
    if let Subject::Engine(model) = &model {
        report.model = Some(ModelSummary::of(model, asked.as_ref())?);
    }
    report.seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let album = shown.as_ref().map(|(_, album)| album);
    run::finish(report, &args.report, Beside::of_traces(album))
}

/// What is the same for every sequence of a trace.
struct Explaining<'a> {
    model: &'a Subject,
    weights: Option<&'a LoadedSummary>,
    filter: &'a SiteFilter,
    /// The sites that are asked for, by their places, where not all are.
    asked: Option<&'a BTreeSet<usize>>,
    until_first: bool,
    replay: Replay,
    bar: &'a ProgressBar,
}

impl Explaining<'_> {
    /// Compares and replays one sequence. Without its weights and the time it took.
    fn report(
        &self,
        engine: &TraceReader,
        reference: Option<&TraceReader>,
        carried: Option<Carried>,
        album: Option<&mut Album>,
    ) -> Result<Report, Error> {
        let Explaining { model, weights, filter, replay, bar, .. } = *self;
        let file = model.file();
        let mut report = match reference {
            Some(reference) => self.compared(engine, reference)?,
            None => Report::of_trace(engine, filter)?,
        };
        let is_ended = activity::interrupted().is_some();
        match lint::ranks(engine, &|site| filter.wants(site))? {
            None if is_ended => report.note_replay_end(None),
            None => {
                bar.set_message("replaying every operation");
                let _span = spans::span("run", || "replay and diagnosis".into());
                let reached = report.partial.as_ref().map(|_| &report.sites[..]);
                let scope = Scope { asked: self.asked, reached, until_first: self.until_first };
                let sides = (engine, reference);
                let diagnosis = diagnose(model, sides, carried, weights, (replay, album), scope)?;
                report.headline = headline(&report, &diagnosis, engine);
                report.note_replay_end(Some(&diagnosis));
                if let Some(prefix) = &diagnosis.prefix {
                    report.headline = report.headline.after_prefix(prefix);
                    report.notes.push(prefix.note());
                }
                if diagnosis.engine.replayed > 0 && !diagnosis.engine.unmeasured.is_empty() {
                    report.notes.push(SPANNED.to_string());
                }
                report.diagnosis = Some(diagnosis);
            }
            // What is put together of other inputs is no operation's result.
            found => {
                report.headline = report.headline.after(found);
                report.notes.push(NOT_REPLAYED.to_string());
            }
        }
        if let Some(weights) = weights {
            report.headline = report.headline.after_weights(weights);
        }
        report.with_asked(filter);
        report.say_end();
        bar.set_message("looking for what was recorded wrongly");
        let vocabulary = LazyCell::new(|| Vocabulary::load(file));
        let text = |token| vocabulary.as_ref().map_or(String::new(), |loaded| loaded.text(token));
        report.notes.extend(lint::embedding(engine, file, &text)?);
        Ok(report)
    }

    /// The comparison with a reference, whose floor is measured where it carries none.
    fn compared(&self, engine: &TraceReader, reference: &TraceReader) -> Result<Report, Error> {
        let (file, filter, bar) = (self.model.file(), self.filter, self.bar);
        let (of_engine, manifest) = (engine.manifest(), reference.manifest());
        // The floor of a batch is that of its steps, and not of a sequence's.
        let carried = diff::floor(of_engine, manifest).filter(|_| reference.selected().is_none());
        let floor = match carried {
            Some(floor) => Cow::Borrowed(floor),
            None => {
                bar.set_message("measuring the floor");
                Cow::Owned(measured_floor(&of_engine.arithmetic, reference, file, filter)?)
            }
        };
        bar.set_message("comparing sites");
        let _span = spans::span("run", || "both sides, compared".into());
        let rule = Rule { factor: DEFAULT_FACTOR, until_first: self.until_first };
        Ok(Report::of_traces(engine, reference, filter.clone(), rule, &floor)?)
    }
}

/// Opens the trace of a side, and refuses that of the other.
fn open(path: &Path, side: Side) -> Result<TraceReader, Error> {
    let trace = TraceReader::open(path)?;
    if trace.manifest().side == side {
        return Ok(trace);
    }
    let path = path.display();
    Err(Error::Usage(match side {
        Side::Engine => format!(
            "{path} is a reference's trace; name the engine's trace, and pass this one with \
             --reference"
        ),
        Side::Reference => format!(
            "{path} is an engine's trace; pass --reference a trace of `firstdiff capture reference`"
        ),
    }))
}

/// The model that was recorded, refused where it is another one.
pub fn model(
    named: Option<&Path>,
    engine: &TraceReader,
    carried: Option<&Carried>,
) -> Result<Subject, Error> {
    let (trace, id, list) = (engine.folder().display(), &engine.manifest().model, engine.list());
    let path: Option<PathBuf> = match named {
        Some(path) => Some(path.to_path_buf()),
        None => inputs::fixture_of(&id.blake3)?,
    };
    let recorded = format!("{trace} was recorded from {:?} (blake3 {})", id.name, id.blake3);
    let path = path.ok_or_else(|| Error::Usage(format!("{recorded}; name that file with -m")))?;
    let file = ModelFile::open(&path)?;
    let hash = file.hash();
    let model = match carried {
        Some((graph, inputs)) => Plan::model(ModelFile::open(&path)?, graph, inputs).ok(),
        None => firstdiff::run::open_for(&path, longest(engine.manifest())).ok(),
    };
    if hash != id.blake3 {
        let is_alike = model.is_some_and(|model| has_shapes(list, &model.config));
        let alike = if is_alike { ALIKE } else { "" };
        let other = format!("{} has blake3 {hash}{alike}", path.display());
        return Err(Error::Refused(format!("{recorded}, {other}; name the first with -m")));
    }
    let Some(model) = model else { return Ok(Subject::Graph(file)) };
    // The shapes of the tensors were checked by the manifest's: they must be the model's own.
    if id.n_vocab != model.config.n_vocab || !has_shapes(list, &model.config) {
        return Err(Error::Refused(format!(
            "{trace} states shapes that differ from those of {}; fix the program that wrote it",
            path.display()
        )));
    }
    Ok(Subject::Engine(Box::new(model)))
}

/// Positions of the longest sequence.
fn longest(manifest: &Manifest) -> usize {
    let parts = manifest.steps.iter().filter_map(|step| step.batch.as_ref());
    let ends = parts.flat_map(|batch| &batch.sequences).map(BatchedSequence::positions);
    ends.max().unwrap_or(manifest.positions().end)
}

/// Whether the sites of a trace that a model of ours has are as long as the model's.
fn has_shapes(list: &SiteList, config: &Config) -> bool {
    // Numbers of tokens and of positions that no size of a model is.
    let (tokens, positions) = (100_003, 200_003);
    list.sites().iter().all(|site| {
        let own = config.shape(site.stage, tokens, positions);
        matches!(site.stage, Stage::Other(_)) || site.shape(tokens, positions) == own
    })
}

/// The weights that an engine recorded of some of the file's tensors, or of all, beside the file's; `None` where it
/// recorded none.
fn loaded(
    engine: &TraceReader,
    file: &ModelFile,
    names: Option<&BTreeSet<String>>,
) -> Result<Option<LoadedSummary>, Error> {
    let weights = engine.weights()?;
    if weights.is_empty() {
        return Ok(None);
    }
    let found = LoadedSummary::of_some(file, &weights, Form::Any, names).map_err(ModelError::from);
    Ok(Some(found.map_err(RunError::from)?))
}

fn headline(report: &Report, diagnosis: &Diagnosis, engine: &TraceReader) -> Headline {
    if let Some(compared) = &report.compared {
        return answer(&report.sites, compared, Some(diagnosis));
    }
    let mut steps = 0..engine.manifest().steps.len() as u32;
    let to_the_end = steps.all(|step| engine.has(Site::global(step, Stage::Logits)));
    let (exit, text) = guilt(diagnosis, to_the_end);
    Headline::of(exit, text)
}
