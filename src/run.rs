//! The main job: the engine and the reference over the same tokens, compared as they go.

use std::{sync::Arc, thread, time::Instant};

use crate::{
    arithmetic::Arithmetic,
    baseline::{self, Baseline, Task, first_position},
    capture::{Choice, NoSink, Sink, Stopped},
    compare::{ChannelSink, SiteFilter, channel},
    device::{
        Device, DeviceError,
        cuda::CudaDevice,
        host::{HostDevice, HostOptions},
    },
    diagnosis::Diagnosis,
    engine::{AttentionVariant, Engine, EngineError, EngineOptions},
    exit::Error,
    fault::Faults,
    kernels::KernelSet,
    model::Model,
    reference::{Precision, Reference, ReferenceError},
    replay::{Attending, Recording},
    site::{Site, Stage},
    spool::Spool,
    tensor::{DType, Tensor},
    verdict::{Coverage, Rule, SiteReport, judge},
};

/// Which device runs the kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceKind {
    /// The kernels compiled for this machine's CPU.
    #[default]
    Host,
    /// The same, with every access of shared and global memory checked.
    Checked,
    /// The first CUDA GPU.
    Cuda,
}

impl DeviceKind {
    /// Opens the device.
    pub fn open(self) -> Result<Box<dyn Device>, DeviceError> {
        match self {
            DeviceKind::Host => Ok(Box::new(HostDevice::new(Default::default())?)),
            DeviceKind::Checked => {
                let options = HostOptions { checked: true, ..HostOptions::default() };
                Ok(Box::new(HostDevice::new(options)?))
            }
            DeviceKind::Cuda => Ok(Box::new(CudaDevice::new()?)),
        }
    }
}

/// The engine that is put to the test.
#[derive(Clone, Debug)]
pub struct EngineSpec {
    pub device: DeviceKind,
    /// f32 or f16.
    pub storage: DType,
    pub attention: AttentionVariant,
    pub faults: Faults,
    pub kernels: KernelSet,
}

impl EngineSpec {
    /// The arithmetic that this engine declares.
    pub fn arithmetic(&self) -> Arithmetic {
        Arithmetic::engine(self.storage)
    }

    /// An engine with room for a task.
    pub fn build(&self, model: &Model, task: Task<'_>) -> Result<Engine, EngineError> {
        let options = EngineOptions {
            storage: self.storage,
            attention: self.attention,
            faults: self.faults.clone(),
            positions: task.positions(),
            tokens: task.prompt.len(),
        };
        Engine::new(self.device.open()?, model, &self.kernels, options)
    }
}

/// A run to be made.
pub struct Run<'a> {
    pub model: &'a Model,
    pub reference: &'a Reference,
    pub task: Task<'a>,
    pub engine: &'a EngineSpec,
    pub filter: &'a SiteFilter,
    pub rule: Rule,
    /// Whether every operation is replayed, and the causes of wrong ones sought.
    pub replay: bool,
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
    /// What the engine recorded, where it was replayed.
    pub recorded: Option<Spool>,
    pub seconds: f64,
}

/// Two sides that have run.
struct Ended {
    engine: Engine,
    choices: Result<Vec<Option<Choice>>, EngineError>,
    /// Of the engine's logits, in the order of the steps.
    logits_hash: blake3::Hash,
    reports: Vec<SiteReport>,
    /// What the engine and the reference recorded.
    spools: (Option<Spool>, Option<Spool>),
}

impl Run<'_> {
    /// The sites that are asked for, in canonical order.
    pub fn sites(&self) -> Result<Vec<Site>, Error> {
        let all = self.model.config.sites(self.task.decode + 1);
        self.filter.check(&all)?;
        Ok(all.into_iter().filter(|&site| self.filter.wants(site)).collect())
    }

    /// Runs both sides at the same time and compares what they produce. `on_site` hears each
    /// verdict as it is reached.
    pub fn run(&self, on_site: &mut dyn FnMut(&SiteReport)) -> Result<Finished, Error> {
        let start = Instant::now();
        let sites = self.sites()?;
        let arithmetic = self.engine.arithmetic();
        let baseline = Baseline::of(self.reference, self.model, self.task, &arithmetic)?;
        let ended = self.side_by_side(&baseline, &sites, on_site)?;
        let Ended { mut engine, choices, logits_hash, reports, spools } = ended;
        let (steps, device) = (&baseline.steps, engine.device_name());
        let stopped = matches!(choices, Err(EngineError::Stopped(_)));
        let engine_choices = match choices {
            Err(EngineError::Stopped(_)) => Vec::new(),
            choices => choices?,
        };
        let logits = Site::global(0, Stage::Logits);
        let (mut hooks_leave_logits, mut runs_repeat) = (None, None);
        if !stopped && self.filter.wants(logits) {
            let without = logits_without_hooks(&mut engine, steps)?;
            // Logits that differ are the hooks' doing only if they do not differ by themselves.
            let same = without == logits_hash;
            let repeat = same || logits_without_hooks(&mut engine, steps)? == without;
            (hooks_leave_logits, runs_repeat) = (repeat.then_some(same), Some(repeat));
        }
        drop(engine);
        let (diagnosis, recorded) = match spools {
            (Some(engine), Some(reference)) => {
                let engine = engine.finished()?;
                (Some(self.diagnose(&engine, reference, steps)?), Some(engine))
            }
            _ => (None, None),
        };
        let total = self.model.config.sites(self.task.decode + 1).len();
        let coverage = Coverage::of(&reports, total, sites.len());
        Ok(Finished {
            coverage: coverage.with_recomputed(&reports, &self.engine.kernels.recomputed()),
            sites: reports,
            engine_choices,
            device,
            hooks_leave_logits,
            runs_repeat,
            diagnosis,
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
        on_site: &mut dyn FnMut(&SiteReport),
    ) -> Result<Ended, Error> {
        let filter = Arc::new(self.filter.clone());
        let (engine_sink, engine_side) = channel(Arc::clone(&filter));
        let (reference_sink, reference_side) = channel(filter);
        let recomputed = self.engine.kernels.recomputed();
        let engine_sink = Recorder::new(engine_sink, self.replay, recomputed)?;
        let mut reference_sink = Recorder::new(reference_sink, self.replay, Vec::new())?;
        let mut engine_sink = LogitsHash { inner: engine_sink, hash: blake3::Hasher::new() };
        let (steps, mut forced) = (&baseline.steps, baseline.forced().into_iter());
        let (reference, task) = (self.reference, self.task);
        thread::scope(|scope| {
            let reference_run = scope.spawn(move || {
                let sink = &mut reference_sink;
                let end = baseline::decode(reference, task, sink, None, |_| forced.next());
                (end, reference_sink.into_spool())
            });
            // Made while the reference runs. An error drops the other end of the reference's channel, and
            // so stops it.
            let mut engine = self.engine.build(self.model, task)?;
            let engine_run = scope.spawn(move || {
                let choices = run_engine(&mut engine, steps, &mut engine_sink);
                // The comparison learns that this side has ended when its sender is dropped.
                let LogitsHash { inner, hash } = engine_sink;
                (engine, choices, hash.finalize(), inner.into_spool())
            });
            let sides = (engine_side, reference_side);
            let first = |step| first_position(task.prompt.len(), step);
            let reports = judge(sites, sides, &baseline.floor, self.rule, &first, on_site);
            let panicked = "the reference's thread ended early";
            let (reference_end, reference_spool) =
                reference_run.join().map_err(|_| ReferenceError::Panic(panicked.into()))?;
            finished(reference_end)?;
            let (engine, choices, logits_hash, engine_spool) = engine_run.join().map_err(|_| {
                let text = "the engine's thread ended early; please report it".to_string();
                Error::Device(DeviceError::Failed(text))
            })?;
            let spools = (engine_spool, reference_spool);
            Ok(Ended { engine, choices, logits_hash, reports, spools })
        })
    }

    /// Replays both sides. Only in f32 is the reference's own arithmetic known.
    fn diagnose(
        &self,
        engine: &Spool,
        reference: Spool,
        steps: &[Vec<i32>],
    ) -> Result<Diagnosis, Error> {
        let (own, f32) = (self.engine.arithmetic(), Arithmetic::engine(DType::F32));
        let reference = reference.finished()?;
        let attention = self.engine.kernels.attending();
        let engine = Recording { tensors: engine, steps, arithmetic: &own, attention };
        let attention = Attending::default();
        let reference = Recording { tensors: &reference, steps, arithmetic: &f32, attention };
        let wide = self.reference.options().precision == Precision::F32;
        Ok(Diagnosis::of(self.model, engine, wide.then_some(reference))?)
    }
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
    let numbered = steps.iter().enumerate();
    numbered.map(|(step, tokens)| engine.step(step as u32, tokens, sink)).collect()
}

/// The hash of all logits when no other site is captured.
fn logits_without_hooks(
    engine: &mut Engine,
    steps: &[Vec<i32>],
) -> Result<blake3::Hash, EngineError> {
    engine.reset()?;
    let mut sink = LogitsHash { inner: OnlyLogits, hash: blake3::Hasher::new() };
    run_engine(engine, steps, &mut sink)?;
    Ok(sink.hash.finalize())
}

/// Records what passes on its way to the comparison.
pub(crate) struct Recorder {
    inner: ChannelSink,
    spool: Option<Spool>,
    /// Stages that are compared but are no evidence: a kernel's inputs say them, not the kernel.
    recomputed: Vec<Stage>,
}

impl Recorder {
    pub fn new(
        inner: ChannelSink,
        record: bool,
        recomputed: Vec<Stage>,
    ) -> Result<Recorder, Error> {
        Ok(Recorder { inner, spool: record.then(Spool::new).transpose()?, recomputed })
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

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        if let Some(spool) = &mut self.spool
            && !self.recomputed.contains(&site.stage)
        {
            spool.record(site, &tensor);
        }
        self.inner.put(site, tensor)
    }
}

/// Wants the logits, and throws them away.
struct OnlyLogits;

impl Sink for OnlyLogits {
    fn wants(&self, site: Site) -> bool {
        site.stage == Stage::Logits
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        NoSink.put(site, tensor)
    }
}

/// Hashes the logits on their way into a sink.
struct LogitsHash<S> {
    inner: S,
    hash: blake3::Hasher,
}

impl<S: Sink> Sink for LogitsHash<S> {
    fn wants(&self, site: Site) -> bool {
        self.inner.wants(site)
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        if site.stage == Stage::Logits {
            self.hash.update(bytemuck::cast_slice(&tensor.data));
        }
        self.inner.put(site, tensor)
    }
}
