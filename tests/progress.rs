use std::path::PathBuf;

use serde_json::{Value, json};

use crate::cli::{SHORT, outcome, path, refused};

const BIAS: [&str; 2] = ["--fault", "qkv-bias-zero"];
const ROPE: [&str; 2] = ["--fault", "rope-pairs-interleaved"];

/// A folder of reports that goes away at the end.
struct Reports(tempfile::TempDir);

impl Reports {
    fn new() -> Reports {
        Reports(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The report of the short run with these flags.
    fn run(&self, name: &str, flags: &[&str]) -> String {
        self.of(name, &[&["run"][..], &SHORT, flags].concat())
    }

    /// The report of a command.
    fn of(&self, name: &str, command: &[&str]) -> String {
        let to = self.at(name);
        let (exit, _, err) = outcome(&[command, &["--json", path(&to)]].concat());
        assert!(exit < 2 || exit == 4, "{err}");
        path(&to).to_string()
    }

    /// A copy of a report with something changed.
    fn edited(&self, report: &str, edit: impl FnOnce(&mut Value)) -> String {
        let mut json = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
        edit(&mut json);
        let to = self.at("edited.json");
        std::fs::write(&to, serde_json::to_vec(&json).unwrap()).unwrap();
        path(&to).to_string()
    }
}

/// Exit code and text of a comparison that must succeed.
fn progress(old: &str, new: &str) -> (i32, String) {
    let (exit, out, err) = outcome(&["progress", old, new]);
    assert_eq!(err, "");
    (exit, out)
}

#[track_caller]
fn starts(old: &str, new: &str, code: i32, start: &str) -> String {
    let (exit, out) = progress(old, new);
    assert!(exit == code && out.starts_with(start), "{exit}\n{out}");
    out
}

#[test]
fn a_right_fix_is_seen_though_the_text_stays_wrong() {
    let reports = Reports::new();
    let both = reports.run("both.json", &[BIAS, ROPE].concat());
    let (one, none) = (reports.run("one.json", &ROPE), reports.run("none.json", &[]));
    let (exit, out) = progress(&both, &one);
    assert_eq!(exit, 1);
    insta::with_settings!({filters => vec![
        (r"\d+ of (\d+) diverged before, \d+ of", "N of $1 diverged before, N of"),
    ]}, { insta::assert_snapshot!(out) });
    let done = starts(&one, &none, 0, "all fixed: 1 fixed, 0 remaining, 0 new; text ");
    assert!(done.contains("divergence first at step 0 layer 0 q_rope before, none now"), "{done}");
    assert!(done.contains("8 of 79 guilty before, 0 of 79 now"), "{done}");
    assert!(!done.contains("keep "), "the text is right: {done}");

    let back = starts(&one, &both, 1, "step back: 0 fixed, 1 remaining, 1 new; ");
    assert!(
        back.contains("  new        q, k and v projection, all layers: bias missing"),
        "{back}"
    );
    let other = reports.run("other.json", &BIAS);
    starts(&one, &other, 1, "mixed: 1 fixed, 0 remaining, 1 new; ");
    starts(&one, &one, 1, "no progress: 0 fixed, 1 remaining, 0 new; text unchanged\n");
    starts(&none, &none, 0, "nothing to fix: 0 fixed, 0 remaining, 0 new; text equal");
}

#[test]
fn a_cause_that_lost_or_won_operations_or_changed_is_told_so() {
    let reports = Reports::new();
    let old = reports.run("old.json", &BIAS);
    let half = reports.edited(&old, |report| {
        let finding = &mut report["diagnosis"]["findings"][0];
        finding["what"] = "q projection, all layers".into();
        finding["operations"] = json!(["blk.0.q", "blk.1.q", "blk.2.q", "blk.3.q"]);
    });
    let less = starts(&old, &half, 1, "progress: 0 fixed, 1 remaining, 0 new; text unchanged");
    let line = "fewer: 8 of 12 operations are right now: blk.0.k, blk.0.v, blk.1.k, blk.1.v and 4";
    assert!(less.contains(line), "{less}");
    let more = starts(&half, &old, 1, "no progress: 0 fixed, 1 remaining, 0 new; ");
    assert!(more.contains("more: 8 operations were right before: blk.0.k, "), "{more}");

    let changed = reports.edited(&old, |report| {
        let cause = &mut report["diagnosis"]["findings"][0]["cause"];
        // Not a key of this version: the report of another one is compared all the same.
        (cause["key"], cause["text"]) = ("transposed".into(), "weight read transposed".into());
    });
    let text = starts(&old, &changed, 1, "changed: 0 fixed, 0 remaining, 0 new, 1 changed; ");
    assert!(text.contains("before: q, k and v projection, all layers: bias missing"), "{text}");
}

#[test]
fn a_cause_that_is_not_looked_for_is_not_called_fixed() {
    let reports = Reports::new();
    let (old, clean) = (reports.run("old.json", &BIAS), reports.run("clean.json", &[]));
    let elsewhere = reports.run("elsewhere.json", &["--sites", "ffn_gate,logits"]);
    let text = starts(&old, &elsewhere, 1, "unclear: 0 fixed, 0 remaining, 0 new, 1 not measured;");
    let line = "the new report did not measure blk.0.q, blk.0.k, blk.0.v, blk.1.q and 8 more";
    assert!(text.contains(line), "{text}");
    // Only one step of one operation is missing.
    let (site, nothing) = ("2/blk.3.k", json!({ "unmeasured": "the engine does not have it" }));
    let step = reports.edited(&clean, |report| {
        let sites = report["sites"].as_array_mut().unwrap();
        sites.iter_mut().find(|row| row["site"] == site).unwrap()["outcome"] = nothing;
    });
    let text = starts(&old, &step, 1, "unclear: ");
    assert!(text.contains("the new report did not measure blk.3.k\n"), "{text}");
    // Of NaN inputs nothing can be judged.
    let nan = reports.edited(&clean, |report| {
        let sites = report["sites"].as_array_mut().unwrap();
        let row = sites.iter_mut().find(|row| row["site"] == site).unwrap();
        row["difference"]["non_finite"]["engine"] = 1.into();
    });
    starts(&old, &nan, 1, "unclear: ");
    starts(&old, &clean, 0, "all fixed: 1 fixed");
    let late = starts(&elsewhere, &old, 1, "step back: 0 fixed, 0 remaining, 1 new; ");
    assert!(late.contains("the old report did not measure it, so it may not be new"), "{late}");
}

#[test]
fn without_a_diagnosis_the_sites_and_the_text_are_compared() {
    let reports = Reports::new();
    let (old, new) = (reports.run("old.json", &BIAS), reports.run("new.json", &["--no-replay"]));
    let start = format!("no causes to compare: {new} has no diagnosis; text ");
    let text = starts(&old, &new, 0, &start);
    assert!(text.contains("before     q, k and v projection, all layers: bias missing"), "{text}");
    assert!(text.contains("first at step 0 layer 0 q before, none now"), "{text}");
    starts(&new, &old, 1, &start);
}

#[test]
fn reports_of_explain_and_reports_with_nan_are_compared_too() {
    let reports = Reports::new();
    let trace = |name: &str, flags: &[&str]| {
        let folder = reports.at(name);
        let capture = [&["capture", "engine", "-o", path(&folder)][..], &SHORT, flags].concat();
        assert_eq!(outcome(&capture).0, 0);
        reports.of(&format!("{name}.json"), &["explain", path(&folder)])
    };
    let (old, new) = (trace("old", &[BIAS, ROPE].concat()), trace("new", &ROPE));
    starts(&old, &new, 1, "progress: 1 fixed, 1 remaining, 0 new; text ");
    starts(&old, &reports.run("run.json", &[]), 0, "all fixed: 2 fixed, 0 remaining, 0 new; ");
    // JSON has no NaN: it is null.
    let nan = reports.edited(&old, |report| {
        report["diagnosis"]["findings"][0]["worst"]["recorded"] = Value::Null;
        report["diagnosis"]["findings"][0]["worst"]["times_bound"] = Value::Null;
        report["diagnosis"]["engine"]["worst_cleared"] = Value::Null;
        report["steps"][0]["engine"]["second_logit"] = Value::Null;
    });
    starts(&old, &nan, 1, "no progress: 0 fixed, 2 remaining, 0 new; text unchanged");
}

#[test]
fn reports_that_cannot_be_compared_are_refused_with_the_reason() {
    let reports = Reports::new();
    let old = reports.run("old.json", &["--no-replay"]);
    let run = |name: &str, flags: &[&str]| {
        reports.of(name, &[&["run", "--no-replay"][..], flags].concat())
    };
    let prompt = run("prompt.json", &["-p", "Once upon a time there was a boy", "-n", "2"]);
    refused(
        &["progress", &old, &prompt],
        3,
        "ran different prompts; make both from the same prompt",
    );
    let longer = run("longer.json", &[SHORT[0], SHORT[1], "-n", "3"]);
    refused(&["progress", &old, &longer], 3, "old.json has 3 steps");
    let model = reports.edited(&old, |report| report["model"]["blake3"] = "00".into());
    refused(&["progress", &old, &model], 3, "of different models; make both from the same file");
    let version = reports.edited(&old, |report| report["report_version"] = 1.into());
    refused(&["progress", &version, &old], 3, "has report version 1, this firstdiff reads 9");

    let field = reports.edited(&old, |report| report["steps"] = 7.into());
    refused(&["progress", &old, &field], 2, "edited.json is not a report: ");
    let whole = std::fs::read(&old).unwrap();
    for (name, bytes) in [
        ("cut", &whole[..whole.len() / 2]),
        ("empty", b""),
        ("other", b"{\"name\": 1}"),
        ("binary", b"\xff\0\n"),
    ] {
        std::fs::write(reports.at(name), bytes).unwrap();
        let name = reports.at(name);
        refused(
            &["progress", path(&name), &old],
            2,
            "name a file written by `firstdiff run --json`",
        );
    }
    refused(&["progress", &old, "absent.json"], 2, "cannot read absent.json");
    refused(&["progress", &old, path(reports.0.path())], 2, "cannot read ");
}
