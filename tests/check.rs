use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    checked::changed,
    cli::{firstdiff, path, refused},
};

/// A folder with a matrix in it: models, prompts and what else is given.
fn matrix(rest: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("firstdiff.toml");
    std::fs::write(&file, rest).unwrap();
    (folder, file)
}

const SMALL: &str = r#"
steps = 1
dtypes = ["f32", "f16"]
variants = ["scale=post", "dot=warp,softmax=online"]
[[models]]
synth = "tiny-llama"
[[prompts]]
name = "word"
text = "Once"
"#;

/// Exit code and standard output, outside of any CI.
fn outcome(arguments: &[&str]) -> (i32, String) {
    let output = firstdiff(arguments)
        .env_remove("GITHUB_ACTIONS")
        .env_remove("GITHUB_STEP_SUMMARY")
        .output()
        .unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The line of an entry in a file of `kernels/`.
fn line_of(folder: &Path, file: &str, entry: &str) -> usize {
    let text = std::fs::read_to_string(folder.join(file)).unwrap();
    let is_entry = |line: &str| line.starts_with(&format!("extern \"C\" __global__ void {entry}("));
    text.lines().position(is_entry).unwrap() + 1
}

#[test]
fn a_matrix_in_which_all_is_equal_says_so_first_and_exits_0() {
    let (_folder, file) = matrix(SMALL);
    let (exit, out) = outcome(&["check", "--config", path(&file), "--annotations"]);
    assert_eq!(exit, 0, "{out}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "equal: 4 of 4 cases");
    assert_eq!(lines.len(), 5, "{out}");
    let wanted = "  equal      tiny-llama/word/f32/scale=post,dot=sequential,softmax=two-pass: ";
    assert!(lines[1].starts_with(wanted), "{out}");
}

#[test]
fn a_planted_kernel_fault_is_annotated_on_the_line_of_its_entry() {
    let (folder, file) = matrix(SMALL);
    let kernels = changed("rope.cu", "sine = sinf(angle)", "sine = sinf(-angle)");
    let [summary, junit] = ["summary.md", "junit.xml"].map(|name| folder.path().join(name));
    std::fs::write(&summary, "before\n").unwrap();
    let arguments = ["check", "--config", path(&file), "--kernels", path(kernels.path())];
    let output = firstdiff(&[&arguments[..], &["--junit", path(&junit)]].concat())
        .env("GITHUB_ACTIONS", "true")
        .env("GITHUB_STEP_SUMMARY", &summary)
        .output()
        .unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{out}");
    let first = out.lines().next().unwrap();
    let wanted = "4 of 4 cases are not equal; first tiny-llama/word/f32/scale=post";
    assert!(first.starts_with(wanted), "{first}");
    assert!(first.contains("first divergence: step 0 layer 0 q_rope"), "{first}");
    assert!(first.contains(" <- q and k rotation, all layers: rotated backwards"), "{first}");

    // Two entries are guilty, each in two cases.
    let annotations: Vec<&str> = out.lines().filter(|line| line.starts_with("::error ")).collect();
    assert_eq!(annotations.len(), 2, "{annotations:?}");
    for (annotation, entry) in annotations.iter().zip(["rope_norm_f32", "rope_norm_f16"]) {
        let line = line_of(kernels.path(), "rope.cu", entry);
        let place = format!("::error file={}/rope.cu,line={line},", path(kernels.path()));
        assert!(annotation.starts_with(&place), "{annotation}");
        assert!(annotation.contains("first divergence: step 0 layer 0 q_rope"), "{annotation}");
        assert!(annotation.ends_with("%0Aand in 1 more case"), "{annotation}");
    }
    let summary = std::fs::read_to_string(summary).unwrap();
    assert!(summary.starts_with("before\n### firstdiff: 4 of 4 cases are not equal"), "{summary}");
    let junit = std::fs::read_to_string(junit).unwrap();
    let counts = "tests=\"4\" skipped=\"0\" errors=\"0\" failures=\"4\"";
    assert!(junit.contains(&format!("<testsuite name=\"tiny-llama\" {counts}")), "{junit}");
    assert_eq!(junit.matches("<failure message=\"first divergence: ").count(), 4, "{junit}");
    assert_eq!(junit.matches("type=\"Diverged\"").count(), 4, "{junit}");
    assert!(junit.contains("q and k rotation, all layers: "), "{junit}");
}

#[test]
fn a_kernel_that_does_not_compile_is_annotated_where_the_compiler_says() {
    let (_folder, file) = matrix(SMALL);
    let kernels = changed("swiglu.cu", "if (i >= n) return;", "if (i >= none) return;");
    let text = std::fs::read_to_string(kernels.path().join("swiglu.cu")).unwrap();
    let line = text.lines().position(|line| line.contains("none")).unwrap() + 1;
    let arguments = ["check", "--config", path(&file), "--kernels", path(kernels.path())];
    let (exit, out) = outcome(&[&arguments[..], &["--annotations"]].concat());
    assert_eq!(exit, 5, "{out}");
    let place = format!("::error file={}/swiglu.cu,line={line},", path(kernels.path()));
    assert!(out.contains(&place), "{out}");
}

#[test]
fn a_tolerance_counts_for_its_sites_alone() {
    let strict = "[[tolerances]]\nsites = \"*\"\nfactor = 1000\n\
                  [[tolerances]]\nsites = \"blk.1.ffn_up\"\nfactor = 1e-9\n";
    let (folder, file) = matrix(&format!("{SMALL}{strict}"));
    let results = folder.path().join("results.json");
    let (exit, out) = outcome(&["check", "--config", path(&file), "--json", path(&results)]);
    assert_eq!(exit, 1, "{out}");
    for case in json(&results)["cases"].as_array().unwrap() {
        assert_eq!(case["first_divergence"], "0/blk.1.ffn_up");
        // Of both steps, and nothing else.
        assert_eq!(case["coverage"]["diverged"], 2);
    }
}

#[test]
fn two_parts_merged_equal_one_run() {
    let (folder, file) = matrix(SMALL);
    let [one, a, b, merged] = ["one", "a", "b", "merged"].map(|name| folder.path().join(name));
    let check = |to: &Path, part: Option<&str>| {
        let part: Vec<&str> = part.iter().flat_map(|part| ["--partition", part]).collect();
        let arguments = ["check", "--config", path(&file), "--json", path(to)];
        outcome(&[&arguments[..], &part].concat())
    };
    let (exit, whole) = check(&one, None);
    assert_eq!(exit, 0, "{whole}");
    let without_times = |path: &Path| {
        let mut results = json(path);
        results["seconds"] = Value::Null;
        results["cases"]
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .for_each(|c| c["seconds"] = Value::Null);
        results
    };
    for kind in ["slice", "hash"] {
        for (to, part) in [(&a, "1/2"), (&b, "2/2")] {
            let (exit, out) = check(to, Some(&format!("{kind}:{part}")));
            assert!(exit == 0, "{out}");
            assert!(!json(to)["cases"].as_array().unwrap().is_empty());
        }
        let (exit, out) = outcome(&["merge", path(&b), path(&a), "--json", path(&merged)]);
        assert_eq!((exit, &out), (0, &whole));
        assert_eq!(without_times(&merged), without_times(&one));
    }
    // A gap, an overlap, and a part of another matrix.
    refused(&["merge", path(&a)], 3, "; give the missing parts");
    refused(&["merge", path(&a), path(&one)], 3, "give each part once");
    std::fs::write(&file, SMALL.replace("steps = 1", "steps = 0")).unwrap();
    check(&b, Some("hash:2/2"));
    let says = "the configuration, prompts or kernels differ; merge parts of one check";
    refused(&["merge", path(&a), path(&b)], 3, says);
    refused(&["merge", path(&file)], 2, "is not a result of `firstdiff check --json`");
}

#[test]
fn a_part_without_cases_checks_nothing_and_exits_4() {
    let (folder, file) = matrix(SMALL);
    let results = folder.path().join("results.json");
    let arguments = ["check", "--config", path(&file), "--partition", "slice:1/5"];
    let (exit, out) = outcome(&[&arguments[..], &["--json", path(&results)]].concat());
    assert_eq!(out, "nothing was checked: no case (part slice:1/5 of all 4 cases)\n");
    assert_eq!((exit, json(&results)["headline"]["exit_code"].as_u64()), (4, Some(4)));
}

#[test]
fn a_configuration_that_cannot_be_used_is_one_line() {
    let config = |text: &str, code: i32, says: &str| {
        let (_folder, file) = matrix(text);
        refused(&["check", "--config", path(&file)], code, says);
    };
    refused(&["check", "--config", "/none.toml"], 2, "cannot read /none.toml: ");
    config("stepz = 1\n", 2, "firstdiff.toml:1: unknown field `stepz`, expected one of `models`, ");
    config("steps = [\n", 2, "firstdiff.toml:");
    config(&SMALL.replace("\"dot=warp,", "\"dot=wrap,"), 2, "variants: unknown part \"dot=wrap\"");
    config(&SMALL.replace("\"f16\"", "\"f8\""), 2, "no dtype f8; use f32 or f16");
    config(&SMALL.replace("\"f16\"", "\"f32\""), 2, "dtypes: f32 appears twice");
    config(&SMALL.replace("tiny-llama", "huge-llama"), 2, "models: huge-llama: ");
    config(&SMALL.replace("synth = \"tiny-llama\"", "path = \"none.gguf\""), 2, "none.gguf");
    config(&SMALL.replace("text =", "file ="), 2, "/Once: ");
    config(&SMALL.replace("text = \"Once\"", ""), 2, "prompts: word needs a text or a file");
    config(&SMALL.replace("steps = 1", "kernels = \"none\""), 2, "kernels: cannot read ");
    let rule = |glob: &str, factor: &str| {
        format!("{SMALL}[[tolerances]]\nsites = \"{glob}\"\nfactor = {factor}\n")
    };
    config(&rule("q,blk.7.*", "8"), 2, "tolerances: blk.7.* matches no site of any model");
    config(&rule("[", "8"), 2, "tolerances: error parsing glob");
    config(&rule("q", "0"), 2, "q: factor 0 is out of range; give more than 0 and at most 1000");
    let (_folder, file) = matrix(SMALL);
    let wrong = ["check", "--config", path(&file), "--partition", "hash:3/2"];
    let (exit, out, err) = crate::cli::outcome(&wrong);
    assert_eq!((exit, out.as_str()), (2, ""));
    assert!(err.contains("expected hash:M/N or slice:M/N"), "{err}");
}
