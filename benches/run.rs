//! `make bench`: where the time and the memory of a run go. Medians of several runs, with ratios,
//! for single times on a shared machine say little.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Instant, SystemTime},
};

use firstdiff::{
    compare::{SiteFilter, verdict::Rule},
    core::{
        arithmetic::Arithmetic,
        floor::DEFAULT_FACTOR,
        sink::{NoSink, Sink, Stopped},
        task::Task,
        tensor::{DType, Tensor},
    },
    diagnosis::replay::{self, GraphRun, Recording},
    engine::{AttentionVariant, DeviceKind, EngineSpec, fault::Faults, kernels::KernelSet},
    graph::site::Site,
    model::{
        Model, ModelFile,
        synth::{self, Spec},
    },
    reference::{Reference, ReferenceOptions},
    run::{
        Run,
        baseline::{self, Baseline, Baselines, Held},
        own_weights, run_engine,
    },
    trace::recording::Spool,
};

use ndarray::{Array2, Axis, s};
use rayon::prelude::*;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const REPEATS: usize = 5;
/// Set for the child process that measures its own peak memory.
const MEMORY_MODEL: &str = "FIRSTDIFF_BENCH_MEMORY_MODEL";
const MEMORY_DECODE: &str = "FIRSTDIFF_BENCH_MEMORY_DECODE";

fn main() -> Result<()> {
    if let Some(path) = std::env::var_os(MEMORY_MODEL) {
        let decode = std::env::var(MEMORY_DECODE)?.parse()?;
        return print_peak_memory(Path::new(&path), decode);
    }
    edit_to_verdict()?;
    split_of_a_run()?;
    replay_beside_a_forward_pass()?;
    memory_over_layers_and_steps()
}

/// Takes every tensor and throws it away: what capturing costs without comparing.
struct Discard;

impl Sink for Discard {
    fn wants(&self, _: Site) -> bool {
        true
    }

    fn put(&mut self, _: Site, _: Tensor) -> std::result::Result<(), Stopped> {
        Ok(())
    }
}

fn spec() -> EngineSpec {
    EngineSpec {
        device: DeviceKind::Host,
        storage: DType::F32,
        attention: AttentionVariant::default(),
        faults: Faults::default(),
        kernels: KernelSet::embedded(),
        roundings: Vec::new(),
    }
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-qwen2/tiny-qwen2-f16.gguf")
}

/// The median of several timings, in milliseconds.
fn median(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..REPEATS {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[REPEATS / 2])
}

fn whole_run(model: &Model, reference: &Reference, task: Task<'_>) -> Result<()> {
    let filter = SiteFilter::default();
    let rule = Rule { factor: DEFAULT_FACTOR, until_first: false };
    let engine = spec();
    let run = Run { model, reference, task, engine: &engine, filter: &filter, rule, replay: None };
    let finished = run.run(&mut |_| {})?;
    assert_eq!(finished.coverage.equal, finished.coverage.total, "a clean run is equal");
    Ok(())
}

fn split_of_a_run() -> Result<()> {
    let model = firstdiff::run::open(&fixture())?;
    let reference = Reference::load(&model, ReferenceOptions::default())?;
    let text = std::fs::read_to_string(fixture().with_file_name("prompt-long.txt"))?;
    let ids: Vec<i32> = reference.tokenize(&text).into_iter().take(32).collect();
    let task = Task { prompt: &ids, decode: 4 };
    let arithmetic = Arithmetic::engine(DType::F32);
    let baseline = Baseline::of(&reference, &model, task, &arithmetic, &SiteFilter::default())?;
    let mut engine = spec().build(&model, task)?;

    let whole = median(|| whole_run(&model, &reference, task))?;
    let mut rows = vec![("whole run (floor and kernels cached)", whole)];
    let mut add = |name, work: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        rows.push((name, median(work)?));
        Ok(())
    };
    add("  open the model and load it in llama.cpp", &mut || {
        let model = firstdiff::run::open(&fixture())?;
        Reference::load(&model, ReferenceOptions::default())?;
        Ok(())
    })?;
    add("  load kernels and weights on the device", &mut || {
        spec().build(&model, task)?;
        Ok(())
    })?;
    add("  read the weights back and compare them", &mut || {
        own_weights(&model, &engine, None)?;
        Ok(())
    })?;
    let forced = baseline.forced();
    add("  llama.cpp, no hooks", &mut || {
        let mut next = forced.iter().copied();
        baseline::decode(&reference, task, &mut NoSink, Default::default(), |_| next.next())?;
        Ok(())
    })?;
    add("  llama.cpp, every site captured", &mut || {
        let mut next = forced.iter().copied();
        baseline::decode(&reference, task, &mut Discard, Default::default(), |_| next.next())?;
        Ok(())
    })?;
    add("  engine, no hooks", &mut || {
        engine.reset()?;
        run_engine(&mut engine, &baseline.steps, &mut NoSink)?;
        Ok(())
    })?;
    add("  engine, every site captured", &mut || {
        engine.reset()?;
        run_engine(&mut engine, &baseline.steps, &mut Discard)?;
        Ok(())
    })?;
    add("floor, measured anew", &mut || {
        let (filter, held) = (SiteFilter::default(), Held::default());
        let (reference, model, filter) = (&reference, &model, &filter);
        let baselines = Baselines { reference, model, task, held, filter };
        baselines.measure(std::slice::from_ref(&arithmetic), None)?;
        Ok(())
    })?;
    println!("fixture, 32 prompt tokens and 4 decode steps, f32: median of {REPEATS}");
    for (name, milliseconds) in rows {
        println!("{name:<45} {milliseconds:>8.1} ms {:>6.2} x whole", milliseconds / whole);
    }
    Ok(())
}

/// From the save of a kernel to its verdict: `run --watch` on the fixture, and a first run with nothing
/// cached.
fn edit_to_verdict() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/kernels");
    for file in ["gqa_decode.cu", "gqa_decode.toml"] {
        std::fs::copy(examples.join(file), folder.path().join(file))?;
    }
    let kernel = folder.path().join("gqa_decode.cu");
    let right = std::fs::read_to_string(&kernel)?;
    let contract = format!("attention={}", folder.path().join("gqa_decode.toml").display());
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_firstdiff"));
        command.args(["run", "--kernel", &contract]).args(more);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    let cold = median(|| {
        let cache = tempfile::tempdir()?;
        let status = run(&[]).env("FIRSTDIFF_CACHE", cache.path()).status()?;
        assert!(status.success(), "the example is equal");
        Ok(())
    })?;
    let mut watch = run(&["--watch"]).spawn()?;
    let mut lines = BufReader::new(watch.stderr.take().ok_or("no standard error")?).lines();
    let mut verdict = || {
        let over = |line: &std::io::Result<String>| {
            line.as_ref().is_ok_and(|line| line.contains("waiting for a save"))
        };
        lines.find(over).map(drop).ok_or("the watch ended early")
    };
    verdict()?;
    // Each text is new, so that it is compiled.
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos();
    let mut edits = 0;
    let mut edited = |first: &str| {
        edits += 1;
        std::fs::write(&kernel, format!("{first}\n{right}\n// {nanos} {edits}\n"))?;
        Ok(verdict()?)
    };
    let warm = median(|| edited(""))?;
    let wrong = median(|| edited("#define BUG_UNSCALED"))?;
    watch.kill()?;
    watch.wait()?;
    println!(
        "fixture, 86 prompt tokens and 4 decode steps: from a saved kernel to its verdict, ms"
    );
    println!("first run, nothing cached             {cold:>8.0}");
    println!("--watch, a right edit                 {warm:>8.0}");
    println!("--watch, a wrong edit and its cause   {wrong:>8.0}\n");
    Ok(())
}

/// The replay of every operation, beside the products of an f32 forward pass alone.
fn replay_beside_a_forward_pass() -> Result<()> {
    println!("\nreplay of one side, f32, against an f32 forward pass with ndarray's product");
    println!("tokens  forward ms  engine ms  replay ms  replay / forward  replay / engine");
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("replay.gguf");
    let tiny = Spec::preset("tiny-qwen2")?;
    let spec_of = Spec { n_layer: 4, n_embd: 896, n_head: 14, n_head_kv: 2, head_dim: 64, ..tiny };
    synth::write(&Spec { n_ff: 4864, n_vocab: 4096, ..spec_of }, &path, &mut |_| {})?;
    let model = firstdiff::run::open(&path)?;
    for tokens in [16, 128] {
        let ids: Vec<i32> = (0..tokens).map(|i| i * 37 % 4000 + 10).collect();
        let steps = [ids.clone(), vec![7], vec![8]];
        let mut engine = spec().build(&model, Task { prompt: &ids, decode: 2 })?;
        let mut spool = Spool::new()?;
        run_engine(&mut engine, &steps, &mut spool)?;
        let spool = spool.finished()?;
        let arithmetic = Arithmetic::engine(DType::F32);
        let recording = Recording {
            tensors: &spool,
            steps: &steps,
            arithmetic: &arithmetic,
            attention: Default::default(),
        };
        let replay = median(|| {
            let judged = replay::judge(GraphRun::of(&model, model.inputs(), recording))?.judged;
            assert!(judged.iter().all(|judged| !judged.is_guilty()), "a clean engine is cleared");
            Ok(())
        })?;
        let own = median(|| {
            engine.reset()?;
            run_engine(&mut engine, &steps, &mut NoSink)?;
            Ok(())
        })?;
        let weights = projections(&model)?;
        let forward = median(|| {
            steps.iter().for_each(|step| products(&weights, &model, step.len()));
            Ok(())
        })?;
        let (by_forward, by_engine) = (replay / forward, replay / own);
        println!(
            "{tokens:>6}  {forward:>10.1}  {own:>9.1}  {replay:>9.1}  {by_forward:>16.2}  {by_engine:>15.2}"
        );
    }
    Ok(())
}

/// The weight matrices of all projections in f32, (outputs, inputs) each.
fn projections(model: &Model) -> Result<Vec<Array2<f32>>> {
    let mut list = Vec::new();
    for spec in model.graph.sites.specs().iter().filter(|spec| spec.op.is_product()) {
        let Some(name) = &spec.weight else { continue };
        let info = model.info(name)?;
        let shape = (info.rows(), info.row_length());
        list.push(Array2::from_shape_vec(shape, model.weights(name)?)?);
    }
    Ok(list)
}

/// What a step of a forward pass multiplies, blocks of columns in parallel; attention besides is
/// less than a hundredth at these lengths.
fn products(weights: &[Array2<f32>], model: &Model, tokens: usize) {
    let x = Array2::from_shape_fn((tokens, model.config.n_ff), |(i, j)| (i + j) as f32 * 1e-3);
    for weight in weights {
        let x = x.slice(s![.., ..weight.ncols()]);
        weight.axis_chunks_iter(Axis(0), 256).into_par_iter().for_each(|block| {
            std::hint::black_box(x.dot(&block.t()));
        });
    }
}

/// Peak memory of a process that makes one run, beside the size of the model's f32 weights.
fn memory_over_layers_and_steps() -> Result<()> {
    println!(
        "\npeak memory of a run, 64 prompt tokens; the file, in f32, is mapped twice (llama.cpp, firstdiff)"
    );
    println!("layers  decode steps  weights f32 MiB  peak MiB  peak less twice the file MiB");
    let folder = tempfile::tempdir()?;
    for (layers, decode) in [(4, 4), (8, 4), (16, 4), (4, 16), (4, 64)] {
        let path = folder.path().join(format!("{layers}.gguf"));
        let tiny = Spec::preset("tiny-qwen2")?;
        let spec = Spec { n_layer: layers, n_embd: 512, n_head: 8, head_dim: 64, ..tiny };
        let spec = Spec { n_ff: 1024, n_vocab: 1024, ..spec };
        synth::write(&spec, &path, &mut |_| {})?;
        let mut command = Command::new(std::env::current_exe()?);
        command.env(MEMORY_MODEL, &path).env(MEMORY_DECODE, decode.to_string());
        let output = command.output()?;
        let text = String::from_utf8(output.stdout)?;
        let peak: f64 = text.trim().parse().map_err(|_| {
            format!("the child failed: {}", String::from_utf8_lossy(&output.stderr))
        })?;
        let weights = 4.0 * ModelFile::open(&path)?.parameters() as f64 / 1048576.0;
        let rest = peak - 2.0 * weights;
        println!("{layers:>6}  {decode:>12}  {weights:>15.1}  {peak:>8.1}  {rest:>31.1}");
    }
    Ok(())
}

fn print_peak_memory(path: &Path, decode: u32) -> Result<()> {
    let model = firstdiff::run::open(path)?;
    let reference = Reference::load(&model, ReferenceOptions::default())?;
    let ids: Vec<i32> = reference.tokenize(&"a b c d ".repeat(8)).into_iter().take(64).collect();
    whole_run(&model, &reference, Task { prompt: &ids, decode })?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).ok_or("no VmHWM")?;
    let kib: f64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
    println!("{}", kib / 1024.0);
    Ok(())
}
