//! The engines of examples/ are right, and each of their planted bugs is blamed and named.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use firstdiff::engine::fault;
use serde_json::Value;

use super::support::{compile, project};
use crate::{
    cli::{SHORT, outcome, path},
    common::fixture,
    trace::python::python,
};

/// A model, the trace of its reference, and room for others.
pub struct Recorded {
    pub folder: tempfile::TempDir,
    pub model: PathBuf,
    pub reference: PathBuf,
}

impl Recorded {
    /// Records llama.cpp on the short prompt; two steps are decoded.
    pub fn of(folder: tempfile::TempDir, model: PathBuf) -> Recorded {
        let reference = folder.path().join("reference");
        let capture = ["capture", "reference", "-m", path(&model), "-o", path(&reference)];
        let (exit, _, err) = outcome(&[&capture[..], &SHORT].concat());
        assert_eq!(exit, 0, "{err}");
        Recorded { folder, model, reference }
    }

    /// The same of a random model of that shape.
    pub fn synth(shape: &str) -> Recorded {
        Recorded::synth_with(shape, &[])
    }

    /// The same with other sizes.
    pub fn synth_with(shape: &str, more: &[&str]) -> Recorded {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("m.gguf");
        let synth = ["synth", "-o", path(&model), "--shape", shape, "--vocab", "512"];
        assert_eq!(outcome(&[&synth[..], more].concat()).0, 0);
        Recorded::of(folder, model)
    }

    pub fn plan(&self) -> String {
        path(&self.reference.join("plan.txt")).to_string()
    }

    pub fn trace(&self, name: &str) -> String {
        path(&self.folder.path().join(name)).to_string()
    }
}

/// An engine of examples/ as a command line.
pub struct Engine {
    pub program: Vec<PathBuf>,
    pub bugs: Vec<String>,
}

/// The C engine, compiled once.
static C: LazyLock<Engine> = LazyLock::new(|| {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("c_engine");
    let source = project().join("examples/c_engine/engine.c");
    compile(&["gcc", "-std=c99", "-O2"], &source, &program);
    let usage = Command::new(&program).output().unwrap();
    let usage = String::from_utf8(usage.stderr).unwrap();
    let bugs = usage.lines().skip(1).map(|line| line.trim().to_string()).collect();
    Engine { program: vec![program], bugs }
});

pub static NUMPY: LazyLock<Engine> =
    LazyLock::new(|| Engine::of_python(python(), "numpy_engine", "engine"));

pub static FIXTURE: LazyLock<Recorded> =
    LazyLock::new(|| Recorded::of(tempfile::tempdir().unwrap(), fixture()));
pub static LLAMA: LazyLock<Recorded> = LazyLock::new(|| Recorded::synth("tiny-llama"));
pub static QWEN3: LazyLock<Recorded> = LazyLock::new(|| Recorded::synth("tiny-qwen3"));

impl Engine {
    /// The engine of a folder of examples/, a module with the list BUGS.
    pub fn of_python(python: &Path, folder: &str, module: &str) -> Engine {
        let folder = project().join("examples").join(folder);
        let mut list = Command::new(python);
        let script = format!("import {module}; print(*{module}.BUGS)");
        let output = list.args(["-B", "-c", &script]).current_dir(&folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let bugs = String::from_utf8(output.stdout).unwrap();
        let bugs = bugs.split_whitespace().map(str::to_string).collect();
        let file = folder.join(format!("{module}.py"));
        Engine { program: vec![python.to_path_buf(), "-B".into(), file], bugs }
    }

    /// Records a run; the trace.
    #[track_caller]
    pub fn record(&self, of: &Recorded, name: &str, bug: Option<&str>) -> String {
        self.record_with(of, name, bug, &[])
    }

    /// The same with more arguments.
    #[track_caller]
    pub fn record_with(
        &self,
        of: &Recorded,
        name: &str,
        bug: Option<&str>,
        more: &[&str],
    ) -> String {
        let trace = of.trace(name);
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]).arg(&of.model).args([of.plan(), trace.clone()]);
        command.args(more);
        if let Some(bug) = bug {
            command.args(["--bug", bug]);
        }
        let output = command.output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && err.is_empty(), "{bug:?}: {err}");
        trace
    }

    pub fn is_equal_to_llama_cpp(&self, name: &str) {
        let models = [(&*FIXTURE, "237 of 237"), (&*LLAMA, "180 of 180"), (&*QWEN3, "198 of 198")];
        for (of, sites) in models {
            let trace = self.record(of, name, None);
            let (model, reference) = (path(&of.model), path(&of.reference));
            let (exit, out, err) =
                outcome(&["explain", &trace, "-m", model, "--reference", reference]);
            let equal = format!("equal within the floor: {sites} sites");
            assert!(exit == 0 && out.starts_with(&equal), "{model}: {exit} {out}{err}");
            assert!(out.contains("guilty operations: 0"), "{out}");
            // Its trace states no choice: its logits do.
            let (_, out, _) = outcome(&["explain", &trace, "-m", model, "--json", "-"]);
            let report: Value = serde_json::from_str(&out).unwrap();
            let tokens = &report["steps"][1]["tokens"];
            assert_eq!(tokens, &serde_json::json!([report["steps"][0]["engine"]["token"]]));
        }
    }

    pub fn each_bug_is_named(&self, name: &str) {
        assert!(self.bugs.len() >= 12, "{:?}", self.bugs);
        for bug in &self.bugs {
            let fault = fault::find(bug).expect("bugs are named as firstdiff's own faults");
            // The fixture's output is tied.
            let of = if bug == "logits-tied-mistaken" { &*LLAMA } else { &*FIXTURE };
            let trace = self.record(of, &format!("{name}-{bug}"), Some(bug));
            let explain = ["explain", &trace, "-m", path(&of.model), "--json", "-"];
            let (exit, out, err) = outcome(&explain);
            assert_eq!(exit, 1, "{bug}: {err}");
            let report: Value = serde_json::from_str(&out).unwrap();
            let findings = report["diagnosis"]["findings"].as_array().unwrap();
            assert_eq!(findings[0]["operations"][0], fault.site().tensor_name(), "{bug}");
            for finding in findings {
                let (key, certainty) = (&finding["cause"]["key"], &finding["cause"]["certainty"]);
                assert_eq!(
                    (key, certainty),
                    (&fault.cause.name().into(), &"proven".into()),
                    "{bug}"
                );
            }
        }
    }
}

#[test]
fn the_c_engine_is_equal_to_llama_cpp() {
    C.is_equal_to_llama_cpp("c");
}

#[test]
fn the_numpy_engine_is_equal_to_llama_cpp() {
    NUMPY.is_equal_to_llama_cpp("numpy");
}

#[test]
fn each_bug_of_the_c_engine_is_blamed_on_its_operation_and_named() {
    C.each_bug_is_named("c");
}

#[test]
fn each_bug_of_the_numpy_engine_is_blamed_on_its_operation_and_named() {
    NUMPY.each_bug_is_named("numpy");
}

#[test]
fn an_engine_without_recording_runs_as_with_it() {
    let of = &*FIXTURE;
    let off = of.folder.path().join("c_engine_off");
    let source = project().join("examples/c_engine/engine.c");
    compile(&["gcc", "-std=c99", "-O2", "-DFIRSTDIFF_OFF"], &source, &off);
    let says = |program: &Path, more: &[&str]| {
        let mut command = Command::new(program);
        let output = command.arg(&of.model).arg(of.plan()).args(more).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let with = says(&C.program[0], &[&of.trace("with")]);
    assert_eq!(with.lines().count(), 3, "{with}");
    assert_eq!(says(&C.program[0], &[]), with);
    assert_eq!(says(&off, &[&of.trace("off")]), with);
    assert!(!Path::new(&of.trace("off")).exists());
}

#[test]
fn recording_takes_at_most_20_lines_and_the_docs_show_them_as_they_stand() {
    let page = fs::read_to_string(project().join("docs/your-engine.md")).unwrap();
    let files = [
        ("c_engine/engine.c", "//+", 10..=20),
        ("numpy_engine/engine.py", "#+", 10..=15),
        ("transformers/run.py", "#+", 2..=2),
    ];
    for (file, mark, lines) in files {
        let text = fs::read_to_string(project().join("examples").join(file)).unwrap();
        let added: Vec<&str> = text.lines().filter_map(|line| line.strip_suffix(mark)).collect();
        assert!(lines.contains(&added.len()), "{file}: {} lines", added.len());
        // All of what speaks of recording is marked.
        for line in text.lines().filter(|line| !line.trim_end().ends_with(mark)) {
            let recording = [
                "firstdiff_begin",
                "firstdiff.Trace",
                "TAP(",
                "trace.put",
                "tensor(fd",
                "record(",
                "weight(recorder",
                "trace.weight",
            ];
            assert!(!recording.iter().any(|call| line.contains(call)), "{file}: {line}");
        }
        for line in added {
            assert!(page.contains(line.trim()), "{file}: {line} is not in docs/your-engine.md");
        }
    }
}
