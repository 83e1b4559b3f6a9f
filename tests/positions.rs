//! Rows have positions: traces that divide the same tokens otherwise, rows of some tokens, a sequence that began
//! before, and ids of the engine's own choice.

use std::{fs, path::Path};

use crate::{
    bring::engines::{FIXTURE, NUMPY, Recorded},
    cli::{SHORT, outcome, path},
};

/// What `explain` says of an engine's trace beside the fixture's reference.
fn explained(trace: &str) -> (i32, String) {
    let of = &*FIXTURE;
    let reference = path(&of.reference);
    let (exit, out, err) =
        outcome(&["explain", trace, "-m", path(&of.model), "--reference", reference]);
    (exit, out + &err)
}

fn recorded(name: &str, bug: Option<&str>, more: &[&str]) -> String {
    NUMPY.record_with(&FIXTURE, name, bug, more)
}

#[test]
fn logits_of_the_last_token_are_compared_and_replayed_and_said_to_be_one_row() {
    let trace = recorded("last", None, &["--last"]);
    let (exit, out) = explained(&trace);
    assert_eq!(exit, 0, "{out}");
    assert!(out.contains("logits: 1 of 10 rows in step 0"), "{out}");
    assert!(out.contains("79 of 79 operations within"), "{out}");
    let (exit, out, _) = outcome(&["validate", &trace]);
    assert!(exit == 0 && out.contains("rows       logits: 1 of 10 rows in step 0"), "{out}");
    // Without a reference it is a note.
    let (exit, out, _) = outcome(&["explain", &trace, "-m", path(&FIXTURE.model)]);
    assert!(exit == 0 && out.contains("logits: 1 of 10 rows in step 0"), "{out}");
}

#[test]
fn a_row_that_was_recorded_alone_is_judged() {
    // The last token's logits, one element of them wrong.
    let trace = recorded("last-wrong", None, &["--last"]);
    let file = Path::new(&trace).join("step-0000.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.len() - 4 * 7;
    bytes[at..at + 4].copy_from_slice(&99f32.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let (exit, out) = explained(&trace);
    assert_eq!(exit, 1, "{out}");
    assert!(
        out.starts_with("first divergence: step 0 logits [position 9, vocab id 2041]"),
        "{out}"
    );
    assert!(out.contains("guilty operations: 1\n"), "{out}");
    assert!(out.contains("1 of 6,144 elements beyond the bound"), "{out}");
}

#[test]
fn the_same_tokens_in_any_steps_are_equal() {
    // Chunks, token by token, a step that verifies several, and chunks with one row of logits each.
    for chunks in ["7", "1", "10,2", "4,3"] {
        let trace = recorded(&format!("chunks-{chunks}"), None, &["--chunks", chunks]);
        let (exit, out) = explained(&trace);
        assert_eq!(exit, 0, "{chunks}: {out}");
        assert!(out.starts_with("equal within the floor: 237 of 237 sites"), "{chunks}: {out}");
        assert!(out.contains("79 of 79 operations within"), "{chunks}: {out}");
        assert!(out.contains("compared position by position"), "{chunks}: {out}");
    }
    let trace = recorded("chunks-last", None, &["--chunks", "4,3", "--last"]);
    let (exit, out) = explained(&trace);
    assert_eq!(exit, 0, "{out}");
    assert!(out.contains("logits: 3 of 10 rows in step 0"), "{out}");
}

#[test]
fn a_bug_in_chunks_is_found_where_it_is_and_named() {
    let trace = recorded("chunks-bug", Some("kv-head-modulo"), &["--chunks", "7"]);
    let (exit, out) = explained(&trace);
    assert_eq!(exit, 1, "{out}");
    assert!(
        out.starts_with("first divergence: step 0 layer 0 scores [position 0, head 1"),
        "{out}"
    );
    assert!(out.contains("query head h reads KV head h % Hk (proven"), "{out}");
    // Only the second chunk is wrong, from position 7 on.
    let trace = recorded("chunks-append", Some("decode-never-appended"), &["--chunks", "7"]);
    let (exit, out) = explained(&trace);
    assert_eq!(exit, 1, "{out}");
    assert!(out.starts_with("first divergence: step 0 layer 0 k_cache [position 7,"), "{out}");
}

#[test]
fn a_reference_in_chunks_is_equal_to_an_engine_without() {
    let of = &*FIXTURE;
    let chunked = of.trace("reference-chunks");
    let capture = ["capture", "reference", "-m", path(&of.model), "-o", &chunked, "--chunks", "4"];
    let (exit, _, err) = outcome(&[&capture[..], &SHORT].concat());
    assert_eq!(exit, 0, "{err}");
    let whole = recorded("whole", None, &[]);
    let (exit, out, err) = outcome(&["diff", &whole, &chunked]);
    assert_eq!(exit, 0, "{out}{err}");
    assert!(out.contains("(4 layers, 10 prompt tokens, 2 decode steps)"), "{out}");
    let wrong = recorded("whole-wrong", Some("softmax-temperature"), &[]);
    let (exit, out, _) = outcome(&["diff", &wrong, &chunked]);
    assert!(exit == 1 && out.starts_with("first divergence: step 0 layer 0 probs"), "{out}");
}

/// A plan of the fixture whose later tokens are the engine's own.
fn own_tokens() -> Recorded {
    let folder = tempfile::tempdir().unwrap();
    let (reference, model) = (FIXTURE.reference.clone(), FIXTURE.model.clone());
    Recorded { reference, model, folder }
}

#[test]
fn an_engine_that_decodes_its_own_tokens_is_compared_up_to_them_and_replayed_to_the_end() {
    let of = own_tokens();
    let plan = of.folder.path().join("deep/plan.txt");
    fs::create_dir_all(plan.parent().unwrap()).unwrap();
    let arguments = ["plan", "-m", path(&of.model), "-o", path(&plan)];
    let (exit, out, err) = outcome(&[&arguments[..], &SHORT].concat());
    assert_eq!(exit, 0, "{err}");
    assert!(out.contains("step 0    10 tokens, positions 0 to 9"), "{out}");
    assert!(out.contains("chosen by the engine, positions 10 to 11"), "{out}");
    let own = Recorded { reference: plan.parent().unwrap().to_path_buf(), ..of };
    // A right engine decodes the reference's tokens.
    let (exit, out) = explained(&NUMPY.record_with(&own, "own", None, &[]));
    assert!(exit == 0 && out.starts_with("equal within the floor: 237 of 237"), "{out}");
    let (exit, out) =
        explained(&NUMPY.record_with(&own, "own-bug", Some("kv-head-modulo"), &["--last"]));
    assert_eq!(exit, 1, "{out}");
    assert!(
        out.contains("the ids differ from step 1 (position 10) on: 356 in the engine, 11 in the"),
        "{out}"
    );
    assert!(out.contains("(their logits diverge)"), "{out}");
    assert!(out.contains("query head h reads KV head h % Hk (proven"), "{out}");
    assert!(!out.contains("the reference is wrong"), "{out}");
    assert!(out.contains("reference  79 of 79 operations within"), "{out}");
}

#[test]
fn ids_that_no_logits_explain_are_not_called_equal() {
    // The reference held to another token: the engine's own is right, and the ids differ all the same.
    let of = &*FIXTURE;
    let other = of.trace("reference-other");
    let ids = "46,77,337,676,258,562,462,309,258,743";
    let capture = ["capture", "reference", "-m", path(&of.model), "-o", &other];
    let given = ["--tokens", ids, "--decoded", "11,17"];
    let (exit, _, err) = outcome(&[&capture[..], &given].concat());
    assert_eq!(exit, 0, "{err}");
    let trace = recorded("own-other", None, &[]);
    let explain = ["explain", &trace, "-m", path(&of.model), "--reference", &other];
    let (exit, out, err) = outcome(&explain);
    assert_eq!(exit, 4, "{out}{err}");
    assert!(
        out.starts_with("equal within the floor up to the first id that differs: 158 of 237 sites"),
        "{out}"
    );
    assert!(out.contains("the reference was forced to ids that are not its own choice"), "{out}");
    // Within the prompt it is another run.
    let first = ids.replacen("77", "78", 1);
    let given = ["--overwrite", "--tokens", &first, "--decoded", "11,17"];
    assert_eq!(outcome(&[&capture[..], &given].concat()).0, 0);
    let (exit, _, err) = outcome(&explain);
    assert!(exit == 3 && err.contains("step 0, position 1 has 77 and 78"), "{err}");
}

#[test]
fn a_trace_that_begins_in_the_middle_is_compared_from_there_and_replayed_from_its_caches() {
    let trace = recorded("after", None, &["--chunks", "6,4,1", "--after", "1"]);
    let (exit, out) = explained(&trace);
    assert!(out.contains("q: 4 of 10 rows in step 0"), "{out}");
    assert!(out.contains("79 of 79 operations within"), "{out}");
    assert_eq!(exit, 0, "{out}");
    let (exit, out, _) = outcome(&["validate", &trace]);
    assert!(exit == 0 && out.contains("4 prompt tokens after 6 in the cache, 2 decode"), "{out}");
    let wrong =
        recorded("after-bug", Some("kv-head-modulo"), &["--chunks", "6,4,1", "--after", "1"]);
    let (exit, out) = explained(&wrong);
    assert!(exit == 1 && out.contains("query head h reads KV head h % Hk (proven"), "{out}");
    // A rotation whose positions begin at 0 again has nothing to do with the cache.
    let wrong =
        recorded("after-theta", Some("rope-base-1e4"), &["--chunks", "6,4,1", "--after", "1"]);
    let (exit, out) = explained(&wrong);
    assert!(exit == 1 && out.contains("theta 10000 instead of 1000000 (proven"), "{out}");
}

#[test]
fn reruns_must_be_bit_equal_and_other_steps_equal_within_the_floor() {
    let same = |a: &str, b: &str, more: &[&str]| {
        let (exit, out, err) = outcome(&[&["diff", a, b, "--same-engine"][..], more].concat());
        (exit, out + &err)
    };
    let (once, again) = (recorded("once", None, &[]), recorded("again", None, &[]));
    let (exit, out) = same(&once, &again, &[]);
    assert!(exit == 0 && out.starts_with("rerun: equal bit for bit: 237 of 237"), "{out}");
    assert!(out.contains("equal bit for bit"), "{out}");
    // One bit in one element.
    let file = Path::new(&again).join("step-0001.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.len() - 4 * 7;
    bytes[at] ^= 1;
    fs::write(&file, bytes).unwrap();
    let (exit, out) = same(&once, &again, &[]);
    let first = "not repeatable: a rerun must be bit-equal: first divergence: step 1 logits [position 10, \
                 vocab id 2041]";
    assert!(exit == 1 && out.starts_with(first), "{out}");
    let chunks = recorded("same-chunks", None, &["--chunks", "3"]);
    let (exit, out) = same(&once, &chunks, &[]);
    assert!(exit == 0 && out.starts_with("the same tokens in other steps: equal"), "{out}");
    // Equal at once, wrong in chunks: the engine needs no reference for that.
    let wrong = recorded("same-bug", Some("decode-never-appended"), &["--chunks", "3"]);
    let (exit, out) = same(&wrong, &once, &[]);
    assert_eq!(exit, 1, "{out}");
    assert!(
        out.starts_with(
            "not consistent: other steps must be equal within the floor: first divergence: \
                             step 0 layer 0 k_cache [position 3,"
        ),
        "{out}"
    );
    assert!(out.contains("guilty operations: 1\n"), "{out}");
    let reference = path(&FIXTURE.reference);
    let (exit, out) = same(&once, reference, &[]);
    assert!(exit == 3 && out.contains("leave out --same-engine"), "{out}");
}

#[test]
fn a_plan_is_that_of_the_reference_without_its_run_and_wrong_ids_are_refused() {
    let of = &*FIXTURE;
    let arguments = ["plan", "-m", path(&of.model)];
    let (exit, out, err) = outcome(&[&arguments[..], &SHORT].concat());
    assert_eq!(exit, 0, "{err}");
    let whole = fs::read_to_string(of.plan()).unwrap();
    let head = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| !line.starts_with("tokens") && !line.starts_with("decode"))
            .map(String::from)
            .collect()
    };
    assert_eq!(head(&out), head(&whole));
    assert!(out.ends_with("decode 2\n"), "{out}");
    let (exit, out, _) = outcome(
        &[&arguments[..], &["--tokens", "1,2,3", "--decoded", "4", "--chunks", "2"]].concat(),
    );
    assert!(exit == 0 && out.ends_with("tokens 1 2\ntokens 3\ntokens 4\n"), "{out}");
    for (ids, says) in
        [("1,99999", "token 99999 is out of range"), ("1,-2", "token -2 is out of range")]
    {
        let (exit, _, err) = outcome(&[&arguments[..], &[&format!("--tokens={ids}")]].concat());
        assert!(exit == 2 && err.contains(says), "{err}");
    }
    let (exit, _, err) = outcome(&[&arguments[..], &["--chunks", "0"]].concat());
    assert!(exit == 2, "{err}");
}
