//! The f32 reference of a file that is not f32: it computes what llama.cpp does on an f32 copy of the file.

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use firstdiff::{
    core::sink::NoSink,
    graph::site::Site,
    model::{
        ModelFile,
        gguf::{Header, TensorInfo},
    },
    reference::{Reference, ReferenceOptions, Session},
    trace::TraceReader,
};
use llama_cpp_sys_2 as sys;

use crate::{
    cli::{outcome, path},
    common::Keep,
};

/// A random model of an architecture.
fn synth(folder: &Path, arch: &str, weights: &str) -> PathBuf {
    let model = folder.join(format!("{arch}-{weights}.gguf"));
    let arguments = ["synth", "--arch", arch, "--type", weights, "-o", path(&model)];
    let (exit, _, err) = outcome(&arguments);
    assert_eq!(exit, 0, "{err}");
    model
}

/// A copy with other types of weights, f16 or f32.
fn converted(model: &Path, to: &str, type_of: impl Fn(&TensorInfo) -> sys::ggml_type) -> PathBuf {
    let file = ModelFile::open(model).unwrap();
    let gguf = file.gguf();
    let mut header = Header::default();
    header.copy_keys(gguf);
    for info in gguf.tensors() {
        header.add_tensor(&info.name, &info.dims, type_of(info));
    }
    let copy = model.with_extension(to);
    let written = header.write(&copy, |info, out| {
        let own = gguf.tensor(&info.name).unwrap();
        if own.ggml_type == info.ggml_type {
            return out.write_all(gguf.data(own));
        }
        let values = file.weights(&info.name).map_err(std::io::Error::other)?;
        match info.ggml_type {
            sys::GGML_TYPE_F16 => values
                .iter()
                .try_for_each(|&x| out.write_all(&half::f16::from_f32(x).to_le_bytes())),
            _ => out.write_all(bytemuck::cast_slice(&values)),
        }
    });
    written.unwrap();
    copy
}

fn is_f32(info: &TensorInfo) -> bool {
    matches!(info.ggml_type, sys::GGML_TYPE_F32 | sys::GGML_TYPE_I32)
}

fn as_f32(info: &TensorInfo) -> sys::ggml_type {
    if is_f32(info) { info.ggml_type } else { sys::GGML_TYPE_F32 }
}

/// Every site of a prompt and a decoded token, on two threads.
fn captured(model: &Path) -> Keep {
    let file = ModelFile::open(model).unwrap();
    let options = ReferenceOptions { threads: Some(2), ..ReferenceOptions::default() };
    let reference = Reference::load(&file, options).unwrap();
    let mut keep = Keep::default();
    let mut session = reference.session(8, 7).unwrap();
    session.step(0, &[3, 1, 4, 1, 5, 9, 2], &mut keep, None).unwrap();
    session.step(1, &[6], &mut keep, None).unwrap();
    keep
}

/// The largest relative L2 distance of a site, and where.
fn farthest(a: &Keep, b: &Keep) -> (f64, Option<Site>) {
    assert_eq!(a.tensors.keys().collect::<Vec<_>>(), b.tensors.keys().collect::<Vec<_>>());
    let mut worst = (0.0, None);
    for (site, a) in &a.tensors {
        let pairs = a.data.iter().zip(&b.tensors[site].data).filter(|(a, b)| a != b);
        let square = |x: f32| f64::from(x).powi(2);
        let size: f64 = a.data.iter().filter(|x| x.is_finite()).map(|&x| square(x)).sum();
        let distance = (pairs.map(|(a, b)| square(a - b)).sum::<f64>() / size).sqrt();
        if distance > worst.0 {
            worst = (distance, Some(*site));
        }
    }
    worst
}

#[test]
fn a_coarse_file_gives_the_bits_of_its_f32_copy() {
    let folder = tempfile::tempdir().unwrap();
    // Plain attention, heads as planes of a weight, a recurrence, one bias for all.
    for (arch, weights) in
        [("qwen3", "q8_0"), ("llama", "q4_k"), ("plm", "q8_0"), ("mamba2", "f16"), ("gpt2", "f16")]
    {
        let model = synth(folder.path(), arch, weights);
        let file = ModelFile::open(&model).unwrap();
        assert!(!file.gguf().tensors().iter().all(is_f32), "{arch}");
        let copy = converted(&model, "f32", as_f32);
        assert_eq!(farthest(&captured(&model), &captured(&copy)), (0.0, None), "{arch} {weights}");
    }
}

/// llama.cpp sums an expert's products in another order than any other.
#[test]
fn experts_of_a_coarse_file_are_those_of_its_f32_copy_within_rounding() {
    let folder = tempfile::tempdir().unwrap();
    for (arch, weights) in [("qwen3moe", "q8_0"), ("gpt-oss", "f16"), ("llama4", "q4_k")] {
        let model = synth(folder.path(), arch, weights);
        let copy = converted(&model, "f32", as_f32);
        let (distance, site) = farthest(&captured(&model), &captured(&copy));
        assert!(distance < 3e-6, "{arch} {weights}: {distance} at {site:?}");
        assert!(distance > 0.0, "{arch} {weights}: the order of the sums is another");
    }
}

#[test]
fn a_norm_in_f16_is_read_as_f32() {
    let folder = tempfile::tempdir().unwrap();
    let model = synth(folder.path(), "qwen3", "f32");
    let is_norm = |info: &TensorInfo| info.name.ends_with("norm.weight");
    let coarse =
        converted(
            &model,
            "f16",
            |info| {
                if is_norm(info) { sys::GGML_TYPE_F16 } else { info.ggml_type }
            },
        );
    let copy = converted(&coarse, "f32", as_f32);
    assert_eq!(farthest(&captured(&coarse), &captured(&copy)), (0.0, None));
}

/// Sessions that read each weight once for all compute what each computes alone, whatever their tokens.
#[test]
fn sessions_side_by_side_give_the_bits_of_each_alone() {
    const PROMPTS: [[i32; 5]; 3] = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9]];
    let folder = tempfile::tempdir().unwrap();
    for (arch, weights) in [("qwen3", "q8_0"), ("plm", "q4_k"), ("qwen3moe", "q4_k")] {
        let file = ModelFile::open(&synth(folder.path(), arch, weights)).unwrap();
        let options = ReferenceOptions { threads: Some(2), ..ReferenceOptions::default() };
        let reference = Reference::load(&file, options).unwrap();
        let run = |mut session: Session<'_>, prompt: &[i32]| {
            let mut keep = Keep::default();
            session.step(0, prompt, &mut keep, None).unwrap();
            session.step(1, &[6], &mut keep, None).unwrap();
            keep
        };
        let alone = PROMPTS.map(|prompt| run(reference.session(6, 5).unwrap(), &prompt));
        // Two more end early: one before its first step, one after it. Nobody waits for them.
        let mut sessions = reference.sessions(5, 6, 5).unwrap();
        drop(sessions.pop());
        let mut short = sessions.pop().unwrap();
        let beside = thread::scope(|scope| {
            scope.spawn(move || short.step(0, &[1, 2], &mut NoSink, None).unwrap());
            let runs: Vec<_> = sessions
                .into_iter()
                .zip(&PROMPTS)
                .map(|(session, prompt)| scope.spawn(|| run(session, prompt)))
                .collect();
            runs.into_iter().map(|run| run.join().unwrap()).collect::<Vec<_>>()
        });
        for (alone, beside) in alone.iter().zip(&beside) {
            assert_eq!(farthest(alone, beside), (0.0, None), "{arch} {weights}");
        }
    }
}

/// The run that floors are measured against is recorded: the same bits as of one that floors were there for.
#[test]
fn a_trace_recorded_while_floors_are_measured_is_that_of_a_run_alone() {
    let folder = tempfile::tempdir().unwrap();
    let model = synth(folder.path(), "qwen3moe", "q4_k");
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    let capture = |to: &Path, cache: &str| {
        let arguments = ["capture", "reference", "-m", path(&model), "-o", path(to)];
        let tokens = ["--tokens", "3,1,4,1,5", "-n", "2"];
        let mut program = Command::new(env!("CARGO_BIN_EXE_firstdiff"));
        program.env("FIRSTDIFF_CACHE", folder.path().join(cache));
        let output = program.args(arguments).args(tokens).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    capture(&first, "cache");
    assert!(folder.path().join("cache/floors").exists());
    capture(&second, "cache");
    let [first, second] = [first, second].map(|trace| TraceReader::open(&trace).unwrap());
    assert_eq!(first.manifest().steps, second.manifest().steps);
    let floors = [&first, &second].map(|trace| &trace.manifest().floors);
    let of = |at: usize| floors[at].iter().flat_map(|declared| &declared.floor.0);
    assert_eq!((floors[0].len(), of(0).count()), (2, of(1).count()));
    for ((site, first), (_, second)) in of(0).zip(of(1)) {
        // What was cached is read from decimal numbers.
        let is_same = |a: f64, b: f64| (a - b).abs() <= 1e-14 * a;
        let same = is_same(first.elementwise, second.elementwise)
            && is_same(first.relative_l2, second.relative_l2);
        assert!(same, "{site}: {first:?} and {second:?}");
    }
    assert_eq!(first.manifest().steps.len(), 3);
}
