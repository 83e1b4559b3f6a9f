//! Every command that the docs show is run, and prints what its page shows; or commands.toml says why not.
//!
//! `FIRSTDIFF_BLESS_DOCS=1 cargo test --release --test main docs::` writes what is printed into the pages.

mod page;
mod session;
mod shown;

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command, sync::LazyLock};

use serde::Deserialize;

use crate::bring::support::project;
use page::Line;
use session::{Folder, Ran};

/// What a page's commands need to be run in a test.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    command: Vec<Entry>,
}

/// A command of a page that does not run as it stands. An entry is of one command, and they come in the page's order.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    page: String,
    /// How the command begins.
    command: String,
    /// Why the test does not run it.
    not_run: Option<String>,
    /// What makes, beforehand, what its reader has.
    before: Option<String>,
    /// What is run in its place.
    instead: Option<String>,
    /// The columns of the terminal that shows it; its lines are then wrapped.
    columns: Option<usize>,
    /// Its exit code where that is neither 0 nor 1, a verdict.
    code: Option<i32>,
}

static TABLE: LazyLock<Table> =
    LazyLock::new(|| toml::from_str(&read("tests/docs/commands.toml")).unwrap());

/// A command, and how it is run.
struct Step {
    command: page::Command,
    entry: Option<&'static Entry>,
}

impl Step {
    /// What the shell runs; nothing where it is not run.
    fn script(&self) -> Option<String> {
        let text = &self.command.text;
        let Some(entry) = self.entry else { return Some(text.clone()) };
        match (entry.columns, &entry.instead, &entry.not_run) {
            (_, _, Some(_)) => None,
            (Some(columns), ..) => Some(format!("in_columns {columns} '{text}'")),
            (None, Some(instead), None) => Some(instead.clone()),
            (None, None, None) => Some(text.clone()),
        }
    }
}

fn read(page: &str) -> String {
    fs::read_to_string(project().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"))
}

/// The commands of a page, each with its entry; every entry has its command.
fn steps(page: &str) -> Vec<Step> {
    let commands = page::commands(&read(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
    let mut entries: Vec<&Entry> = TABLE.command.iter().filter(|one| one.page == page).collect();
    let step = |command: page::Command| {
        let own = entries.iter().position(|entry| command.text.starts_with(&entry.command));
        let entry = own.map(|at| entries.remove(at));
        Step { command, entry }
    };
    let steps: Vec<Step> = commands.into_iter().map(step).collect();
    let left: Vec<&str> = entries.iter().map(|entry| &*entry.command).collect();
    assert!(left.is_empty(), "{page} has no command {left:?}; tests/docs/commands.toml names it");
    steps
}

/// Runs the commands of a page in a folder of its own and holds what it shows to what they print.
fn hold(page: &str) {
    let steps = steps(page);
    let mut scripts = Vec::new();
    for step in &steps {
        let before = step.entry.and_then(|entry| entry.before.clone());
        scripts.extend(before.map(|before| format!("(set -e\n{before}\n)")));
        scripts.extend(step.script());
    }
    let mut ran = Folder::new(project()).run(&scripts).into_iter();
    let mut wrong = Vec::new();
    let mut shown = Vec::new();
    for step in &steps {
        let place = format!("{page}:{}: `{}`", step.command.line, step.command.text);
        if step.entry.is_some_and(|entry| entry.before.is_some()) {
            let before = ran.next().unwrap();
            assert_eq!(before.code, 0, "{place}: what its reader has: {}", before.output);
        }
        if step.script().is_some() {
            let ran = ran.next().unwrap();
            wrong.extend(held(page, &place, step, &ran).err());
            shown.push((&step.command, ran));
        }
    }
    if std::env::var_os("FIRSTDIFF_BLESS_DOCS").is_some() {
        return fs::write(project().join(page), blessed(&read(page), &shown)).unwrap();
    }
    let bless = "FIRSTDIFF_BLESS_DOCS=1 writes what is printed into the page";
    assert!(wrong.is_empty(), "\n{}\n\n{bless}", wrong.join("\n\n"));
}

fn held(page: &str, place: &str, step: &Step, ran: &Ran) -> Result<(), String> {
    let code = step.entry.and_then(|entry| entry.code);
    let as_expected = code.map_or(ran.code <= 1, |code| ran.code == code);
    if !as_expected {
        return Err(format!("{place} exits with {}:\n{}", ran.code, ran.output));
    }
    let shown = &step.command.shown;
    let is_wrapped = step.entry.is_some_and(|entry| entry.columns.is_some());
    if shown.is_empty() {
        return Ok(());
    }
    shown::compare(shown, &ran.output, is_wrapped).map_err(|wrong| {
        let line =
            shown.iter().find(|line| line.number == wrong.line).map_or("", |line| &line.text);
        format!(
            "{place} prints something else\n{page}:{}: {line}\nprinted: {}",
            wrong.line, wrong.printed
        )
    })
}

/// A page with what its commands print in place of what it shows.
fn blessed(text: &str, shown: &[(&page::Command, Ran)]) -> String {
    let mut lines: Vec<String> = text.lines().map(String::from).collect();
    // From the end, so that the numbers of the lines before stay.
    for (command, ran) in shown.iter().rev().filter(|(command, _)| !command.shown.is_empty()) {
        let now = shown::renewed(&command.shown, &ran.output);
        lines.splice(command.line..command.line + command.shown.len(), now);
    }
    lines.join("\n") + "\n"
}

macro_rules! pages {
    ($($test:ident $page:literal,)*) => {
        const PAGES: &[&str] = &[$($page),*];
        $(#[test]
        fn $test() {
            hold($page);
        })*
    };
}

pages! {
    readme "README.md",
    skill "SKILL.md",
    ci "docs/ci.md",
    clients "docs/clients.md",
    commands "docs/commands.md",
    diagnosis "docs/diagnosis.md",
    gpu "docs/gpu.md",
    kernel_checks "docs/kernel-checks.md",
    kernels "docs/kernels.md",
    page_of_a_report "docs/page.md",
    rpc "docs/rpc.md",
    run "docs/run.md",
    trace_format "docs/trace-format.md",
    your_engine "docs/your-engine.md",
    c_engine "examples/c_engine/README.md",
    numpy_engine "examples/numpy_engine/README.md",
    transformers "examples/transformers/README.md",
    attacks "fixtures/attacks/README.md",
    matrix "fixtures/check/README.md",
}

/// All pages of the project.
fn all_pages() -> Vec<String> {
    let mut pages: Vec<String> =
        ["README.md", "SKILL.md", "CONTRIBUTING.md", "SECURITY.md"].map(String::from).into();
    let folders = |folder: &str| {
        let entries = fs::read_dir(project().join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect::<Vec<PathBuf>>()
    };
    let examples =
        ["examples", "fixtures"].into_iter().flat_map(folders).map(|one| one.join("README.md"));
    let docs =
        folders("docs").into_iter().filter(|path| path.extension().is_some_and(|end| end == "md"));
    let found = examples.filter(|path| path.is_file()).chain(docs);
    pages.extend(
        found.map(|path| path.strip_prefix(project()).unwrap().to_str().unwrap().to_string()),
    );
    pages
}

#[test]
fn no_page_with_commands_is_left_out_and_no_reason_is_empty() {
    let has_commands = |page: &String| !page::commands(&read(page)).unwrap().is_empty();
    let with: BTreeSet<String> = all_pages().into_iter().filter(has_commands).collect();
    assert_eq!(with, PAGES.iter().map(|page| page.to_string()).collect());
    for entry in &TABLE.command {
        assert!(PAGES.contains(&&*entry.page), "{}", entry.page);
        assert!(entry.not_run.as_deref() != Some(""), "{}: {}", entry.page, entry.command);
    }
}

/// The help of the program, or of the subcommand that a command names; none where there is no such subcommand.
fn help(words: &[&str]) -> Option<String> {
    let named = words.iter().take_while(|word| word.bytes().all(|b| b.is_ascii_lowercase()));
    let named: Vec<&str> = named.copied().collect();
    let ask = |words: &[&str]| {
        let program = env!("CARGO_BIN_EXE_firstdiff");
        let output = Command::new(program).args(words).arg("--help").output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    };
    // What follows a subcommand may be a value: `capture reference`, `completions bash`.
    (usize::from(!named.is_empty())..=named.len()).rev().find_map(|n| ask(&named[..n]))
}

/// The words of a command that the program or the Makefile does not know.
fn unknown<'a>(command: &'a str, makefile: &str) -> Vec<&'a str> {
    let words: Vec<&str> = command.split_whitespace().skip(1).collect();
    if command.starts_with("make ") {
        let target =
            |word: &str| makefile.lines().any(|line| line.starts_with(&format!("{word}:")));
        let is_known = |word: &str| {
            let of_pattern = word.split_once('-').map(|(start, _)| format!("{start}-%"));
            target(word) || of_pattern.is_some_and(|pattern| target(&pattern))
        };
        return words.into_iter().filter(|word| !is_known(word)).collect();
    }
    let Some(help) = help(&words) else { return vec![words[0]] };
    let known: BTreeSet<&str> = help.split(|c: char| !(c.is_alphanumeric() || c == '-')).collect();
    let options = words.iter().map(|word| word.split(['=', ']']).next().unwrap());
    let options = options.filter(|word| word.starts_with("--") && word.len() > 2);
    options.filter(|word| !known.contains(word)).collect()
}

#[test]
fn the_commands_in_running_text_have_the_options_that_they_name() {
    let makefile = read("Makefile");
    let mut wrong = Vec::new();
    for page in all_pages() {
        for Line { number, text } in page::in_text(&read(&page)) {
            let unknown = unknown(&text, &makefile).join(", ");
            if !unknown.is_empty() {
                wrong.push(format!("{page}:{number}: `{text}`: there is no {unknown}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert_eq!(unknown("firstdiff rune --json", &makefile), ["rune"]);
    assert_eq!(unknown("firstdiff capture reference --chunk 3", &makefile), ["--chunk"]);
    assert_eq!(unknown("make demos", &makefile), ["demos"]);
}
