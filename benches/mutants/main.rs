//! `make mutants`: mistakes planted in our kernels and in the worked examples, one after another, to see whether
//! `firstdiff kernels check` finds them and by what; and changes that are none, which must raise no
//! alarm.
//!
//! An argument makes it a trial of the mutants whose file or text contains it, such as
//! `cargo bench --bench mutants -- rope`; then nothing is written.

mod attention;
mod document;
mod examples;
mod table;

use std::{path::Path, process::ExitCode, time::Instant};

use firstdiff::{
    ci::kernels::{self, Finding, Kind, Outcome, Subject, Target},
    engine::{
        contract::{Contract, Op},
        kernels::KernelSet,
    },
};

use document::{Clean, Results, Row, Unchanged};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const DOCUMENT: &str = "docs/kernel-checks.md";
/// Subjects that are compiled and run at the same time.
const AT_ONCE: usize = 2;
/// Number of random thread orders, besides forward and reverse.
const RANDOM_ORDERS: u64 = 3;
const ORDERS: usize = RANDOM_ORDERS as usize + 2;

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
    for (file, find, replace, mistake) in
        table::MUTANTS.iter().chain(attention::MUTANTS).chain(examples::MUTANTS)
    {
        if !wants([file, find, mistake.name()]) {
            continue;
        }
        let finding = run(file, find, replace)?;
        let row = Row { file, find, replace, mistake: *mistake, finding };
        eprintln!("{:>4} s  {}", start.elapsed().as_secs(), row.line());
        results.rows.push(row);
    }
    for (file, find, replace, reason) in table::EQUIVALENT.iter().chain(examples::EQUIVALENT) {
        if wants([file, find, "equivalent"]) {
            let finding = run(file, find, replace)?;
            let row = Unchanged { file, find, replace, reason, finding };
            eprintln!("{:>4} s  {}", start.elapsed().as_secs(), row.line());
            results.unchanged.push(row);
        }
    }
    if only.is_none() {
        let own: Vec<Target> = kernels::subjects().into_iter().map(Target::Own).collect();
        let clean = |targets: &[Target]| {
            let outcomes = checked(&KernelSet::embedded(), targets)?;
            Ok::<Clean, Box<dyn std::error::Error>>(Clean::of(&outcomes, ORDERS))
        };
        (results.clean, results.clean_examples) = (clean(&own)?, clean(&examples()?)?);
    }
    let text = results.markdown();
    print!("{text}");
    if only.is_none() {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(DOCUMENT), text)?;
    }
    Ok(if results.are_good(only.is_some()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The worked examples, whose kernels are called as their contracts say.
fn examples() -> Result<Vec<Target>> {
    let folder = root().join("examples/kernels");
    let read = |name| {
        let contract = Contract::read(Op::Attention, &folder.join(name))?;
        Ok(Target::Contract(Box::new(contract)))
    };
    ["gqa_decode.toml", "gqa_prefill.toml"].into_iter().map(read).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Checks the kernels that use a file after one change of it, until there is a finding.
fn run(file: &str, find: &str, replace: &str) -> Result<Option<Finding>> {
    if file.starts_with("examples/") {
        return run_example(file, find, replace);
    }
    let path = root().join("kernels").join(file);
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
    let targets: Vec<Target> =
        kernels::subjects().into_iter().filter(uses).map(Target::Own).collect();
    for some in targets.chunks(AT_ONCE) {
        if let Some(finding) = foremost(&checked(&kernels, some)?) {
            return Ok(Some(finding));
        }
    }
    Ok(None)
}

fn checked(kernels: &KernelSet, targets: &[Target]) -> Result<Vec<Outcome>> {
    Ok(kernels::check(kernels, targets, &kernels::thread_orders(RANDOM_ORDERS), &|| {})?)
}

/// Checks a worked example after one change of its kernel.
fn run_example(file: &str, find: &str, replace: &str) -> Result<Option<Finding>> {
    let path = root().join(file);
    let text = std::fs::read_to_string(&path)?;
    let times = text.matches(find).count();
    if times != 1 {
        return Err(format!("{file}: {find:?} occurs {times} times; mend the table").into());
    }
    let folder = tempfile::tempdir()?;
    let changed = folder.path().join(path.file_name().unwrap_or_default());
    std::fs::write(&changed, text.replace(find, replace))?;
    let contract = changed.with_extension("toml");
    std::fs::copy(path.with_extension("toml"), &contract)?;
    let target = Target::Contract(Box::new(Contract::read(Op::Attention, &contract)?));
    Ok(foremost(&checked(&KernelSet::embedded(), &[target])?))
}

/// The finding that says most: of an access rather than of numbers.
fn foremost(outcomes: &[Outcome]) -> Option<Finding> {
    let findings = outcomes.iter().filter_map(|outcome| outcome.finding.clone());
    findings.min_by_key(|finding| finding.kind as u8 >= Kind::Numbers as u8)
}
