//! The results as JUnit XML, one test case a case: the form that CI systems show.

use std::fmt::Write;

use crate::{
    core::exit::Exit,
    report::ci::{CaseResult, Results},
};

/// One suite a model, its cases in their order.
pub fn junit(results: &Results) -> String {
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let all: Vec<&CaseResult> = results.cases.iter().collect();
    let _ = writeln!(text, "<testsuites name=\"firstdiff\" {}>", counts(&all));
    for suite in all.chunk_by(|a, b| a.model == b.model) {
        let name = escaped(&suite[0].model);
        let _ = writeln!(text, "  <testsuite name=\"{name}\" {}>", counts(suite));
        suite.iter().for_each(|case| test_case(&mut text, case));
        text += "  </testsuite>\n";
    }
    text + "</testsuites>\n"
}

fn counts(cases: &[&CaseResult]) -> String {
    let number = |kind| cases.iter().filter(|case| element(case.exit) == Some(kind)).count();
    let seconds: f64 = cases.iter().map(|case| case.seconds).sum();
    let (tests, failures, errors) = (cases.len(), number("failure"), number("error"));
    format!("tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\" time=\"{seconds:.3}\"")
}

/// A divergence is a failure; what could not be compared is an error.
fn element(exit: Exit) -> Option<&'static str> {
    match exit {
        Exit::Equal => None,
        Exit::Diverged => Some("failure"),
        _ => Some("error"),
    }
}

fn test_case(text: &mut String, case: &CaseResult) {
    let name = case.id.strip_prefix(&format!("{}/", case.model)).unwrap_or(&case.id);
    let head = format!(
        "    <testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\"",
        escaped(&case.model),
        escaped(name),
        case.seconds
    );
    let Some(element) = element(case.exit) else {
        let _ = writeln!(text, "{head}/>");
        return;
    };
    let message = escaped(case.text.lines().next().unwrap_or_default());
    let kind = format!("{:?}", case.exit);
    let _ = writeln!(
        text,
        "{head}>\n      <{element} type=\"{kind}\" message=\"{message}\">{}</{element}>\n    \
         </testcase>",
        escaped(&case.details())
    );
}

/// Text and attribute values alike; what XML 1.0 cannot hold becomes a question mark.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\t' | '\n' => out.push(char),
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('?'),
            char => out.push(char),
        }
    }
    out
}
