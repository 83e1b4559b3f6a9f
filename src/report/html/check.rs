//! The page of a check: the matrix, what failed, and what got less accurate.

use serde::Serialize;

use super::page::{MOST_BYTES, frame_bytes, json, page};
use crate::report::ci::{CaseResult, Change, Results};

#[derive(Serialize)]
struct CheckData<'a> {
    kind: &'static str,
    firstdiff: &'a str,
    exit: u8,
    headline: &'a str,
    cases: Vec<Case<'a>>,
    /// Cases whose texts there was no room for.
    left_out: usize,
    most_bytes: usize,
    facts: Vec<(String, String)>,
    commands: &'a [(String, String)],
}

#[derive(Serialize)]
struct Case<'a> {
    id: &'a str,
    model: &'a str,
    prompt: &'a str,
    dtype: &'a str,
    variant: &'a str,
    device: &'a str,
    /// `equal`, `regressed`, `diverged`, `unmeasured`, `refused` or `failed`.
    verdict: &'static str,
    text: &'a str,
    guilty: Vec<(&'a str, Option<String>)>,
    place: Option<String>,
    regressed: Vec<Moved>,
    improved: Vec<Moved>,
    seconds: f64,
}

/// An operation that is less, or more, accurate than its baseline.
#[derive(Serialize)]
struct Moved {
    operation: String,
    measure: String,
    was: f64,
    now: f64,
    most: f64,
}

/// The page of a check's results; `commands` are how to make them again, each after what it is for.
pub fn check_page(results: &Results, commands: &[(String, String)]) -> String {
    let mut facts = vec![
        ("Cases", format!("{} of {} run", results.cases.len(), results.plan.len())),
        ("Matrix's hash", results.config.clone()),
    ];
    facts.extend(results.partition.iter().map(|part| ("Part", part.clone())));
    facts.extend(results.reference.iter().map(|of| ("Reference", format!("the snapshot of {of}"))));
    facts.extend(
        results.models.iter().map(|(name, hash)| ("Model", format!("{name}, blake3 {hash}"))),
    );
    facts.push(("Time", format!("{:.1} s", results.seconds)));
    let mut data = CheckData {
        kind: "check",
        firstdiff: &results.firstdiff,
        exit: results.headline.exit_code,
        headline: &results.headline.text,
        cases: results.cases.iter().map(case).collect(),
        left_out: 0,
        most_bytes: MOST_BYTES,
        facts: facts.into_iter().map(|(name, text)| (name.to_string(), text)).collect(),
        commands,
    };
    // Texts of the cases that are equal go first, and then the last of the others.
    let room = MOST_BYTES.saturating_sub(frame_bytes() + 4096);
    let mut length = json(&data).len();
    for is_equal in [true, false] {
        for case in data.cases.iter_mut().rev().filter(|one| (one.verdict == "equal") == is_equal) {
            if length <= room {
                break;
            }
            length -= case.shorten();
            data.left_out += 1;
        }
    }
    page(&format!("firstdiff check: {}", results.headline.text), &results.headline.text, &data)
}

impl Case<'_> {
    /// Leaves its texts out, and gives how many bytes that saves.
    fn shorten(&mut self) -> usize {
        let before = json(self).len();
        self.text = "";
        (self.guilty, self.regressed, self.improved) = Default::default();
        before - json(self).len()
    }
}

fn case(case: &CaseResult) -> Case<'_> {
    Case {
        id: &case.id,
        model: &case.model,
        prompt: &case.prompt,
        dtype: &case.dtype,
        variant: &case.variant,
        device: &case.device,
        verdict: case.word(),
        text: &case.text,
        guilty: case
            .guilty
            .iter()
            .map(|guilty| (guilty.text.as_str(), guilty.place.as_ref().map(ToString::to_string)))
            .collect(),
        place: case.place.as_ref().map(ToString::to_string),
        regressed: case.regressed.iter().map(moved).collect(),
        improved: case.improved.iter().map(moved).collect(),
        seconds: case.seconds,
    }
}

fn moved(change: &Change) -> Moved {
    let Change { operation, measure, was, now, most } = change;
    Moved {
        operation: operation.result(),
        measure: measure.clone(),
        was: *was,
        now: *now,
        most: *most,
    }
}
