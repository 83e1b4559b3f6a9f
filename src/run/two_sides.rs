//! The main job: the engine and the reference over the same tokens, compared as they go.

use std::{collections::BTreeSet, sync::Arc, thread, time::Instant};

use crate::{
    compare::{
        ChannelSink, SiteFilter, channel,
        verdict::{Coverage, Rule, SiteReport, judge},
    },
    core::{
        activity,
        arithmetic::Arithmetic,
        attending::Attending,
        sink::{Choice, Sink, Stopped},
        spans,
        task::Task,
        tensor::{DType, Tensor},
    },
    diagnosis::{
        Diagnosis, ReferenceReplay,
        album::Album,
        loaded::{Form, LoadedSummary},
        replay::{GraphRun, Recording, Replay, ReplayError},
    },
    engine::{Engine, EngineError, EngineSpec, device::DeviceError},
    graph::site::{Site, Stage},
    model::{Model, ModelError},
    reference::{Changes, Precision, Reference, ReferenceError},
    run::{
        RunError,
        baseline::{self, Baseline, needed_nodes, row_tokens},
        beside::{ComparedSite, show_beside},
        hooks::{Hooks, LogitsHashes},
        open::{Replayable, replayable},
    },
    trace::recording::{Recorded, Spool, Without},
};

/// The reference may be ahead of the comparison by a quarter as many values as the model has weights, at
/// most 128 MiB of them.
const WEIGHTS_A_VALUE: usize = 4;
const MOST_LEAD: usize = 32 << 20;

/// A run to be made.
pub struct Run<'a> {
    pub model: &'a Model,
    pub reference: &'a Reference,
    pub task: Task<'a>,
    pub engine: &'a EngineSpec,
    pub filter: &'a SiteFilter,
    pub rule: Rule,
    /// How every operation is replayed, and the causes of wrong ones sought; `None` where nothing is.
    pub replay: Option<Replay>,
}

/// A finished run.
pub struct Finished {
    pub baseline: Baseline,
    pub sites: Vec<SiteReport>,
    pub coverage: Coverage,
    /// The engine's choice after each step.
    pub engine_choices: Vec<Option<Choice>>,
    pub device: String,
    /// Whether the logits are bit-equal with and without hooks; `None` if that was not checked.
    pub hooks_leave_logits: Option<bool>,
    /// Whether two runs without hooks have bit-equal logits; `None` where that follows from nothing.
    pub runs_repeat: Option<bool>,
    /// Every operation of both sides replayed; `None` if that was not asked for.
    pub diagnosis: Option<Diagnosis>,
    /// The engine's weights beside the file's.
    pub weights: LoadedSummary,
    /// What the engine recorded, where it was replayed.
    pub recorded: Option<Spool>,
    pub seconds: f64,
}

/// What one run leaves for the next of the same task and engine but for its kernels.
#[derive(Default)]
pub struct Kept {
    /// Whether there is to be a next one.
    wanted: bool,
    baseline: Option<Baseline>,
    /// What the reference recorded, to the end.
    reference: Option<Spool>,
    replayed: Option<ReferenceReplay>,
    /// With its weights on the device.
    engine: Option<Engine>,
}

impl Kept {
    /// Nothing yet, for runs to come.
    pub fn for_more() -> Kept {
        Kept { wanted: true, ..Kept::default() }
    }
}

/// Two sides that have run.
struct Ended {
    engine: Engine,
    choices: Result<Vec<Option<Choice>>, EngineError>,
    /// Of the engine's logits, of each step.
    logits: Vec<blake3::Hash>,
    reports: Vec<SiteReport>,
    /// What the engine and the reference recorded.
    spools: (Option<Spool>, Option<Spool>),
}

impl Run<'_> {
    /// The sites that are asked for, in canonical order.
    pub fn sites(&self) -> Result<Vec<Site>, RunError> {
        let all = self.model.config.sites(self.task.decode + 1);
        self.filter.check(&all)?;
        Ok(all.into_iter().filter(|&site| self.filter.wants(site)).collect())
    }

    /// Runs both sides at the same time and compares what they produce. `on_site` hears each
    /// verdict as it is reached.
    pub fn run(&self, on_site: &mut dyn FnMut(&SiteReport)) -> Result<Finished, RunError> {
        self.run_again(&mut Kept::default(), None, on_site)
    }

    /// The same, with what a run before has kept: the reference is not run again, nor replayed, and
    /// the engine only loads its kernels anew. An album is filled with what both sides computed.
    pub fn run_again(
        &self,
        kept: &mut Kept,
        mut album: Option<&mut Album>,
        on_site: &mut dyn FnMut(&SiteReport),
    ) -> Result<Finished, RunError> {
        let start = Instant::now();
        let sites = self.sites()?;
        // As where it is built, but before the floor is measured.
        if kept.engine.is_none() {
            self.engine.check_memory(self.model)?;
        }
        let arithmetic = self.engine.arithmetic();
        let measured = spans::span("run", || "floor and forced tokens".into());
        let baseline = match kept.baseline.take() {
            Some(baseline) => baseline,
            None => Baseline::of(self.reference, self.model, self.task, &arithmetic, self.filter)?,
        };
        drop(measured);
        kept.baseline = kept.wanted.then(|| baseline.clone());
        let record = self.replay.is_some() || album.is_some();
        let compared = spans::span("run", || "both sides, compared".into());
        let ended = self.side_by_side(&baseline, &sites, kept, record, on_site)?;
        drop(compared);
        let Ended { mut engine, choices, logits, reports, spools } = ended;
        let (steps, device) = (&baseline.steps, engine.device_name());
        let read = spans::span("run", || "weights read back".into());
        let asked = self.asked();
        let weights = own_weights(self.model, &engine, asked.as_ref())?;
        drop(read);
        let stopped = reports.len() < sites.len();
        let engine_choices = match choices {
            Err(EngineError::Stopped(_)) if stopped => Vec::new(),
            choices => choices?,
        };
        let checked = !stopped
            && activity::interrupted().is_none()
            && self.filter.wants(Site::global(0, Stage::Logits));
        // A side may have been ahead of what was compared.
        let reached: BTreeSet<Site> = reports.iter().map(|report| report.site).collect();
        let [recorded, reference] = [spools.0, spools.1].map(|spool| {
            let spool = spool.map(Spool::finished).transpose();
            spool.map(|spool| spool.map(|spool| if stopped { spool.of(&reached) } else { spool }))
        });
        let (recorded, reference) = (recorded?, reference?);
        let last = reports.last().map_or(0, |report| report.site.step as usize);
        let replayed_steps = if stopped { &steps[..=last] } else { &steps[..] };
        // The engine's weights are given back when its thread ends, unless they are kept.
        let keep = kept.wanted;
        let (hooks, diagnosis) = thread::scope(|scope| {
            let hooks = scope.spawn(move || {
                spans::lane("engine without hooks");
                let hooks = if checked {
                    Hooks::check(&mut engine, self.model, steps, &logits)?
                } else {
                    Hooks::default()
                };
                Ok::<_, EngineError>((hooks, keep.then_some(engine)))
            });
            let diagnosis = match (&recorded, &reference) {
                (Some(engine), Some(reference))
                    if self.replay.is_some() && activity::interrupted().is_none() =>
                {
                    let (known, album) = (&mut kept.replayed, album.as_deref_mut());
                    let reached = stopped.then_some(&reached);
                    let recorded = [engine, reference];
                    Some(self.diagnose(recorded, replayed_steps, reached, known, album))
                }
                _ => None,
            };
            (hooks.join(), diagnosis)
        });
        let (hooks, engine) = hooks.map_err(|_| ended_early())??;
        kept.engine = engine;
        let mut diagnosis = diagnosis.transpose()?;
        if let Some(diagnosis) = &mut diagnosis {
            diagnosis.explain_by(&self.model.graph, &weights);
        }
        if let (Some(album), Some(engine), Some(reference)) = (album, &recorded, &reference) {
            let both = |site| Ok(engine.tensor(site)?.zip(reference.tensor(site)?));
            let tokens = |site| row_tokens(self.filter, self.task.prompt.len(), site);
            let of = |one: &SiteReport| ComparedSite::of(one.site, one.floor, &one.outcome);
            let compared: Vec<ComparedSite> = reports.iter().filter_map(of).collect();
            let _span = spans::span("run", || "pictures beside the reference".into());
            show_beside(album, &compared, &both, &tokens, self.rule.factor, true)?;
        }
        // What was stopped is not whole.
        kept.reference = reference.filter(|_| kept.wanted && !stopped);
        kept.replayed = kept.replayed.take().filter(|_| kept.reference.is_some());
        let total = self.model.config.sites(self.task.decode + 1).len();
        let coverage = Coverage::of(&reports, total, sites.len());
        Ok(Finished {
            coverage: coverage.with_recomputed(&reports, &self.engine.recomputed()),
            sites: reports,
            engine_choices,
            device,
            hooks_leave_logits: hooks.leave_logits,
            runs_repeat: hooks.runs_repeat,
            diagnosis,
            weights,
            recorded,
            seconds: start.elapsed().as_secs_f64(),
            baseline,
        })
    }

    /// Runs both sides over the baseline's tokens, and the comparison beside them.
    fn side_by_side(
        &self,
        baseline: &Baseline,
        sites: &[Site],
        kept: &mut Kept,
        record: bool,
        on_site: &mut dyn FnMut(&SiteReport),
    ) -> Result<Ended, RunError> {
        let filter = Arc::new(self.filter.clone());
        let (engine_sink, engine_side) = channel(Arc::clone(&filter), 0);
        // The reference goes ahead while the engine loads its weights.
        let lead = (self.model.parameters() as usize / WEIGHTS_A_VALUE).min(MOST_LEAD);
        let (reference_sink, reference_side) = channel(filter, lead);
        let unrecorded = self.unrecorded(self.engine);
        let engine_sink = Recorder::new(engine_sink, record, unrecorded)?;
        let mut engine_sink = LogitsHashes::new(engine_sink);
        let steps = &baseline.steps;
        // Taken for good only by a run that ends.
        let recorded = kept.reference.as_ref();
        let record = recorded.is_none() && (record || kept.wanted);
        let kept_engine = &mut kept.engine;
        let ended = thread::scope(|scope| {
            let reference_run = scope.spawn(move || {
                spans::lane("reference");
                match recorded {
                    Some(recorded) => (put_all(recorded, sites, reference_sink), None),
                    None => self.run_reference(baseline, reference_sink, record),
                }
            });
            // Made while the reference runs. An error drops the other end of the reference's channel, and
            // so stops it.
            let loads = spans::span("engine", || "loads kernels and weights".into());
            let mut engine = self.engine_with(kept_engine)?;
            drop(loads);
            let engine_run = scope.spawn(move || {
                spans::lane("engine");
                let choices = run_engine(&mut engine, steps, &mut engine_sink);
                // The comparison learns that this side has ended when its sender is dropped.
                let LogitsHashes { inner, hashes } = engine_sink;
                (engine, choices, hashes, inner.into_spool())
            });
            let sides = (engine_side, reference_side);
            let tokens = |site| row_tokens(self.filter, self.task.prompt.len(), site);
            let reports = judge(sites, sides, &baseline.floor, self.rule, &tokens, on_site);
            let panicked = "the reference's thread ended early";
            let (reference_end, reference_spool) =
                reference_run.join().map_err(|_| ReferenceError::Panic(panicked.into()))?;
            reference_end?;
            let (engine, choices, logits, engine_spool) =
                engine_run.join().map_err(|_| ended_early())?;
            let spools = (engine_spool, reference_spool);
            Ok::<_, RunError>(Ended { engine, choices, logits, reports, spools })
        })?;
        let (engine_spool, reference_spool) = ended.spools;
        Ok(Ended { spools: (engine_spool, reference_spool.or(kept.reference.take())), ..ended })
    }

    /// Stages of which only some rows are looked at.
    fn partial(&self) -> Vec<Stage> {
        let chooses = self.filter.prompt_queries().is_some();
        if chooses { vec![Stage::Scores, Stage::Probs] } else { Vec::new() }
    }

    /// Stages that are no evidence of the engine's kernels. A replay without them takes the attention for
    /// one operation.
    pub(crate) fn unrecorded(&self, engine: &EngineSpec) -> Vec<Stage> {
        [engine.recomputed(), self.partial()].concat()
    }

    /// Runs the reference, and records it if that is asked for.
    fn run_reference(
        &self,
        baseline: &Baseline,
        sink: ChannelSink,
        record: bool,
    ) -> (Result<(), RunError>, Option<Spool>) {
        let mut sink = match Recorder::new(sink, record, Vec::new()) {
            Ok(sink) => sink,
            Err(error) => return (Err(error), None),
        };
        let mut forced = baseline.forced().into_iter();
        let needed = needed_nodes(self.reference, self.filter);
        let changes = Changes { needed: needed.as_deref(), ..Changes::default() };
        let end =
            baseline::decode(self.reference, self.task, &mut sink, changes, |_| forced.next());
        (finished(end).map_err(RunError::from), sink.into_spool())
    }

    /// An engine of as many layers as the wanted sites need.
    pub(crate) fn build(&self, engine: &EngineSpec) -> Result<Engine, RunError> {
        Ok(engine.build_to(self.model, self.task, self.depth())?)
    }

    /// How many layers the wanted sites need; `None` where they need all.
    fn depth(&self) -> Option<usize> {
        self.filter.depth(&self.model.config.sites(self.task.decode + 1))
    }

    /// The sites that are asked for, by their places, where not all are.
    pub fn asked(&self) -> Option<BTreeSet<usize>> {
        (!self.filter.wants_all()).then(|| self.filter.places(&self.model.graph))
    }

    /// An engine with these kernels: the kept one, or a new one. After an error the kept one stays.
    fn engine_with(&self, kept: &mut Option<Engine>) -> Result<Engine, RunError> {
        let Some(engine) = kept else { return self.build(self.engine) };
        engine.reload(&self.engine.kernels)?;
        Ok(kept.take().expect("it was just there"))
    }

    /// Replays both sides, the reference unless that is known. Only in f32 is its own arithmetic known.
    fn diagnose(
        &self,
        [engine, reference]: [&Spool; 2],
        steps: &[Vec<i32>],
        reached: Option<&BTreeSet<Site>>,
        known: &mut Option<ReferenceReplay>,
        album: Option<&mut Album>,
    ) -> Result<Diagnosis, RunError> {
        let _span = spans::span("run", || "replay and diagnosis".into());
        let (own, f32) = (self.engine.arithmetic(), Arithmetic::engine(DType::F32));
        let (tensors, arithmetic, attention) = (engine, &own, self.engine.attending());
        let Replayable { graph, inputs } = replayable(self.model, self.reference, steps)?;
        let (file, model, inputs) = (self.model.file(), &*graph, &inputs);
        let replay = self.replay.filter(|_| album.is_none()).unwrap_or(Replay::Full);
        let mut asked = self.asked();
        if let Some(reached) = reached {
            let place = |site: &Site| model.sites.place(*site);
            let reached: BTreeSet<usize> = reached.iter().filter_map(place).collect();
            asked = Some(asked.map_or(reached.clone(), |asked| &asked & &reached));
        }
        let only = asked.as_ref();
        let sums = replay.sums(file, model, only).map_err(ReplayError::from)?;
        let sums = sums.as_ref();
        let of =
            |recording| GraphRun { sums, only, ..GraphRun::new(file, model, inputs, recording) };
        let engine = of(Recording { tensors, steps, arithmetic, attention });
        let wide = self.reference.options().precision == Precision::F32;
        if known.is_some() || !wide {
            return Ok(Diagnosis::beside(engine, known.as_ref(), album)?);
        }
        // Recorded whole, as the next run may compare with it.
        let reference = Without { recorded: reference, stages: self.partial() };
        let (tensors, arithmetic, attention) = (&reference, &f32, Attending::default());
        let reference = of(Recording { tensors, steps, arithmetic, attention });
        let reference = GraphRun { has_tables: true, ..reference };
        let (diagnosis, replay) = Diagnosis::of_both(engine, reference, album)?;
        *known = Some(replay);
        Ok(diagnosis)
    }
}

/// What an engine of ours has loaded, beside the model's file: of sites that are asked for, by their places, or of all.
pub fn own_weights(
    model: &Model,
    engine: &Engine,
    asked: Option<&BTreeSet<usize>>,
) -> Result<LoadedSummary, RunError> {
    let weights = engine.loaded_weights()?.into_iter().map(|weight| (None, weight));
    let weights: Vec<_> = weights.collect();
    let names = asked.map(|asked| model.graph.weights_of_all(asked));
    let found = LoadedSummary::of_some(model.file(), &weights, Form::AsFile, names.as_ref());
    Ok(found.map_err(ModelError::from)?)
}

/// Puts what a reference recorded into its sink, in the order of the sites.
fn put_all(recorded: &Spool, sites: &[Site], mut sink: ChannelSink) -> Result<(), RunError> {
    for &site in sites {
        let Some(tensor) = recorded.tensor(site)? else { continue };
        if sink.put(site, tensor).is_err() {
            break;
        }
    }
    Ok(())
}

/// Ends well also where the comparison stopped the run.
fn finished<T>(end: Result<T, ReferenceError>) -> Result<(), ReferenceError> {
    match end {
        Ok(_) | Err(ReferenceError::Stopped(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Runs an engine over the steps' tokens.
pub fn run_engine(
    engine: &mut Engine,
    steps: &[Vec<i32>],
    sink: &mut dyn Sink,
) -> Result<Vec<Option<Choice>>, EngineError> {
    let run = |(step, tokens): (usize, &Vec<i32>)| {
        let _span = spans::span("engine", || format!("step {step}"));
        engine.step(step as u32, tokens, sink)
    };
    steps.iter().enumerate().map(run).collect()
}

fn ended_early() -> RunError {
    let text = "the engine's thread ended early; please report it".to_string();
    RunError::Device(DeviceError::Failed(text))
}

/// Records what passes on its way to the comparison.
pub(crate) struct Recorder {
    inner: ChannelSink,
    spool: Option<Spool>,
    /// Stages that are compared but are no evidence.
    unrecorded: Vec<Stage>,
}

impl Recorder {
    pub fn new(
        inner: ChannelSink,
        record: bool,
        unrecorded: Vec<Stage>,
    ) -> Result<Recorder, RunError> {
        Ok(Recorder { inner, spool: record.then(Spool::new).transpose()?, unrecorded })
    }

    /// What was recorded, if it was to be.
    pub fn into_spool(self) -> Option<Spool> {
        self.spool
    }
}

impl Sink for Recorder {
    fn wants(&self, site: Site) -> bool {
        self.inner.wants(site)
    }

    fn queries(&self, site: Site) -> Option<&[usize]> {
        self.inner.queries(site)
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        if let Some(spool) = &mut self.spool
            && !self.unrecorded.contains(&site.stage)
        {
            let _span = spans::span("capture", || site.tensor_name());
            spool.record(site, &tensor);
        }
        self.inner.put(site, tensor)
    }
}
