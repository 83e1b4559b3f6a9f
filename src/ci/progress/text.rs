//! Progress as text. The first line is the answer.

use std::fmt::Write;

use crate::{
    ci::progress::{Kind, Progress, Saved},
    core::{exit::Exit, sink::Choice},
    diagnosis::Finding,
    graph::site::Site,
    report::{BAD, DIM, GOOD, SideSummary, StepRow, forced, line, whose},
};

impl Progress<'_> {
    /// The whole text, with terminal colours.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let colour = if self.exit() == Exit::Equal { GOOD } else { BAD };
        let _ = writeln!(text, "{colour}{}{colour:#}", self.answer());
        self.causes(&mut text);
        text.push('\n');
        if self.count(Kind::Fixed) > 0 && !says_the_same(self.new) {
            let keep = "each operation is judged by its own inputs: what is fixed is right, \
                        whatever the text says";
            line(&mut text, "keep", keep);
        }
        self.divergence(&mut text);
        self.counts(&mut text);
        self.decoded(&mut text);
        self.settings(&mut text);
        if let Some(step) = self.old.first_other_step(self.new) {
            let other = format!("from step {step} on, the engine runs tokens of its own choice");
            line(&mut text, "note", &other);
        }
        for report in [self.old, self.new].into_iter().filter(|report| report.model.is_none()) {
            let path = report.path.display();
            line(&mut text, "note", &format!("{path} does not say which model it is of"));
        }
        text
    }

    fn answer(&self) -> String {
        let text = self.text_change();
        if self.causes.is_none() {
            let missing = [self.old, self.new].into_iter().find(|r| r.diagnosis.is_none());
            let path = missing.map_or(String::new(), |report| report.path.display().to_string());
            return format!("no causes to compare: {path} has no diagnosis; {text}");
        }
        let count = |kind| self.count(kind);
        let mut counts = format!(
            "{} fixed, {} remaining, {} new",
            count(Kind::Fixed),
            count(Kind::Remaining),
            count(Kind::New)
        );
        for (kind, what) in [(Kind::Changed, "changed"), (Kind::Unmeasured, "not measured")] {
            if count(kind) > 0 {
                let _ = write!(counts, ", {} {what}", count(kind));
            }
        }
        format!("{}: {counts}; {text}", self.word())
    }

    fn word(&self) -> &'static str {
        let count = |kind| self.count(kind);
        let left = self.causes.iter().flatten().any(|change| change.kind != Kind::Fixed);
        let better =
            count(Kind::Fixed) > 0 || self.causes.iter().flatten().any(|change| change.shrunk);
        match (count(Kind::New) > 0, better) {
            _ if !left && self.exit() != Exit::Equal => "no cause left, but not equal",
            _ if !left && better => "all fixed",
            _ if !left => "nothing to fix",
            (true, true) => "mixed",
            (true, false) => "step back",
            (false, true) => "progress",
            (false, false) if count(Kind::Changed) > 0 => "changed",
            (false, false) if count(Kind::Remaining) == 0 => "unclear",
            (false, false) => "no progress",
        }
    }

    fn causes(&self, text: &mut String) {
        let Some(changes) = &self.causes else {
            // What one of the reports knows is of use all the same.
            let known = [("before", self.old), ("now", self.new)];
            for (label, report) in known {
                for finding in report.diagnosis.iter().flat_map(|d| &d.findings) {
                    line(text, label, &said(finding));
                }
            }
            return;
        };
        for change in changes {
            let (label, colour) = match change.kind {
                Kind::Fixed => ("fixed", GOOD),
                Kind::Remaining => ("remaining", BAD),
                Kind::Changed => ("changed", BAD),
                Kind::New => ("new", BAD),
                Kind::Unmeasured => ("unmeasured", DIM),
            };
            let _ = writeln!(text, "  {colour}{label:<10}{colour:#} {}", said(change.finding));
            for detail in &change.details {
                let _ = writeln!(text, "             {DIM}{detail}{DIM:#}");
            }
        }
    }

    fn divergence(&self, text: &mut String) {
        let (old, new) = (&self.old.headline, &self.new.headline);
        let content = match (&old.first_divergence, &new.first_divergence) {
            (None, None) => return,
            (Some(old), None) => format!("first at {} before, none now", place(old)),
            (None, Some(new)) => format!("none before, first at {} now", place(new)),
            (Some(old), Some(new)) if old == new => format!("first at {}, as before", place(new)),
            (Some(old), Some(new)) => {
                let moved = match (site(old), site(new)) {
                    (Some(old), Some(new)) if new > old => ", later",
                    (Some(_), Some(_)) => ", earlier",
                    _ => "",
                };
                format!("first at {} before, at {} now{moved}", place(old), place(new))
            }
        };
        line(text, "divergence", &content);
    }

    fn counts(&self, text: &mut String) {
        if let (Some(old), Some(new)) = (&self.old.compared, &self.new.compared) {
            let count = |c: &crate::report::Compared| {
                format!("{} of {}", c.coverage.diverged, c.coverage.compared())
            };
            let content = format!("{} diverged before, {} now", count(old), count(new));
            line(text, "sites", &content);
        }
        if let (Some(old), Some(new)) = (&self.old.diagnosis, &self.new.diagnosis) {
            let count = |d: &crate::diagnosis::Diagnosis| {
                let side = &d.engine;
                format!("{} of {}", side.replayed.saturating_sub(side.cleared), side.replayed)
            };
            let content = format!("{} guilty before, {} now", count(old), count(new));
            line(text, "operations", &content);
        }
    }

    /// What became of the engine's text, in a few words.
    fn text_change(&self) -> &'static str {
        let (Some(old), Some(new)) =
            (tokens(self.old, |step| step.engine), tokens(self.new, |step| step.engine))
        else {
            return "text unknown";
        };
        match (says_the_same(self.old), says_the_same(self.new)) {
            (true, true) => "text equal to the reference's, as before",
            (false, true) => "text now equal to the reference's",
            (true, false) => "text no longer the reference's",
            (false, false) if old == new => "text unchanged",
            _ if self.new.reference.is_none() => "text changed",
            (false, false) => "text changed, but not to the reference's",
        }
    }

    fn decoded(&self, text: &mut String) {
        let ([_, old], [reference, new]) =
            (StepRow::said(&self.old.steps), StepRow::said(&self.new.steps));
        if old.is_empty() && new.is_empty() {
            return;
        }
        let mut content = format!("before {old:?}, now {new:?}");
        if !reference.is_empty() {
            let _ = write!(content, ", reference {reference:?}{}", forced(&self.new.compared));
        }
        line(text, "decoded", &content);
    }

    /// Settings that changed: another cause of other numbers than a fix.
    fn settings(&self, text: &mut String) {
        let none = SideSummary::default();
        let reference = |report: &'_ Saved| report.reference.clone().unwrap_or(none.clone());
        let (old, new) = (reference(self.old), reference(self.new));
        let sides = [("engine", &self.old.engine, &self.new.engine), ("reference", &old, &new)];
        for (label, old, new) in sides {
            let only = |a: &SideSummary, b: &SideSummary, word: &str| -> Vec<String> {
                let other = a.settings.iter().filter(|setting| !b.settings.contains(setting));
                other.map(|(key, value)| format!("{word} {key} {value}")).collect()
            };
            let mut changed = [only(old, new, "without"), only(new, old, "now")].concat();
            if old.arithmetic != new.arithmetic {
                changed.push("its declared arithmetic, and so the bounds, differ".to_string());
            }
            if !changed.is_empty() {
                line(text, label, &changed.join("; "));
            }
        }
    }
}

/// `q projection, all layers: bias missing`
fn said(finding: &Finding) -> String {
    format!("{}{}: {}", whose(finding), finding.what, finding.cause.text)
}

/// A side's choices; `None` unless it made one after every step.
fn tokens(report: &Saved, of: fn(&StepRow) -> Option<Choice>) -> Option<Vec<i32>> {
    report.steps.iter().map(|step| of(step).map(|choice| choice.token)).collect()
}

/// Whether the engine says what the reference says, after every step.
fn says_the_same(report: &Saved) -> bool {
    let engine = tokens(report, |step| step.engine);
    engine.is_some() && engine == tokens(report, |step| step.reference)
}

/// The site of `0/blk.0.q`.
fn site(name: &str) -> Option<Site> {
    let (step, tensor) = name.split_once('/')?;
    Site::from_tensor_name(step.parse().ok()?, tensor)
}

fn place(name: &str) -> String {
    site(name).map_or_else(|| name.to_string(), |site| site.to_string())
}
