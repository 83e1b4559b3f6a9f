//! What a check found, as data. `docs/ci.md` describes the JSON.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    compare::verdict::Coverage, core::exit::Exit, diagnosis::replay::Operation, report::Headline,
};

/// Raised when a field is added, removed or changes its meaning.
pub const CHECK_VERSION: u32 = 3;

/// A check, or a part of one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    pub check_version: u32,
    pub firstdiff: String,
    /// Tells this matrix from others.
    pub config: String,
    /// The snapshot that stood for llama.cpp; absent where llama.cpp ran.
    pub reference: Option<String>,
    pub headline: Headline,
    /// The part that was run; absent for all.
    pub partition: Option<String>,
    /// The blake3 of each model that was run.
    pub models: BTreeMap<String, String>,
    /// The ids of all cases of the matrix, also those of other parts.
    pub plan: Vec<String>,
    /// What was run, in the order of the plan.
    pub cases: Vec<CaseResult>,
    pub seconds: f64,
}

/// One case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseResult {
    pub id: String,
    pub model: String,
    pub prompt: String,
    pub dtype: String,
    pub variant: String,
    pub device: String,
    pub exit: Exit,
    /// The first line of its report, or the error that ended it.
    pub text: String,
    /// The first site that diverged, such as `0/blk.0.q`.
    pub first_divergence: Option<String>,
    /// The guilty operations with their causes.
    pub guilty: Vec<Guilty>,
    /// Operations that are less, or more, accurate than the baseline says.
    pub regressed: Vec<Change>,
    pub improved: Vec<Change>,
    /// The kernel of the first divergence, or the line that the error names.
    pub place: Option<Place>,
    /// Absent where the case ended with an error.
    pub coverage: Option<Coverage>,
    pub seconds: f64,
}

/// An operation whose error is not what the baseline says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    pub operation: Operation,
    /// `rms` over all elements, or the `peak` of one.
    pub measure: String,
    /// Errors in units of the bound, and the most that chance explains.
    pub was: f64,
    pub now: f64,
    pub most: f64,
}

impl Change {
    /// How many times the error is what it was.
    pub fn times(&self) -> f64 {
        self.now / self.was
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Change { operation, measure, was, now, most } = self;
        let operation = operation.result();
        if *was > 0.0 {
            write!(
                f,
                "{operation} {measure} error {was:.3} -> {now:.3} x bound (chance explains {most:.3})"
            )
        } else {
            write!(f, "{operation} was exact, {measure} error {now:.3} x bound now")
        }
    }
}

/// A guilty operation of the engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guilty {
    /// What and why, such as `q and k rotation, all layers: pairs ... (proven)`.
    pub text: String,
    /// Its kernel; absent for matrix products, which are the device's own.
    pub place: Option<Place>,
}

/// A line of a kernel file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    pub file: String,
    pub line: usize,
    /// Such as `rope_neox_f32`; empty for a line that an error names.
    pub entry: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { file, line, entry } = self;
        let entry = if entry.is_empty() { String::new() } else { format!(" {entry}") };
        write!(f, "{file}:{line}{entry}")
    }
}

impl Results {
    /// The results of some cases of a plan, of a configuration against a reference. Nothing checked is no
    /// success.
    pub fn of(
        config: String,
        reference: Option<String>,
        partition: Option<String>,
        models: BTreeMap<String, String>,
        plan: Vec<String>,
        cases: Vec<CaseResult>,
    ) -> Results {
        let headline = headline(&cases, &plan, partition.as_deref(), reference.as_deref());
        Results {
            check_version: CHECK_VERSION,
            firstdiff: env!("CARGO_PKG_VERSION").to_string(),
            config,
            reference,
            headline,
            partition,
            models,
            plan,
            seconds: cases.iter().map(|case| case.seconds).sum(),
            cases,
        }
    }

    /// The cases that are not equal.
    pub fn failed(&self) -> impl Iterator<Item = &CaseResult> {
        self.cases.iter().filter(|case| case.exit != Exit::Equal)
    }

    /// The answer, then one line a case.
    pub fn lines(&self) -> String {
        let mut text = format!("{}\n", self.headline.text);
        for case in &self.cases {
            text += &format!("  {}\n", case.line());
        }
        let improved: Vec<&CaseResult> =
            self.cases.iter().filter(|case| !case.improved.is_empty()).collect();
        if let Some(case) = improved.first() {
            text += &format!(
                "improved in {}, first {}: {}; `firstdiff bless --improved` accepts it\n",
                match improved.len() {
                    1 => "1 case".to_string(),
                    n => format!("{n} cases"),
                },
                case.id,
                case.improved[0]
            );
        }
        text
    }
}

impl CaseResult {
    /// The verdict in one word.
    pub fn word(&self) -> &'static str {
        match self.exit {
            Exit::Equal => "equal",
            Exit::Diverged if !self.regressed.is_empty() => "regressed",
            Exit::Diverged => "diverged",
            Exit::NotMeasured => "unmeasured",
            Exit::Refused => "refused",
            Exit::Interrupted | Exit::Terminated => "interrupted",
            _ => "failed",
        }
    }

    /// `equal     fixture/short/f32/...: ...`, without line breaks.
    pub fn line(&self) -> String {
        let text = self.text.lines().next().unwrap_or_default();
        let cause = self.guilty.first().filter(|_| self.regressed.is_empty());
        let cause = cause.map_or(String::new(), |guilty| format!(" <- {}", guilty.text));
        let said = text.strip_prefix("equal within the floor: ").unwrap_or(text);
        format!("{:<10} {}: {said}{cause}", self.word(), self.id)
    }

    /// First divergence, causes and place, for a failure's text.
    pub fn details(&self) -> String {
        let mut text = format!("{}\n", self.text);
        for Guilty { text: cause, place } in &self.guilty {
            let place = place.as_ref().map_or(String::new(), |place| format!(" [{place}]"));
            text += &format!("{cause}{place}\n");
        }
        if let (Some(place), []) = (&self.place, &self.guilty[..]) {
            text += &format!("{place}\n");
        }
        text
    }
}

/// A divergence says more than a failure to run, and that more than a gap.
fn exit(cases: &[CaseResult]) -> Exit {
    let severity = |exit: Exit| match exit {
        Exit::Equal => 0,
        Exit::NotMeasured => 1,
        Exit::Refused => 2,
        Exit::BadInput => 3,
        Exit::Device => 4,
        Exit::Internal => 5,
        Exit::Diverged => 6,
        Exit::Interrupted | Exit::Terminated => 7,
    };
    let worst = cases.iter().map(|case| case.exit).max_by_key(|&exit| severity(exit));
    worst.unwrap_or(Exit::NotMeasured)
}

fn headline(
    cases: &[CaseResult],
    plan: &[String],
    partition: Option<&str>,
    reference: Option<&str>,
) -> Headline {
    let exit = exit(cases);
    let (n, all) = (cases.len(), plan.len());
    let part = partition.map_or(String::new(), |part| format!(" (part {part} of all {all} cases)"));
    let against = reference.map_or(String::new(), |of| format!(", against the snapshot of {of}"));
    let failed: Vec<&CaseResult> = cases.iter().filter(|case| case.exit != Exit::Equal).collect();
    let first = failed.iter().find(|case| case.exit == exit);
    let text = match first {
        None if n == 0 => format!("nothing was checked: no case{part}"),
        None => format!("equal: {n} of {n} cases{part}{against}"),
        Some(first) => {
            format!("{} of {n} cases{part} are not equal{against}; first {}", failed.len(), {
                let line = first.line();
                line.split_once(' ').map_or(line.clone(), |(_, rest)| rest.trim().to_string())
            })
        }
    };
    let first_divergence = first.and_then(|case| case.first_divergence.clone());
    Headline { first_divergence, ..Headline::of(exit, text) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn case(id: &str, exit: Exit) -> CaseResult {
        let word = |text: &str| text.to_string();
        CaseResult {
            id: word(id),
            model: word("m"),
            prompt: word("p"),
            dtype: word("f32"),
            variant: word("v"),
            device: word("host"),
            exit,
            text: word("said"),
            first_divergence: None,
            guilty: Vec::new(),
            regressed: Vec::new(),
            improved: Vec::new(),
            place: None,
            coverage: None,
            seconds: 0.0,
        }
    }

    #[test]
    fn a_divergence_counts_more_than_a_failure_and_nothing_is_no_success() {
        let exit = |exits: &[Exit]| {
            let cases = exits.iter().map(|&exit| case("m/p", exit)).collect();
            Results::of(String::new(), None, None, BTreeMap::new(), vec![], cases).headline.exit
        };
        assert_eq!(exit(&[Exit::Equal, Exit::Device, Exit::Diverged]), Exit::Diverged);
        assert_eq!(exit(&[Exit::Equal, Exit::Device, Exit::NotMeasured]), Exit::Device);
        assert_eq!(exit(&[Exit::Equal, Exit::Equal]), Exit::Equal);
        assert_eq!(exit(&[]), Exit::NotMeasured);
    }
}
