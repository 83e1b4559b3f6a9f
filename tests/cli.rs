use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;

/// The program, in its own process and as outside CI, wherever the tests run.
pub fn firstdiff(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("firstdiff").unwrap();
    command.args(arguments);
    for variable in ["CI", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"] {
        command.env_remove(variable);
    }
    command
}

/// Exit code, standard output and standard error of a command.
pub fn outcome(arguments: &[&str]) -> (i32, String, String) {
    let output = firstdiff(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A user's mistake: the exit code, nothing on standard output, one line that says it.
#[track_caller]
pub fn refused(arguments: &[&str], code: i32, says: &str) {
    let (exit, out, err) = outcome(arguments);
    assert_eq!((exit, out.as_str()), (code, ""), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.contains(says), "{err}");
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub const SHORT: [&str; 4] = ["-p", "Once upon a time there was a girl", "-n", "2"];

#[test]
fn a_clean_run_says_so_in_its_first_line_and_exits_0() {
    let (exit, out, err) = outcome(&["run"]);
    assert_eq!((exit, err.as_str()), (0, ""));
    let first = out.lines().next().unwrap();
    let wanted =
        "equal within the floor: 395 of 395 sites (4 layers, 86 prompt tokens, 4 decode steps)";
    assert!(first.starts_with(wanted), "{first}");
}

#[test]
fn a_planted_fault_is_the_first_line_and_exits_1() {
    let (exit, out, _) = outcome(&["run", "--fault", "rope-pairs-interleaved"]);
    assert_eq!(exit, 1);
    let first = out.lines().next().unwrap();
    assert!(first.starts_with("first divergence: step 0 layer 0 q_rope [position 1, "), "{first}");
    assert!(out.contains("which: positions >= 1;"), "{out}");
}

/// The whole text of a found fault. Numbers that rounding moves are blanked.
#[test]
fn the_report_of_a_fault_reads_as_documented() {
    let run = |more: &[&str]| {
        outcome(&[&["run", "--fault", "ffn-down-zero"][..], &SHORT, more].concat()).1
    };
    insta::with_settings!({filters => vec![
        (r"host \(.*\)", "host (COMPILER)"),
        (r"/\S*/fixture/tiny-qwen2\S*", "FIXTURE"),
        (r"(floor +)\S+( an element, )\S+", "${1}F$2F"),
        (r"(max abs )\S+, relative L2 \S+, cosine \S+, norm ratio \S+, \d+ ulp", "${1}X"),
        (r"(engine|reference) -?[0-9][0-9.e-]*", "$1 X"),
        (r"[0-9.]+(e[0-9]+)? x floor", "N x floor"),
        (r"worst [0-9.e]+ x bound: .*", "worst N x bound: PLACE"),
        (r"\d+ other causes", "N other causes"),
        (r"[0-9,]+( of [0-9,]+ elements beyond)", "N$1"),
        (r"worst 0\.\d+ x", "worst 0.N x"),
        (r" (\d+) of (\d+) after it", " N of $2 after it"),
        (r"\d+ of (\d+ elements), [0-9.]+ %", "N of $1"),
        (r"\(\d+\.\d\d\)", "(G)"),
        (r"(?m)^(  [a-z_]+ +\d+ +\d+ +)\S+", "${1}N"),
    ]}, {
        insta::assert_snapshot!("a_screen", run(&[]));
        insta::assert_snapshot!("all_of_it", run(&["--verbose"]));
    });
}

#[test]
fn a_program_gets_the_answer_in_4_kb() {
    let faults = ["--fault", "qkv-bias-zero", "--fault", "rope-pairs-interleaved"];
    let run = |more: &[&str]| outcome(&[&["run"], &faults[..], more, &SHORT].concat());
    let (exit, out, _) = run(&["--format", "agent"]);
    assert!(exit == 1 && out.len() <= 4096, "{out}");
    let summary: Value = serde_json::from_str(&out).unwrap();
    let (_, text, _) = run(&[]);
    assert_eq!(summary["answer"], text.lines().next().unwrap());
    assert_eq!(summary["guilty"][1]["cause"], "pairs (2i, 2i+1) instead of (i, i+d/2)");
    let kernel = summary["guilty"][1]["kernel"].as_str().unwrap();
    assert!(kernel.starts_with("kernels/rope.cu:"), "{kernel}");
    // The commands run as they are.
    let [first, ..] = &summary["next"].as_array().unwrap()[..] else { panic!("{out}") };
    let command = first["command"].as_str().unwrap();
    assert!(command.starts_with("firstdiff run --fault qkv-bias-zero "), "{command}");
    assert!(!command.contains("--format"), "{command}");
    let (_, whole, _) = run(&["--json", "-"]);
    let whole: Value = serde_json::from_str(&whole).unwrap();
    assert_eq!(whole["summary"]["guilty"], summary["guilty"]);
    let (exit, out, err) = run(&["--json", "-", "--format", "agent"]);
    assert!((exit, &*out) == (2, "") && err.contains("choose one"), "{err}");
}

#[test]
fn json_has_the_headline_every_site_and_the_tokens() {
    let arguments = [&["run", "--json", "-", "--fault", "scale-missing"][..], &SHORT].concat();
    let (exit, out, _) = outcome(&arguments);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((exit, report["headline"]["exit_code"].as_i64()), (1, Some(1)));
    assert_eq!(report["headline"]["first_divergence"], "0/blk.0.scores");
    assert_eq!(report["sites"].as_array().unwrap().len(), 237);
    assert_eq!(report["steps"].as_array().unwrap().len(), 3);
    assert_eq!(report["sites"][0]["outcome"], "equal");
    assert_eq!(report["report_version"], 9);
    let findings = report["diagnosis"]["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0]["verdict"], "engine_wrong");
    assert_eq!(findings[0]["cause"]["key"], "score-scale");
    assert_eq!(findings[0]["cause"]["certainty"], "proven");
    assert_eq!(findings[0]["operations"].as_array().unwrap().len(), 4);
}

#[test]
fn capture_then_diff_gives_the_verdict_of_run() {
    let folder = tempfile::tempdir().unwrap();
    let (reference, engine) = (folder.path().join("reference"), folder.path().join("engine"));
    let record = |side, to: &Path, more: &[&str]| {
        let arguments = [&["capture", side, "-o", path(to), "--overwrite"][..], &SHORT, more];
        assert_eq!(outcome(&arguments.concat()).0, 0);
    };
    record("reference", &reference, &[]);
    for more in [&[][..], &["--fault", "kv-head-modulo"], &["--dtype", "f16"]] {
        record("engine", &engine, more);
        let run = [&["run"][..], &SHORT, more].concat();
        let (run_exit, run_out, _) = outcome(&run);
        // In either order: the engine's trace is judged by the reference's.
        for pair in [[&engine, &reference], [&reference, &engine]] {
            let (exit, out, err) = outcome(&["diff", path(pair[0]), path(pair[1])]);
            assert_eq!(exit, run_exit, "{err}");
            assert_eq!(out.lines().next(), run_out.lines().next());
        }
    }
}

#[test]
fn traces_of_another_prompt_or_model_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let model = at("m.gguf");
    assert_eq!(outcome(&["synth", "-o", path(&model), "--vocab", "2048"]).0, 0);
    for (name, arguments) in [
        ("reference", &["-p", "Once upon a time", "-n", "1"][..]),
        ("other-prompt", &["-p", "Once upon a day", "-n", "1"]),
        ("other-model", &["-m", path(&model), "-p", "Once upon a time", "-n", "1"]),
    ] {
        let side = if name == "reference" { "reference" } else { "engine" };
        let to = at(name);
        let capture = [&["capture", side, "-o", path(&to)][..], arguments].concat();
        let (exit, _, err) = outcome(&capture);
        assert_eq!(exit, 0, "{err}");
    }
    let reference = at("reference");
    refused(&["diff", path(&at("other-prompt")), path(&reference)], 3, "token");
    refused(&["diff", path(&at("other-model")), path(&reference)], 3, "model");
    let step = at("other-prompt").join("step-0000.safetensors");
    let mut bytes = std::fs::read(&step).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&step, bytes).unwrap();
    refused(&["diff", path(&at("other-prompt")), path(&reference)], 3, "step-0000.safetensors");
    refused(&["diff", path(&at("absent")), path(&reference)], 2, "absent");
}

#[test]
fn traces_without_all_sites_are_not_green_unless_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (reference, engine) = (folder.path().join("r"), folder.path().join("e"));
    let capture = ["capture", "reference", "-o", path(&reference)];
    assert_eq!(outcome(&[&capture[..], &SHORT].concat()).0, 0);
    let capture = ["capture", "engine", "-o", path(&engine), "--sites", "layer_out,logits"];
    assert_eq!(outcome(&[&capture[..], &SHORT].concat()).0, 0);
    let (exit, out, _) = outcome(&["diff", path(&engine), path(&reference)]);
    assert_eq!(exit, 4);
    assert!(out.starts_with("not enough measured: 15 of 237 sites"), "{out}");
    let asked = ["diff", path(&engine), path(&reference), "--sites", "layer_out,logits"];
    assert_eq!(outcome(&asked).0, 0);
}

#[test]
fn mistakes_get_one_line_with_the_next_step_and_exit_2() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let cut = at("cut.gguf");
    let whole = std::fs::read(crate::common::fixture()).unwrap();
    std::fs::write(&cut, &whole[..whole.len() - 1000]).unwrap();
    refused(&["run", "-m", "absent.gguf"], 2, "cannot read absent.gguf");
    refused(&["run", "-m", path(&cut)], 2, "ends inside its tensor");
    refused(&["run", "-p", ""], 2, "the prompt has no tokens");
    refused(&["run", "-f", "absent.txt"], 2, "cannot read absent.txt");
    refused(&["run", "--fault", "bogus"], 2, "`firstdiff faults` lists them");
    refused(&["run", "--sites", "bogus"], 2, "bogus matches no site");
    refused(&["run", "--kernels", "absent"], 2, "cannot read absent");
    refused(&["run", "--factor", "0"], 2, "--factor 0 is out of range");
    refused(&["run", "--factor", "1e9"], 2, "at most 1000");
    refused(&["run", "--json", "absent/report.json"], 2, "cannot write absent/report.json");
    refused(&["run", "-n", "4000"], 2, "was trained for 2048");
    refused(&["synth", "-o", path(&at("x")), "--shape", "huge"], 2, "no shape huge");
    refused(&["synth", "-o", "absent/x.gguf"], 2, "cannot write absent/x.gguf");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
}

#[test]
fn a_fault_that_changes_nothing_on_the_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("llama.gguf");
    assert_eq!(outcome(&["synth", "-o", path(&model), "--shape", "tiny-llama"]).0, 0);
    let run = ["run", "-m", path(&model), "--fault", "qkv-bias-zero"];
    refused(&run, 2, "has no effect here: the model has no q, k or v bias");
}

#[test]
fn a_kernel_that_does_not_compile_shows_the_compilers_own_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("swiglu.cu"), "\n\nint x = ;\n").unwrap();
    let (exit, _, err) = outcome(&["run", "--kernels", path(folder.path())]);
    assert_eq!(exit, 5);
    assert!(err.contains("swiglu.cu does not compile"), "{err}");
    assert!(err.contains("swiglu.cu:3:9: error"), "{err}");
}

#[test]
fn a_kernel_without_its_entry_names_it() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("swiglu.cu"), "// nothing here\n").unwrap();
    let (exit, _, err) = outcome(&["run", "--kernels", path(folder.path())]);
    assert_eq!(exit, 5);
    assert!(err.contains("no kernel entry swiglu_f32"), "{err}");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let program = assert_cmd::cargo::cargo_bin("firstdiff");
    let script = format!(
        "'{}' run -n 0 -p 'Once upon' | head -1; exit ${{PIPESTATUS[0]}}",
        program.display()
    );
    let output = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn every_fault_variant_and_completion_is_listed() {
    let (exit, out, _) = outcome(&["faults"]);
    assert_eq!(exit, 0);
    for fault in &firstdiff::engine::fault::FAULTS {
        assert!(out.contains(fault.name), "{out}");
    }
    let (exit, out, _) = outcome(&[&["variants"][..], &SHORT].concat());
    assert_eq!(exit, 0);
    assert!(out.starts_with("8 of 8 attention variants agree with llama.cpp"), "{out}");
    for shell in ["bash", "zsh", "fish"] {
        let (exit, out, _) = outcome(&["completions", shell]);
        assert_eq!(exit, 0);
        assert!(out.contains("firstdiff"));
    }
}

#[test]
fn nan_weights_are_found_in_the_ledger_and_in_the_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("nan.gguf");
    let model = firstdiff::model::ModelFile::open(&crate::common::fixture()).unwrap();
    let norm = model.info("blk.1.ffn_norm.weight").unwrap();
    let mut bytes = std::fs::read(&model.path).unwrap();
    bytes[norm.offset + 4..norm.offset + 8].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&broken, bytes).unwrap();
    let (exit, out, err) = outcome(&[&["run", "-m", path(&broken)][..], &SHORT].concat());
    assert!(
        out.contains("blk.1.ffn_norm.weight has 1 NaN or infinite elements, first at 1"),
        "{out}{err}"
    );
    // Both sides compute NaN, and llama.cpp cannot go on: nothing that is not measured is green.
    assert_eq!(exit, 4, "{out}");
    assert!(out.contains("own logits are NaN after step 0"), "{out}");
}
