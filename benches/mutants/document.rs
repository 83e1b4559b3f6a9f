//! The results as Markdown, and whether they are good enough.

use std::{collections::BTreeMap, fmt::Write};

use firstdiff::ci::kernels::{Finding, Kind, Outcome};

use crate::table::Mistake;

const INTRODUCTION: &str = include_str!("introduction.md");

/// Mutants below this number, or a larger share of them missed, fail.
const LEAST_MUTANTS: usize = 60;
const LEAST_FOUND: f64 = 58.0 / 60.0;

/// All that was measured.
#[derive(Default)]
pub struct Results {
    pub rows: Vec<Row>,
    pub unchanged: Vec<Unchanged>,
    pub clean: Clean,
    pub clean_examples: Clean,
}

/// One mutant.
pub struct Row {
    pub file: &'static str,
    pub find: &'static str,
    pub replace: &'static str,
    pub mistake: Mistake,
    pub finding: Option<Finding>,
}

/// One change that changes nothing.
pub struct Unchanged {
    pub file: &'static str,
    pub find: &'static str,
    pub replace: &'static str,
    pub reason: &'static str,
    pub finding: Option<Finding>,
}

/// The kernels as they are.
#[derive(Default)]
pub struct Clean {
    kernels: usize,
    launches: usize,
    orders: usize,
    findings: Vec<String>,
}

impl Clean {
    pub fn of(outcomes: &[Outcome], orders: usize) -> Clean {
        let findings = outcomes.iter().filter_map(|o| o.finding.as_ref().map(|f| f.text.clone()));
        Clean {
            kernels: outcomes.len(),
            launches: outcomes.iter().map(|outcome| outcome.launches).sum(),
            orders,
            findings: findings.collect(),
        }
    }

    /// What `firstdiff kernels check` says first where there is no finding.
    fn line(&self) -> String {
        let Clean { kernels, launches, orders, .. } = self;
        format!(
            "clean: {kernels} of {kernels} kernels, {launches} launches in {orders} thread orders"
        )
    }
}

impl Row {
    /// One line for a terminal.
    pub fn line(&self) -> String {
        let found = found_by(&self.finding);
        format!(
            "{:<20} {:<24} {found:<20} {}",
            self.file,
            self.mistake.name(),
            first_line(self.find)
        )
    }
}

impl Unchanged {
    pub fn line(&self) -> String {
        let found = found_by(&self.finding);
        format!("{:<20} {:<24} {found:<20} {}", self.file, "equivalent", first_line(self.find))
    }
}

fn found_by(finding: &Option<Finding>) -> String {
    finding.as_ref().map_or("-".to_string(), |finding| finding.kind.to_string())
}

fn first_line(text: &str) -> &str {
    text.trim().lines().next().unwrap_or_default()
}

impl Results {
    fn found(&self) -> usize {
        self.rows.iter().filter(|row| row.finding.is_some()).count()
    }

    /// Whether enough was found and no alarm was false. A trial may be small.
    pub fn are_good(&self, is_trial: bool) -> bool {
        let enough = is_trial || self.rows.len() >= LEAST_MUTANTS;
        let found = self.found() as f64 >= LEAST_FOUND * self.rows.len() as f64;
        let quiet = self.unchanged.iter().all(|row| row.finding.is_none());
        enough
            && found
            && quiet
            && [&self.clean, &self.clean_examples].iter().all(|c| c.findings.is_empty())
    }

    pub fn markdown(&self) -> String {
        let introduction = INTRODUCTION.replace("CLEAN_EXAMPLES", &self.clean_examples.line());
        let introduction = introduction.replace("CLEAN", &self.clean.line());
        let mut text = format!("{introduction}\n## What finds what\n\n");
        let (found, n) = (self.found(), self.rows.len());
        let _ = writeln!(
            text,
            "`make mutants` plants {n} mistakes in our kernels and in the worked examples, one at a time, and checks each \
             affected kernel: {found} of {n} are found.\n"
        );
        self.write_summary(&mut text);
        self.write_clean(&mut text);
        let _ = writeln!(
            text,
            "\n| file | mistake | original | replacement | found by |\n|---|---|---|---|---|"
        );
        for row in &self.rows {
            let (find, replace) = changed(row.find, row.replace);
            let (mistake, by) = (row.mistake.name(), found_by(&row.finding));
            let by = if by == "-" { "**not found**".to_string() } else { by };
            let _ = writeln!(text, "| {} | {mistake} | {find} | {replace} | {by} |", row.file);
        }
        let _ = writeln!(
            text,
            "\nThese edits change no result of a kernel, and nothing must be reported:\n\n\
             | file | original | replacement | why it is no mistake | reported |\n|---|---|---|---|---|"
        );
        for row in &self.unchanged {
            let (find, replace) = changed(row.find, row.replace);
            let by =
                row.finding.as_ref().map_or("nothing".to_string(), |f| format!("**{}**", f.kind));
            let _ = writeln!(text, "| {} | {find} | {replace} | {} | {by} |", row.file, row.reason);
        }
        text
    }

    /// Kind of mistake by kind of finding.
    fn write_summary(&self, text: &mut String) {
        let mut kinds: Vec<Kind> =
            self.rows.iter().filter_map(|row| row.finding.as_ref().map(|f| f.kind)).collect();
        kinds.sort();
        kinds.dedup();
        let mut counts: BTreeMap<&str, BTreeMap<Option<Kind>, usize>> = BTreeMap::new();
        for row in &self.rows {
            let kind = row.finding.as_ref().map(|finding| finding.kind);
            *counts.entry(row.mistake.name()).or_default().entry(kind).or_default() += 1;
        }
        let heads: Vec<String> = kinds.iter().map(Kind::to_string).collect();
        let _ = writeln!(text, "| mistake | mutants | {} | not found |", heads.join(" | "));
        let _ = writeln!(text, "|---|{}", "--:|".repeat(kinds.len() + 2));
        for (mistake, of) in counts {
            let number = |kind| match of.get(&kind) {
                Some(n) => n.to_string(),
                None => String::new(),
            };
            let cells: Vec<String> = kinds.iter().map(|&kind| number(Some(kind))).collect();
            let all: usize = of.values().sum();
            let _ =
                writeln!(text, "| {mistake} | {all} | {} | {} |", cells.join(" | "), number(None));
        }
    }

    fn write_clean(&self, text: &mut String) {
        let clean =
            [("The kernels as they are", &self.clean), ("The examples", { &self.clean_examples })];
        for (what, Clean { kernels, launches, orders, findings }) in clean {
            let n = findings.len();
            let _ = writeln!(
                text,
                "\n{what}: {n} findings on {kernels} kernels, {launches} launches in {orders} \
                 thread orders."
            );
            for finding in findings {
                let _ = writeln!(text, "\n    {finding}");
            }
        }
    }
}

/// Both texts as code on one line.
fn changed(find: &str, replace: &str) -> (String, String) {
    let code = |text: &str| {
        let lines: Vec<&str> =
            text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if lines.is_empty() {
            "nothing".to_string()
        } else {
            format!("`{}`", lines.join(" ↵ ").replace('|', "\\|").replace('`', "'"))
        }
    };
    (code(find), code(replace))
}
