//! The results as Markdown.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::program::Outcome;

const INTRODUCTION: &str = include_str!("introduction.md");

/// One kind of attack.
#[derive(Default)]
pub struct Row {
    pub what: String,
    pub runs: usize,
    /// How often the program ended with which exit code.
    pub exits: BTreeMap<i32, usize>,
    pub slowest: Duration,
    /// What must not be, each with its seed.
    pub faults: Vec<String>,
    /// Why it was not tried.
    pub skipped: Option<String>,
}

impl Row {
    pub fn of(what: &str) -> Row {
        Row { what: what.to_string(), ..Row::default() }
    }

    /// Adds a run: its faults, and those that its own judge finds.
    pub fn add(&mut self, name: &str, outcome: &Outcome, more: Option<String>) {
        self.runs += 1;
        *self.exits.entry(outcome.code.unwrap_or(-1)).or_default() += 1;
        self.slowest = self.slowest.max(outcome.time);
        let said = outcome.err.lines().last().unwrap_or_default();
        let faults = outcome.faults().into_iter().chain(more);
        self.faults.extend(faults.map(|fault| format!("{name}: {fault}: {said}")));
    }

    pub fn line(&self) -> String {
        let Row { what, runs, slowest, faults, .. } = self;
        if let Some(why) = &self.skipped {
            return format!("| {what} | not tried: {why} | | | |");
        }
        let exits: Vec<String> =
            self.exits.iter().map(|(code, n)| format!("{n} x {code}")).collect();
        let (exits, seconds) = (exits.join(", "), slowest.as_secs_f64());
        format!("| {what} | {runs} | {} | {exits} | {seconds:.1} s |", faults.len())
    }
}

/// Times of the same run with a worker and without.
pub struct Overhead {
    pub watched: Duration,
    pub alone: Duration,
}

impl Overhead {
    /// Within a run of this length, and 3 % of a longer one.
    pub fn is_small(&self) -> bool {
        self.watched.as_secs_f64() < 1.03 * self.alone.as_secs_f64() + 0.02
    }
}

impl fmt::Display for Overhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [watched, alone] = [self.watched, self.alone].map(|time| 1e3 * time.as_secs_f64());
        let more = 100.0 * (watched / alone - 1.0);
        write!(
            f,
            "A run takes {watched:.0} ms with its worker and {alone:.0} ms without ({more:+.1} %), the medians of \
             runs that take turns."
        )
    }
}

pub fn text(rows: &[Row], overhead: &Overhead) -> String {
    let lines: Vec<String> = rows.iter().map(Row::line).collect();
    let faults: Vec<String> =
        rows.iter().flat_map(|row| &row.faults).map(|fault| format!("- {fault}\n")).collect();
    let faults = if faults.is_empty() { "None.\n".to_string() } else { faults.concat() };
    format!(
        "{INTRODUCTION}\n| attack | runs | faults | exit codes | slowest |\n|---|--:|--:|---|--:|\n{}\n\n\
         {overhead}\n\n## Faults\n\n{faults}",
        lines.join("\n")
    )
}
