//! `make attack`: the program under hostile kernels, damaged files, signals, a full disk, a read-only home. It
//! writes docs/robustness.md.
//!
//! An argument is how many of the damaged files and signals are tried, of a hundred:
//! `cargo bench --bench attack -- 10`; then nothing is written.
#![allow(clippy::unwrap_used, reason = "a trial that cannot go on panics")]

#[path = "../../tests/attack/damaged.rs"]
mod damaged;
mod document;
mod files;
#[path = "../../tests/attack/kernels.rs"]
mod kernels;
#[path = "../../tests/attack/program.rs"]
mod program;
#[path = "../../tests/attack/table.rs"]
#[allow(dead_code, reason = "shared with the tests, which need more of it")]
mod table;
mod trials;
mod whole;

use std::{path::Path, process::ExitCode};

use document::Row;

const DOCUMENT: &str = "docs/robustness.md";

fn main() -> std::io::Result<ExitCode> {
    let share = std::env::args().skip(1).find_map(|argument| argument.parse::<usize>().ok());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let n = |all: usize| (all * share.unwrap_or(100)).div_ceil(100);
    let mut rows: Vec<Row> = Vec::new();
    let mut add = |row: Row| {
        println!("{}", row.line());
        row.faults.iter().for_each(|fault| println!("    {fault}"));
        rows.push(row);
    };
    add(trials::kernels()?);
    add(trials::models(n(1800))?);
    add(trials::numbers(n(400))?);
    add(files::traces(n(400))?);
    files::kinds(n(120))?.into_iter().for_each(&mut add);
    add(files::plans(n(1000))?);
    add(files::table());
    add(files::cache()?);
    add(files::outputs()?);
    add(trials::signals(n(300))?);
    add(trials::full_disk()?);
    add(trials::read_only_home()?);
    let overhead = trials::overhead()?;
    println!("{overhead}");
    let is_good = rows.iter().all(|row| row.faults.is_empty()) && overhead.is_small();
    if share.is_none() {
        std::fs::write(root.join(DOCUMENT), document::text(&rows, &overhead))?;
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
