//! The table of docs/architectures.md.

use std::fmt::Write;

use firstdiff::run::acceptance::Acceptance;
use serde::{Deserialize, Serialize};

/// Architectures that must be made and replayed, and those of them that must be measured whole.
const LEAST_MADE: usize = 128;
const LEAST_WHOLE: usize = 125;

/// What is known of one architecture.
#[derive(Default, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    /// Why nothing was measured.
    pub failure: Option<String>,
    pub nodes: usize,
    pub measured: usize,
    pub ops: usize,
    pub elements: u64,
    pub worst: Option<(String, f64)>,
    pub beyond: Vec<(String, f64)>,
    pub roles: Vec<String>,
    pub without_rule: Vec<(String, usize)>,
}

impl Row {
    pub fn of(name: &str, accepted: &Acceptance) -> Row {
        Row {
            name: name.to_string(),
            failure: None,
            nodes: accepted.nodes,
            measured: accepted.measured,
            ops: accepted.ops.len(),
            elements: accepted.elements,
            worst: accepted.worst.clone().map(bounded),
            beyond: accepted.beyond.iter().cloned().map(bounded).collect(),
            roles: accepted.roles.iter().map(|role| role.to_string()).collect(),
            without_rule: accepted.without_rule.clone().into_iter().collect(),
        }
    }

    /// Whether every node is measured and within its bound.
    fn is_whole(&self) -> bool {
        self.failure.is_none() && self.measured == self.nodes && self.beyond.is_empty()
    }

    fn share(&self) -> f64 {
        100.0 * self.measured as f64 / self.nodes.max(1) as f64
    }

    /// It in one line.
    pub fn line(&self) -> String {
        if let Some(failure) = &self.failure {
            return format!("{}: {failure}", self.name);
        }
        let worst = self.worst.as_ref().map_or(0.0, |worst| worst.1);
        let mut line = format!(
            "{}: {} nodes, {:.1} % measured, worst {worst:.2} x its bound",
            self.name,
            self.nodes,
            self.share()
        );
        if let Some((site, times)) = self.beyond.first() {
            let n = self.beyond.len();
            let _ = write!(line, ", {n} beyond, first {site} {times:.3}");
        }
        for (op, n) in &self.without_rule {
            let _ = write!(line, ", no rule for {n} {op}");
        }
        line
    }
}

/// JSON has no infinity.
fn bounded(worst: (String, f64)) -> (String, f64) {
    (worst.0, if worst.1.is_finite() { worst.1 } else { f64::MAX })
}

/// Whether enough of them can be judged, and none is beyond its bound.
pub fn is_good(rows: &[Row]) -> bool {
    let made = rows.iter().filter(|row| row.failure.is_none() && row.beyond.is_empty()).count();
    let whole = rows.iter().filter(|row| row.is_whole()).count();
    let none_beyond = rows.iter().all(|row| row.beyond.is_empty());
    none_beyond && (rows.len() < LEAST_MADE || made >= LEAST_MADE && whole >= LEAST_WHOLE)
}

/// The whole document.
pub fn markdown(rows: &[Row]) -> String {
    let mut text = include_str!("introduction.md").to_string();
    let whole = rows.iter().filter(|row| row.is_whole()).count();
    let made = rows.iter().filter(|row| row.failure.is_none()).count();
    let sum = |of: fn(&Row) -> u64| rows.iter().map(of).sum::<u64>();
    let _ = writeln!(text, "\n## Summary\n");
    let _ = writeln!(text, "| | |\n|---|---|");
    let _ = writeln!(text, "| architectures and variants | {} |", rows.len());
    let _ = writeln!(text, "| read and replayed | {made} |");
    let _ = writeln!(text, "| every node measured and within its bound | {whole} |");
    let _ = writeln!(text, "| nodes of a step, in all | {} |", sum(|row| row.nodes as u64));
    let _ = writeln!(text, "| elements judged | {} |", sum(|row| row.elements));
    let beyond = sum(|row| row.beyond.len() as u64);
    let _ = writeln!(text, "| sites beyond their bound | {beyond} |");
    let _ = writeln!(text, "\n## Every architecture\n");
    let _ = writeln!(
        text,
        "| architecture | nodes | kinds of op | measured | worst x bound | where | roles | not measured |"
    );
    let _ = writeln!(text, "|---|---:|---:|---:|---:|---|---:|---|");
    for row in rows {
        let _ = writeln!(text, "{}", table_row(row));
    }
    text
}

fn table_row(row: &Row) -> String {
    if let Some(failure) = &row.failure {
        let failure = failure.split(';').next().unwrap_or(failure).replace('|', "/");
        return format!("| `{}` | | | | | | | {failure} |", row.name);
    }
    let (place, times) = row.worst.clone().unwrap_or_default();
    let missing: Vec<String> = row.without_rule.iter().map(|(op, n)| format!("{n} {op}")).collect();
    format!(
        "| `{}` | {} | {} | {:.1} % | {times:.2} | `{place}` | {} | {} |",
        row.name,
        row.nodes,
        row.ops,
        row.share(),
        row.roles.len(),
        missing.join(", ")
    )
}
