//! include/firstdiff.h: it compiles everywhere, writes any layout, and a run that fails is refused.

use std::{fs, path::Path};

use firstdiff::{
    core::{
        arithmetic::Arithmetic,
        tensor::{DType, Tensor},
    },
    graph::site::Site,
    trace::{TraceError, TraceReader},
};

use super::support::{compile, project, run};

/// Of the model that tests/bring/layouts.c records.
pub const PLAN: &str = "\
model small \"quoted\".gguf
blake3 abababababababababababababababababababababababababababababababab
architecture qwen3
n_vocab 13
site embd - token,channel T,9
site attn_norm 0-1 token,channel T,9
site q 0-1 token,head,dim T,6,4
site k 0-1 token,head,dim T,2,4
site v 0-1 token,head,dim T,2,4
site q_norm 0-1 token,head,dim T,6,4
site k_norm 0-1 token,head,dim T,2,4
site q_rope 0-1 token,head,dim T,6,4
site k_rope 0-1 token,head,dim T,2,4
site k_cache 0-1 position,head,dim P,2,4
site v_cache 0-1 position,head,dim P,2,4
site scores 0-1 token,head,key T,6,P
site probs 0-1 token,head,key T,6,P
site attn_out 0-1 token,head,dim T,6,4
site o_proj 0-1 token,channel T,9
site attn_residual 0-1 token,channel T,9
site ffn_norm 0-1 token,channel T,9
site ffn_gate 0-1 token,neuron T,11
site ffn_up 0-1 token,neuron T,11
site ffn_act 0-1 token,neuron T,11
site ffn_down 0-1 token,channel T,9
site layer_out 0-1 token,channel T,9
site final_norm - token,channel T,9
site logits - token,vocab T,13
tokens 1 2 3 4 5
tokens 6
";

const COMPILERS: [[&str; 4]; 4] = [
    ["gcc", "-std=c99", "-x", "c"],
    ["g++", "-std=c++11", "-x", "c++"],
    ["clang", "-std=c99", "-x", "c"],
    ["clang++", "-std=c++11", "-x", "c++"],
];

/// A folder with the plan and the program, compiled as C.
fn program() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("plan.txt"), PLAN).unwrap();
    compile(&COMPILERS[0], &source(), &folder.path().join("program"));
    folder
}

fn source() -> std::path::PathBuf {
    project().join("tests/bring/layouts.c")
}

/// Runs the program: its exit code and what it said.
fn record(folder: &Path, more: &[&str]) -> (Option<i32>, String) {
    let (trace, plan) = (folder.join("trace"), folder.join("plan.txt"));
    let arguments = [&[trace.to_str().unwrap(), plan.to_str().unwrap()], more].concat();
    let output = run(&folder.join("program"), &arguments);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn the_header_compiles_without_a_warning_as_c99_and_cpp11_and_is_nothing_when_off() {
    let folder = tempfile::tempdir().unwrap();
    for compiler in COMPILERS {
        let program = folder.path().join(compiler[0]);
        compile(&compiler, &source(), &program);
        let whole = fs::metadata(&program).unwrap().len();
        compile(&[&compiler[..], &["-O2", "-DFIRSTDIFF_OFF"]].concat(), &source(), &program);
        let off = fs::read(&program).unwrap();
        assert!((off.len() as u64) < whole);
        for trace in ["attn_residual", "firstdiff: ", "manifest.json"] {
            let found = off.windows(trace.len()).any(|window| window == trace.as_bytes());
            assert!(!found, "{trace} is in a program without recording");
        }
    }
}

#[test]
fn every_layout_and_format_is_written_in_the_sites_own_order() {
    let folder = program();
    let (exit, err) = record(folder.path(), &[]);
    assert_eq!((exit, err.as_str()), (Some(0), ""));
    let trace = TraceReader::open(&folder.path().join("trace")).unwrap();
    assert_eq!(trace.manifest().producer.name, "a \"quoted\" engine");
    assert_eq!(trace.manifest().model.name, "small \"quoted\".gguf");
    // Each with its seed and what is added to its values.
    let expected = [
        (0, "blk.0.q", 1, 0.0),
        (0, "blk.0.k", 2, 0.0),
        (0, "blk.0.v", 3, 0.0),
        (0, "blk.0.q_rope", 4, 0.0),
        (0, "blk.0.k_cache", 5, 0.0),
        (0, "blk.0.v_cache", 6, 0.0),
        (0, "blk.0.scores", 7, 0.0),
        (0, "blk.0.attn_norm", 8, 0.0),
        (0, "embd", 9, 0.0),
        (0, "blk.0.ffn_up", 10, 1.0),
        (0, "blk.0.ffn_gate", 10, 1.0),
        (0, "blk.1.k_rope", 11, 0.0),
        (1, "final_norm", 12, 0.0),
    ];
    assert_eq!(trace.sites().count(), expected.len());
    for (step, name, seed, added) in expected {
        let site = Site::from_tensor_name(step, name).unwrap();
        let tensor = trace.tensor(site).unwrap().expect(name);
        check_values(name, &tensor, seed, added);
    }
}

/// Checks the values of a recorded tensor by its seed; a score of a key that was not given is 0.
pub fn check_values(name: &str, tensor: &Tensor, seed: usize, added: f32) {
    for (flat, &found) in tensor.data.iter().enumerate() {
        let mut at = Tensor::unravel(flat, &tensor.shape);
        at.resize(3, 0);
        let given = name != "blk.0.scores" || at[2] <= at[0];
        let value = (31 * seed + 17 * at[0] + 5 * at[1] + at[2]) % 61;
        let wanted = if given { value as f32 + added } else { 0.0 };
        assert_eq!(found, wanted, "{name} {at:?}");
    }
}

#[test]
fn declared_storage_is_the_arithmetic_that_our_own_engine_has_there() {
    let folder = program();
    for (more, storage) in [(&[][..], DType::F32), (&["f16"][..], DType::F16)] {
        assert_eq!(record(folder.path(), more).0, Some(0));
        let trace = TraceReader::open(&folder.path().join("trace")).unwrap();
        assert_eq!(trace.manifest().arithmetic, Arithmetic::engine(storage));
    }
}

#[test]
fn a_mistake_is_said_once_and_its_trace_is_refused() {
    let folder = program();
    let cases = [
        ("early", "embd was recorded before the first step; call firstdiff_step"),
        ("empty", "step 0 has no tokens"),
        ("site", "the plan has no site query of layer 0"),
        ("layer", "the plan has no site q of layer 2"),
        ("shape", "q of layer 0 was given as f32 (1, 4, 6); expected (1, 6, 4)"),
        ("twice", "logits of layer 0 was given as f32 (1, 13, 1)"),
        ("rows", "step 2: q of layer 0 has 1 of 2 rows; record every token, or name"),
        ("types", "q of layer 0 was given as f16 (1, 6, 4)"),
        ("device", "a copy from the device failed"),
    ];
    for (mistake, says) in cases {
        // A whole trace of an earlier run does not stand in for the one that failed.
        assert_eq!(record(folder.path(), &[]).0, Some(0));
        let (exit, err) = record(folder.path(), &[mistake]);
        assert!(exit == Some(1) && err.lines().count() == 1 && err.contains(says), "{err}");
        let error = TraceReader::open(&folder.path().join("trace")).unwrap_err();
        assert!(matches!(error, TraceError::Unfinished { .. }) && error.is_refusal(), "{error}");
    }
}

/// Runs tests/bring/rows.c, which makes one mistake or none.
fn rows(folder: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    fs::write(folder.join("plan.txt"), PLAN.to_string() + "decode 3\n").unwrap();
    let program = folder.join("rows");
    if !program.exists() {
        compile(&COMPILERS[0], &project().join("tests/bring/rows.c"), &program);
    }
    let (trace, plan) = (folder.join("a/new/folder"), folder.join("plan.txt"));
    let output =
        run(&program, &[&[trace.to_str().unwrap(), plan.to_str().unwrap()], more].concat());
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_plans_ids_rows_of_some_tokens_and_a_cached_prefix_are_written_into_a_new_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (exit, out, err) = rows(folder.path(), &[]);
    assert_eq!((exit, err.as_str()), (Some(0), ""));
    assert_eq!(out, "1 2 3 4 5\n6\nthen 3\n");
    let trace = TraceReader::open(&folder.path().join("a/new/folder")).unwrap();
    let steps: Vec<usize> = trace.manifest().steps.iter().map(|s| s.first_position).collect();
    assert_eq!(steps, [16, 21]);
    let site = |name: &str| Site::from_tensor_name(0, name).unwrap();
    for (name, rows, shape) in [
        ("logits", Some(&[4][..]), &[1, 13][..]),
        ("blk.1.layer_out", Some(&[1, 3][..]), &[2, 9][..]),
        ("final_norm", Some(&[0, 4][..]), &[2, 9][..]),
        ("blk.0.q", None, &[5, 6, 4][..]),
        ("blk.0.k_cache", None, &[21, 2, 4][..]),
    ] {
        let tensor = trace.tensor(site(name)).unwrap().expect(name);
        assert_eq!((trace.rows(site(name)), &tensor.shape[..]), (rows, shape), "{name}");
        let right = (0..tensor.data.len()).map(|i| (i % 61) as f32);
        assert!(tensor.data.iter().copied().eq(right), "{name}");
    }
    // A step of one token has all of its rows.
    assert_eq!(trace.rows(Site::from_tensor_name(1, "logits").unwrap()), None);
}

#[test]
fn a_cache_in_blocks_and_rows_of_wrong_tokens_stop_the_recording() {
    let folder = tempfile::tempdir().unwrap();
    for (mistake, says) in [
        ("blocks", "step 0: k_cache of layer 0 has 5 of 21 positions and was never completed"),
        ("descending", "the rows of final_norm of layer 0 are not those of ascending tokens"),
        ("outside", "the rows of final_norm of layer 0 are not those of ascending tokens"),
        ("cache", "the rows of k_cache of layer 0 are not those of ascending tokens"),
        ("logits", "step 0: logits of layer -1 has 2 of 5 rows; record every token, or name"),
        ("position", "step 1 begins at position 21, not 20"),
    ] {
        let (exit, _, err) = rows(folder.path(), &[mistake]);
        assert!(exit == Some(1) && err.lines().count() == 1 && err.contains(says), "{err}");
    }
}

#[test]
fn a_killed_run_is_refused_and_what_was_whole_is_readable() {
    let folder = program();
    assert_eq!(record(folder.path(), &["killed"]).0, None, "it aborts");
    let trace = folder.path().join("trace");
    let error = TraceReader::open(&trace).unwrap_err();
    assert!(matches!(error, TraceError::Unfinished { .. }) && error.is_refusal(), "{error}");
    fs::rename(trace.join("manifest.json.unfinished"), trace.join("manifest.json")).unwrap();
    assert_eq!(TraceReader::open(&trace).unwrap().sites().count(), 12);
}

#[test]
fn without_a_plan_or_a_folder_of_its_own_the_engine_runs_on() {
    let folder = program();
    fs::write(folder.path().join("plan.txt"), "tokens 1 2\n").unwrap();
    let (exit, err) = record(folder.path(), &[]);
    assert!(exit == Some(1) && err.contains("is not a firstdiff plan"), "{err}");
    fs::remove_file(folder.path().join("plan.txt")).unwrap();
    let (exit, err) = record(folder.path(), &[]);
    assert!(exit == Some(1) && err.contains("cannot read the plan"), "{err}");
    fs::write(folder.path().join("plan.txt"), PLAN).unwrap();
    fs::create_dir(folder.path().join("trace")).unwrap();
    fs::write(folder.path().join("trace/plan.txt"), PLAN).unwrap();
    fs::write(folder.path().join("trace/manifest.json"), "of the reference").unwrap();
    let (exit, err) = record(folder.path(), &[]);
    assert!(exit == Some(1) && err.contains("holds a reference's trace"), "{err}");
    assert!(folder.path().join("trace/manifest.json").exists());
    fs::remove_dir_all(folder.path().join("trace")).unwrap();
    fs::write(folder.path().join("trace"), "a file").unwrap();
    let (exit, err) = record(folder.path(), &[]);
    assert!(exit == Some(1) && err.contains("choose a folder you can write to"), "{err}");
}
