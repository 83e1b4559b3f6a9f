//! What a report says of a case, held against what is known of it.

use std::{collections::BTreeSet, time::Duration};

use regex::bytes::Regex;
use serde::{Deserialize, de::IgnoredAny};

use crate::{
    case::{Case, Kind},
    workshop::{Ended, Outcome},
};

/// The device or the engine failed.
const DEVICE: Option<i32> = Some(5);
/// Lines of an error that are shown, from its end.
const ERROR_LINES: usize = 3;

/// The part of a report that counts here.
#[derive(Deserialize)]
pub struct Report {
    headline: Headline,
    model: Model,
    reference: Option<IgnoredAny>,
    diagnosis: Option<Diagnosis>,
}

#[derive(Deserialize)]
struct Headline {
    exit_code: u8,
    first_divergence: Option<String>,
}

#[derive(Deserialize)]
struct Model {
    config: Config,
}

#[derive(Deserialize)]
struct Config {
    n_layer: usize,
}

#[derive(Deserialize)]
struct Diagnosis {
    findings: Vec<Finding>,
}

#[derive(Deserialize)]
struct Finding {
    verdict: String,
    what: String,
    operations: Vec<String>,
    cause: Cause,
}

#[derive(Deserialize)]
struct Cause {
    text: String,
    certainty: String,
    explained: u64,
    wrong: u64,
    also: Vec<String>,
    signs: Vec<String>,
}

/// What a cause is of the stated one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Worth {
    Stated,
    /// True of the numbers.
    Likeness,
    Unknown,
    Other,
}

/// A case and what came of it. What is not asked of such a case is absent.
pub struct Row<'a> {
    pub case: &'a Case,
    pub seconds: f64,
    pub is_not_run: bool,
    /// Why it ended without a report.
    pub died: Option<String>,
    pub detected: Option<bool>,
    /// Whether the first site that differs is the stated one.
    pub site: Option<bool>,
    /// Whether what is blamed is all that is wrong, and nothing else.
    pub guilty: Option<bool>,
    /// Findings on the engine.
    pub entries: usize,
    /// Whether the stated cause is named, or the convention told.
    pub named: Option<bool>,
    /// The first cause and its certainty, and each finding in full.
    pub said: String,
    pub certainty: String,
    pub findings: Vec<String>,
    /// Findings that are proven and neither the stated cause nor true of the numbers.
    pub false_proofs: Vec<String>,
    /// Proven findings that are true of the numbers, and not the mistake's name.
    pub likenesses: usize,
}

impl Finding {
    fn is_of_engine(&self) -> bool {
        ["engine_wrong", "undeclared"].contains(&self.verdict.as_str())
    }

    fn is_undeclared(&self) -> bool {
        self.verdict == "undeclared"
    }

    fn is_proven(&self) -> bool {
        self.cause.certainty == "proven"
    }

    /// Its operations and cause.
    fn brief(&self) -> String {
        format!("{}: {}", self.what, self.cause.text)
    }

    fn in_full(&self) -> String {
        let Cause { certainty, explained, wrong, also, .. } = &self.cause;
        let mut text = format!("{} ({certainty}, {explained} of {wrong})", self.brief());
        if !also.is_empty() {
            text += &format!("; or: {}", also.join("; "));
        }
        if self.verdict == "engine_wrong" { text } else { format!("{}: {text}", self.verdict) }
    }

    fn worth(&self, case: &Case) -> Worth {
        let Cause { text, certainty, also, signs, .. } = &self.cause;
        let says = |pattern: &Option<Regex>| {
            let is_match = |text: &String| {
                pattern.as_ref().is_some_and(|pattern| pattern.is_match(text.as_bytes()))
            };
            is_match(text) || also.iter().chain(signs).any(is_match)
        };
        if says(&case.says) {
            Worth::Stated
        } else if certainty == "unknown" {
            Worth::Unknown
        } else if says(&case.likeness) {
            Worth::Likeness
        } else {
            Worth::Other
        }
    }
}

impl Report {
    fn findings(&self) -> &[Finding] {
        self.diagnosis.as_ref().map_or(&[], |diagnosis| &diagnosis.findings)
    }

    /// Whether a reference was compared and its first site that differs, without the step, is that one.
    fn diverges_first_at(&self, site: &str) -> Option<bool> {
        self.reference.as_ref()?;
        let first = self.headline.first_divergence.as_deref().unwrap_or_default();
        Some(first.split_once('/').is_some_and(|(_, first)| first == site))
    }
}

impl<'a> Row<'a> {
    pub fn of(case: &'a Case, outcome: &Outcome, time: Duration) -> Row<'a> {
        let row = Row {
            case,
            seconds: time.as_secs_f64(),
            is_not_run: false,
            died: None,
            detected: None,
            site: None,
            guilty: None,
            entries: 0,
            named: None,
            said: String::new(),
            certainty: String::new(),
            findings: Vec::new(),
            false_proofs: Vec::new(),
            likenesses: 0,
        };
        match outcome {
            Outcome::NotRun => Row { is_not_run: true, ..row },
            Outcome::Ended(ended) => row.ended(ended),
            Outcome::Report(report) => row.reported(report),
        }
    }

    fn ended(self, ended: &Ended) -> Row<'a> {
        let lines = ended.stderr.lines().map(str::trim).filter(|line| !line.is_empty());
        let lines: Vec<&str> = lines.collect();
        let said = lines[lines.len().saturating_sub(ERROR_LINES)..].join(" / ");
        let kind = self.case.kind();
        if kind == Kind::Stopped && ended.code == DEVICE {
            let says = &self.case.says;
            let named = says.as_ref().is_some_and(|says| says.is_match(ended.stderr.as_bytes()));
            return Row { detected: Some(true), named: Some(named), said, ..self };
        }
        let died = match ended.code {
            Some(code) => format!("exit status {code}: {said}"),
            None => said,
        };
        // What died was not judged, and what should have been found was missed.
        let asked = |asked: bool| asked.then_some(false);
        Row {
            died: Some(died),
            detected: asked(kind != Kind::Right),
            guilty: asked(kind != Kind::Stopped),
            named: asked(kind != Kind::Right),
            ..self
        }
    }

    fn reported(self, report: &Report) -> Row<'a> {
        let case = self.case;
        let all = report.findings();
        let own: Vec<&Finding> = all.iter().filter(|finding| finding.is_of_engine()).collect();
        let exit = report.headline.exit_code;
        let worth: Vec<Worth> = all.iter().map(|finding| finding.worth(case)).collect();
        let blamed: BTreeSet<String> =
            own.iter().flat_map(|finding| finding.operations.iter().cloned()).collect();
        let guilty = blamed == case.operations(report.model.config.n_layer);
        let is_equal = exit == 0 && own.is_empty();
        let is_named = worth.contains(&Worth::Stated) && !worth.contains(&Worth::Other);
        let is_told = own.iter().all(|f| f.is_undeclared() && f.worth(case) == Worth::Stated);
        let (detected, guilty, named) = match case.kind() {
            Kind::Bug => (Some(exit == 1 || !own.is_empty()), Some(guilty), Some(is_named)),
            Kind::Stopped => (Some(exit == 1 || !own.is_empty()), None, Some(is_named)),
            Kind::Convention => {
                let detected = is_equal || own.iter().any(|finding| finding.is_undeclared());
                (Some(detected), (!is_equal).then_some(guilty), Some(detected && is_told))
            }
            Kind::Right => (None, Some(guilty), None),
        };
        let proven = |which: Worth| {
            let proven = all.iter().zip(&worth).filter(move |(f, w)| f.is_proven() && **w == which);
            proven.map(|(finding, _)| finding.in_full())
        };
        Row {
            detected,
            site: case.first.as_deref().and_then(|first| report.diverges_first_at(first)),
            guilty,
            entries: own.len(),
            named,
            said: own.first().map_or("nothing".to_string(), |finding| finding.brief()),
            certainty: own.first().map_or("-".to_string(), |f| f.cause.certainty.clone()),
            findings: all.iter().map(Finding::in_full).collect(),
            false_proofs: proven(Worth::Other).collect(),
            likenesses: proven(Worth::Likeness).count(),
            ..self
        }
    }

    /// It in one line.
    pub fn line(&self) -> String {
        let name = &self.case.name;
        if self.is_not_run {
            return format!("{name}: not run, as there is no Python with numpy");
        }
        if let Some(died) = &self.died {
            return format!("{name}: died: {died}");
        }
        let answers = [
            (self.detected, "detected"),
            (self.site, "first site"),
            (self.guilty, "guilty"),
            (self.named, "named"),
        ];
        let words = answers.into_iter().filter_map(|(answer, word)| {
            answer.map(|yes| if yes { word.to_string() } else { format!("not {word}") })
        });
        let words: Vec<String> = words.collect();
        let proofs = if self.false_proofs.is_empty() { "" } else { ", FALSELY PROVEN" };
        let Row { entries, said, .. } = self;
        format!("{name}: {}{proofs}; entries: {entries}, first: {said}", words.join(", "))
    }
}
