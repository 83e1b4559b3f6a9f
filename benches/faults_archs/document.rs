//! The results as Markdown, and whether they are good enough.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use serde::{Deserialize, Serialize};

use crate::plant::Outcome;

/// Percentages below these fail.
const LEAST_GUILTY: f64 = 98.0;
const LEAST_CAUSE: f64 = 85.0;

/// What was measured of one architecture.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    /// Why it ended early.
    pub failure: Option<String>,
    pub outcomes: Vec<Outcome>,
    /// Clean runs, and what was blamed in them.
    pub clean: usize,
    pub alarms: Vec<String>,
    /// Faults that change nothing of the model, and those that llama.cpp refuses.
    pub without_effect: Vec<String>,
    pub refused: Vec<String>,
    pub seconds: f64,
}

/// So many of so many.
#[derive(Clone, Copy, Default)]
struct Share {
    hits: usize,
    of: usize,
}

impl Share {
    fn of<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>, hit: fn(&Outcome) -> bool) -> Share {
        let mut share = Share::default();
        for outcome in outcomes {
            share.hits += usize::from(hit(outcome));
            share.of += 1;
        }
        share
    }

    fn percent(self) -> f64 {
        if self.of == 0 { 100.0 } else { 100.0 * self.hits as f64 / self.of as f64 }
    }

    fn in_full(self) -> String {
        format!("{:.1} % ({} of {})", self.percent(), self.hits, self.of)
    }

    fn cell(self) -> String {
        if self.of == 0 { "-".to_string() } else { format!("{}/{}", self.hits, self.of) }
    }
}

type Column = (&'static str, fn(&Outcome) -> bool);

const COLUMNS: [Column; 4] = [
    ("detected", |outcome| outcome.detected),
    ("guilty", |outcome| outcome.guilty),
    ("cause", |outcome| outcome.cause),
    ("proven", |outcome| outcome.proven),
];

impl Row {
    /// It in one line.
    pub fn line(&self) -> String {
        let shares = COLUMNS
            .map(|(title, hit)| format!("{title} {}", Share::of(&self.outcomes, hit).cell()));
        let mut line = format!("{}: {}", self.name, shares.join(", "));
        let _ = write!(line, ", {} alarms of {}", self.alarms.len(), self.clean);
        if let Some(failure) = &self.failure {
            let _ = write!(line, ", failed: {failure}");
        }
        line
    }
}

fn outcomes(rows: &[Row]) -> impl Iterator<Item = &Outcome> {
    rows.iter().flat_map(|row| &row.outcomes)
}

/// Whether enough was found, and nothing where nothing is.
pub fn is_good(rows: &[Row]) -> bool {
    let [detected, guilty, cause, _] =
        COLUMNS.map(|(_, hit)| Share::of(outcomes(rows), hit).percent());
    detected >= 100.0
        && guilty >= LEAST_GUILTY
        && cause >= LEAST_CAUSE
        && rows.iter().all(|row| row.alarms.is_empty() && row.failure.is_none())
}

/// The whole document.
pub fn markdown(rows: &[Row], time: Duration) -> String {
    let mut text = include_str!("introduction.md").to_string();
    summary(rows, time, &mut text);
    shortfalls(rows, &mut text);
    architectures(rows, &mut text);
    faults(rows, &mut text);
    text
}

fn summary(rows: &[Row], time: Duration, text: &mut String) {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let _ = write!(
        text,
        "\nMeasured on {} with {cores} cores. `make faults-archs` repeats it and rewrites this file. It \
         fails if\nless than 100 % is detected, {LEAST_GUILTY} % blamed exactly or {LEAST_CAUSE} % of \
         the causes named, or if there is\nany false alarm.\n\n## Summary\n\n| | |\n|---|---|\n",
        std::env::consts::ARCH,
    );
    let titles = [
        "detected",
        "guilty operation exact",
        "cause ranked first",
        "cause proven: it gives every element",
    ];
    let _ = writeln!(text, "| architectures | {} |", rows.len());
    for mechanism in ["file", "result"] {
        let n = outcomes(rows).filter(|outcome| outcome.mechanism == mechanism).count();
        let _ = writeln!(text, "| faults by {mechanism} | {n} |");
    }
    for (title, (_, hit)) in titles.into_iter().zip(COLUMNS) {
        let _ = writeln!(text, "| {title} | {} |", Share::of(outcomes(rows), hit).in_full());
    }
    let (alarms, clean) =
        (rows.iter().map(|row| row.alarms.len()), rows.iter().map(|row| row.clean));
    let (alarms, clean): (usize, usize) = (alarms.sum(), clean.sum());
    let _ = writeln!(text, "| false alarms | {alarms} of {clean} clean runs |");
    let _ = writeln!(text, "| seconds | {:.0} |", time.as_secs_f64());
}

fn shortfalls(rows: &[Row], text: &mut String) {
    text.push_str("\n## Shortfalls\n\n");
    let mut lines = Vec::new();
    for row in rows {
        if let Some(failure) = &row.failure {
            lines.push(format!("- {} ended early: {failure}", row.name));
        }
        lines.extend(row.alarms.iter().map(|said| format!("- {} clean: {said}", row.name)));
        for outcome in &row.outcomes {
            let missed = COLUMNS[..3].iter().find(|(_, hit)| !hit(outcome));
            if let Some((title, _)) = missed {
                let line = outcome.line();
                lines.push(format!("- {}, not {title}: {line}", row.name));
            }
        }
    }
    if lines.is_empty() {
        lines.push("None.".to_string());
    }
    let _ = writeln!(text, "{}", lines.join("\n"));
}

fn architectures(rows: &[Row], text: &mut String) {
    text.push_str("\n## Every architecture\n\n| architecture |");
    COLUMNS.iter().for_each(|(title, _)| text.push_str(&format!(" {title} |")));
    text.push_str(" false alarms | seconds |\n|---|---:|---:|---:|---:|---:|---:|\n");
    for row in rows {
        let _ = write!(text, "| `{}` |", row.name);
        for (_, hit) in COLUMNS {
            let _ = write!(text, " {} |", Share::of(&row.outcomes, hit).cell());
        }
        let _ = writeln!(text, " {}/{} | {:.0} |", row.alarms.len(), row.clean, row.seconds);
    }
    let refused: Vec<&String> = rows.iter().flat_map(|row| &row.refused).collect();
    if !refused.is_empty() {
        text.push_str("\nRefused by llama.cpp, and not counted:\n\n");
        refused.iter().for_each(|line| text.push_str(&format!("- {line}\n")));
    }
}

fn faults(rows: &[Row], text: &mut String) {
    let mut by_name: BTreeMap<(&str, &str), Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes(rows) {
        by_name.entry((&outcome.mechanism, &outcome.fault)).or_default().push(outcome);
    }
    text.push_str("\n## Every fault\n\n| fault | planted in |");
    COLUMNS.iter().for_each(|(title, _)| text.push_str(&format!(" {title} |")));
    text.push_str("\n|---|---|---:|---:|---:|---:|\n");
    for ((mechanism, fault), outcomes) in by_name {
        let _ = write!(text, "| `{fault}` | {mechanism} |");
        for (_, hit) in COLUMNS {
            let _ = write!(text, " {} |", Share::of(outcomes.iter().copied(), hit).cell());
        }
        text.push('\n');
    }
}
