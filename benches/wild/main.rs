//! `make wild`: bugs that people reported in public, each made anew in one of our engines, to see whether
//! they are found, blamed on the right operations and named; and engines that are right, which must be
//! left alone.
//!
//! Arguments make it a trial of the cases with these names, such as
//! `cargo bench --bench wild -- rope-in-bf16`; then nothing is written.

mod case;
mod document;
mod judge;
mod workshop;

use std::{path::Path, process::ExitCode, time::Instant};

use judge::Row;
use workshop::Workshop;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const DOCUMENT: &str = "docs/wild.md";

fn main() -> Result<ExitCode> {
    // Cargo itself passes `--bench`.
    let only: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let (cases, requantise) = case::load()?;
    if let Some(name) = only.iter().find(|name| cases.iter().all(|case| case.name != **name)) {
        return Err(format!("{name} is no case of {}", case::CASES).into());
    }
    let start = Instant::now();
    let mut workshop = Workshop::new(&requantise)?;
    let mut rows = Vec::new();
    for case in cases.iter().filter(|case| only.is_empty() || only.contains(&case.name)) {
        let (outcome, time) = workshop.run(case)?;
        let row = Row::of(case, &outcome, time);
        eprintln!("{:>4} s  {}", start.elapsed().as_secs(), row.line());
        if !only.is_empty() {
            row.findings.iter().for_each(|finding| eprintln!("        {finding}"));
        }
        rows.push(row);
    }
    println!("\n{}", document::totals(&rows));
    if rows.iter().any(|row| row.is_not_run) {
        println!(
            "some cases were not run: there is no Python with numpy. `make wild` installs it; or set \
             FIRSTDIFF_TEST_PYTHON to a Python that has it"
        );
    }
    if only.is_empty() {
        std::fs::write(root().join(DOCUMENT), document::markdown(&rows))?;
    }
    Ok(if document::is_good(&rows) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
