//! The program under attack: hostile kernels, damaged files, signals. `make attack` does much more of it.

pub mod damaged;
pub mod kernels;
pub mod program;
mod table;

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use damaged::Random;
use kernels::{Fate, Hostile};
use program::Outcome;

use crate::common;

fn firstdiff(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_firstdiff"));
    command.args(arguments);
    command
}

/// A folder with the hostile kernels in `hostile/`.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("hostile")).unwrap();
    std::fs::write(folder.path().join("hostile").join(kernels::FILE), kernels::source()).unwrap();
    folder
}

const RUN: [&str; 9] =
    ["run", "--kernels", "hostile", "-p", "Once upon a time", "-n", "1", "--timeout", "3"];

/// What is wrong with the fate of a hostile kernel.
fn misjudged(place: usize, hostile: &Hostile, folder: &Path) -> Vec<String> {
    let mut command = firstdiff(&[&RUN[..], &["--json", "-"]].concat());
    command.env(kernels::CHOICE, place.to_string());
    let outcome = program::run(command, folder);
    let mut wrong = outcome.faults();
    let expected = match hostile.fate {
        Fate::Blamed => outcome.code == Some(5) && outcome.is_told(kernels::FILE),
        Fate::Ended => outcome.code.is_some_and(|code| code > 0) && outcome.is_told(""),
        Fate::Harmless => outcome.code == Some(0) && outcome.out.starts_with('{'),
    };
    if !expected {
        let Outcome { code, err, out, .. } = &outcome;
        let out: String = out.chars().take(100).collect();
        wrong.push(format!("{:?} expected, exit {code:?}: {err:?} {out:?}", hostile.fate));
    }
    wrong.into_iter().map(|wrong| format!("{}: {wrong}\n", hostile.name)).collect()
}

/// Two halves, so that they run side by side.
fn all_are_judged(part: usize) {
    let folder = folder();
    let chosen = kernels::ALL.iter().enumerate().skip(part).step_by(2);
    let wrong: String =
        chosen.flat_map(|(place, hostile)| misjudged(place, hostile, folder.path())).collect();
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_hostile_kernel_is_blamed_by_its_file_or_does_no_harm() {
    all_are_judged(0);
}

#[test]
fn another_hostile_kernel_is_blamed_by_its_file_or_does_no_harm() {
    all_are_judged(1);
}

fn place_of(name: &str) -> String {
    kernels::ALL.iter().position(|hostile| hostile.name == name).unwrap().to_string()
}

#[test]
fn the_other_cases_of_a_check_go_on_after_one_that_kills_its_process() {
    let folder = folder();
    let config = "steps = 1\nkernels = \"hostile\"\ndtypes = [\"f32\", \"f16\"]\n\
                  [[models]]\nfixture = true\n\
                  [[prompts]]\nname = \"a\"\ntext = \"Once\"\n[[prompts]]\nname = \"b\"\ntext = \"Once upon\"\n";
    let source = kernels::source()
        .replace("if (i == 0) hostile(out, n);", "if (i == 0 && sizeof(T) == 2) hostile(out, n);");
    std::fs::write(folder.path().join("hostile").join(kernels::FILE), source).unwrap();
    std::fs::write(folder.path().join("firstdiff.toml"), config).unwrap();
    let arguments = ["check", "--json", "c.json", "--junit", "c.xml", "--annotations"];
    let mut command = firstdiff(&arguments);
    command.env(kernels::CHOICE, place_of("calls _exit(0)"));
    let outcome = program::run(command, folder.path());
    assert_eq!(outcome.faults(), Vec::<String>::new());
    assert_eq!(outcome.code, Some(5), "{outcome:?}");
    let json = std::fs::read_to_string(folder.path().join("c.json")).unwrap();
    let results: serde_json::Value = serde_json::from_str(&json).unwrap();
    let exits: Vec<&str> = results["cases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|case| case["exit"].as_str().unwrap())
        .collect();
    assert_eq!(exits, ["equal", "device", "equal", "device"], "{json}");
    let junit = std::fs::read_to_string(folder.path().join("c.xml")).unwrap();
    let says =
        "residual_add.cu: residual_add_f16 ended the program (exit status 0) in layer 0 of step 0";
    for text in [&junit, &outcome.out] {
        assert!(text.contains(says), "{text}");
    }
    assert!(outcome.out.lines().any(|line| line.starts_with("::error ")), "{}", outcome.out);
}

#[test]
fn the_other_kernels_are_checked_after_one_that_kills_its_process() {
    let folder = folder();
    let arguments = ["kernels", "check", "--kernels", "hostile", "residual_add.cu", "swiglu.cu"];
    let mut command = firstdiff(&[&arguments[..], &["--shuffle-threads", "0"]].concat());
    command.env(kernels::CHOICE, place_of("calls _exit(1)"));
    let outcome = program::run(command, folder.path());
    assert_eq!((outcome.faults(), outcome.code), (vec![], Some(1)), "{outcome:?}");
    assert!(outcome.out.contains("ended the program (exit status 1)"), "{}", outcome.out);
    let row = |name: &str| outcome.out.lines().rfind(|line| line.contains(name)).unwrap();
    assert!(row("residual_add.cu").trim_end().ends_with("crash"), "{}", outcome.out);
    assert!(row("swiglu.cu").trim_end().ends_with("clean"), "{}", outcome.out);
}

#[test]
fn what_a_kernel_prints_is_marked_and_never_on_standard_output() {
    let folder = folder();
    let mut command = firstdiff(&RUN);
    command.env(kernels::CHOICE, place_of("prints"));
    let outcome = program::run(command, folder.path());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(
        outcome.err.lines().any(|line| line == "| {\"verdict\": \"equal\"}"),
        "{}",
        outcome.err
    );
    assert!(!outcome.out.contains("verdict\""), "{}", outcome.out);
}

#[test]
fn each_hostile_file_is_in_the_table() {
    assert_eq!(table::unlisted(), Vec::<String>::new());
}

/// Two halves, as above.
fn hostile_files(part: usize) {
    let wrong = |trial: table::Trial| {
        let table::Trial { name, outcome, wrong } = trial;
        (!wrong.is_empty()).then(|| format!("{name}: {wrong:?}: {:?}\n", outcome.err))
    };
    let wrong: String = table::trials(part, 2).into_iter().filter_map(wrong).collect();
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_hostile_file_is_one_line_with_what_the_table_says() {
    hostile_files(0);
}

#[test]
fn another_hostile_file_is_one_line_with_what_the_table_says() {
    hostile_files(1);
}

/// A compiler that answers and then never ends, with a child of its own.
#[test]
fn a_compiler_that_does_not_end_is_ended_with_its_children() {
    let folder = folder();
    let script = "#!/bin/sh\ncase \"$*\" in *--version*) echo slow;; *) sleep 100 & wait;; esac\n";
    let compiler = executable(folder.path(), "slow-c++", script);
    let mut command = firstdiff(&["run", "--kernels", "hostile", "--timeout", "1"]);
    command.env("CXX", &compiler);
    let outcome = program::run(command, folder.path());
    assert_eq!((outcome.faults(), outcome.code), (vec![], Some(5)), "{outcome:?}");
    assert!(outcome.is_told("the compiler has not returned for"), "{}", outcome.err);
}

fn executable(folder: &Path, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Damaged models: an answer of some kind, and where it is no verdict, one that names the file.
fn damaged_models(seeds: std::ops::Range<u64>) {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(common::fixture()).unwrap();
    let mut wrong = String::new();
    for seed in seeds {
        let (mut bytes, mut random) = (whole.clone(), Random(seed));
        let what = if seed % 3 == 0 {
            damaged::absurd_number(&mut bytes, &mut random)
        } else {
            let header = if seed % 2 == 0 { 2_000 } else { 60_000 };
            damaged::damage(&mut bytes, header, &mut random)
        };
        std::fs::write(folder.path().join("model.gguf"), bytes).unwrap();
        let command =
            firstdiff(&["run", "-m", "model.gguf", "-p", "Once", "-n", "0", "--timeout", "5"]);
        let outcome = program::run(command, folder.path());
        let mut faults = outcome.faults();
        if outcome.code != Some(0) && outcome.out.is_empty() && !outcome.is_told("model.gguf") {
            faults.push("does not name the file and a next step".to_string());
        }
        for fault in faults {
            wrong += &format!("seed {seed}, {what}: {fault}: {}\n", outcome.err);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_damaged_model_is_one_line_with_its_name() {
    damaged_models(0..30);
}

#[test]
fn another_damaged_model_is_one_line_with_its_name() {
    damaged_models(30..60);
}

#[test]
fn a_signal_at_any_moment_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random(19);
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)].into_iter().cycle().take(12) {
        let arguments =
            ["capture", "engine", "-o", "trace", "-p", "Once", "-n", "2", "--overwrite"];
        let started = program::start(firstdiff(&arguments), folder.path());
        // Before it listens, a signal ends it as it ends any program.
        thread::sleep(Duration::from_millis(50 + random.below(400) as u64));
        let pid = started.child.id().to_string();
        // It may have ended before.
        let _ = Command::new("kill").args([&format!("-{signal}"), &pid]).output().unwrap();
        let outcome = started.finish();
        assert_eq!(outcome.faults(), Vec::<String>::new(), "{signal}: {outcome:?}");
        assert!([Some(code), Some(0)].contains(&outcome.code), "{signal}: {outcome:?}");
    }
}

#[test]
fn the_worker_of_a_killed_program_ends_and_the_next_run_removes_what_it_left() {
    let folder = folder();
    let compiled = program::run(firstdiff(&RUN), folder.path());
    assert_eq!((compiled.faults(), compiled.code), (vec![], Some(0)), "{compiled:?}");
    let mut command = firstdiff(&RUN);
    command.env(kernels::CHOICE, place_of("loops for ever"));
    let mut started = program::start(command, folder.path());
    thread::sleep(Duration::from_millis(1500));
    started.child.kill().unwrap();
    thread::sleep(Duration::from_millis(300));
    let outcome = started.finish();
    assert_eq!((&outcome.orphans, outcome.signal), (&vec![], Some(9)), "{outcome:?}");
    let outcome = program::run(firstdiff(&["run", "-p", "Once", "-n", "0"]), folder.path());
    assert_eq!((outcome.faults(), outcome.code), (vec![], Some(0)));
}

#[test]
fn without_a_worker_the_verdict_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["run", "-p", "Once", "-n", "1", "--fault", "scale-missing"];
    let watched = program::run(firstdiff(&arguments), folder.path());
    let alone = firstdiff(&arguments).env("FIRSTDIFF_IN_PROCESS", "1").output().unwrap();
    assert_eq!(watched.out, String::from_utf8(alone.stdout).unwrap());
    assert_eq!((watched.code, alone.status.code()), (Some(1), Some(1)));
}
