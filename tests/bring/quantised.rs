//! Quantised caches: examples/numpy_engine with blocks of each type, right and with each mistake.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use firstdiff::{core::format::Format, trace::TraceReader};

use super::{
    engines::{NUMPY, Recorded},
    header::PLAN,
    support::{compile, project, run},
};
use crate::{
    cli::{outcome, path},
    trace::python::python,
};

/// Two blocks a head.
static WIDE: LazyLock<Recorded> = LazyLock::new(|| {
    let shape = ["--head-dim", "64", "--heads", "4", "--kv-heads", "2"];
    Recorded::synth_with("tiny-qwen3", &shape)
});

fn explained(of: &Recorded, kind: &str, bug: Option<&str>) -> (i32, String) {
    let name = format!("{kind}-{}", bug.unwrap_or("right"));
    let trace = NUMPY.record_with(of, &name, bug, &["--cache", kind]);
    let explain = ["explain", &trace, "-m", path(&of.model), "--reference", path(&of.reference)];
    let (exit, out, err) = outcome(&explain);
    assert_eq!(err, "");
    (exit, out)
}

#[test]
fn an_engine_with_a_quantised_cache_is_right_whatever_its_type() {
    for kind in ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "e4m3", "e5m2"] {
        let (exit, out) = explained(&WIDE, kind, None);
        assert!(exit == 0 && out.starts_with("equal within the floor: "), "{kind}: {out}");
        assert!(out.contains("guilty operations: 0"), "{kind}: {out}");
        let kept = format!("the engine keeps k_cache in {kind}, v_cache in {kind}");
        assert!(out.contains(&kept), "{kind}: {out}");
    }
}

#[test]
fn a_wrong_quantisation_is_named() {
    let cases = [
        ("q8_0", "scale-of-block-before", "each block of q8_0 has the scale of the one before"),
        ("q4_1", "scale-of-block-before", "each block of q4_1 has the scale of the one before"),
        ("q8_0", "integers-cut-off", "integers of q8_0 are truncated, not rounded"),
        ("q5_0", "integers-cut-off", "integers of q5_0 are truncated, not rounded"),
        ("e4m3", "integers-cut-off", "numbers of e4m3 are truncated, not rounded"),
        ("q8_0", "signs-lost", "integers of q8_0 have lost their signs"),
        ("q8_0", "integers-saturate", "scales of q8_0 are the largest number divided by 254"),
        ("q4_0", "integers-saturate", "scales of q4_0 are the largest number divided by 16"),
        ("q8_0", "scale-of-two-heads", "one scale of q8_0 for two heads"),
    ];
    for (kind, bug, says) in cases {
        let (exit, out) = explained(&WIDE, kind, Some(bug));
        let guilty = format!("k and v cache append, all layers: {says}");
        assert!(exit == 1 && out.contains("guilty operations: 1\n"), "{kind} {bug}: {out}");
        let is_proof = |line: &str| line.contains(&guilty) && line.contains("(proven: 100 %");
        assert!(out.lines().any(is_proof), "{kind} {bug}: {out}");
    }
}

/// What blocks.c records, in Python.
const SCRIPT: &str = "\
import sys, numpy as np, firstdiff
mistake = sys.argv[3] if len(sys.argv) > 3 else ''
kc = ((37 * np.arange(680) + 11) % 251).astype(np.uint8).reshape(5, 2, 68)
with firstdiff.Trace(sys.argv[1], sys.argv[2], 'blocks') as t:
    t.step([1, 2, 3, 4, 5])
    q8_0 = lambda x: firstdiff.Blocks('q8_0', x)
    if mistake == 'site': t.put(0, k=q8_0(kc))
    if mistake == 'type': firstdiff.Blocks('q9_0', kc)
    if mistake == 'floats': firstdiff.Blocks('q8_0', kc.astype(np.float32))
    if mistake == 'bytes': t.put(0, k_cache=q8_0(kc[..., :67]))
    t.put(0, k_cache=q8_0(kc))
    t.put(0, axes='head position dim', v_cache=q8_0(kc.transpose(1, 0, 2)))
    t.put(1, k_cache=q8_0(kc))
";

/// Runs one of the writers in a folder, with heads of so many elements.
fn write(folder: &Path, by: &str, dim: usize, mistake: &str) -> (PathBuf, Result<(), String>) {
    let (trace, plan) = (folder.join(format!("{by}-{dim}-{mistake}")), folder.join("plan.txt"));
    fs::write(
        &plan,
        PLAN.replace("T,2,4", &format!("T,2,{dim}")).replace("P,2,4", &format!("P,2,{dim}")),
    )
    .unwrap();
    let arguments = [path(&trace), path(&plan), mistake];
    let output = if by == "c" {
        let program = folder.join("blocks");
        if !program.exists() {
            compile(&["gcc", "-std=c99"], &project().join("tests/bring/blocks.c"), &program);
        }
        run(&program, &arguments)
    } else {
        let mut command = Command::new(python());
        command.args(["-B", "-c", SCRIPT]).args(arguments);
        command.env("PYTHONPATH", project().join("python")).output().unwrap()
    };
    let err = String::from_utf8(output.stderr).unwrap();
    (trace, if output.status.success() { Ok(()) } else { Err(err) })
}

#[test]
fn the_writers_for_c_and_python_keep_the_bytes_of_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..680).map(|i| ((37 * i + 11) % 251) as u8).collect();
    for by in ["c", "python"] {
        let (folder, written) = write(folder.path(), by, 64, "");
        assert_eq!(written, Ok(()), "{by}");
        let trace = TraceReader::open(&folder).unwrap();
        assert_eq!(trace.sites().count(), 3);
        let file = fs::read(folder.join("step-0000.safetensors")).unwrap();
        let data = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        assert!(file[data..].chunks(680).all(|tensor| tensor == bytes), "{by}");
        let quantised = &trace.manifest().steps[0].quantised;
        let names: Vec<&str> = quantised.keys().map(String::as_str).collect();
        assert_eq!(names, ["blk.0.k_cache", "blk.0.v_cache", "blk.1.k_cache"], "{by}");
        assert!(quantised.values().all(|&format| format == Format::Q8_0));
        let (exit, out, _) = outcome(&["validate", path(&folder)]);
        let says = "\n  caches     k_cache in q8_0, v_cache in q8_0\n";
        assert!(exit == 0 && out.contains(says), "{out}");
    }
}

#[test]
fn the_writers_for_c_and_python_refuse_what_are_no_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        ("c", 64, "site", "k of layer 0 was given in blocks of q8_0 but is not a cache"),
        (
            "c",
            64,
            "stride",
            "k_cache of layer 0 has a stride of 130 elements, not a multiple of the 32 of a q8_0 block",
        ),
        (
            "c",
            64,
            "type",
            "k_cache of layer 0 was given as type 99, which is not a firstdiff_dtype",
        ),
        ("c", 64, "weight", "the weight blk.0.attn_q.weight was given in a cache's blocks"),
        (
            "c",
            48,
            "rows",
            "k_cache of layer 0 has rows of 48 elements, not a multiple of the 32 of a q8_0 block",
        ),
        ("python", 64, "site", "blk.0.k was given in blocks of q8_0 but is not a cache"),
        ("python", 64, "type", "'q9_0' is not a block format of a cache; they are q8_0, q4_0"),
        ("python", 64, "floats", "blocks of q8_0 were given as float32; give their bytes as uint8"),
        ("python", 64, "bytes", "blk.0.k_cache was given as uint8 (5, 2, 67); expected [5, 2, 68]"),
        (
            "python",
            48,
            "",
            "blk.0.k_cache has rows of 48 elements, not a multiple of the 32 of a q8_0 block",
        ),
    ];
    for (by, dim, mistake, says) in cases {
        let (trace, written) = write(folder.path(), by, dim, mistake);
        let err = written.expect_err(says);
        assert!(err.contains(says), "{by} {mistake}: {err}");
        assert!(TraceReader::open(&trace).is_err(), "{by} {mistake}");
    }
}
