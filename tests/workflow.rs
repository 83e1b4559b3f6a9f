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
    let run = |kernels: &str, partition: &str, baseline: &str, reference: &str| {
        let variables = [
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
    let (exit, out) = run("", "", "", "");
    assert_eq!(exit, 0, "{out}");
    assert!(out.starts_with("equal: 2 of 2 cases\n"), "{out}");
    for name in ["out.json", "out.xml"] {
        assert!(folder.path().join(name).is_file(), "{name}");
    }
    let (exit, out) = run("", "slice:1/2", "", "");
    assert!(exit == 0 && out.starts_with("equal: 1 of 1 cases (part slice:1/2"), "{out}");
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
    for name in ["src", "kernels", "fixtures", "include", ".git"] {
        std::fs::create_dir_all(source.join(name)).unwrap();
        std::fs::write(source.join(name).join("file"), name).unwrap();
    }
    for name in ["Cargo.toml", "Cargo.lock"] {
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

#[test]
fn the_workflows_give_the_action_inputs_that_it_has() {
    let action = file("action.yml");
    let inputs = keys(&action, "inputs:");
    assert_eq!(inputs.len(), 8, "{inputs:?}");
    for input in &inputs {
        assert!(action.contains(&format!("inputs.{input}")), "{input} is used nowhere");
    }
    let own = file(".github/workflows/kernels.yml");
    let documented = file("docs/ci.md");
    for (text, uses) in [(&own, "- uses: ./\n"), (&documented, "- uses: OWNER/firstdiff@")] {
        let rest = text.split(uses).nth(1).unwrap();
        for key in keys(rest, "with:") {
            assert!(inputs.contains(&key), "{key}");
        }
    }
    let config = own.split("config: ").nth(1).unwrap().lines().next().unwrap();
    assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(config).is_file(), "{config}");
}
