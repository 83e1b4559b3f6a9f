//! `make mutants`: mistakes planted in our kernels, one after another, to see whether
//! `firstdiff kernels check` finds them and by what; and changes that are none, which must raise no
//! alarm.
//!
//! An argument makes it a trial of the mutants whose file or text contains it, such as
//! `cargo bench --bench mutants -- rope`; then nothing is written.

mod attention;
mod document;
mod table;

use std::{path::Path, process::ExitCode, time::Instant};

use firstdiff::kernels::{
    KernelSet,
    check::{self, Finding, Kind, Outcome, Subject},
};

use document::{Clean, Results, Row, Unchanged};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const DOCUMENT: &str = "docs/kernel-checks.md";
/// Subjects that are compiled and run at the same time.
const AT_ONCE: usize = 2;
/// Random orders of the threads, besides forward and reverse.
const RANDOM_ORDERS: u64 = 3;

fn main() -> Result<ExitCode> {
    // Hundreds of libraries, each used once: not into the user's cache.
    let cache = tempfile::tempdir()?;
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("FIRSTDIFF_CACHE", cache.path()) };
    // Cargo itself passes `--bench`.
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let wants = |texts: [&str; 3]| {
        only.as_ref().is_none_or(|only| texts.iter().any(|text| text.contains(only.as_str())))
    };
    let start = Instant::now();
    let mut results = Results::default();
    for (file, find, replace, mistake) in table::MUTANTS.iter().chain(attention::MUTANTS) {
        if !wants([file, find, mistake.name()]) {
            continue;
        }
        let finding = run(file, find, replace)?;
        let row = Row { file, find, replace, mistake: *mistake, finding };
        eprintln!("{:>4} s  {}", start.elapsed().as_secs(), row.line());
        results.rows.push(row);
    }
    for (file, find, replace, reason) in table::EQUIVALENT {
        if wants([file, find, "equivalent"]) {
            let finding = run(file, find, replace)?;
            let row = Unchanged { file, find, replace, reason, finding };
            eprintln!("{:>4} s  {}", start.elapsed().as_secs(), row.line());
            results.unchanged.push(row);
        }
    }
    if only.is_none() {
        let outcomes = checked(&KernelSet::embedded(), &check::subjects())?;
        results.clean = Clean::of(&outcomes, check::thread_orders(RANDOM_ORDERS).len());
    }
    let text = results.markdown();
    print!("{text}");
    if only.is_none() {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(DOCUMENT), text)?;
    }
    Ok(if results.are_good(only.is_some()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks the kernels that use a file after one change of it, until there is a finding.
fn run(file: &str, find: &str, replace: &str) -> Result<Option<Finding>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(file);
    let text = std::fs::read_to_string(&path)?;
    let times = text.matches(find).count();
    if times != 1 {
        return Err(format!("{file}: {find:?} occurs {times} times; mend the table").into());
    }
    let folder = tempfile::tempdir()?;
    let changed = folder.path().join(file);
    std::fs::create_dir_all(changed.parent().unwrap_or(folder.path()))?;
    std::fs::write(changed, text.replace(find, replace))?;
    let kernels = KernelSet::overridden_by(folder.path())?;
    let uses = |subject: &Subject| match file {
        "common.cuh" => ["rms_norm.cu", "attention.cu", "attention_split.cu", "cuda/gemv.cu"]
            .contains(&subject.file),
        _ => subject.file == file,
    };
    let subjects: Vec<Subject> = check::subjects().into_iter().filter(uses).collect();
    for some in subjects.chunks(AT_ONCE) {
        if let Some(finding) = foremost(&checked(&kernels, some)?) {
            return Ok(Some(finding));
        }
    }
    Ok(None)
}

fn checked(kernels: &KernelSet, subjects: &[Subject]) -> Result<Vec<Outcome>> {
    Ok(check::check(kernels, subjects, &check::thread_orders(RANDOM_ORDERS), &|| {})?)
}

/// The finding that says most: of an access rather than of numbers.
fn foremost(outcomes: &[Outcome]) -> Option<Finding> {
    let findings = outcomes.iter().filter_map(|outcome| outcome.finding.clone());
    findings.min_by_key(|finding| finding.kind as u8 >= Kind::Numbers as u8)
}
