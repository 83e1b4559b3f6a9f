//! `make bench-large`: models of the size that people run, on this machine: time as a multiple of llama.cpp's own run of
//! the same tokens, memory beyond the mapped file, and new disk.
//!
//! A random model of each shape is written once to `target/bench-large`. llama.cpp runs it with a mistake in one
//! operation, and that is recorded as an engine's trace. Then the program records llama.cpp's own tensors and explains
//! the trace. An argument picks the models whose name contains it.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use firstdiff::{
    core::{
        arithmetic::Arithmetic,
        sink::{NoSink, Sink, Stopped},
        tensor::{DType, Tensor},
    },
    graph::{NodeId, SiteList, site::Site},
    model::ModelFile,
    reference::{Changes, Precision, Reference, ReferenceOptions, StepShape, Tamper},
    trace::{Manifest, ModelId, Side, TraceWriter},
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const DENSE: [&str; 14] = [
    "--arch",
    "llama",
    "--layers",
    "32",
    "--embd",
    "4096",
    "--heads",
    "32",
    "--kv-heads",
    "8",
    "--ffn",
    "14336",
    "--vocab",
    "128256",
];
const EXPERTS: [&str; 20] = [
    "--arch",
    "qwen3moe",
    "--layers",
    "4",
    "--embd",
    "2048",
    "--heads",
    "32",
    "--kv-heads",
    "4",
    "--head-dim",
    "128",
    "--vocab",
    "151936",
    "--set",
    "expert_count=128",
    "--set",
    "expert_used_count=8",
    "--set",
    "expert_feed_forward_length=768",
];
/// Each with the type of its weights, and the layer whose down projection is wrong.
const MODELS: [(&str, &[&str], &str, u32); 3] = [
    ("8B q4_k", &DENSE, "q4_k", 17),
    ("8B q8_0", &DENSE, "q8_0", 17),
    ("30B-A3B q4_k, 4 layers", &EXPERTS, "q4_k", 2),
];

/// A prompt of 16 tokens and two decoded ones.
const STEPS: [&[i32]; 3] =
    [&[11, 402, 7, 93, 1500, 8, 60, 2, 733, 19, 5, 4021, 88, 310, 27, 6], &[901], &[14]];
/// Names the model that a child process runs, and where it writes.
const CHILD: &str = "FIRSTDIFF_BENCH_LARGE";

fn main() -> Result<ExitCode> {
    // Cargo itself passes `--bench`.
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    if let Ok(job) = std::env::var(CHILD) {
        let words: Vec<&str> = job.split('\n').collect();
        match words[..] {
            ["native", model] => native(Path::new(model))?,
            ["engine", model, layer, trace] => {
                engine(Path::new(model), layer.parse()?, Path::new(trace))?
            }
            _ => return Err("not a job".into()),
        }
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "| model | file, GB | llama.cpp's own run, s | capture | explain | memory beyond the file, GB: capture, explain | new disk, GB | answer |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut good = true;
    for (name, shape, weights, layer) in MODELS {
        if only.as_ref().is_none_or(|only| name.contains(only.as_str())) {
            good &= row(name, shape, weights, layer)?;
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a process took.
struct Taken {
    seconds: f64,
    /// The most memory that is no file's, in bytes.
    memory: u64,
    out: String,
}

fn row(name: &str, shape: &[&str], weights: &str, layer: u32) -> Result<bool> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-large");
    fs::create_dir_all(&folder)?;
    let model = folder.join(format!("{}.gguf", name.replace([' ', ','], "-")));
    let program = Path::new(env!("CARGO_BIN_EXE_firstdiff"));
    if !model.exists() {
        let mut synth = Command::new(program);
        synth.arg("synth").args(shape).args(["--type", weights, "-o"]).arg(&model);
        taken(&mut synth)?;
    }
    let own = std::env::current_exe()?;
    let work = tempfile::tempdir_in(&folder)?;
    let at = |name: &str| work.path().join(name);
    let child = |job: &[&str]| taken(Command::new(&own).env(CHILD, job.join("\n")));
    let text = |path: &Path| path.display().to_string();
    let native = child(&["native", &text(&model)])?;
    let native: f64 = native.out.trim().parse()?;
    child(&["engine", &text(&model), &layer.to_string(), &text(&at("mine"))])?;
    let cache = at("cache");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).arg("-m").arg(&model);
        // One process, whose memory is then all there is.
        taken(command.env("FIRSTDIFF_IN_PROCESS", "1").env("FIRSTDIFF_CACHE", &cache))
    };
    let ids = |step: &[i32]| step.iter().map(i32::to_string).collect::<Vec<_>>().join(",");
    let [prompt, rest @ ..] = STEPS;
    let capture = run(&[
        "capture",
        "reference",
        "--tokens",
        &ids(prompt),
        "--decoded",
        &ids(&rest.concat()),
        "-o",
        &text(&at("ref")),
    ])?;
    let explain = run(&[
        "explain",
        &text(&at("mine")),
        "--reference",
        &text(&at("ref")),
        "--format",
        "agent",
    ])?;
    let answer: serde_json::Value = serde_json::from_str(&explain.out)?;
    let guilty = &answer["guilty"][0];
    let (what, cause) = (guilty["what"].to_string(), guilty["cause"].to_string());
    let is_found = what.contains(&format!("layer {layer}")) && cause.contains("1.5");
    let giga = |bytes: u64| bytes as f64 / 1e9;
    let disk = size(&cache)? + size(&at("ref"))?;
    println!(
        "| {name} | {:.1} | {native:.1} | {:.1} s, {:.1} x | {:.1} s, {:.1} x | {:.2}, {:.2} | {:.2} | {what}: {cause} |",
        giga(fs::metadata(&model)?.len()),
        capture.seconds,
        capture.seconds / native,
        explain.seconds,
        explain.seconds / native,
        giga(capture.memory),
        giga(explain.memory),
        giga(disk),
    );
    std::io::stdout().flush()?;
    Ok(is_found)
}

/// Runs a process to its end, and looks at its memory meanwhile.
fn taken(command: &mut Command) -> Result<Taken> {
    let start = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut memory = 0;
    let ended = loop {
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        memory = memory.max(anonymous(&status));
        thread::sleep(Duration::from_millis(20));
    };
    let seconds = start.elapsed().as_secs_f64();
    let out = std::io::read_to_string(child.stdout.take().expect("it is piped"))?;
    // A divergence is what is asked for.
    match ended.code() {
        Some(0 | 1) => Ok(Taken { seconds, memory, out }),
        code => Err(format!("{command:?} ended with {code:?}: {out}").into()),
    }
}

/// Memory of a process that is no file's, in bytes; 0 where the system does not say.
fn anonymous(status: &Path) -> u64 {
    let text = fs::read_to_string(status).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes =
        line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    1024 * kilobytes.unwrap_or(0)
}

/// Bytes of the files in a folder.
fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { size(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

/// The seconds that llama.cpp takes for the steps with the file as it is, loaded.
fn native(model: &Path) -> Result<()> {
    let file = ModelFile::open(model)?;
    let options = ReferenceOptions { precision: Precision::Native, threads: None };
    let reference = Reference::load(&file, options)?;
    let run = || -> Result<f64> {
        let mut session = reference.session(STEPS.concat().len(), STEPS[0].len())?;
        let start = Instant::now();
        for (step, tokens) in STEPS.iter().enumerate() {
            session.step(step as u32, tokens, &mut NoSink, None)?;
        }
        Ok(start.elapsed().as_secs_f64())
    };
    // The file is read once before.
    run()?;
    println!("{}", run()?);
    Ok(())
}

/// A product with half as much again.
struct Half(NodeId);

impl Tamper for Half {
    fn wants(&self, node: NodeId) -> bool {
        node == self.0
    }

    fn change(&self, _: NodeId, _: StepShape, result: &mut Tensor) -> bool {
        result.data.iter_mut().for_each(|x| *x *= 1.5);
        true
    }
}

/// Writes what llama.cpp computes with a wrong down projection as an engine's trace.
fn engine(model: &Path, layer: u32, trace: &Path) -> Result<()> {
    struct Recorded<'w>(&'w mut TraceWriter);
    impl Sink for Recorded<'_> {
        fn wants(&self, _: Site) -> bool {
            true
        }
        fn put(&mut self, site: Site, tensor: Tensor) -> std::result::Result<(), Stopped> {
            self.0.put(site, &tensor).map_err(|_| Stopped)
        }
    }
    let file = ModelFile::open(model)?;
    let reference = Reference::load(&file, ReferenceOptions::default())?;
    let graph = reference.graph();
    let name = format!(
        "ffn_{}out-{layer}",
        if file.gguf().tensor("blk.0.ffn_down_exps.weight").is_some() { "moe_" } else { "" }
    );
    let node = graph.graph.ids().find(|&id| graph.graph.node(id).name == name);
    let half = Half(node.ok_or_else(|| format!("no node {name}"))?);
    let id = ModelId::new(
        model.display().to_string(),
        file.hash(),
        file.architecture.clone(),
        reference.n_vocab(),
        &SiteList::from(&graph.sites),
    );
    let device = "llama.cpp with a mistake in it".to_string();
    let manifest = Manifest::new(Side::Engine, id, Arithmetic::engine(DType::F32), device);
    let mut writer = TraceWriter::create(trace, manifest, false)?;
    let mut session = reference.session(STEPS.concat().len(), STEPS[0].len())?;
    let mut first = 0;
    for (step, tokens) in STEPS.iter().enumerate() {
        writer.begin_step(tokens, first)?;
        let changes = Changes { tamper: Some(&half), ..Changes::default() };
        session.step_with(step as u32, tokens, &mut Recorded(&mut writer), changes)?;
        writer.end_step()?;
        first += tokens.len();
    }
    writer.finish()?;
    Ok(())
}
