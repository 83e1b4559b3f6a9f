//! Annotations of GitHub: workflow commands that put a message beside a line of a file.

use std::collections::BTreeMap;

use crate::report::ci::{CaseResult, Guilty, Place, Results};

/// GitHub shows ten of a step; the last says how many more there are.
const MOST: usize = 9;

/// What fails in one place, and in how many cases.
struct Group<'a> {
    case: &'a CaseResult,
    /// The last case that was counted.
    last: &'a str,
    place: Option<&'a Place>,
    text: String,
    more: usize,
}

/// One command a line: what fails in one place is one annotation, whatever the case.
pub fn annotations(results: &Results) -> String {
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut seen: BTreeMap<(Option<&Place>, String), usize> = BTreeMap::new();
    for case in results.failed() {
        for (place, text) in reasons(case) {
            let key = (place, if place.is_some() { String::new() } else { text.clone() });
            match seen.get(&key) {
                // A second operation of the same kernel in one case is no further case.
                Some(&index) if groups[index].last == case.id => {}
                Some(&index) => {
                    groups[index].more += 1;
                    groups[index].last = &case.id;
                }
                None => {
                    seen.insert(key, groups.len());
                    groups.push(Group { case, last: &case.id, place, text, more: 0 });
                }
            }
        }
    }
    let mut text: String = groups.iter().take(MOST).map(annotation).collect();
    if let Some(more) = groups.len().checked_sub(MOST).filter(|&more| more > 0) {
        text += &format!("::error title=firstdiff::{more} more; see the job summary\n");
    }
    if results.cases.is_empty() {
        text += &format!("::error title=firstdiff::{}\n", data(&results.headline.text));
    }
    text
}

/// Each guilty operation, else the case's own text.
fn reasons(case: &CaseResult) -> Vec<(Option<&Place>, String)> {
    match &case.guilty[..] {
        [] => vec![(case.place.as_ref(), case.text.clone())],
        guilty => {
            let reason = |guilty: &Guilty| format!("{}\n{}", guilty.text, case.text);
            guilty.iter().map(|guilty| (guilty.place.as_ref(), reason(guilty))).collect()
        }
    }
}

fn annotation(group: &Group<'_>) -> String {
    let place = group.place.map_or(String::new(), |place| {
        format!("file={},line={},", property(&place.file), place.line)
    });
    let also = match group.more {
        0 => String::new(),
        1 => "\nand in 1 more case".to_string(),
        more => format!("\nand in {more} more cases"),
    };
    let title = property(&format!("firstdiff: {}", group.case.id));
    format!("::error {place}title={title}::{}\n", data(&format!("{}{also}", group.text)))
}

/// As the runner's own toolkit escapes a message.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// As it escapes a property.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{core::exit::Exit, report::ci::results::tests::case};

    fn results(cases: Vec<CaseResult>) -> Results {
        let plan = cases.iter().map(|case| case.id.clone()).collect();
        Results::of("hash".to_string(), None, None, BTreeMap::new(), plan, cases)
    }

    #[test]
    fn at_most_ten_commands_are_written_and_text_is_escaped() {
        let failed = |i: usize| {
            let place = Place { file: "a,b.cu".into(), line: i, entry: "k".into() };
            let text = "100 %\nwrong".to_string();
            CaseResult { text, place: Some(place), ..case(&format!("m/{i}"), Exit::Diverged) }
        };
        let text = annotations(&results((0..14).map(failed).collect()));
        assert_eq!(text.lines().count(), 10);
        let wanted = "::error file=a%2Cb.cu,line=0,title=firstdiff%3A m/0::100 %25%0Awrong";
        assert!(text.starts_with(wanted), "{text}");
        assert!(text.ends_with("::5 more; see the job summary\n"), "{text}");
        assert_eq!(annotations(&results((0..9).map(failed).collect())).lines().count(), 9);
    }

    #[test]
    fn one_cause_in_one_place_is_one_annotation() {
        let failed = |i: usize| case(&format!("m/{i}"), Exit::Diverged);
        let text = annotations(&results((0..3).map(failed).collect()));
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains("%0Aand in 2 more cases"), "{text}");
        assert_eq!(annotations(&results(vec![case("m", Exit::Equal)])), "");
        assert!(annotations(&results(vec![])).contains("nothing was checked"));
    }
}
