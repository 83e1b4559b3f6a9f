//! python/firstdiff.py writes any layout, and a run that fails is refused.

use std::{fs, process::Command};

use firstdiff::{
    core::{arithmetic::Arithmetic, tensor::DType},
    graph::site::Site,
    trace::{TraceError, TraceReader},
};

use super::{header::PLAN, support::project};
use crate::trace::python::python;

/// Element (i, j, k) of tensor `seed` is (31 seed + 17 i + 5 j + k) mod 61, as in layouts.c.
const START: &str = "\
import sys, numpy as np, firstdiff
def v(seed, *n):
    i = np.indices(n + (1,) * (3 - len(n)))
    return ((31 * seed + 17 * i[0] + 5 * i[1] + i[2]) % 61).astype(np.float32).reshape(n)
";

const LAYOUTS: &str = "
with firstdiff.Trace(sys.argv[1], sys.argv[2], 'a \"quoted\" engine') as t:
    t.step([1, 2, 3, 4, 5])
    for rows in np.split(v(1, 5, 6, 4), [2, 4]): t.put(0, q=rows)
    qkv = np.zeros((5, 10, 4), np.float32); qkv[:, 6:8] = v(2, 5, 2, 4)
    t.put(0, k=qkv[:, 6:8])
    t.put(0, axes='head dim token', v=v(3, 5, 2, 4).transpose(1, 2, 0))
    t.put(0, axes='head token dim', q_rope=v(4, 5, 6, 4).transpose(1, 0, 2))
    for n in range(1, 6): t.put(0, k_cache=v(5, 5, 2, 4)[:n])
    t.put(0, axes='head dim position', v_cache=v(6, 5, 2, 4).transpose(1, 2, 0))
    for n in range(5): t.put(0, scores=v(7, 5, 6, 5)[n:n + 1, :, :n + 1])
    t.put(0, attn_norm=v(8, 5, 9)[::-1][::-1])
    t.put(embd=v(9, 5, 9).astype(np.float64))
    t.put(0, ffn_up=v(10, 5, 11).astype(np.float16))
    t.put(0, ffn_gate=(v(10, 5, 11).view(np.uint32) >> 16).astype(np.uint16))
    t.step([6])
    t.put(final_norm=v(12, 1, 9))
";

/// Runs a script; whether it ended well, and what it said.
fn record(script: &str) -> (tempfile::TempDir, bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let plan = folder.path().join("plan.txt");
    fs::write(&plan, PLAN).unwrap();
    let mut command = Command::new(python());
    command.args(["-B", "-c", &format!("{START}{script}")]);
    command.arg(folder.path().join("trace")).arg(plan);
    let output = command.env("PYTHONPATH", project().join("python")).output().unwrap();
    (folder, output.status.success(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn every_layout_and_format_is_written_by_python_in_the_sites_own_order() {
    let (folder, good, err) = record(LAYOUTS);
    assert!(good, "{err}");
    let trace = TraceReader::open(&folder.path().join("trace")).unwrap();
    assert_eq!(trace.manifest().producer.name, "a \"quoted\" engine");
    let expected = [
        (0, "blk.0.q", 1),
        (0, "blk.0.k", 2),
        (0, "blk.0.v", 3),
        (0, "blk.0.q_rope", 4),
        (0, "blk.0.k_cache", 5),
        (0, "blk.0.v_cache", 6),
        (0, "blk.0.scores", 7),
        (0, "blk.0.attn_norm", 8),
        (0, "embd", 9),
        (0, "blk.0.ffn_up", 10),
        (0, "blk.0.ffn_gate", 10),
        (1, "final_norm", 12),
    ];
    assert_eq!(trace.sites().count(), expected.len());
    for (step, name, seed) in expected {
        let tensor = trace.tensor(Site::from_tensor_name(step, name).unwrap()).unwrap();
        super::header::check_values(name, &tensor.expect(name), seed, 0.0);
    }
}

#[test]
fn declared_storage_is_as_in_the_header_and_a_reference_is_not_replaced() {
    let (folder, good, err) = record(
        "
with firstdiff.Trace(sys.argv[1], sys.argv[2], 'mine', storage='f16') as t:
    t.step([1, 2, 3, 4, 5])
try: firstdiff.Trace(sys.argv[2].replace('plan.txt', ''), sys.argv[2], 'mine')
except ValueError as error: sys.exit('holds a reference' not in str(error))
",
    );
    assert!(good, "{err}");
    let trace = TraceReader::open(&folder.path().join("trace")).unwrap();
    assert_eq!(trace.manifest().arithmetic, Arithmetic::engine(DType::F16));
}

#[test]
fn a_mistake_in_python_is_an_error_and_its_trace_is_refused() {
    let cases = [
        ("t.put(0, query=v(1, 1, 6, 4))", "the plan has no site query"),
        ("t.put(2, q=v(1, 1, 6, 4))", "the plan has no site q of layer 2"),
        ("t.put(0, q=v(1, 1, 4, 6))", "blk.0.q was given as float32 (1, 4, 6); expected [1, 6, 4]"),
        ("t.put(0, q=v(1, 1, 24))", "blk.0.q has the axes 'token head dim', not"),
        ("t.put(0, axes='token head key', q=v(1, 1, 6, 4))", "not axes 'token head key'"),
        ("t.put(logits=v(1, 1, 13)); t.put(logits=v(1, 1, 13))", "and 1 rows came before"),
        ("t.step([1, 2]); t.put(0, q=v(1, 1, 6, 4))", "blk.0.q lacks rows; record every token"),
        ("t.step([1, 2, 3]); t.put(logits=v(1, 2, 13))", "logits lacks rows; record every token"),
        (
            "t.step([1, 2]); t.put(rows=[1, 0], logits=v(1, 2, 13))",
            "has rows of [1, 0], which are not",
        ),
        ("t.step([1, 2]); t.put(rows=[2], logits=v(1, 1, 13))", "has rows of [2], which are not"),
        (
            "t.put(0, rows=[0], k_cache=v(1, 7, 2, 4))",
            "blk.0.k_cache does not have a row for each token",
        ),
        (
            "t.step([1]); t.put(0, k_cache=v(1, 2, 2, 4))",
            "2 of 7 positions and was never completed",
        ),
        ("t.step([1], first_position=9)", "step 2 begins at position 6, not 9"),
        ("t.put(0, q=v(1, 1, 6, 4).astype(int))", "blk.0.q was given as int64"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ];
    for (mistake, says) in cases {
        let (folder, good, err) = record(&format!("{LAYOUTS}    {mistake}\n"));
        assert!(!good && err.lines().last().unwrap().contains(says), "{mistake}: {err}");
        let error = TraceReader::open(&folder.path().join("trace")).unwrap_err();
        assert!(matches!(error, TraceError::Unfinished { .. }), "{mistake}: {error}");
    }
}
