//! What to do next: commands, each with what it is for.

use serde::Serialize;

use crate::{
    core::cause_key::CauseKey,
    diagnosis::{Finding, Verdict},
    report::Report,
};

/// A command to run next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Next {
    pub command: String,
    /// What it is for, in a few words.
    pub purpose: String,
}

/// The command that made a report, without the files that it wrote.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub command: &'a str,
    /// Whether it ran kernels of ours, which `--device checked` can watch.
    pub runs_kernels: bool,
    /// Whether a page was written already.
    pub has_page: bool,
}

/// What to do next, the most useful first; nothing where nothing is wrong.
pub fn next(report: &Report, asked: Asked<'_>) -> Vec<Next> {
    let Asked { command, runs_kernels, has_page } = asked;
    let mut list = Vec::new();
    let mut add = |command: String, purpose: &str| {
        list.push(Next { command, purpose: purpose.to_string() });
    };
    let findings = report.diagnosis.iter().flat_map(|diagnosis| &diagnosis.findings);
    let undeclared = report.diagnosis.as_ref().map(|found| found.undeclared()).unwrap_or_default();
    if !undeclared.is_empty() && runs_kernels {
        let declared: Vec<String> = undeclared.iter().map(ToString::to_string).collect();
        let declared = declared.join(",");
        add(format!("{command} --arithmetic {declared}"), "holds the engine to these roundings");
    }
    let is_unexplained = |finding: &Finding| {
        finding.verdict == Verdict::EngineWrong
            && [CauseKey::Unknown, CauseKey::NotANumber].contains(&finding.cause.key)
    };
    if runs_kernels && findings.clone().any(is_unexplained) {
        let purpose =
            "races, out-of-bounds accesses and uninitialised memory, with the kernel's line";
        add(format!("{command} --device checked"), purpose);
    }
    if report.headline.exit_code == 0 {
        return list;
    }
    if !has_page && !report.sites.is_empty() {
        add(format!("{command} --html report.html"), "layers x sites, pictures of tensors");
    }
    add(format!("{command} --verbose"), "every stage, step and setting");
    list
}
