//! A reference that is committed: llama.cpp does not run, and what is wrong is still found.

use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    checked::changed,
    cli::{firstdiff, path},
};

const SMALL: &str = r#"
steps = 2
dtypes = ["f32", "f16"]
[[models]]
synth = "tiny-llama"
[[prompts]]
name = "line"
text = "Once upon a time there was a girl"
"#;

/// A matrix, a snapshot of its reference, and a cache in which nothing was measured.
struct Lab {
    folder: TempDir,
    config: PathBuf,
    snapshot: PathBuf,
}

impl Lab {
    fn new() -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let (config, snapshot) = (folder.path().join("check.toml"), folder.path().join("ref.json"));
        std::fs::write(&config, SMALL).unwrap();
        let lab = Lab { folder, config, snapshot };
        let (exit, out, err) = lab.run("bless", &["--all"]);
        assert_eq!(exit, 0, "{out}{err}");
        assert!(out.starts_with("1 of 1 changed\n  new        tiny-llama/line\n"), "{out}");
        lab
    }

    fn run(&self, command: &str, more: &[&str]) -> (i32, String, String) {
        let own = [command, "-c", path(&self.config), "--reference", path(&self.snapshot)];
        let output = firstdiff(&[&own[..], more].concat()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn json(&self, more: &[&str]) -> (i32, Value) {
        let file = self.folder.path().join("out.json");
        let (exit, out, err) = self.run("check", &[more, &["--json", path(&file)]].concat());
        let json = std::fs::read(&file).unwrap_or_else(|_| panic!("{out}{err}"));
        (exit, serde_json::from_slice(&json).unwrap())
    }
}

#[test]
fn clean_kernels_are_equal_to_a_snapshot_and_the_answer_says_how_much_was_compared() {
    let lab = Lab::new();
    let size = std::fs::metadata(&lab.snapshot).unwrap().len();
    assert!(size < 40_000, "tens of kB, not {size} bytes");
    let cache = lab.folder.path().join("cache");
    let own = ["check", "-c", path(&lab.config), "--reference", path(&lab.snapshot)];
    let mut command = firstdiff(&own);
    command.env("FIRSTDIFF_CACHE", &cache).env_remove("GITHUB_STEP_SUMMARY");
    let output = command.output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{out}");
    let first = out.lines().next().unwrap();
    assert!(first.starts_with("equal: 2 of 2 cases, against the snapshot of llama-cpp-sys-2 "));
    assert!(first.ends_with(", 6 elements and 8 sums of each tensor"), "{first}");
    // Nothing was measured with llama.cpp.
    assert!(cache.join("synth").is_dir());
    assert!(!cache.join("floors").exists());
}

#[test]
fn a_wrong_kernel_is_found_by_a_snapshot_where_it_is_wrong() {
    let lab = Lab::new();
    for (file, from, to, site) in [
        ("rope.cu", "sine = sinf(angle)", "sine = sinf(-angle)", "0/blk.0.q_rope"),
        ("rms_norm.cu", "* inverse_rms * weight[c]", "* inverse_rms", "0/blk.0.attn_norm"),
    ] {
        let kernels = changed(file, from, to);
        let (exit, results) = lab.json(&["--kernels", path(kernels.path())]);
        assert_eq!(exit, 1);
        for case in results["cases"].as_array().unwrap() {
            // The replay has no part in this: it says what is guilty.
            assert_eq!(case["first_divergence"], site);
            let place = case["guilty"][0]["place"]["file"].as_str().unwrap();
            assert!(place.ends_with(file), "{place}");
        }
        let reference = results["reference"].as_str().unwrap();
        assert!(reference.starts_with("llama-cpp-sys-2 "), "{reference}");
    }
}

#[test]
fn a_snapshot_of_something_else_is_refused_and_one_that_lacks_a_case_is_no_success() {
    let lab = Lab::new();
    let says = |config: String, code: i32, says: &str| {
        std::fs::write(&lab.config, config).unwrap();
        let (exit, out, _) = lab.run("check", &[]);
        assert_eq!(exit, code, "{out}");
        assert!(out.contains(&format!("the reference's snapshot {says}")), "{out}");
    };
    says(SMALL.replace("a girl", "a boy"), 3, "is for a different prompt line (");
    says(
        SMALL.replace("steps = 2", "steps = 1"),
        3,
        "is for a different number of steps (2, not 1)",
    );
    says(
        SMALL.replace("\"tiny-llama\"", "\"tiny-llama\"\nseed = 5"),
        3,
        "is for a different model (",
    );
    says(
        format!("reference = \"native\"{SMALL}"),
        3,
        "is for a different precision (F32, not Native)",
    );
    says(SMALL.replace("\"line\"", "\"other\""), 4, "has no prompt other");
    says(SMALL.replace("\"tiny-llama\"", "\"tiny-qwen3\""), 4, "has no model tiny-qwen3");
    std::fs::write(&lab.config, SMALL).unwrap();
    let text = std::fs::read_to_string(&lab.snapshot).unwrap();
    let digit = text.find("0/blk.0.q_rope\": \"").unwrap() + 30;
    let other = if &text[digit..=digit] == "A" { "B" } else { "A" };
    let edited = format!("{}{other}{}", &text[..digit], &text[digit + 1..]);
    for broken in [&edited, &text[..text.len() / 3]] {
        std::fs::write(&lab.snapshot, broken).unwrap();
        let (exit, out, err) = lab.run("check", &[]);
        assert_eq!((exit, out.as_str(), err.lines().count()), (2, "", 1), "{err}");
        assert!(err.contains("ref.json was edited or truncated"), "{err}");
    }
}

#[test]
fn a_snapshot_is_written_anew_where_llama_cpp_gives_something_else_and_only_if_told() {
    let lab = Lab::new();
    let before = std::fs::read(&lab.snapshot).unwrap();
    let (exit, out, _) = lab.run("bless", &["--all"]);
    assert!(exit == 0 && out.starts_with("0 of 1 changed\n"), "{out}");
    assert_eq!(std::fs::read(&lab.snapshot).unwrap(), before);
    std::fs::write(&lab.config, SMALL.replace("a girl", "a boy")).unwrap();
    let (exit, out, _) = lab.run("bless", &[]);
    assert!(exit == 1 && out.contains("  other text tiny-llama/line\n"), "{out}");
    assert_eq!(std::fs::read(&lab.snapshot).unwrap(), before);
    let own = ["bless", "-c", path(&lab.config), "--reference", path(&lab.snapshot), "--all"];
    let output = firstdiff(&own).env("CI", "true").output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(std::fs::read(&lab.snapshot).unwrap(), before);
    assert_eq!(lab.run("bless", &["--all"]).0, 0);
    assert_eq!(lab.run("check", &[]).0, 0);
}

#[test]
fn an_accuracy_is_held_to_its_baseline_without_llama_cpp_too() {
    let lab = Lab::new();
    let lock = lab.folder.path().join("lock.json");
    let own = ["bless", "--all", "-c", path(&lab.config), "--baseline", path(&lock)];
    assert!(firstdiff(&own).output().unwrap().status.success());
    assert_eq!(lab.run("check", &["--baseline", path(&lock)]).0, 0);
    // Twice the norm's own error, a fraction of its bound.
    let worse = "* inverse_rms * (c & 1 ? 1.0000002f : 0.9999998f) * weight[c]";
    let kernels = changed("rms_norm.cu", "* inverse_rms * weight[c]", worse);
    let edited = ["--kernels", path(kernels.path())];
    assert_eq!(lab.run("check", &edited).0, 0);
    let (exit, out, _) = lab.run("check", &[&edited[..], &["--baseline", path(&lock)]].concat());
    assert!(exit == 1 && out.contains("still within bound"), "{out}");
}

/// As the workflow does.
#[test]
fn our_own_kernels_are_equal_to_the_committed_snapshot_and_no_worse_than_the_baseline() {
    let file = |name: &str| format!("{}/fixtures/check/quick.{name}", env!("CARGO_MANIFEST_DIR"));
    let (config, reference, lock) = (file("toml"), file("ref.json"), file("lock.json"));
    let own = ["check", "-c", &config, "--reference", &reference, "--baseline", &lock];
    let output = firstdiff(&own).env_remove("GITHUB_STEP_SUMMARY").output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && out.starts_with("equal: 6 of 6 cases, against"), "{out}");
}
