//! What `validate` says of whole, partial, killed and damaged traces.

use std::{fs, path::Path};

use serde_json::json;

use crate::{
    cli::{SHORT, outcome, path, refused},
    trace::support::Recorded,
};

fn validate(trace: &Path) -> (i32, String) {
    let (exit, out, err) = outcome(&["validate", path(trace)]);
    assert_eq!(err, "");
    (exit, out)
}

/// Our engine's trace of those sites on the short prompt.
fn record(folder: &Path, sites: &str) {
    let capture = ["capture", "engine", "-o", path(folder), "--sites", sites];
    let (exit, _, err) = outcome(&[&capture[..], &SHORT].concat());
    assert_eq!(exit, 0, "{err}");
}

#[test]
fn a_whole_trace_allows_every_verdict() {
    let recorded = Recorded::new();
    let (exit, out) = validate(&recorded.folder);
    assert!(exit == 0 && out.starts_with("valid: 135 of 135 sites (2 layers, 5 prompt"), "{out}");
    assert!(out.contains("  diff       the first tensor that differs\n"), "{out}");
    assert!(out.contains("  explain    45 of 45 operations judged alone\n"), "{out}");
    assert!(!out.contains("missing"), "{out}");
}

#[test]
fn a_part_of_the_sites_says_what_is_missing_and_what_it_allows() {
    let parent = tempfile::tempdir().unwrap();
    let cases = [
        (
            "attn_residual,layer_out,logits",
            "valid: 27 of 237 sites",
            "the first layer that differs, and the first recorded tensor in it",
            "0 of 79 operations judged alone, 9 together with unrecorded operations before them",
        ),
        (
            "q,q_rope",
            "valid: 24 of 237 sites",
            "the first recorded tensor that differs; 4 layers lack layer_out",
            "4 of 79 operations judged alone, 4 together with unrecorded operations before them; \
             cannot pass, because the logits are missing",
        ),
    ];
    for (sites, first, diff, explain) in cases {
        let trace = parent.path().join(sites);
        record(&trace, sites);
        let (exit, out) = validate(&trace);
        assert!(exit == 0 && out.starts_with(first), "{out}");
        assert!(out.contains(&format!("\n  diff       {diff}\n")), "{out}");
        assert!(out.contains(&format!("\n  explain    {explain}\n")), "{out}");
        let recorded = sites.replace(',', ", ");
        assert!(out.contains(&format!("\n  recorded   {recorded}\n")), "{out}");
        assert!(out.contains("\n  missing    embd, attn_norm, "), "{out}");
    }
}

#[test]
fn an_arithmetic_without_a_floor_is_said_to_be_none_for_diff_which_refuses_it() {
    let recorded = Recorded::new();
    let nothing =
        "\n  diff       nothing: no reference trace has a floor for this arithmetic (bf16";
    let declare = |storage: &str| {
        recorded.edit_manifest(|manifest| {
            let default = json!({ "storage": storage, "accumulator": "f32" });
            manifest["arithmetic"] = json!({ "weights": storage, "default": default });
        });
        validate(&recorded.folder)
    };
    assert!(!declare("f32").1.contains("nothing"));
    let (exit, out) = declare("bf16");
    assert!(exit == 0 && out.contains(nothing), "{out}");
    let trace = path(&recorded.folder);
    refused(&["diff", trace, trace], 3, "has no floor for the engine's arithmetic (bf16 storage)");
}

#[test]
fn every_wrong_file_is_listed_and_the_rest_is_read() {
    let recorded = Recorded::new();
    fs::remove_file(recorded.step(0)).unwrap();
    let file = fs::File::options().write(true).open(recorded.step(2)).unwrap();
    file.set_len(100).unwrap();
    let (exit, out) = validate(&recorded.folder);
    assert!(exit == 3 && out.starts_with("refused: 2 files are wrong: 45 of 135 sites"), "{out}");
    for wrong in ["step-0000.safetensors belongs to", "step-0002.safetensors has 100 bytes"] {
        assert!(out.contains(wrong), "{out}");
    }
    assert!(out.contains("\n  in part    embd (1 of 3), "), "{out}");
}

#[test]
fn a_killed_run_says_what_is_whole() {
    let recorded = Recorded::new();
    recorded.edit_manifest(|manifest| {
        manifest["steps"].as_array_mut().unwrap().pop();
    });
    let unfinished = recorded.folder.join("manifest.json.unfinished");
    fs::rename(recorded.folder.join("manifest.json"), &unfinished).unwrap();
    let (exit, out) = validate(&recorded.folder);
    assert!(exit == 3 && out.starts_with("unfinished: 90 of 90 sites"), "{out}");
    let ended = "after step 1; the next step's file is truncated; to use the complete steps, rename \
                 manifest.json.unfinished to manifest.json\n";
    assert!(out.contains(ended), "{out}");
    fs::write(&unfinished, "").unwrap();
    refused(&["validate", path(&recorded.folder)], 3, "ended before its first step was complete");
    fs::write(&unfinished, "{").unwrap();
    refused(&["validate", path(&recorded.folder)], 3, "unfinished is not a trace manifest");
}

#[test]
fn what_cannot_be_looked_into_gets_one_line() {
    let recorded = Recorded::new();
    let parent = recorded.parent.path();
    refused(&["validate", path(&parent.join("none"))], 2, "no trace at");
    refused(&["validate", path(parent)], 2, "it has no manifest.json");
    recorded.edit_manifest(|manifest| manifest["steps"] = json!([]));
    refused(&["validate", path(&recorded.folder)], 3, "steps is empty");
}
