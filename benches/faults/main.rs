//! `make faults`: every fault planted, one after another and together, to see whether it is found,
//! blamed on the right operation and named; and changes that are no faults, which must raise no
//! alarm.
//!
//! An argument makes it a trial of the runs whose name contains it, such as
//! `cargo bench --bench faults -- rope`; then nothing is written.

mod bench;
mod combined;
mod innocent;
mod seeded;
mod table;
mod weaker;

use std::{
    io::IsTerminal,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use firstdiff::model::synth::Arch;

use bench::Bench;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const DOCUMENT: &str = "docs/faults.md";
/// Where stderr is no terminal, a line of progress comes after so many runs.
const RUNS_PER_LINE: usize = 20;

fn main() -> Result<ExitCode> {
    // Cargo itself passes `--bench`.
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let mut progress = Progress { only, runs: 0, start: Instant::now() };
    let benches =
        [Bench::fixture()?, Bench::random(Arch::Llama, 11)?, Bench::random(Arch::Qwen3, 12)?];
    let mut results = table::Results::default();
    for bench in &benches {
        seeded::run(bench, &mut progress, &mut results)?;
    }
    results.combined = combined::run(&benches[0], &mut progress)?;
    results.benign = innocent::benign(&benches[0], &mut progress)?;
    results.clean = innocent::clean(&mut progress)?;
    results.time = progress.time();
    if progress.runs == 0 {
        return Err("no run has that in its name; give part of a fault's name".into());
    }
    let text = results.markdown();
    print!("{text}");
    if progress.only.is_none() {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(DOCUMENT), text)?;
    }
    Ok(if results.are_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says which runs are wanted and how far it has come.
pub struct Progress {
    only: Option<String>,
    runs: usize,
    start: Instant,
}

impl Progress {
    /// Whether a run is wanted; if so it is announced.
    pub fn wants(&mut self, name: &str) -> bool {
        let wanted = self.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
        if wanted {
            self.runs += 1;
            let time = self.time();
            if std::io::stderr().is_terminal() {
                eprint!("\r\x1b[K{:>4} {:>4} s  {name}", self.runs, time.as_secs());
            } else if self.runs.is_multiple_of(RUNS_PER_LINE) {
                eprintln!("{:>4} runs {:>4} s, at {name}", self.runs, time.as_secs());
            }
        }
        wanted
    }

    fn time(&self) -> Duration {
        self.start.elapsed()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if std::io::stderr().is_terminal() {
            eprintln!();
        }
    }
}
