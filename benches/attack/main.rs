//! `make attack`: the program under hostile kernels, damaged files, signals, a full disk, a read-only home. It
//! writes docs/robustness.md.
//!
//! An argument is how many of the damaged files and signals are tried, of a hundred:
//! `cargo bench --bench attack -- 10`; then nothing is written.
#![allow(clippy::unwrap_used, reason = "a trial that cannot go on panics")]

#[path = "../../tests/attack/damaged.rs"]
mod damaged;
mod document;
#[path = "../../tests/attack/kernels.rs"]
mod kernels;
#[path = "../../tests/attack/program.rs"]
mod program;
mod trials;

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
    add(trials::traces(n(400))?);
    add(trials::texts("config of `check`", "firstdiff.toml", n(200))?);
    add(trials::texts("mapping file of `import`", "map.toml", n(200))?);
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
