//! The results as Markdown, for the summary page of a job.

use std::fmt::Write;

use crate::report::ci::{CaseResult, Results};

/// GitHub takes 1 MiB a step; the rest of it is left to others.
const MOST_BYTES: usize = 1_000_000;

/// The answer, the failed cases, then all; cut off where it gets too long.
pub fn summary(results: &Results) -> String {
    let mut text = format!("### firstdiff: {}\n\n", inline(&results.headline.text));
    let failed: Vec<&CaseResult> = results.failed().collect();
    if !failed.is_empty() {
        text += "| case | first divergence, or error | cause | kernel |\n|---|---|---|---|\n";
        rows(&mut text, &failed, |case| {
            let guilty = case.guilty.iter().filter_map(|guilty| guilty.place.as_ref());
            let own = case.place.as_ref().filter(|_| case.guilty.is_empty());
            let mut places: Vec<String> =
                guilty.chain(own).map(|place| inline(&place.to_string())).collect();
            places.dedup();
            let kernel = places.join("<br>");
            let said = inline(case.text.lines().next().unwrap_or_default());
            let causes: Vec<String> =
                case.guilty.iter().map(|guilty| inline(&guilty.text)).collect();
            format!("| {} | {said} | {} | {kernel} |\n", inline(&case.id), causes.join("<br>"))
        });
        text.push('\n');
    }
    if !results.cases.is_empty() {
        let all: Vec<&CaseResult> = results.cases.iter().collect();
        let _ = write!(text, "<details><summary>all {} cases</summary>\n\n", all.len());
        text += "| case | verdict | seconds |\n|---|---|--:|\n";
        rows(&mut text, &all, |case| {
            let line = case.line();
            let verdict = line.split(' ').next().unwrap_or_default();
            format!("| {} | {verdict} | {:.2} |\n", inline(&case.id), case.seconds)
        });
        text += "\n</details>\n";
    }
    text
}

/// As many rows as fit, and how many do not.
fn rows(text: &mut String, cases: &[&CaseResult], row: impl Fn(&CaseResult) -> String) {
    for (done, case) in cases.iter().enumerate() {
        let row = row(case);
        if text.len() + row.len() > MOST_BYTES {
            let _ = writeln!(text, "\n{} more are left out here", cases.len() - done);
            return;
        }
        text.push_str(&row);
    }
}

/// On one line of a table, and nothing in it Markdown or HTML.
fn inline(text: &str) -> String {
    let line = text.lines().collect::<Vec<_>>().join(" ");
    let line = line.replace('&', "&amp;").replace('<', "&lt;").replace('|', "\\|");
    line.replace('*', "\\*").replace('_', "\\_").replace('`', "'")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{core::exit::Exit, report::ci::results::tests::case};

    #[test]
    fn a_summary_of_ever_so_many_failures_stays_below_a_mebibyte() {
        let failed = |i: usize| CaseResult {
            text: "x".repeat(2000),
            ..case(&format!("m/{i}"), Exit::Diverged)
        };
        let cases: Vec<CaseResult> = (0..2000).map(failed).collect();
        let results = Results::of("hash".to_string(), None, None, BTreeMap::new(), vec![], cases);
        let text = summary(&results);
        assert!(text.len() < 1 << 20, "{}", text.len());
        assert!(text.contains("more are left out here"));
    }
}
