//! Prefill and decode at several lengths, with hooks off, on each group of sites, and on all.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Instant,
};

use firstdiff::{
    core::{
        pool,
        sink::{NoSink, Sink, Stopped},
        tensor::{DType, Tensor},
    },
    engine::{
        AttentionVariant, Engine, EngineOptions, device::cuda::CudaDevice, fault::Faults,
        kernels::KernelSet,
    },
    graph::site::{Site, Stage},
    model::Model,
};

use crate::{Result, limits::Limits};

const REPEATS: usize = 25;
/// Of steps with hooks.
const FEWER: usize = 9;
const PROMPT: usize = 512;

/// What llama.cpp's own CUDA backend took on an H200 at this shape: prefill of 512 tokens, and decode
/// at the three lengths, in milliseconds. Measured once, with flash attention, f16 weights.
const LLAMA_CPP: [f64; 4] = [7.9, 1.30, 1.35, 1.73];

/// Groups of sites that are captured together.
const GROUPS: [(&str, &[Stage]); 7] = [
    ("hooks off", &[]),
    (
        "norms and residuals",
        &[
            Stage::Embd,
            Stage::AttnNorm,
            Stage::AttnResidual,
            Stage::FfnNorm,
            Stage::LayerOut,
            Stage::FinalNorm,
        ],
    ),
    ("q, k, v and rotation", &[Stage::Q, Stage::K, Stage::V, Stage::QRope, Stage::KRope]),
    ("KV cache", &[Stage::KCache, Stage::VCache]),
    ("scores and probs", &[Stage::Scores, Stage::Probs]),
    ("attention output", &[Stage::AttnOut, Stage::OProj]),
    ("feed-forward", &[Stage::FfnGate, Stage::FfnUp, Stage::FfnAct, Stage::FfnDown]),
];

/// Takes tensors of some stages and counts their bytes as they left the GPU.
struct Group<'a> {
    stages: &'a [Stage],
    bytes: &'a AtomicUsize,
}

impl Sink for Group<'_> {
    fn wants(&self, site: Site) -> bool {
        self.stages.contains(&site.stage)
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> std::result::Result<(), Stopped> {
        let wide = matches!(site.stage, Stage::Scores | Stage::Probs | Stage::Logits);
        self.bytes.fetch_add(tensor.data.len() * if wide { 4 } else { 2 }, Relaxed);
        pool::done(std::hint::black_box(tensor));
        Ok(())
    }
}

fn options(positions: usize, tokens: usize) -> EngineOptions {
    let attention = AttentionVariant::fast();
    let (storage, faults) = (DType::F16, Faults::default());
    EngineOptions { storage, attention, faults, positions, tokens, depth: None }
}

fn engine(model: &Model, positions: usize, tokens: usize) -> Result<Engine> {
    let device = Box::new(CudaDevice::new()?);
    Ok(Engine::new(device, model, &KernelSet::embedded(), options(positions, tokens))?)
}

/// The table of all steps.
pub fn all(model: &Model, limits: &Limits) -> Result<()> {
    let weights = 2.0 * model.parameters() as f64;
    let once = weights / limits.copy * 1e3;
    println!(
        "Qwen2.5-0.5B's shape, f16, `--attention fast`, medians of {REPEATS}. Reading the weights once"
    );
    println!("at the copy's rate takes {once:.3} ms.\n");
    println!(
        "\"To the logits\" is the time until a step has computed everything; \"to the end\", until every capture \
         is on the host as f32.\n"
    );
    println!(
        "| step | sites captured | ms to the logits | x hooks off | ms to the end | x hooks off | MB \
         captured | x the link's rate |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|");
    let prompt: Vec<i32> = (0..PROMPT as i32).map(|i| i * 37 % 150_000).collect();
    let mut prefill = engine(model, PROMPT, PROMPT)?;
    table("prefill of 512", LLAMA_CPP[0], limits, &mut |sink| {
        prefill.assume(0);
        timed(&mut prefill, (0, &prompt), sink)
    })?;
    for (positions, llama_cpp) in [512, 4096, 32768].into_iter().zip(&LLAMA_CPP[1..]) {
        let mut decode = engine(model, positions, 1)?;
        table(&format!("decode at {positions}"), *llama_cpp, limits, &mut |sink| {
            decode.assume(positions - 1);
            timed(&mut decode, (1, &[7]), sink)
        })?;
    }
    println!();
    Ok(())
}

/// What a step took until its logits were known, and until its last capture was there, in milliseconds.
fn timed(engine: &mut Engine, (step, tokens): (u32, &[i32]), sink: &mut dyn Sink) -> Result<Times> {
    let start = Instant::now();
    let (_, pass) = engine.start(step, tokens, sink)?;
    let logits = start.elapsed().as_secs_f64() * 1e3;
    pass.finish()?;
    Ok([logits, start.elapsed().as_secs_f64() * 1e3])
}

type Times = [f64; 2];

fn table(
    name: &str,
    llama_cpp: f64,
    limits: &Limits,
    step: &mut dyn FnMut(&mut dyn Sink) -> Result<Times>,
) -> Result<()> {
    let all: Vec<Stage> = Stage::ALL.to_vec();
    let groups = GROUPS.into_iter().chain([("all sites", &all[..])]);
    let mut off = [0.0; 2];
    for (group, stages) in groups {
        let bytes = AtomicUsize::new(0);
        let [logits, end] = medians(if stages.is_empty() { REPEATS } else { FEWER }, || {
            bytes.store(0, Relaxed);
            if stages.is_empty() {
                return step(&mut NoSink);
            }
            step(&mut Group { stages, bytes: &bytes })
        })?;
        if stages.is_empty() {
            off = [logits, end];
        }
        let rate = bytes.load(Relaxed) as f64 / (end * 1e-3) / limits.link;
        println!(
            "| {name} | {group} | {logits:.3} | {:.2} | {end:.3} | {:.2} | {:.1} | {rate:.2} |",
            logits / off[0],
            end / off[1],
            bytes.load(Relaxed) as f64 / 1e6
        );
    }
    let times = llama_cpp / off[1];
    println!("| {name} | llama.cpp's CUDA backend | | | {llama_cpp:.2} | {times:.2} | | |");
    Ok(())
}

/// The median of each of several times, after two runs that do not count: what a step records is recorded
/// in the second.
fn medians(repeats: usize, mut work: impl FnMut() -> Result<Times>) -> Result<Times> {
    for _ in 0..2 {
        work()?;
    }
    let times = (0..repeats).map(|_| work()).collect::<Result<Vec<_>>>()?;
    Ok([0, 1].map(|which| {
        let mut times: Vec<f64> = times.iter().map(|times| times[which]).collect();
        times.sort_by(f64::total_cmp);
        times[repeats / 2]
    }))
}
