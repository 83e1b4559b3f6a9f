//! The answer for a program: one JSON object of bounded size.

use serde::Serialize;

use crate::{
    core::exit::Exit,
    diagnosis::{Certainty, Finding, Verdict},
    report::{
        Next, Report, StepRow,
        blame::{signs, worst},
        weights::counts,
    },
};

/// The most that a summary takes as JSON, as it is printed.
pub const MAX_BYTES: usize = 4096;
/// At most this many guilty operations, weights, notes and commands are in it.
const MAX_GUILTY: usize = 6;
const MAX_OTHER: usize = 4;
/// At most this many sites to record.
const MAX_RECORDED: usize = 24;
/// Bytes of one text.
const MAX_TEXT: usize = 400;

/// What a program needs of a report to go on.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The first line of the text report.
    pub answer: String,
    pub exit: Exit,
    pub exit_code: u8,
    /// The first site that diverged, such as `0/blk.0.q`.
    pub first_divergence: Option<String>,
    /// How many of the engine's weights match the file; absent where none were recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loaded: Option<String>,
    /// Weights that the engine holds otherwise than the file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<String>,
    pub guilty: Vec<Guilty>,
    /// Guilty operations that are not listed.
    #[serde(skip_serializing_if = "is_zero")]
    pub more_guilty: usize,
    /// Sites to record as well, without their layers: they lie within what is guilty, and narrow it down.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub record: Vec<String>,
    /// Sites that were compared, of those that were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compared: Option<[usize; 2]>,
    /// What each side said, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_text: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    pub next: Vec<Next>,
}

/// Operations that one mistake is in.
#[derive(Clone, Debug, Serialize)]
pub struct Guilty {
    pub verdict: Verdict,
    /// The operations in words, such as `q and k rotation, all layers`.
    pub what: String,
    pub cause: String,
    pub certainty: Certainty,
    /// Wrong elements that the cause gives, of how many.
    pub explained: [u64; 2],
    /// Where the kernel stands: `kernels/rope.cu:12 rope_neox_f32`; absent where the engine is not ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// The sites that these operations give, the first few, such as `blk.0.q`.
    pub sites: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub more_sites: usize,
    pub evidence: Vec<String>,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl Summary {
    /// The summary of a report; `places` are where the kernels of its findings stand, if that is known.
    pub fn of(report: &Report, places: &[Option<String>], next: Vec<Next>) -> Summary {
        let findings = report.diagnosis.as_ref().map_or(&[][..], |found| &found.findings);
        let guilty = |(at, finding): (usize, &Finding)| {
            Guilty::of(report, finding, places.get(at).cloned().flatten())
        };
        let compared = report.compared.as_ref().map(|compared| &compared.coverage);
        let said = StepRow::said(&report.steps);
        let [reference_text, engine_text] =
            said.map(|text| (!text.is_empty()).then(|| short(&text)));
        let wrong = report.weights.iter().flat_map(|found| &found.wrong);
        let mut summary = Summary {
            answer: short(&report.headline.text),
            exit: report.headline.exit,
            exit_code: report.headline.exit_code,
            first_divergence: report.headline.first_divergence.clone(),
            loaded: report.weights.as_ref().map(counts),
            weights: wrong.take(MAX_OTHER).map(|group| short(&group.to_string())).collect(),
            guilty: findings.iter().enumerate().take(MAX_GUILTY).map(guilty).collect(),
            more_guilty: findings.len().saturating_sub(MAX_GUILTY),
            record: unrecorded(findings),
            compared: compared.map(|coverage| [coverage.compared(), coverage.asked]),
            reference_text,
            engine_text,
            notes: report.notes.iter().take(MAX_OTHER).map(|note| short(note)).collect(),
            next: next.into_iter().take(MAX_OTHER).collect(),
        };
        summary.shrink();
        summary
    }

    /// Leaves out what is least needed until it fits.
    fn shrink(&mut self) {
        let is_small = |summary: &Summary| {
            serde_json::to_vec_pretty(summary).is_ok_and(|json| json.len() < MAX_BYTES)
        };
        while !is_small(self) {
            if self.guilty.len() > 1 {
                self.guilty.pop();
                self.more_guilty += 1;
            } else if self.record.len() > 4 && self.record.pop().is_some()
                || self.notes.pop().is_some()
                || self.weights.len() > 1 && self.weights.pop().is_some()
            {
            } else if self.next.len() > 1 {
                self.next.pop();
            } else {
                // Only long texts are left.
                let longest = self.texts().into_iter().max_by_key(|text| text.len());
                let Some(longest) = longest.filter(|text| text.len() > 8) else { return };
                *longest = cut(longest, longest.len() / 2);
            }
        }
    }

    /// Every text that may be cut.
    fn texts(&mut self) -> Vec<&mut String> {
        let mut texts = vec![&mut self.answer];
        texts.extend(self.weights.iter_mut());
        texts.extend([&mut self.reference_text, &mut self.engine_text].into_iter().flatten());
        for guilty in &mut self.guilty {
            texts.extend([&mut guilty.what, &mut guilty.cause]);
            texts.extend(
                guilty.kernel.iter_mut().chain(&mut guilty.sites).chain(&mut guilty.evidence),
            );
        }
        for next in &mut self.next {
            texts.extend([&mut next.command, &mut next.purpose]);
        }
        texts
    }
}

impl Guilty {
    fn of(report: &Report, finding: &Finding, kernel: Option<String>) -> Guilty {
        let sites = finding.operations.iter().take(MAX_OTHER);
        let cause = &finding.cause;
        let mut evidence: Vec<String> = worst(finding, report).into_iter().collect();
        evidence.extend(finding.weights.iter().take(MAX_OTHER).cloned());
        evidence.extend(signs(finding));
        Guilty {
            verdict: finding.verdict,
            what: short(&finding.what),
            cause: short(&cause.text),
            certainty: cause.certainty,
            explained: [cause.explained, cause.wrong],
            kernel,
            sites: sites.map(|operation| operation.result()).collect(),
            more_sites: finding.operations.len().saturating_sub(MAX_OTHER),
            evidence: evidence.iter().map(|text| short(text)).collect(),
        }
    }
}

/// The stages of what was not recorded within guilty operations.
fn unrecorded(findings: &[Finding]) -> Vec<String> {
    let mut stages: Vec<&str> = Vec::new();
    for operation in findings.iter().flat_map(Finding::unseen) {
        let stage = operation.stage.name();
        if !stages.contains(&stage) && stages.len() < MAX_RECORDED {
            stages.push(stage);
        }
    }
    stages.into_iter().map(str::to_string).collect()
}

fn short(text: &str) -> String {
    if text.len() <= MAX_TEXT { text.to_string() } else { cut(text, MAX_TEXT) }
}

/// The beginning of a text, of at most so many bytes and dots.
fn cut(text: &str, bytes: usize) -> String {
    let end = (0..=bytes.min(text.len())).rfind(|&at| text.is_char_boundary(at));
    format!("{}...", &text[..end.unwrap_or(0)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Headline, SideSummary};

    fn report(text: &str) -> Report {
        let headline = Headline::of(Exit::Diverged, text.to_string());
        Report::of_engine(headline, SideSummary::default())
    }

    #[test]
    fn a_summary_is_small_whatever_the_report() {
        for n in [0, 1, 7, 400] {
            // A character of three bytes, of which a cut keeps whole ones.
            let mut report = report(&"\u{2603}".repeat(n * 10));
            report.notes = vec!["\"".repeat(n * 20); n];
            let next = Next { command: "firstdiff \\ ".repeat(n * 5), purpose: "x".repeat(n) };
            let summary = Summary::of(&report, &[], vec![next; n]);
            let json = serde_json::to_string_pretty(&summary).unwrap();
            assert!(json.len() <= MAX_BYTES, "{n}: {}", json.len());
            assert_eq!(summary.exit_code, 1);
        }
    }

    #[test]
    fn a_short_report_is_whole_in_its_summary() {
        let mut report = report("guilty");
        report.notes = vec!["a note".to_string()];
        let next = Next { command: "firstdiff run".into(), purpose: "again".into() };
        let summary = Summary::of(&report, &[], vec![next.clone()]);
        assert_eq!((&*summary.answer, &summary.notes), ("guilty", &report.notes));
        assert_eq!((summary.next, summary.more_guilty), (vec![next], 0));
    }
}
