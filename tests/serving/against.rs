//! A batch beside a reference of some of its sequences, and two runs beside one another.

use std::path::{Path, PathBuf};

use firstdiff::{core::loaded::LoadedWeight, run, trace::Side};
use tempfile::TempDir;

use super::{
    engine::{Read, StepPlan, record, record_as},
    schedules::*,
};
use crate::{
    cli::{outcome, path},
    common::fixture,
};

struct Traces {
    folder: TempDir,
    batch: PathBuf,
}

impl Traces {
    fn of(steps: &[StepPlan]) -> Traces {
        let folder = tempfile::tempdir().unwrap();
        let batch = folder.path().join("batch");
        record(&batch, steps, 0);
        Traces { folder, batch }
    }

    /// llama.cpp's run of a sequence.
    fn reference(&self, sequence: &str) -> PathBuf {
        let reference = self.folder.path().join(format!("reference-{sequence}"));
        let (model, batch) = (fixture(), path(&self.batch));
        let command = ["capture", "reference", "-m", path(&model), "-o", path(&reference)];
        let of = ["--tokens-of", batch, "--sequence", sequence];
        let (exit, _, err) = outcome(&[&command[..], &of].concat());
        assert_eq!(exit, 0, "{err}");
        reference
    }

    fn explained(&self, reference: &Path) -> (i32, String) {
        let model = fixture();
        let command =
            ["explain", path(&self.batch), "--reference", path(reference), "-m", path(&model)];
        let (exit, out, err) = outcome(&command);
        (exit, out + &err)
    }
}

#[test]
fn the_sequence_that_a_reference_runs_is_compared_and_the_others_are_replayed() {
    let right = Traces::of(&padded(false));
    let reference = right.reference("1");
    let (exit, out) = right.explained(&reference);
    assert_eq!(exit, 0, "{out}");
    let first = out.lines().next().unwrap_or_default();
    assert!(first.starts_with("sequence 1: equal within the floor: 316 of 316 sites"), "{out}");
    assert!(
        first.ends_with("nothing guilty in 2 of 3 sequences, which the reference does not run"),
        "{out}"
    );
    for alone in [0, 2] {
        let text = format!("sequence {alone}: nothing guilty: 79 of 79 operations");
        assert!(out.contains(&text), "{out}");
    }

    let mut steps = padded(false);
    let rows = &steps[0].batch.as_ref().unwrap().sequences[1].rows;
    let (first, last) = (rows[0], rows[rows.len() - 1]);
    steps[0].rows[last].read = Some(Read { row: first, after: None });
    let (exit, out) = Traces::of(&steps).explained(&reference);
    assert_eq!(exit, 1, "{out}");
    let said = "sequence 1: first divergence: step 0 logits";
    assert!(out.starts_with(said) && out.contains("row of token 0 in place of token 4"), "{out}");

    // Of another prompt.
    let other = Traces::of(&chunks(20, 20, 1));
    let (exit, out) = other.explained(&reference);
    assert!(exit == 3 && out.contains("different token ids"), "{out}");
    assert!(!out.contains("none of the sequences"), "{out}");
    let (exit, out) = Traces::of(&paged()[..1]).explained(&reference);
    assert_eq!(exit, 3, "{out}");
    assert!(out.contains("runs none of the sequences 0, 1, 2 of"), "{out}");
}

#[test]
fn a_reference_that_is_a_batch_is_compared_sequence_by_sequence() {
    let right = Traces::of(&padded(false));
    let reference = right.folder.path().join("reference");
    record_as(Side::Reference, &reference, &padded(true), 0, &[]);
    let (exit, out) = right.explained(&reference);
    assert_eq!(exit, 0, "{out}");
    assert!(out.starts_with("each of 3 sequences: equal within the floor: 316 of 316"), "{out}");
    for other in [1, 2] {
        let said = format!("sequence {other}: equal within the floor: 316 of 316 sites");
        assert!(out.contains(&said), "{out}");
    }
}

#[test]
fn a_weight_that_two_runs_hold_otherwise_comes_first() {
    let model = run::open(&fixture()).unwrap();
    let weight = |name: &str, of: fn(f32) -> f32| {
        let data: Vec<f32> = model.file().weights(name).unwrap().into_iter().map(of).collect();
        LoadedWeight::of(name, &[data.len()], &data).unwrap()
    };
    let names = [0, 1, 2, 3].map(|layer| format!("blk.{layer}.attn_k.bias"));
    let all = |of: fn(f32) -> f32| -> Vec<LoadedWeight> {
        let norm = |x| half::bf16::from_f32(x).to_f32();
        let biases = names
            .iter()
            .enumerate()
            .map(|(layer, name)| weight(name, if layer < 2 { of } else { |x| x }));
        biases
            .chain([weight("output_norm.weight", if of(1.0) == 0.0 { norm } else { |x| x })])
            .collect()
    };
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
    record_as(Side::Engine, &a, &chunks(9, 9, 1), 0, &all(|_| 0.0));
    record_as(Side::Engine, &b, &chunks(9, 9, 1), 0, &all(|x| x));
    let same = |a: &Path, b: &Path| {
        let model = fixture();
        outcome(&["diff", path(a), path(b), "--same-engine", "-m", path(&model)])
    };
    let (exit, out, _) = same(&a, &b);
    assert_eq!(exit, 1, "{out}");
    let first = "wrong weights: blk.*.attn_k.bias: all zero, but not in the other trace (2 of 4 layers); rerun";
    assert!(out.starts_with(first), "{out}");
    assert!(
        out.contains("3 of 5 weights match the other trace, 1 of them rounded to bf16"),
        "{out}"
    );
    let (exit, out, _) = same(&b, &b);
    assert!(exit == 0 && out.contains("5 of 5 weights match the other trace"), "{out}");
}
