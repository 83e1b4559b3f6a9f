//! Where the time goes, as trace events.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::cli::{SHORT, outcome, path, refused};

/// A complete event.
struct Span {
    kind: String,
    name: String,
    lane: u64,
    /// In microseconds.
    start: f64,
    end: f64,
}

fn spans(events: &[Value]) -> Vec<Span> {
    let complete = events.iter().filter(|event| event["ph"] == "X");
    let span = |event: &Value| {
        let text = |key: &str| event[key].as_str().unwrap().to_string();
        let (start, took) = (event["ts"].as_f64().unwrap(), event["dur"].as_f64().unwrap());
        assert!(event["pid"] == 1 && start >= 0.0 && took >= 0.0, "{event}");
        let lane = event["tid"].as_u64().unwrap();
        Span { kind: text("cat"), name: text("name"), lane, start, end: start + took }
    };
    complete.map(span).collect()
}

#[test]
fn trace_events_say_what_each_side_did_when_and_nest() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.json");
    let run = ["run", "--fault", "rope-pairs-interleaved", "--trace-events", path(&file)];
    let (exit, _, err) = outcome(&[&run[..], &SHORT].concat());
    assert_eq!(exit, 1, "{err}");
    let text = std::fs::read_to_string(&file).unwrap();
    let trace: Value = serde_json::from_str(&text).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let all = spans(events);
    let names = |kind: &str| -> BTreeSet<&str> {
        all.iter().filter(|span| span.kind == kind).map(|span| span.name.as_str()).collect()
    };
    for side in ["engine", "reference", "replay"] {
        for step in ["step 0", "step 1", "step 2"] {
            assert!(names(side).contains(step), "{side} {step}");
        }
    }
    for part in ["both sides, compared", "replay and diagnosis", "reports"] {
        assert!(names("run").contains(part), "{part}: {:?}", names("run"));
    }
    for kind in ["capture", "compare", "replay"] {
        assert!(names(kind).contains("blk.3.q_rope"), "{kind}");
    }
    let guilty = BTreeSet::from(["blk.0.q_rope", "blk.2.k_rope"]);
    assert!(guilty.is_subset(&names("diagnosis")), "{:?}", names("diagnosis"));
    let lanes: BTreeSet<&str> = events
        .iter()
        .filter(|event| event["name"] == "thread_name")
        .map(|event| event["args"]["name"].as_str().unwrap())
        .collect();
    assert!(BTreeSet::from(["main", "engine", "reference"]).is_subset(&lanes), "{lanes:?}");

    // Of two spans of a thread one holds the other, or they do not meet.
    let mut of_lane: BTreeMap<u64, Vec<&Span>> = BTreeMap::new();
    all.iter().for_each(|span| of_lane.entry(span.lane).or_default().push(span));
    for spans in of_lane.values_mut() {
        spans.sort_by(|a, b| a.start.total_cmp(&b.start).then(b.end.total_cmp(&a.end)));
        let mut open: Vec<&Span> = Vec::new();
        for span in spans {
            // Clocks are told to a nanosecond.
            open.retain(|outer| outer.end > span.start + 0.002);
            if let Some(outer) = open.last() {
                let (inner, outer) = (&span.name, (&outer.name, outer.end));
                assert!(span.end <= outer.1 + 0.002, "{inner} ends after {}", outer.0);
            }
            open.push(span);
        }
    }
    refused(
        &[&["run", "--trace-events", "-"][..], &SHORT].concat(),
        2,
        "--trace-events writes a file",
    );
}
