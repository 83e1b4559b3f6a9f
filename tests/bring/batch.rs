//! Steps of several sequences from the C header and the Python writer.

use std::{fs, path::Path, process::Command};

use firstdiff::{
    graph::site::Site,
    trace::{Removed, TraceReader},
};

use super::{
    header::PLAN,
    support::{compile, project, run},
};
use crate::trace::python::python;

/// The same from firstdiff.py, as an engine with an axis of sequences has it.
const SCRIPT: &str = "
import sys
import numpy as np
import firstdiff

def rows(n, lines, width):
    return (np.arange(n)[:, None, None] + np.zeros((lines, 1)) + np.arange(width) / 100).astype('f4')

with firstdiff.Trace(sys.argv[1], sys.argv[2], 'batch') as trace:
    paged = dict(slots=12, block_size=2)
    trace.batch({0: [1, 2, 3], 7: [4, 5]}, padding='left', blocks={0: [4, 1], 7: [0]}, **paged)
    scores = rows(6, 6, 3).reshape(2, 3, 6, 3).transpose(0, 2, 1, 3)
    trace.put(0, q=rows(6, 6, 4), k_cache=rows(12, 2, 4))
    trace.put(0, axes='batch head token key', scores=scores)
    trace.put(rows=[2, 5], logits=rows(2, 1, 13)[:, 0])
    trace.batch({0: [6], 7: [7]}, blocks={0: [4, 1], 7: [0, 5]}, **paged)
    trace.put(0, k_cache=rows(12, 2, 4), scores=rows(2, 6, 4))
    trace.batch({0: [6]}, blocks={0: [4, 1]}, removed={0: (2, 2)}, **paged)
with firstdiff.Trace(sys.argv[3], sys.argv[2], 'single') as trace:
    trace.step([1, 2, 3])
    trace.put(0, q=rows(3, 6, 4))
    trace.step([6], removed=(1, 2))
    trace.put(0, k_cache=rows(2, 2, 4))
with firstdiff.Trace(sys.argv[4], sys.argv[2], 'behind') as trace:
    trace.step([6, 7], prefix=[1, 2, 3])
    trace.step([6])
    trace.put(0, k_cache=rows(6, 2, 4))
with firstdiff.Trace(sys.argv[5], sys.argv[2], 'prefix') as trace:
    trace.batch({0: [6, 7]}, prefixes={0: [1, 2, 3]})
    trace.batch({0: [6]})
";

/// The first number of each row, and of the first line the hundredths.
fn rows(trace: &TraceReader, step: u32, name: &str) -> (Vec<f32>, Vec<usize>) {
    let tensor = trace.tensor(Site::from_tensor_name(step, name).unwrap()).unwrap().expect(name);
    let (row, last) = (tensor.data.len() / tensor.shape[0], tensor.shape[tensor.shape.len() - 1]);
    let firsts = tensor.data.chunks(row).map(|row| row[0].floor()).collect();
    let hundredths = tensor.data[..last].iter().map(|x| (x.fract() * 100.0).round() as usize);
    (firsts, hundredths.collect())
}

/// What both writers record; `keys` are those of sequence 7's three positions.
fn check(folder: &Path, keys: &[usize]) {
    let batch = TraceReader::open(folder).unwrap();
    assert_eq!(batch.sequences(), [0, 7]);
    let zero = batch.clone().sequence(Some(0)).unwrap();
    let seven = batch.sequence(Some(7)).unwrap();
    let tokens = |trace: &TraceReader| -> Vec<Vec<i32>> {
        trace.manifest().steps.iter().map(|step| step.tokens.clone()).collect()
    };
    assert_eq!(tokens(&zero), [vec![1, 2, 3], vec![6], vec![6]]);
    let third = &zero.manifest().steps[2];
    let removed = Some(Removed { first: 2, count: 2 });
    assert_eq!((third.first_position, third.removed), (2, removed));
    assert_eq!(tokens(&seven), [vec![4, 5], vec![7]]);
    assert_eq!(rows(&zero, 0, "blk.0.q").0, [0.0, 1.0, 2.0]);
    assert_eq!(rows(&seven, 0, "blk.0.q").0, [4.0, 5.0]);
    assert_eq!(rows(&zero, 1, "blk.0.k_cache").0, [8.0, 9.0, 2.0, 3.0]);
    assert_eq!(rows(&seven, 1, "blk.0.k_cache").0, [0.0, 1.0, 10.0]);
    assert_eq!(rows(&seven, 0, "blk.0.scores"), (vec![4.0, 5.0], vec![0, 1]));
    assert_eq!(rows(&seven, 1, "blk.0.scores"), (vec![1.0], keys.to_vec()));
    let logits = Site::from_tensor_name(0, "logits").unwrap();
    assert_eq!((zero.rows(logits), seven.rows(logits)), (Some(&[2][..]), Some(&[1][..])));
    assert_eq!(rows(&seven, 0, "logits").0, [1.0]);
}

/// A trace of one sequence, two tokens of which are rejected: what stays is a trace without them.
fn check_single(folder: &Path) {
    let trace = TraceReader::open(folder).unwrap();
    let steps = |trace: &TraceReader| -> Vec<(usize, Vec<i32>)> {
        trace.manifest().steps.iter().map(|s| (s.first_position, s.tokens.clone())).collect()
    };
    assert_eq!(steps(&trace), [(0, vec![1, 2, 3]), (1, vec![6])]);
    let removed = Some(Removed { first: 1, count: 2 });
    assert_eq!(trace.manifest().steps[1].removed, removed);
    let settled = trace.settled().unwrap();
    assert_eq!(steps(&settled), [(0, vec![1]), (1, vec![6])]);
    assert_eq!(rows(&settled, 0, "blk.0.q").0, [0.0]);
    assert_eq!(rows(&settled, 1, "blk.0.k_cache").0, [0.0, 1.0]);
}

/// A sequence that begins behind a prefix of three ids.
fn check_prefix(folder: &Path) {
    let trace = TraceReader::open(folder).unwrap().sequence(None).unwrap();
    let steps = &trace.manifest().steps;
    let steps: Vec<_> =
        steps.iter().map(|s| (s.first_position, &s.prefix[..], &s.tokens[..])).collect();
    assert_eq!(steps, [(3, &[1, 2, 3][..], &[6, 7][..]), (5, &[][..], &[6][..])]);
}

#[test]
fn a_batch_of_the_c_header_is_read_sequence_by_sequence() {
    let folder = tempfile::tempdir().unwrap();
    let plan = folder.path().join("plan.txt");
    fs::write(&plan, PLAN).unwrap();
    for compiler in [["gcc", "-std=c99", "-x", "c"], ["g++", "-std=c++11", "-x", "c++"]] {
        let program = folder.path().join(compiler[0]);
        compile(&compiler, &project().join("tests/bring/batch.c"), &program);
        let trace = folder.path().join("trace");
        let output = run(&program, &[trace.to_str().unwrap(), plan.to_str().unwrap()]);
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && err.is_empty(), "{err}");
        check(&trace, &[1, 2, 3]);
        let single = folder.path().join("single");
        let arguments = [single.to_str().unwrap(), plan.to_str().unwrap(), "single"];
        let output = run(&program, &arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        check_single(&single);
        for mode in ["behind", "prefix"] {
            let trace = folder.path().join(mode);
            let arguments = [trace.to_str().unwrap(), plan.to_str().unwrap(), mode];
            let output = run(&program, &arguments);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            check_prefix(&trace);
        }
    }
}

#[test]
fn a_batch_of_the_python_writer_is_read_sequence_by_sequence() {
    let folder = tempfile::tempdir().unwrap();
    let (plan, trace) = (folder.path().join("plan.txt"), folder.path().join("trace"));
    fs::write(&plan, PLAN).unwrap();
    let mut command = Command::new(python());
    let single = folder.path().join("single");
    let behind = ["behind", "prefix"].map(|name| folder.path().join(name));
    command.args(["-B", "-c", SCRIPT]).arg(&trace).arg(&plan).arg(&single).args(&behind);
    let output = command.env("PYTHONPATH", project().join("python")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    check(&trace, &[0, 1, 2]);
    check_single(&single);
    behind.iter().for_each(|folder| check_prefix(folder));
}
