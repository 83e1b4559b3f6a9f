//! The GitHub Action and the workflow that uses it: what their `run:` steps do when a shell runs them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

use crate::cli::path;

fn file(name: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(root.join(name)).unwrap()
}

/// The shell text of a named step, as YAML's `run: |` has it.
fn step(text: &str, name: &str) -> String {
    let step = text.split(&format!("- name: {name}\n")).nth(1).unwrap();
    let block = step.split("run: |\n").nth(1).unwrap();
    let first = block.lines().next().unwrap();
    let indent = first.len() - first.trim_start().len();
    let inside = |line: &&str| line.is_empty() || line.len() - line.trim_start().len() >= indent;
    let lines = block.lines().take_while(inside);
    lines.map(|line| format!("{}\n", line.get(indent..).unwrap_or_default())).collect()
}

/// The keys of a mapping that stand directly under a line.
fn keys(text: &str, under: &str) -> Vec<String> {
    let mut lines = text.lines().skip_while(|line| line.trim_start() != under);
    let own = lines.next().unwrap();
    let indent = own.len() - own.trim_start().len();
    let deeper = |line: &&str| line.is_empty() || line.len() - line.trim_start().len() > indent;
    let inner: Vec<&str> = lines.take_while(deeper).filter(|line| !line.is_empty()).collect();
    let key = |line: &&str| {
        let key = line.strip_prefix(&" ".repeat(indent + 2))?;
        (!key.starts_with(' ')).then(|| key.split(':').next().unwrap_or_default().to_string())
    };
    inner.iter().filter_map(key).collect()
}

/// As a runner runs `shell: bash`.
fn bash(script: &str, folder: &Path, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new("bash");
    command.args(["--noprofile", "--norc", "-eo", "pipefail", "-c", script]).current_dir(folder);
    command.env_remove("GITHUB_STEP_SUMMARY").env_remove("GITHUB_ACTIONS").env_remove("CI");
    command.envs(variables.iter().copied()).output().unwrap()
}

fn matrix() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = "steps = 1\nvariants = [\"scale=post\", \"scale=pre\"]\n[[models]]\n\
                synth = \"tiny-llama\"\n[[prompts]]\nname = \"word\"\ntext = \"Once\"\n";
    std::fs::write(folder.path().join("my check.toml"), text).unwrap();
    folder
}

#[test]
fn the_action_checks_what_its_inputs_say_and_fails_as_check_does() {
    let (folder, script) = (matrix(), step(&file("action.yml"), "Check"));
    let program = assert_cmd::cargo::cargo_bin("firstdiff");
    let run_or_merge =
        |parts: &str, kernels: &str, partition: &str, baseline: &str, reference: &str| {
            let variables = [
                ("PARTS", parts),
                ("REFERENCE", reference),
                ("PROGRAM", path(&program)),
                ("CONFIG", "my check.toml"),
                ("BASELINE", baseline),
                ("KERNELS", kernels),
                ("PARTITION", partition),
                ("RESULTS", "out.json"),
                ("JUNIT", "out.xml"),
            ];
            let output = bash(&script, folder.path(), &variables);
            (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
        };
    let run = |kernels: &str, partition: &str, baseline: &str, reference: &str| {
        run_or_merge("", kernels, partition, baseline, reference)
    };
    let (exit, out) = run("", "", "", "");
    assert_eq!(exit, 0, "{out}");
    assert!(out.starts_with("equal: 2 of 2 cases\n"), "{out}");
    for name in ["out.json", "out.xml"] {
        assert!(folder.path().join(name).is_file(), "{name}");
    }
    let (exit, out) = run("", "slice:1/2", "", "");
    assert!(exit == 0 && out.starts_with("equal: 1 of 1 cases (part slice:1/2"), "{out}");
    let part =
        |name: &str| std::fs::rename(folder.path().join("out.json"), folder.path().join(name));
    part("part 1.json").unwrap();
    assert_eq!(run("", "slice:2/2", "", "").0, 0);
    part("part 2.json").unwrap();
    let (exit, out) = run_or_merge("part*.json", "", "", "", "");
    assert!(exit == 0 && out.starts_with("equal: 2 of 2 cases\n"), "{out}");
    assert_eq!(run_or_merge("*1.json", "", "", "", "").0, 3, "a part is missing");
    let kernels = crate::checked::changed("rope.cu", "sine = sinf(angle)", "sine = sinf(-angle)");
    assert_eq!(run(path(kernels.path()), "", "", "").0, 1);
    std::fs::write(folder.path().join("lock.json"), "{\"lock_version\": 1, \"cases\": {}}")
        .unwrap();
    let (exit, out) = run("", "", "lock.json", "");
    assert!(exit == 4 && out.contains("it has no baseline"), "{out}");
    assert_eq!(run("", "", "", "out.json").0, 2, "results are not a snapshot");
}

/// The cache's key must change with what is built, and with nothing else.
#[test]
fn the_action_names_its_build_by_what_is_built() {
    let folder = tempfile::tempdir().unwrap();
    let (source, output) = (folder.path().join("source"), folder.path().join("output"));
    for name in ["src", "kernels", "fixtures", "include", ".cargo", ".git"] {
        std::fs::create_dir_all(source.join(name)).unwrap();
        std::fs::write(source.join(name).join("file"), name).unwrap();
    }
    for name in ["Cargo.toml", "Cargo.lock", "build.rs"] {
        std::fs::write(source.join(name), name).unwrap();
    }
    let script = step(&file("action.yml"), "Name the build");
    let key = || {
        std::fs::write(&output, "").unwrap();
        let variables = [("SOURCE", path(&source)), ("GITHUB_OUTPUT", path(&output))];
        let run = bash(&script, folder.path(), &variables);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        std::fs::read_to_string(&output).unwrap()
    };
    let first = key();
    assert!(first.starts_with("key=firstdiff-Linux-") && first.len() > 40, "{first}");
    std::fs::write(source.join(".git/file"), "other").unwrap();
    assert_eq!(key(), first);
    std::fs::write(source.join("kernels/file"), "other").unwrap();
    assert_ne!(key(), first);
}

/// A folder of programs that stand for those of a runner: git knows one release, curl copies files of it, gh says what
/// `GH` says.
fn runner(folder: &Path, release: &Path) -> String {
    let programs = folder.join("programs");
    std::fs::create_dir(&programs).unwrap();
    let copy = format!("cp {}/\"$(basename \"${{@: -1}}\")\" .", path(release));
    for (name, text) in [
        ("git", "printf '%s\\trefs/tags/v0.1.0\\n' \"$COMMIT\"".to_string()),
        ("curl", copy),
        ("gh", "exit \"$GH\"".to_string()),
    ] {
        let program = programs.join(name);
        std::fs::write(&program, format!("#!/bin/bash\n{text}\n")).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, executable).unwrap();
    }
    format!("{}:{}", path(&programs), std::env::var("PATH").unwrap())
}

#[test]
fn the_action_takes_a_verified_release_of_its_own_version_and_nothing_else() {
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    let folder = tempfile::tempdir().unwrap();
    let release = folder.path().join("release");
    let name = format!("firstdiff-0.1.0-{}-unknown-linux-gnu", std::env::consts::ARCH);
    std::fs::create_dir_all(release.join(&name)).unwrap();
    std::fs::write(release.join(&name).join("firstdiff"), "program").unwrap();
    let tar = format!("tar -czf {name}.tar.gz {name} && sha256sum {name}.tar.gz > SHA256SUMS");
    assert!(bash(&tar, &release, &[]).status.success());
    let search = runner(folder.path(), &release);
    let script = step(&file("action.yml"), "Download the release");
    let home = folder.path().join("home");
    let run = |revision: &str, gh: &str| {
        let _ = std::fs::remove_dir_all(&home);
        let variables = [
            ("PATH", &*search),
            ("HOME", path(&home)),
            ("SOURCE", env!("CARGO_MANIFEST_DIR")),
            ("REPOSITORY", "owner/firstdiff"),
            ("REVISION", revision),
            ("SERVER", "https://server"),
            ("COMMIT", COMMIT),
            ("GH", gh),
        ];
        let output = bash(&script, folder.path(), &variables);
        let text = String::from_utf8(output.stdout).unwrap();
        let is_there = home.join(".firstdiff/bin/firstdiff").is_file();
        assert_eq!(is_there, output.status.success(), "{text}");
        text
    };
    for revision in ["v0.1.0", COMMIT] {
        assert!(!run(revision, "0").contains("::error"), "{revision}");
    }
    for revision in ["main", "v0.2.0", "", &COMMIT.replace('0', "1")] {
        let text = run(revision, "0");
        assert!(text.contains("is not release v0.1.0; set build: true"), "{revision}: {text}");
    }
    assert!(
        run("v0.1.0", "1")
            .contains("::error title=firstdiff::no attestation says that owner/firstdiff")
    );
    std::fs::write(release.join(format!("{name}.tar.gz")), "other").unwrap();
    assert!(run("v0.1.0", "0").contains("the checksum of firstdiff-0.1.0-"));
    std::fs::remove_file(release.join("SHA256SUMS")).unwrap();
    assert!(run("v0.1.0", "0").contains("SHA256SUMS could not be downloaded"));
}

/// What was measured with one program and one set of kernels is of no use to others.
#[test]
fn the_action_keeps_what_was_measured_by_program_and_kernels() {
    let folder = matrix();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    std::fs::create_dir(folder.path().join("mine")).unwrap();
    write("mine/rope.cu", "// one");
    write("program", "one");
    let script = step(&file("action.yml"), "Name what was measured");
    let names = |kernels: &str| {
        write("output", "");
        let variables = [
            ("PROGRAM", "program"),
            ("CONFIG", "my check.toml"),
            ("KERNELS", kernels),
            ("GITHUB_OUTPUT", "output"),
        ];
        let run = bash(&script, folder.path(), &variables);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let text = std::fs::read_to_string(folder.path().join("output")).unwrap();
        let [program, kernels] = ["program=", "kernels="].map(|name| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            assert_eq!(line.len(), 16, "{text}");
            line.to_string()
        });
        (program, kernels)
    };
    let (first, given) = (names(""), names("mine"));
    assert!(first.0 == given.0 && first.1 != given.1);
    write("mine/rope.cu", "// two");
    assert!(names("") == first && names("mine").1 != given.1);
    write("program", "two");
    assert!(names("").0 != first.0 && names("").1 == first.1);
    // A folder that the matrix names counts as one that is given.
    let config = std::fs::read_to_string(folder.path().join("my check.toml")).unwrap();
    write("my check.toml", &format!("kernels = \"mine\"\n{config}"));
    let named = names("");
    write("mine/rope.cu", "// three");
    assert_ne!(names(""), named);
}

#[test]
fn the_workflows_give_the_action_inputs_that_it_has() {
    let action = file("action.yml");
    let inputs = keys(&action, "inputs:");
    assert_eq!(inputs.len(), 10, "{inputs:?}");
    for input in &inputs {
        assert!(action.contains(&format!("inputs.{input}")), "{input} is used nowhere");
    }
    let own = file(".github/workflows/kernels.yml");
    let documented = file("docs/ci.md");
    for (text, uses, n) in [(&own, "- uses: ./\n", 1), (&documented, "- uses: OWNER/firstdiff@", 3)]
    {
        let steps: Vec<&str> = text.split(uses).skip(1).collect();
        assert_eq!(steps.len(), n);
        for key in steps.into_iter().flat_map(|rest| keys(rest, "with:")) {
            assert!(inputs.contains(&key), "{key}");
        }
    }
    let config = own.split("config: ").nth(1).unwrap().lines().next().unwrap();
    assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(config).is_file(), "{config}");
}
