use std::{os::unix::fs::PermissionsExt, path::PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    checked::changed,
    cli::{firstdiff, path},
};

const SMALL: &str = r#"
steps = 1
[[models]]
synth = "tiny-llama"
[[prompts]]
name = "line"
text = "Once upon a time there was a girl"
"#;

const CASE: &str = "tiny-llama/line/f32/scale=post,dot=sequential,softmax=two-pass";

/// A rounding more: its error is a few times the norm's own, and a fraction of its bound.
const WORSE: (&str, &str) =
    ("* inverse_rms * weight[c]", "* inverse_rms * (c & 1 ? 1.0000002f : 0.9999998f) * weight[c]");

/// A matrix and its baseline.
struct Lab {
    folder: TempDir,
    config: PathBuf,
    lock: PathBuf,
}

impl Lab {
    fn new() -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("firstdiff.toml");
        let lock = folder.path().join("lock.json");
        std::fs::write(&config, SMALL).unwrap();
        Lab { folder, config, lock }
    }

    /// One whose baseline is of the embedded kernels.
    fn blessed() -> Lab {
        let lab = Lab::new();
        let (exit, out, _) = lab.run("bless", &["--all"], "");
        assert_eq!(exit, 0, "{out}");
        assert!(out.starts_with("1 changed, 0 as in the baseline, 0 not equal\n  new"), "{out}");
        lab
    }

    fn run(&self, command: &str, more: &[&str], input: &str) -> (i32, String, String) {
        let own = [command, "-c", path(&self.config), "--baseline", path(&self.lock)];
        let output = firstdiff(&[&own[..], more].concat()).write_stdin(input).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn lock(&self) -> Value {
        serde_json::from_slice(&std::fs::read(&self.lock).unwrap()).unwrap()
    }
}

/// A folder of kernels in which the norm is less accurate.
fn worse() -> TempDir {
    changed("rms_norm.cu", WORSE.0, WORSE.1)
}

#[test]
fn an_edit_that_multiplies_the_error_within_tolerance_is_caught_and_a_rerun_is_not() {
    let lab = Lab::blessed();
    assert_eq!(lab.run("check", &[], "").0, 0);

    let kernels = worse();
    let edited = ["--kernels", path(kernels.path())];
    let plain = firstdiff(&[&["check", "-c", path(&lab.config)][..], &edited].concat());
    let plain = { plain }.env_remove("GITHUB_STEP_SUMMARY").output().unwrap();
    assert_eq!(plain.status.code(), Some(0), "the edit is within tolerance");

    let json = lab.folder.path().join("results.json");
    let more = [&edited[..], &["--annotations", "--json", path(&json)]].concat();
    let (exit, out, _) = lab.run("check", &more, "");
    assert_eq!(exit, 1, "{out}");
    let first = out.lines().next().unwrap();
    let wanted = format!("1 of 1 cases are not equal; first {CASE}: regressed ");
    assert!(first.starts_with(&wanted), "{first}");
    assert!(first.contains(" x, still within bound: "), "{first}");

    let results: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let regressed = results["cases"][0]["regressed"].as_array().unwrap();
    assert!(regressed.len() >= 5, "of 7 norms: {regressed:?}");
    for change in regressed {
        let operation = change["operation"].as_str().unwrap();
        assert!(operation.ends_with("_norm"), "{operation}");
        let times = change["now"].as_f64().unwrap() / change["was"].as_f64().unwrap();
        assert!((1.5..10.0).contains(&times), "{operation}: {times}");
    }
    // One kernel, one annotation, on the line of its entry.
    let text = std::fs::read_to_string(kernels.path().join("rms_norm.cu")).unwrap();
    let entry = |line: &str| line.contains("__global__ void rms_norm_f32(");
    let line = text.lines().position(entry).unwrap() + 1;
    let annotations: Vec<&str> = out.lines().filter(|line| line.starts_with("::error ")).collect();
    assert_eq!(annotations.len(), 1, "{annotations:?}");
    let place = format!("::error file={}/rms_norm.cu,line={line},", path(kernels.path()));
    assert!(annotations[0].starts_with(&place), "{annotations:?}");
}

/// Sums in another order, products fused: every rounding of every kernel may fall otherwise.
#[test]
fn a_compiler_that_rounds_otherwise_is_no_regression() {
    let lab = Lab::blessed();
    let compiler = lab.folder.path().join("compiler");
    let script = "#!/bin/sh\n[ \"$1\" = --version ] && { echo other; exit; }\n\
                  for flag in \"$@\"; do\n    shift\n    [ \"$flag\" = -O2 ] && set -- \"$@\" -O3 \
                  -fassociative-math -fno-signed-zeros -fno-trapping-math && continue\n    \
                  set -- \"$@\" \"$flag\"\ndone\nexec c++ \"$@\"\n";
    std::fs::write(&compiler, script).unwrap();
    std::fs::set_permissions(&compiler, std::fs::Permissions::from_mode(0o755)).unwrap();
    let own = ["check", "-c", path(&lab.config), "--baseline", path(&lab.lock)];
    let output = firstdiff(&own).env("CXX", &compiler).env_remove("GITHUB_STEP_SUMMARY").output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn an_improvement_is_offered_by_check_and_taken_by_bless() {
    let lab = Lab::new();
    let kernels = worse();
    let edited = ["--kernels", path(kernels.path())];
    lab.run("bless", &[&edited[..], &["--all"]].concat(), "");
    let (exit, out, _) = lab.run("check", &[], "");
    assert_eq!(exit, 0, "{out}");
    assert!(out.contains(&format!("improved in 1 case, first {CASE}: ")), "{out}");
    assert!(out.contains("`firstdiff bless --improved` accepts it"), "{out}");
    let before = lab.lock();
    let (exit, out, _) = lab.run("bless", &["--improved"], "");
    assert_eq!(exit, 0, "{out}");
    assert_ne!(lab.lock(), before);
    assert_eq!(lab.run("check", &edited, "").0, 1, "the baseline is that of the better kernel");
}

#[test]
fn bless_takes_what_is_accepted_and_nothing_else() {
    let lab = Lab::blessed();
    let before = lab.lock();
    let kernels = worse();
    let bless = |more: &[&str], input: &str| {
        lab.run("bless", &[&["--kernels", path(kernels.path())][..], more].concat(), input)
    };
    // A regression is not taken unasked, as an improvement, or against an answer.
    for (more, input) in [(&[][..], ""), (&["--improved"], ""), (&["--ask"], "n\n")] {
        let (exit, out, _) = bless(more, input);
        assert!(exit == 1 && out.contains("is left unchanged"), "{out}");
        assert!(out.contains(&format!("  regressed  {CASE}: ")), "{out}");
        assert_eq!(lab.lock(), before, "{more:?}");
    }
    for (input, says) in [("perhaps\n", "\"perhaps\" is not an answer"), ("", "input ended before")]
    {
        let (exit, _, err) = bless(&["--ask"], input);
        assert!(exit == 2 && err.contains(says), "{err}");
        assert_eq!(lab.lock(), before);
    }
    let (exit, out, _) = bless(&["--ask"], "y\n");
    assert!(exit == 0 && out.contains("1 accepted; commit "), "{out}");
    assert_ne!(lab.lock(), before);
}

#[test]
fn bless_writes_nothing_in_ci() {
    let lab = Lab::new();
    let own = ["bless", "--all", "-c", path(&lab.config), "--baseline", path(&lab.lock)];
    let output = firstdiff(&own).env("CI", "true").output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(err.contains("bless writes nothing in CI"), "{err}");
    assert!(!lab.lock.exists());
}

#[test]
fn a_wrong_kernel_is_not_blessed() {
    let lab = Lab::blessed();
    let before = lab.lock();
    let kernels = changed("rope.cu", "sine = sinf(angle)", "sine = sinf(-angle)");
    let (exit, out, _) = lab.run("bless", &["--all", "--kernels", path(kernels.path())], "");
    assert!(exit == 1 && out.starts_with("0 changed, 0 as in the baseline, 1 not equal"), "{out}");
    assert_eq!(lab.lock(), before);
    // Its divergence is what check says, not its baseline.
    let (exit, out, _) = lab.run("check", &["--kernels", path(kernels.path())], "");
    assert!(exit == 1 && out.contains("first divergence: step 0 layer 0 q_rope"), "{out}");
}

#[test]
fn a_baseline_of_something_else_is_refused_and_one_that_is_missing_is_no_success() {
    let lab = Lab::blessed();
    let says = |config: String, code: i32, says: &str| {
        std::fs::write(&lab.config, config).unwrap();
        let (exit, out, _) = lab.run("check", &[], "");
        assert_eq!(exit, code, "{out}");
        assert!(out.contains(says), "{out}");
    };
    says(
        SMALL.replace("a girl", "a boy"),
        3,
        "its baseline is for a different engine or other tokens",
    );
    says(
        SMALL.replace("steps = 1", "steps = 2"),
        3,
        "its baseline is for a different engine or other tokens",
    );
    says(SMALL.replace("\"tiny-llama\"", "\"tiny-llama\"\nseed = 5"), 3, "for a different model (");
    says(SMALL.replace("[[models]]", "dtypes = [\"f16\"]\n[[models]]"), 4, "it has no baseline");
    std::fs::write(&lab.config, SMALL).unwrap();
    let text = std::fs::read_to_string(&lab.lock).unwrap();
    std::fs::write(&lab.lock, text.replace("\"logits\"", "\"blk.9.q\"")).unwrap();
    let (exit, out, _) = lab.run("check", &[], "");
    assert!(exit == 4 && out.contains("is only in the baseline or only in the run"), "{out}");
    std::fs::write(&lab.lock, "{}").unwrap();
    let (exit, out, err) = lab.run("check", &[], "");
    assert_eq!((exit, out.as_str(), err.lines().count()), (2, "", 1), "{err}");
    assert!(err.contains("is not a baseline of `firstdiff bless`: missing field"), "{err}");
}
