//! A whole run beside each of its sides alone.

use firstdiff::{
    compare::{SiteFilter, verdict::Rule},
    core::{
        floor::DEFAULT_FACTOR,
        sink::{Sink, Stopped},
        task::Task,
        tensor::{DType, Tensor},
    },
    diagnosis::replay::Replay,
    engine::{AttentionVariant, DeviceKind, EngineSpec, fault::Faults, kernels::KernelSet},
    graph::site::Site,
    model::Model,
    reference::{Reference, ReferenceOptions},
    run::{
        Run,
        baseline::{self, Baseline},
        run_engine,
    },
};

use crate::{Result, median};

const REPEATS: usize = 3;

struct Discard;

impl Sink for Discard {
    fn wants(&self, _: Site) -> bool {
        true
    }

    fn put(&mut self, _: Site, _: Tensor) -> std::result::Result<(), Stopped> {
        Ok(())
    }
}

/// 128 prompt tokens and 8 decode steps, every site, floor and kernels cached.
pub fn whole_run(model: &Model) -> Result<()> {
    let reference = Reference::load(model, ReferenceOptions::default())?;
    let ids: Vec<i32> = (0..128).map(|i| i * 37 % 150_000).collect();
    let task = Task { prompt: &ids, decode: 8 };
    let engine = EngineSpec {
        device: DeviceKind::Cuda,
        storage: DType::F32,
        attention: AttentionVariant::default(),
        faults: Faults::default(),
        kernels: KernelSet::embedded(),
        roundings: Vec::new(),
    };
    let baseline =
        Baseline::of(&reference, model, task, &engine.arithmetic(), &SiteFilter::default())?;
    println!(
        "A whole run, f32, 128 prompt tokens and 8 decode steps, every site, {REPEATS} times:\n"
    );
    println!("| | ms | x the longer side |\n|---|---:|---:|");
    let alone = median(REPEATS, || {
        let mut next = baseline.forced().into_iter();
        baseline::decode(&reference, task, &mut Discard, Default::default(), |_| next.next())?;
        Ok(())
    })?;
    let engine_alone = median(REPEATS, || {
        let mut engine = engine.build(model, task)?;
        run_engine(&mut engine, &baseline.steps, &mut Discard)?;
        Ok(())
    })?;
    let longer = alone.max(engine_alone);
    let row = |name: &str, ms: f64| println!("| {name} | {ms:.0} | {:.2} |", ms / longer);
    row("llama.cpp on the CPU with its callback, alone", alone);
    row("engine with loading, alone", engine_alone);
    let replays = [
        ("both, compared", None),
        ("both, compared and replayed", Some(Replay::Quick)),
        ("the same, each element", Some(Replay::Full)),
    ];
    for (name, replay) in replays {
        let (filter, rule) =
            (SiteFilter::default(), Rule { factor: DEFAULT_FACTOR, until_first: false });
        let whole = median(REPEATS, || {
            let (reference, engine, filter) = (&reference, &engine, &filter);
            let run = Run { model, reference, task, engine, filter, rule, replay };
            let finished = run.run(&mut |_| {})?;
            assert_eq!(finished.coverage.equal, finished.coverage.total, "a clean run is equal");
            Ok(())
        })?;
        row(name, whole);
    }
    println!();
    Ok(())
}
