//! The Rust writer by itself: a project with nothing but it compiles without llama.cpp, CUDA and C, and
//! what it writes is a trace.

use std::{fs, path::Path, process::Command};

use firstdiff::{
    graph::site::Site,
    trace::{Plan, TraceReader},
};

use super::{header::PLAN, support::project};
use crate::cli::{outcome, path};

fn cargo(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO"));
    let output = command.args(arguments).current_dir(project().join("examples/rust_writer"));
    let output = output.env_remove("CARGO_TARGET_DIR").output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {arguments:?}: {err}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_engine_in_rust_records_with_the_writer_alone() {
    let tree = cargo(&["tree", "--locked", "--edges", "normal,build", "--prefix", "none"]);
    let crates: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(crates.contains(&"firstdiff") && crates.contains(&"safetensors"), "{tree}");
    // Its reports need the order of JSON's fields: an engine with the writer does not.
    let features = ["tree", "--locked", "--edges", "features,normal,build", "--prefix", "none"];
    assert!(!cargo(&features).contains("preserve_order"));
    for heavy in
        ["indexmap", "llama-cpp-2", "llama-cpp-sys-2", "cudarc", "cc", "cmake", "bindgen", "clap"]
    {
        assert!(!crates.contains(&heavy), "{heavy} is in {tree}");
    }
    let folder = tempfile::tempdir().unwrap();
    let (plan, trace) = (folder.path().join("plan.txt"), folder.path().join("trace"));
    fs::write(&plan, PLAN).unwrap();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("writer");
    let build = ["run", "--release", "--locked", "--quiet", "--target-dir", path(&target)];
    for _ in 0..2 {
        // The second run replaces the first.
        cargo(&[&build[..], &["--", path(&plan), path(&trace)]].concat());
    }
    let (exit, out, _) = outcome(&["validate", path(&trace)]);
    assert!(
        exit == 0 && out.starts_with("valid: 6 of 90 sites (2 layers, 5 prompt tokens"),
        "{out}"
    );
    let trace = TraceReader::open(&trace).unwrap();
    let steps: Vec<&[i32]> = trace.manifest().steps.iter().map(|s| s.tokens.as_slice()).collect();
    let plan = Plan::open(&plan).unwrap();
    assert_eq!(
        (steps, &trace.manifest().model),
        (plan.steps.iter().map(Vec::as_slice).collect(), &plan.model)
    );
    for (step, name, more) in [(0, "blk.0.q", 0), (1, "blk.1.q", 2), (1, "logits", 1)] {
        let tensor = trace.tensor(Site::from_tensor_name(step, name).unwrap()).unwrap().unwrap();
        let right = (0..tensor.data.len()).map(|i| (i % 61 + more) as f32);
        assert!(tensor.data.iter().copied().eq(right), "{step} {name}");
    }
}
