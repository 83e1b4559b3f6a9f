//! Weights that engines record: the writers of three languages agree, and what a loader did wrong is named before
//! what follows from it.

use std::{fs, process::Command};

use firstdiff::{
    core::loaded::LoadedWeight,
    trace::{TraceError, TraceReader},
};
use serde_json::Value;

use super::{
    engines::{FIXTURE, LLAMA, NUMPY, Recorded},
    header::PLAN,
    support::{compile, project, run},
};
use crate::{
    cli::{outcome, path},
    trace::python::python,
};

/// The same weights as tests/bring/weights.c has.
const SCRIPT: &str = "
import sys, numpy as np, firstdiff
v = lambda n: (np.arange(n) % 61 - 30).astype(np.float32)
wide, small = v(300 * 240).reshape(300, 240), v(24)
with firstdiff.Trace(sys.argv[1], sys.argv[2], 'weights') as t:
    if sys.argv[3:] == ['late']: t.step([1, 2, 3, 4, 5])
    if sys.argv[3:] == ['twice']: t.weight('narrow', small)
    if sys.argv[3:] == ['whole']: t.weight('a', np.arange(3))
    t.weight('blk.0.ffn_up.weight', wide)
    t.weight('turned=blk.0.ffn_up.weight', wide.T)
    t.weight('qk=blk.0.attn_q.weight[0:2] blk.0.attn_k.weight', small.reshape(4, 6).astype(np.float64))
    t.weight('narrow', (small.view(np.uint32) >> 16).astype(np.uint16).reshape(1, 24))
    t.weight('half', np.array([0x3c00, 0x8001, 0x7bff], np.uint16).view(np.float16).reshape(1, 3))
    t.weight('device', wide)
    t.step([1, 2, 3, 4, 5])
";

/// The weights as the Rust writer has them.
fn expected() -> Vec<LoadedWeight> {
    let values = |n: usize| (0..n).map(|i| (i % 61) as f32 - 30.0).collect::<Vec<f32>>();
    let (wide, small) = (values(300 * 240), values(24));
    let turned: Vec<f32> = (0..300 * 240).map(|i| wide[i % 300 * 240 + i / 300]).collect();
    let half = [1.0, -1.0 / 16_777_216.0, 65504.0];
    let of = |names: &str, shape: &[usize], data: &[f32]| LoadedWeight::of(names, shape, data);
    let all = [
        of("blk.0.ffn_up.weight", &[300, 240], &wide),
        of("turned=blk.0.ffn_up.weight", &[240, 300], &turned),
        of("qk=blk.0.attn_q.weight[0:2] blk.0.attn_k.weight", &[4, 6], &small),
        of("narrow", &[1, 24], &small),
        of("half", &[1, 3], &half),
        of("device", &[300, 240], &wide),
    ];
    all.into_iter().map(Result::unwrap).collect()
}

fn read(trace: &std::path::Path) -> Vec<LoadedWeight> {
    let trace = TraceReader::open(trace).unwrap();
    trace.weights().unwrap().into_iter().map(|one| one.1).collect()
}

#[test]
fn the_writers_of_three_languages_record_the_same_rows_and_sums() {
    let folder = tempfile::tempdir().unwrap();
    let (plan, program) = (folder.path().join("plan.txt"), folder.path().join("weights"));
    fs::write(&plan, PLAN).unwrap();
    let source = project().join("tests/bring/weights.c");
    compile(&["g++", "-std=c++11", "-x", "c++"], &source, &program);
    compile(&["gcc", "-std=c99", "-x", "c"], &source, &program);
    let trace = folder.path().join("trace");
    let c = |mistake: &[&str]| {
        let output = run(&program, &[&[path(&trace), path(&plan)], mistake].concat());
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let script = |mistake: &[&str]| {
        let mut command = Command::new(python());
        command.args(["-B", "-c", SCRIPT]).args([&trace, &plan]).args(mistake);
        let output = command.env("PYTHONPATH", project().join("python")).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(c(&[]), (true, String::new()));
    assert_eq!(read(&trace), expected());
    assert_eq!(script(&[]), (true, String::new()));
    assert_eq!(read(&trace), expected());
    // A run without weights leaves none of the run before.
    for (mistake, says) in [
        ("late", "blk.0.ffn_up.weight was recorded after the first step"),
        ("name", "\"a\"b\" is not the name of a weight"),
        ("empty", "the weight a has no elements"),
        ("null", "the weight a is NULL"),
    ] {
        let (good, err) = c(&[mistake]);
        assert!(!good && err.contains(says) && err.lines().count() == 1, "{mistake}: {err}");
        let error = TraceReader::open(&trace).unwrap_err();
        assert!(matches!(error, TraceError::Unfinished { .. }), "{error}");
    }
    for (mistake, says) in [
        ("late", "blk.0.ffn_up.weight was recorded after the first step"),
        ("twice", "the weight narrow was given as uint16 (1, 24), or a second time"),
        ("whole", "the weight a was given as int64 (3,), or a second time"),
    ] {
        let (good, err) = script(&[mistake]);
        assert!(!good && err.contains(says), "{mistake}: {err}");
    }
}

/// The numpy engine with its text changed; its trace.
fn edited(of: &Recorded, name: &str, edits: &[(&str, &str)]) -> String {
    let folder = project().join("examples/numpy_engine");
    let mut text = fs::read_to_string(folder.join("engine.py")).unwrap();
    for (from, to) in edits {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        text = text.replace(from, to);
    }
    let (script, trace) = (of.folder.path().join(format!("{name}.py")), of.trace(name));
    fs::write(&script, text).unwrap();
    let mut command = Command::new(python());
    command.arg("-B").arg(&script).arg(&of.model).args([of.plan(), trace.clone()]);
    let paths = std::env::join_paths([folder, project().join("python")]).unwrap();
    let output = command.env("PYTHONPATH", paths).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    trace
}

/// What `explain` says beside the reference: the exit code and the text.
fn explained(of: &Recorded, trace: &str) -> (i32, String) {
    let (model, reference) = (path(&of.model), path(&of.reference));
    let (exit, out, err) = outcome(&["explain", trace, "-m", model, "--reference", reference]);
    (exit, out + &err)
}

const LOADED: &str = "self.weights = {name: self.file.tensor(name) for name in self.file.tensors}";

#[test]
fn a_loader_that_zero_fills_biases_is_named_before_the_rotation_of_wrong_pairs() {
    let zeros = format!(
        "{LOADED}\n        for name in self.weights:\n            if name.endswith('bias'): \
         self.weights[name] = np.zeros_like(self.weights[name])"
    );
    let pairs = ("(arch == \"llama\") != (bug", "(arch != \"llama\") != (bug");
    let of = &*FIXTURE;
    let trace = edited(of, "zero-filled", &[(LOADED, &zeros), pairs]);
    let (exit, out) = explained(of, &trace);
    let first = "wrong weights: blk.*.attn_q.bias: all zero, but not in the file (4 of 4 layers); 2 more; \
                 first divergence: step 0 layer 0 q";
    // The tensors come in the order of the file.
    let lines: Vec<&str> = out.lines().collect();
    let named = |part: &str| {
        let text = format!(
            "  weights    blk.*.attn_{part}.bias: all zero, but not in the file (4 of 4 layers)"
        );
        lines.iter().position(|line| **line == text)
    };
    let places = ["q", "k", "v"].map(|part| named(part).expect(&out));
    assert!(exit == 1 && lines[0].starts_with("wrong weights: blk.*.attn_"), "{exit} {out}");
    assert!(lines[0].contains(&first[first.find(": all").unwrap()..]), "{out}");
    assert_eq!(places.iter().max(), Some(&3), "{out}");
    let bias = "1. q, k and v projection, all layers: bias missing (proven";
    let rotation =
        "2. q and k rotation, all layers: pairs (2i, 2i+1) instead of (i, i+d/2) (proven";
    let by = "explained by the weight: blk.*.attn_q.bias: all zero, but not in the file";
    assert!(out.contains("guilty operations: 2"), "{out}");
    assert!(out.contains(bias) && out.contains(rotation) && out.contains(by), "{out}");
    // The rotation reads no wrong weight.
    let after = out.split(rotation).nth(1).unwrap();
    assert!(!after.contains("explained by the weight"), "{out}");
    // Without the model they are only counted.
    let (_, diff, _) = outcome(&["diff", &trace, path(&of.reference)]);
    assert!(
        diff.contains("50 weights were recorded in one trace only; `firstdiff explain -m"),
        "{diff}"
    );
    let (_, said, _) = outcome(&["validate", &trace]);
    assert!(said.contains("  weights    50 recorded"), "{said}");
    // The same as data, and without a reference.
    let (exit, json, _) = outcome(&["explain", &trace, "-m", path(&of.model), "--json", "-"]);
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((exit, report["weights"]["wrong"].as_array().unwrap().len()), (1, 3));
    assert_eq!(report["diagnosis"]["findings"][0]["weights"].as_array().unwrap().len(), 3);
    assert!(report["headline"]["text"].as_str().unwrap().starts_with("wrong weights: blk.*.attn_"));
}

#[test]
fn weights_in_another_form_leave_a_right_engine_equal() {
    // Held transposed, and transposed back where they are used.
    let used = (
        "y = x @ weight.T",
        "y = x @ (weight if weight is self.weights.get(f\"blk.{layer}.{name}.weight\") else weight.T)",
    );
    let turned = format!(
        "{LOADED}\n        for name in self.weights:\n            if name.startswith('blk') and \
         self.weights[name].ndim == 2: self.weights[name] = np.ascontiguousarray(self.weights[name].T)"
    );
    let of = &*LLAMA;
    let trace = edited(of, "turned", &[(LOADED, &turned), used]);
    let (exit, out) = explained(of, &trace);
    assert!(exit == 0 && out.starts_with("equal within the floor: 180 of 180 sites"), "{out}");
    let held = "stored differently: blk.*.ffn_down.weight: transposed (3 of 3 layers)";
    assert!(out.contains(held) && out.contains("guilty operations: 0"), "{out}");
    let (_, out, _) = outcome(&["validate", &trace]);
    assert!(out.contains("  weights    "), "{out}");
}

#[test]
fn parts_of_ranks_are_held_otherwise_and_wrong_ones_are_named_by_rank() {
    let of = &*FIXTURE;
    let trace = NUMPY.record_with(of, "rank-weights", None, &["--ranks", "2"]);
    let (exit, out) = explained(of, &trace);
    assert!(exit == 0, "{exit} {out}");
    let (_, json, _) = outcome(&["explain", &trace, "-m", path(&of.model), "--json", "-"]);
    let report: Value = serde_json::from_str(&json).unwrap();
    let said = report["weights"]["otherwise"].to_string();
    for part in ["\"rank\":1", "rows 0-111 of 224", "rows 112-223 of 224"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(report["weights"]["wrong"], serde_json::json!([]), "{said}");
}
