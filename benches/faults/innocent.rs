//! Runs that must raise no alarm: other ways to compute the same, and random models.

use firstdiff::{
    ci::check::PinnedPrompt,
    compare::verdict::Outcome,
    core::tensor::DType,
    engine::{AttentionVariant, EngineSpec, kernels::KernelSet},
    model::synth::{Arch, Spec},
    reference::{Precision, Reference, ReferenceOptions},
    run::Finished,
};

use crate::{
    Progress, Result,
    bench::{self, Bench, DECODE, described, engine, findings, is_green, random},
    seeded::by_snapshot,
};

const CLEAN_RUNS: u64 = 200;
/// The longest prompt of a clean run.
const MOST_TOKENS: usize = 40;

/// A run without a fault.
pub struct Innocent {
    pub name: String,
    /// What raised the alarm; `None` where nothing did.
    pub alarm: Option<String>,
    pub seconds: f64,
}

/// Kernels that compute the same in another order or by other functions: a file, what is replaced
/// in it, and by what.
type Change = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const CHANGES: [Change; 4] = [
    (
        "rms_norm.cu sums from the end",
        "rms_norm.cu",
        &[(
            "for (int c = threadIdx.x; c < n; c += blockDim.x) {",
            "for (int c = n - 1 - (int)threadIdx.x; c >= 0; c -= blockDim.x) {",
        )],
    ),
    (
        "rope.cu computes powers by expf and logf",
        "rope.cu",
        &[("powf(theta, -2.0f * pair / head_dim)", "expf(-2.0f * pair / head_dim * logf(theta))")],
    ),
    (
        "swiglu.cu multiplies by a reciprocal, with __expf",
        "swiglu.cu",
        &[("x / (1.0f + expf(-x))", "x * (1.0f / (1.0f + __expf(-x)))")],
    ),
    (
        "attention.cu sums dims and keys from the end",
        "attention.cu",
        &[
            (
                "for (int d = lane; d < dims; d += lanes) {",
                "for (int d = dims - 1 - lane; d >= 0; d -= lanes) {",
            ),
            ("for (int j = first; j < end; j++)", "for (int j = end - 1; j >= first; j--)"),
        ],
    ),
];

/// Changes that are no faults, on the fixture.
pub fn benign(bench: &Bench, progress: &mut Progress) -> Result<Vec<Innocent>> {
    let mut list = Vec::new();
    let (f32, f16) = (engine(DType::F32), engine(DType::F16));
    let prompt = &bench.prompt;
    let mut add = |name: &str, reference: &Reference, prompt: &[i32], engine: &EngineSpec| {
        if progress.wants(&format!("benign: {name}")) {
            let task = firstdiff::core::task::Task { prompt, decode: DECODE };
            let finished = bench::run(&bench.model, reference, task, engine)?;
            list.push(innocent(name.to_string(), &finished));
        }
        Ok::<(), Box<dyn std::error::Error>>(())
    };
    for attention in AttentionVariant::all().skip(1) {
        let engine = EngineSpec { attention, ..f32.clone() };
        add(&format!("attention {attention}"), &bench.reference, prompt, &engine)?;
    }
    add("f16 storage", &bench.reference, prompt, &f16)?;
    let attention = "scale=pre,dot=warp,softmax=online".parse()?;
    let engine = EngineSpec { attention, ..f16 };
    add(&format!("f16 storage, {attention}"), &bench.reference, prompt, &engine)?;
    add("a prompt of 1 token", &bench.reference, &prompt[..1], &f32)?;
    let long: Vec<i32> = prompt.iter().chain(prompt).chain(prompt).copied().collect();
    add("a prompt of 258 tokens", &bench.reference, &long, &f32)?;
    let native = ReferenceOptions { precision: Precision::Native, threads: None };
    add("--reference native", &Reference::load(&bench.model, native)?, prompt, &f32)?;
    let threads = ReferenceOptions { threads: Some(2), ..ReferenceOptions::default() };
    add("a reference of 2 threads", &Reference::load(&bench.model, threads)?, prompt, &f32)?;
    for (name, file, replacements) in CHANGES {
        let folder = tempfile::tempdir()?;
        let mut text = KernelSet::embedded().source(file, vec![])?.text;
        for (from, to) in replacements {
            let times = text.matches(from).count();
            if times != 1 {
                return Err(format!("{file} has `{from}` {times} times; adapt the change").into());
            }
            text = text.replace(from, to);
        }
        std::fs::write(folder.path().join(file), text)?;
        let kernels = KernelSet::overridden_by(folder.path())?;
        add(name, &bench.reference, prompt, &EngineSpec { kernels, ..f32.clone() })?;
    }
    Ok(list)
}

/// Random models with random prompts.
pub fn clean(progress: &mut Progress) -> Result<Vec<Innocent>> {
    let (mut state, mut list) = (43, Vec::new());
    for seed in 0..CLEAN_RUNS {
        let arch = [Arch::Llama, Arch::Qwen2, Arch::Qwen3][random(&mut state, 3)];
        let n_head_kv = 1 + random(&mut state, 3);
        let n_head = n_head_kv * (1 + random(&mut state, 4));
        let head_dim = 2 * (4 + random(&mut state, 20));
        let spec = Spec {
            arch,
            n_layer: 1 + random(&mut state, 3),
            n_head,
            n_head_kv,
            head_dim,
            n_embd: if arch == Arch::Qwen2 { n_head * head_dim } else { 96 },
            n_ff: 17 + random(&mut state, 150),
            tied_output: random(&mut state, 2) == 0,
            rope_theta: [1e4, 5e5, 1e6][random(&mut state, 3)],
            qkv_bias: arch == Arch::Qwen2,
            rope_freqs: arch == Arch::Llama,
            seed,
            ..Spec::preset("tiny-qwen2")?
        };
        let storage = [DType::F32, DType::F16][random(&mut state, 2)];
        let tokens = 1 + random(&mut state, MOST_TOKENS);
        let prompt = (0..tokens).map(|_| random(&mut state, spec.n_vocab) as i32).collect();
        if progress.wants(&format!("clean run {seed}")) {
            let bench = Bench::synth("random", &spec, prompt)?;
            let finished = bench.run(&engine(storage))?;
            let (model, task) = (&bench.model, bench.task());
            let pinned = PinnedPrompt::of(model, &bench.reference, task, "", &[storage])?;
            let by_snapshot = by_snapshot(model, &pinned, storage, &finished)?;
            let name = format!("clean run {seed}: {storage}, {tokens} tokens, {spec:?}");
            let mut run = innocent(name, &finished);
            if let Some(site) = by_snapshot {
                run.alarm.get_or_insert(format!("{site} differs from the snapshot"));
            }
            list.push(run);
        }
    }
    Ok(list)
}

fn innocent(name: String, finished: &Finished) -> Innocent {
    let alarm = (!is_green(finished)).then(|| {
        let first = finished.sites.iter().find(|report| report.outcome != Outcome::Equal);
        let site = first.map(|report| {
            let times = report.difference.as_ref().map_or(0.0, |d| d.times_floor());
            format!("{} is {times:.2} x floor", report.site)
        });
        let found = findings(finished).iter().map(|finding| {
            let worst = finding.worst.as_ref().map_or(0.0, |worst| worst.times_bound);
            format!("{}, {worst:.2} x bound", described(finding))
        });
        site.into_iter().chain(found).collect::<Vec<_>>().join("; ")
    });
    Innocent { name, alarm, seconds: finished.seconds }
}
