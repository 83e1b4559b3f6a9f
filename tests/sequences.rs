//! Several sequences in one trace: padded, in pages, with a shared prefix; each is explained as a trace of its own.

use std::{fs, path::Path, sync::LazyLock};

use crate::{
    bring::engines::{FIXTURE, NUMPY, Recorded},
    cli::{outcome, path, refused},
};

/// A plan of 40 tokens, which fill more than two pages, and three of each engine's own.
static LONG: LazyLock<Recorded> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let (reference, model) = (folder.path().join("long"), FIXTURE.model.clone());
    fs::create_dir_all(&reference).unwrap();
    let ids: Vec<String> = (0..40).map(|i| ((i * 37 + 11) % 500).to_string()).collect();
    let plan = reference.join("plan.txt");
    let given = ["--tokens", &ids.join(","), "-n", "3"];
    let command = ["plan", "-m", path(&model), "-o", path(&plan)];
    assert_eq!(outcome(&[&command[..], &given].concat()).0, 0);
    Recorded { folder, model, reference }
});

fn recorded(of: &Recorded, kind: &str, bug: Option<&str>) -> String {
    let name = format!("{kind}-{}", bug.unwrap_or("right"));
    NUMPY.record_with(of, &name, bug, &["--batch", kind])
}

fn explained(trace: &str, more: &[&str]) -> (i32, String) {
    let model = path(&FIXTURE.model);
    let (exit, out, err) = outcome(&[&["explain", trace, "-m", model][..], more].concat());
    (exit, out + &err)
}

/// The same as a command, to be refused.
fn explain<'a>(trace: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["explain", trace, "-m", path(&FIXTURE.model)][..], more].concat()
}

#[test]
fn three_ragged_sequences_are_right_padded_left_and_right_in_pages_and_after_a_shared_prefix() {
    for (of, kind) in
        [(&*FIXTURE, "left"), (&*FIXTURE, "right"), (&*LONG, "paged"), (&*LONG, "prefix")]
    {
        let trace = recorded(of, kind, None);
        let (exit, out) = explained(&trace, &[]);
        assert_eq!(exit, 0, "{kind}: {out}");
        let right = "each of 3 sequences: nothing guilty: 79 of 79 operations within";
        assert!(out.starts_with(right), "{kind}: {out}");
        assert!(out.contains("note       sequence 2: nothing guilty: 79 of 79"), "{kind}: {out}");
    }
}

#[test]
fn a_sequence_of_a_batch_is_compared_with_a_trace_of_it_alone() {
    let reference = path(&FIXTURE.reference);
    for kind in ["left", "right"] {
        let trace = NUMPY.record_with(&FIXTURE, &format!("{kind}-0"), None, &["--batch", kind]);
        let (exit, out) = explained(&trace, &["--sequence", "0", "--reference", reference]);
        assert!(exit == 0 && out.starts_with("equal within the floor: 237 of 237 sites"), "{out}");
    }
    let trace = NUMPY.record_with(&LONG, "paged-2", None, &["--batch", "paged"]);
    let reference = LONG.trace("reference-2");
    let model = path(&LONG.model);
    let capture = ["capture", "reference", "-m", model, "-o", &reference, "--tokens-of", &trace];
    let (exit, _, err) = outcome(&[&capture[..], &["--sequence", "2"]].concat());
    assert_eq!(exit, 0, "{err}");
    let (exit, out) = explained(&trace, &["--sequence", "2", "--reference", &reference]);
    assert!(exit == 0 && out.starts_with("equal within the floor: 316 of 316 sites"), "{out}");
}

#[test]
fn a_sequence_is_the_same_in_a_batch_and_alone_or_said_not_to_be() {
    let alone = NUMPY.record(&FIXTURE, "alone", None);
    let same = |trace: &str| {
        let command = ["diff", trace, &alone, "--same-engine", "--sequence", "0"];
        let (exit, out, err) = outcome(&[&command[..], &["-m", path(&FIXTURE.model)]].concat());
        (exit, out + &err)
    };
    let batch = NUMPY.record_with(&FIXTURE, "left-alone", None, &["--batch", "left"]);
    let (exit, out) = same(&batch);
    assert!(
        exit == 0 && out.starts_with("the same sequence in a batch and alone: equal within"),
        "{out}"
    );
    let bug = Some("kv-head-modulo");
    let wrong = NUMPY.record_with(&FIXTURE, "left-wrong", bug, &["--batch", "left"]);
    let (exit, out) = same(&wrong);
    assert_eq!(exit, 1, "{out}");
    assert!(out.starts_with("not consistent: a sequence in a batch and alone must"), "{out}");
    assert!(out.contains("step 0 layer 0 scores"), "{out}");
}

#[test]
fn each_mistake_of_a_batch_is_found_in_its_sequence_and_named() {
    let trace = recorded(&FIXTURE, "left", Some("padding-in-positions"));
    let (exit, out) = explained(&trace, &[]);
    assert_eq!(exit, 1, "{out}");
    let cause = "positions of the prompt off by +5, the padding before it (proven)";
    let first = out.lines().next().unwrap();
    assert!(first.starts_with("sequence 1: guilty: q and k rotation, all layers"), "{out}");
    assert!(first.contains(cause), "{out}");
    assert!(out.contains("note       sequence 0: nothing guilty"), "{out}");

    let trace = recorded(&FIXTURE, "right", Some("padding-in-positions"));
    let (exit, out) = explained(&trace, &[]);
    assert_eq!(exit, 1, "{out}");
    let cause = "sequence 1: guilty: q and k rotation, all layers: positions of decode steps off by +5 (proven)";
    assert!(out.starts_with(cause), "{out}");

    let trace = recorded(&LONG, "paged", Some("block-table-stale"));
    let (exit, out) = explained(&trace, &[]);
    assert_eq!(exit, 1, "{out}");
    let first = out.lines().next().unwrap();
    assert!(first.starts_with("sequence 0: guilty: k and v cache append, all layers"), "{out}");
    let cause =
        "from step 1 on slots of positions 16-31 hold the row of sequence 2, 16 positions earlier";
    assert!(first.contains(cause), "{out}");

    let trace = recorded(&LONG, "prefix", Some("prefix-not-copied"));
    let (exit, out) = explained(&trace, &[]);
    assert_eq!(exit, 1, "{out}");
    let cause = "sequence 0: guilty: k and v cache append, all layers: from step 1 on slots of positions 20-30 \
                 hold the row of sequence 1 (proven)";
    assert!(out.starts_with(cause), "{out}");
    // JSON has the answer of each.
    let (_, out) = explained(&trace, &["--json", "-"]);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    let exits = report["sequences"].as_array().unwrap().iter();
    let exits: Vec<_> =
        exits.map(|one| (&one["sequence"], &one["headline"]["exit_code"])).collect();
    let pair = |sequence: u32, exit: u32| (sequence.into(), exit.into());
    let wanted: Vec<(serde_json::Value, serde_json::Value)> =
        vec![pair(0, 1), pair(1, 0), pair(2, 0)];
    assert!(exits.iter().copied().eq(wanted.iter().map(|(a, b)| (a, b))), "{exits:?}");
    assert_eq!((&report["sequence"], &report["report_version"]), (&0.into(), &9.into()));
    let first = &report["sequences"][0]["diagnosis"]["findings"][0];
    assert_eq!(first["cause"]["key"], "cache-slot");
    // What is read of the shared block is the second's own.
    let (exit, out) = explained(&trace, &["--sequence", "1"]);
    assert_eq!(exit, 0, "{out}");
}

#[test]
fn a_batch_is_listed_and_a_command_that_needs_one_sequence_says_which_there_are() {
    let trace = NUMPY.record_with(&FIXTURE, "left-listed", None, &["--batch", "left"]);
    let (exit, out, err) = outcome(&["validate", &trace]);
    assert_eq!(exit, 0, "{err}");
    assert!(out.contains("(4 layers, 3 sequences, 3 steps)"), "{out}");
    let listed = "sequences  0: positions 0 to 11; 1: positions 0 to 6; 2: positions 0 to 8";
    assert!(out.contains(listed), "{out}");
    assert!(!out.contains("suspicious"), "{out}");
    let reference = path(&FIXTURE.reference);
    let (exit, out) = explained(&trace, &["--reference", reference]);
    let others = "; nothing guilty in 2 of 3 sequences, which the reference does not run\n";
    assert!(exit == 0 && out.contains(others), "{out}");
    assert!(out.starts_with("sequence 0: equal within the floor: 237 of 237 sites"), "{out}");
    let text = "has no sequence 3; choose one of 0, 1, 2";
    refused(&explain(&trace, &["--sequence", "3"]), 2, text);
    refused(&["diff", &trace, reference], 2, "choose one with --sequence");
    refused(&explain(&NUMPY.record(&FIXTURE, "one", None), &["--sequence", "1"]), 2, "leave out");
    assert!(Path::new(&trace).exists());
}
