//! Which causes are fixed, remain or are new.

use std::collections::BTreeSet;

use crate::{
    ci::progress::{Saved, SavedError},
    core::{cause_key::CauseKey, exit::Exit},
    diagnosis::{Diagnosis, Finding, SideReplay, replay::Operation},
    report::{grouped, named},
};

/// What became of a cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// None of its operations is guilty any more.
    Fixed,
    Remaining,
    /// Its operations are still guilty, of something else.
    Changed,
    New,
    /// It is gone, and so are results that would show it.
    Unmeasured,
}

/// A cause, before or after.
#[derive(Clone, Debug)]
pub struct Change<'a> {
    pub kind: Kind,
    /// The new report's finding; the old one's where it is gone.
    pub finding: &'a Finding,
    /// What else to know of it.
    pub details: Vec<String>,
    /// Whether operations of it were fixed.
    pub shrunk: bool,
}

/// Two reports, before and after a change.
#[derive(Clone, Debug)]
pub struct Progress<'a> {
    pub old: &'a Saved,
    pub new: &'a Saved,
    /// `None` where a report has no diagnosis.
    pub causes: Option<Vec<Change<'a>>>,
}

impl<'a> Progress<'a> {
    /// Compares two reports.
    ///
    /// # Errors
    /// A refusal if they are of different models or tokens.
    pub fn of(old: &'a Saved, new: &'a Saved) -> Result<Progress<'a>, SavedError> {
        old.check_comparable(new)?;
        let causes = old.diagnosis.as_ref().zip(new.diagnosis.as_ref());
        let causes = causes.map(|pair| Reports { old, new, diagnoses: pair }.changes());
        Ok(Progress { old, new, causes })
    }

    /// How many causes became that.
    pub fn count(&self, kind: Kind) -> usize {
        self.causes.iter().flatten().filter(|change| change.kind == kind).count()
    }

    /// Green where nothing is left to fix, and the new report is green itself.
    pub fn exit(&self) -> Exit {
        let left = self.causes.iter().flatten().any(|change| change.kind != Kind::Fixed);
        match self.new.headline.exit {
            Exit::Equal if !left => Exit::Equal,
            _ => Exit::Diverged,
        }
    }
}

/// Whether a finding is on the reference.
fn of_reference(finding: &Finding) -> bool {
    !finding.verdict.is_of_engine()
}

/// Whether two findings are on the same operations, or on some that may be the same: those whose
/// results were not recorded are blamed together with the next.
fn overlap(a: &Finding, b: &Finding) -> bool {
    let reach = |finding: &Finding, operation: &Operation| {
        finding.operations.contains(operation) || finding.spanned.contains(operation)
    };
    of_reference(a) == of_reference(b)
        && a.operations.iter().chain(&a.spanned).any(|operation| reach(b, operation))
}

/// The guilty operations of a side.
fn guilty(diagnosis: &Diagnosis, of_the_reference: bool) -> BTreeSet<Operation> {
    let findings = diagnosis.findings.iter().filter(|f| of_reference(f) == of_the_reference);
    findings.flat_map(|finding| finding.operations.iter().copied()).collect()
}

/// Both reports with their diagnoses.
struct Reports<'a> {
    old: &'a Saved,
    new: &'a Saved,
    diagnoses: (&'a Diagnosis, &'a Diagnosis),
}

impl<'a> Reports<'a> {
    fn changes(&self) -> Vec<Change<'a>> {
        let (old, new) = self.diagnoses;
        let is_gone = |was: &&Finding| !new.findings.iter().any(|now| overlap(was, now));
        let gone = old.findings.iter().filter(is_gone).map(|was| self.gone(was));
        let present = new.findings.iter().map(|now| {
            let before = old.findings.iter().filter(|was| overlap(was, now));
            self.present(now, before.collect())
        });
        let mut changes: Vec<Change<'_>> = gone.chain(present).collect();
        changes.sort_by_key(|change| change.kind as u8);
        changes
    }

    /// A cause that the new report does not have.
    fn gone(&self, was: &'a Finding) -> Change<'a> {
        let seen = Seen::of(self.new, self.diagnoses.1, Some(self.old));
        let operations = was.operations.iter().copied();
        let unseen: Vec<Operation> =
            operations.filter(|&operation| !seen.has(operation, of_reference(was))).collect();
        let (kind, details) = match unseen.as_slice() {
            [] if self.new.partial.is_some() => {
                let ended = "the new report is partial: its run ended before its last site";
                (Kind::Unmeasured, vec![ended.to_string()])
            }
            [] => (Kind::Fixed, Vec::new()),
            unseen => {
                let detail = format!("the new report did not measure {}", named(unseen));
                (Kind::Unmeasured, vec![detail])
            }
        };
        Change { kind, finding: was, details, shrunk: false }
    }

    /// A cause of the new report, and the old causes on the same operations.
    fn present(&self, now: &'a Finding, before: Vec<&'a Finding>) -> Change<'a> {
        let side = of_reference(now);
        if before.is_empty() {
            let seen = Seen::of(self.old, self.diagnoses.0, None);
            let known = now.operations.iter().any(|&operation| seen.has(operation, side));
            let unseen = "the old report did not measure it, so it may not be new";
            let details = if known { Vec::new() } else { vec![unseen.to_string()] };
            return Change { kind: Kind::New, finding: now, details, shrunk: false };
        }
        let mut details = Vec::new();
        let same = before.iter().any(|was| was.cause.key == now.cause.key);
        let alike = before.iter().any(|was| was.cause.text == now.cause.text);
        // The nearest of an unknown cause changes with every input.
        let still_unknown = same && now.cause.key == CauseKey::Unknown;
        if !alike && !still_unknown {
            details.push(format!("before: {}: {}", before[0].what, before[0].cause.text));
        }
        let shrunk = self.scope(now, &before, &mut details);
        let kind = if same { Kind::Remaining } else { Kind::Changed };
        Change { kind, finding: now, details, shrunk }
    }

    /// Which operations came and went, and whether any went.
    fn scope(&self, now: &Finding, before: &[&Finding], details: &mut Vec<String>) -> bool {
        let side = of_reference(now);
        let (was_guilty, is_guilty) =
            (guilty(self.diagnoses.0, side), guilty(self.diagnoses.1, side));
        let seen = Seen::of(self.new, self.diagnoses.1, Some(self.old));
        let operations = before.iter().flat_map(|was| was.operations.iter().copied());
        let operations: Vec<Operation> = operations.collect();
        let is_right =
            |operation: &Operation| !is_guilty.contains(operation) && seen.has(*operation, side);
        let fixed: Vec<Operation> = operations.iter().copied().filter(is_right).collect();
        let is_added = |operation: &Operation| !was_guilty.contains(operation);
        let added: Vec<Operation> = now.operations.iter().copied().filter(is_added).collect();
        if !fixed.is_empty() {
            let (few, all) = (fixed.len(), operations.len());
            details
                .push(format!("fewer: {few} of {all} operations are right now: {}", named(&fixed)));
        }
        if !added.is_empty() {
            let text =
                format!("more: {} operations were right before: {}", added.len(), named(&added));
            details.push(text);
        }
        let elements: u64 = before.iter().map(|was| was.beyond).sum();
        if fixed.is_empty() && added.is_empty() && now.beyond < elements / 2 {
            let (now, elements) = (grouped(now.beyond), grouped(elements));
            details.push(format!("fewer: {now} wrong elements, {elements} before"));
            return true;
        }
        !fixed.is_empty()
    }
}

/// Which operations a report has a verdict on.
struct Seen<'a> {
    diagnosis: &'a Diagnosis,
    /// The sites that another report measured and this one did not.
    lost: BTreeSet<&'a str>,
}

impl<'a> Seen<'a> {
    /// `like` is the report whose every measured site is wanted here too.
    fn of(report: &'a Saved, diagnosis: &'a Diagnosis, like: Option<&'a Saved>) -> Seen<'a> {
        // Without a reference a report has no sites, and says nothing by that.
        let like = like.filter(|_| report.compared.is_some());
        let measured: BTreeSet<&str> = report.measured().collect();
        let wanted = like.into_iter().flat_map(Saved::measured);
        let lost = wanted.filter(|site| !measured.contains(site));
        let tensor = |site: &'a str| site.split_once('/').map_or(site, |(_, tensor)| tensor);
        Seen { diagnosis, lost: lost.map(tensor).collect() }
    }

    fn has(&self, operation: Operation, of_the_reference: bool) -> bool {
        let side = if of_the_reference {
            self.diagnosis.reference.as_ref()
        } else {
            Some(&self.diagnosis.engine)
        };
        let is_judged = |side: &SideReplay| {
            ![&side.unmeasured, &side.left_out].iter().any(|list| list.contains(&operation))
        };
        let recorded = side.is_some_and(is_judged);
        recorded && !self.lost.contains(operation.result().as_str())
    }
}
