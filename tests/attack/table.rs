//! The hostile files of fixtures/attacks, and what each must say.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;

use super::program::{self, Outcome};

const TABLE: &str = "attacks.toml";
const CONFIG: &str =
    "steps = 0\n[[models]]\nfixture = true\n[[prompts]]\nname = \"a\"\ntext = \"Once\"\n";
/// What in a text stands for another text N times.
const REPEATED: [&str; 3] = ["<<", " x ", ">>"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    attack: Vec<Attack>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Attack {
    file: String,
    make: Option<String>,
    runs: Vec<String>,
    exit: i32,
    says: Vec<String>,
}

/// A run on a hostile file.
pub struct Trial {
    pub name: String,
    pub outcome: Outcome,
    /// What is not as the table has it.
    pub wrong: Vec<String>,
}

fn attacks() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/attacks")
}

fn table() -> Vec<Attack> {
    let text = fs::read_to_string(attacks().join(TABLE)).unwrap();
    toml::from_str::<Table>(&text).unwrap().attack
}

/// The files and folders that the table does not have, and those that it has and that are not there.
pub fn unlisted() -> Vec<String> {
    let listed = table().into_iter().filter(|attack| attack.make.is_none());
    let listed: BTreeSet<String> = listed.map(|attack| attack.file).collect();
    let there = fs::read_dir(attacks()).unwrap().map(|entry| entry.unwrap().file_name());
    let there: BTreeSet<String> = there.map(|name| name.into_string().unwrap()).collect();
    let own = [TABLE, "README.md"].map(str::to_string);
    listed.symmetric_difference(&there).filter(|name| !own.contains(name)).cloned().collect()
}

/// Runs one in so many of the table, from the first on.
pub fn trials(first: usize, step: usize) -> Vec<Trial> {
    let folder = tempfile::tempdir().unwrap();
    let capture = ["capture", "reference", "-o", "reference", "-p", "Once upon", "-n", "0"];
    let reference = program::run(firstdiff(&capture), folder.path());
    assert_eq!(reference.code, Some(0), "{reference:?}");
    fs::write(folder.path().join("firstdiff.toml"), CONFIG).unwrap();
    fs::create_dir(folder.path().join("dump")).unwrap();
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }";
    let array = [b"\x93NUMPY\x01\0", &(header.len() as u16).to_le_bytes()[..], header.as_bytes()];
    fs::write(folder.path().join("dump/a.npy"), [&array.concat()[..], &[0; 4]].concat()).unwrap();
    let mut trials = Vec::new();
    for attack in table().into_iter().skip(first).step_by(step) {
        put(&attack, folder.path());
        for run in &attack.runs {
            trials.push(attack.trial(run, folder.path()));
        }
    }
    trials
}

fn firstdiff(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_firstdiff"));
    command.args(arguments);
    command
}

/// Puts the file or folder of an attack into a folder.
fn put(attack: &Attack, folder: &Path) {
    let to = folder.join(&attack.file);
    match attack.make.as_deref() {
        None => copy(&attacks().join(&attack.file), &to),
        Some("pipe") => assert!(Command::new("mkfifo").arg(to).status().unwrap().success()),
        Some("link") => std::os::unix::fs::symlink(&to, &to).unwrap(),
        Some(made) => {
            let bytes = made.strip_suffix(" bytes").unwrap().parse().unwrap();
            File::create(to).unwrap().set_len(bytes).unwrap();
        }
    }
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir(to).unwrap();
        for entry in fs::read_dir(from).unwrap().flatten() {
            copy(&entry.path(), &to.join(entry.file_name()));
        }
        return;
    }
    let bytes = fs::read(from).unwrap();
    let is_text = from.extension().is_some_and(|end| end == "toml" || end == "json");
    let bytes = if is_text { expanded(std::str::from_utf8(&bytes).unwrap()) } else { bytes };
    fs::write(to, bytes).unwrap();
}

/// The text with what is in it many times.
fn expanded(text: &str) -> Vec<u8> {
    let [begin, times, end] = REPEATED;
    let (mut whole, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once(begin) {
        let (inside, after) = after.split_once(end).unwrap();
        let (part, n) = inside.rsplit_once(times).unwrap();
        whole += before;
        whole += &part.repeat(n.parse().unwrap());
        rest = after;
    }
    (whole + rest).into_bytes()
}

impl Attack {
    fn trial(&self, run: &str, folder: &Path) -> Trial {
        let arguments = run.replace('@', &self.file);
        let outcome = program::run(firstdiff(&arguments.split(' ').collect::<Vec<_>>()), folder);
        let mut wrong = outcome.faults();
        if outcome.code != Some(self.exit) {
            wrong.push(format!("exit {:?} instead of {}", outcome.code, self.exit));
        }
        if outcome.spoils_terminals() {
            wrong.push("prints control characters or a runner's commands".to_string());
        }
        let lines = outcome.err.lines().count();
        if self.exit != 4 && (lines != 1 || !outcome.is_told("")) {
            wrong.push(format!("{lines} lines, or no next step"));
        }
        let text = format!("{}{}", outcome.out, outcome.err);
        // As a line shows them.
        let shown = |words: &String| words.replace('\n', "\\n");
        let unsaid = self.says.iter().map(shown).filter(|words| !text.contains(words));
        wrong.extend(unsaid.map(|words| format!("does not say {words:?}")));
        Trial { name: arguments, outcome, wrong }
    }
}
