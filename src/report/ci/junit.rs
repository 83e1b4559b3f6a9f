//! The results as JUnit XML, one test case a case: the form that CI systems show.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use crate::{
    core::exit::Exit,
    report::ci::{CaseResult, Results},
};

/// One suite a model, its cases in their order.
pub fn junit(results: &Results) -> String {
    let mut report = Report::new("firstdiff");
    report.set_time(time(&results.cases));
    for cases in results.cases.chunk_by(|a, b| a.model == b.model) {
        let mut suite = TestSuite::new(&*cases[0].model);
        suite.set_time(time(cases)).add_test_cases(cases.iter().map(test_case));
        report.add_test_suite(suite);
    }
    report.to_string().expect("writing to a String does not fail")
}

fn time(cases: &[CaseResult]) -> Duration {
    seconds(cases.iter().map(|case| case.seconds).sum())
}

/// No time where a file of results, which others can write, has one that is none.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

fn test_case(case: &CaseResult) -> TestCase {
    let name = case.id.strip_prefix(&format!("{}/", case.model)).unwrap_or(&case.id);
    let mut test_case = TestCase::new(name, status(case));
    test_case.set_classname(&*case.model).set_time(seconds(case.seconds));
    test_case
}

/// A divergence is a failure; what could not be compared is an error.
fn status(case: &CaseResult) -> TestCaseStatus {
    let kind = match case.exit {
        Exit::Equal => return TestCaseStatus::success(),
        Exit::Diverged => NonSuccessKind::Failure,
        _ => NonSuccessKind::Error,
    };
    let mut status = TestCaseStatus::non_success(kind);
    status
        .set_type(format!("{:?}", case.exit))
        .set_message(case.text.lines().next().unwrap_or_default())
        .set_description(case.details());
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::ci::results::tests::case;

    #[test]
    fn a_suite_is_a_model_and_a_case_has_its_text() {
        let cases = vec![case("m/p/f32", Exit::Equal), case("m/p<1>/f16", Exit::Diverged)];
        let (models, plan) = (Default::default(), Vec::new());
        let text = junit(&Results::of("config".to_string(), None, None, models, plan, cases));
        let suite = r#"<testsuite name="m" tests="2" skipped="0" errors="0" failures="1" "#;
        let equal = r#"<testcase name="p/f32" classname="m" time="0.000"/>"#;
        let diverged = r#"<testcase name="p&lt;1&gt;/f16" classname="m" time="0.000">"#;
        let failure = r#"<failure message="said" type="Diverged">said"#;
        for part in [suite, equal, diverged, failure] {
            assert!(text.contains(part), "{text}");
        }
    }
}
