//! Layers and sites that are asked for, and nothing else.

use std::path::{Path, PathBuf};

use firstdiff::{
    compare::{Layers, SiteFilter},
    core::sink::NoSink,
    model::ModelFile,
    reference::{Changes, Reference, ReferenceOptions},
    trace::TraceReader,
};
use serde_json::Value;

use crate::{
    cli::{firstdiff, outcome, path, refused},
    common::fixture,
};

const TOKENS: [&str; 4] = ["--tokens", "3,1,4,1,5,9,2,6", "--decoded", "5,3"];

/// The fixture with weights that are no numbers from layer 1 on.
fn damaged(folder: &Path) -> PathBuf {
    let file = ModelFile::open(&fixture()).unwrap();
    let mut bytes = std::fs::read(fixture()).unwrap();
    let later = file
        .gguf()
        .tensors()
        .iter()
        .filter(|info| info.name.starts_with("blk.") && !info.name.starts_with("blk.0."));
    let mut count = 0;
    for info in later {
        bytes[info.offset..info.offset + info.bytes].fill(0xff);
        count += 1;
    }
    assert!(count > 20, "{count}");
    let damaged = folder.join("damaged.gguf");
    std::fs::write(&damaged, bytes).unwrap();
    damaged
}

/// The exit code and the JSON report.
fn report(arguments: &[&str]) -> (i32, Value) {
    let (exit, out, err) = outcome(&[arguments, &["--json", "-"]].concat());
    (exit, serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}")))
}

fn names(report: &Value) -> Vec<&str> {
    let sites = report["sites"].as_array().unwrap().iter();
    sites.map(|site| site["site"].as_str().unwrap()).collect()
}

/// Every site with its outcome, and the element that is furthest off, of both sides.
fn values(report: &Value) -> Vec<String> {
    let sites = report["sites"].as_array().unwrap().iter();
    let of = |site: &Value| {
        let worst = &site["difference"]["worst"];
        format!("{} {} {} {}", site["site"], site["outcome"], worst["engine"], worst["reference"])
    };
    sites.map(of).collect()
}

#[test]
fn a_run_of_layer_0_touches_no_weight_of_a_later_layer() {
    let folder = tempfile::tempdir().unwrap();
    let damaged = damaged(folder.path());
    let run = |model: &Path, more: &[&str]| {
        let arguments = ["run", "-m", path(model), "-p", "Once upon a time", "-n", "0"];
        report(&[&arguments[..], more].concat())
    };
    let (exit, whole) = run(&damaged, &[]);
    assert!(exit != 0, "{}", whole["headline"]);
    assert!(!whole["model"]["ledger"]["non_finite"].as_array().unwrap().is_empty());
    // Its ledger is known now: that of another file is not.
    std::fs::write(&damaged, [std::fs::read(&damaged).unwrap(), vec![0]].concat()).unwrap();

    let layer = ["--layers", "0"];
    let (exit, of_damaged) = run(&damaged, &layer);
    assert_eq!(exit, 0, "{}", of_damaged["headline"]);
    let (exit, of_fixture) = run(&fixture(), &layer);
    assert_eq!(exit, 0, "{}", of_fixture["headline"]);
    assert_eq!(values(&of_damaged), values(&of_fixture));
    let sites = names(&of_damaged);
    assert_eq!((sites[0], *sites.last().unwrap()), ("0/embd", "0/blk.0.layer_out"));
    assert!(sites[1..].iter().all(|site| site.starts_with("0/blk.0.")), "{sites:?}");
    assert_eq!(of_damaged["asked"]["layers"], "0");
    let ledger = &of_damaged["model"]["ledger"];
    assert!(ledger["non_finite"].as_array().unwrap().is_empty(), "{ledger}");
    let looked_through = ledger["looked_through"].as_u64().unwrap();
    assert!((10..20).contains(&looked_through), "{ledger}");
    let engine = &of_damaged["diagnosis"]["engine"];
    assert_eq!(engine["replayed"], sites.len() - 1, "{engine}");
    assert_eq!(engine["cleared"], engine["replayed"], "{engine}");
    let loaded = &of_damaged["weights"];
    assert_eq!((&loaded["recorded"], &loaded["unrecorded"]), (&loaded["right"], &0.into()));
}

#[test]
fn a_trace_of_some_layers_has_what_a_whole_one_has_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let damaged = damaged(folder.path());
    let capture = |model: &Path, name: &str, more: &[&str]| {
        let to = folder.path().join(name);
        let arguments = ["capture", "reference", "-m", path(model), "-o", path(&to)];
        let arguments = [&arguments[..], &TOKENS, more].concat();
        let output = firstdiff(&arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        TraceReader::open(&to).unwrap()
    };
    let whole = capture(&fixture(), "whole", &[]);
    for (model, layers, first) in
        [(&damaged, "..1", "embd"), (&fixture(), "1..3", "blk.0.layer_out")]
    {
        let some = capture(model, &layers.replace('.', "_"), &["--layers", layers]);
        let layers: Layers = layers.parse().unwrap();
        let mut count = 0;
        for site in some.sites() {
            let is_input = site.tensor_name() == first;
            assert!(is_input || layers.contains(site.layer.unwrap()), "{site}");
            let (own, other) = (some.tensor(site).unwrap(), whole.tensor(site).unwrap());
            assert!(own.is_some() && own == other, "{site}");
            for (own, other) in some.manifest().floors.iter().zip(&whole.manifest().floors) {
                assert_eq!(own.floor.0.get(&site), other.floor.0.get(&site), "{site}");
                assert!(own.floor.0.contains_key(&site), "{site}");
            }
            count += 1;
        }
        let wanted = whole.sites().filter(|site| {
            site.layer.is_some_and(|layer| layers.contains(layer)) || site.tensor_name() == first
        });
        assert_eq!(count, wanted.count());
    }
}

#[test]
fn tokens_that_are_yet_to_be_chosen_are_those_of_the_whole_model() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = |name: &str, more: &[&str]| {
        let to = folder.path().join(name);
        let arguments = ["capture", "reference", "-o", path(&to), "-p", "Once upon", "-n", "3"];
        let mut command = firstdiff(&[&arguments[..], more].concat());
        // What is known of the whole model would serve.
        let output = command.env("FIRSTDIFF_CACHE", folder.path().join("cache")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let trace = TraceReader::open(&to).unwrap();
        trace.manifest().steps.iter().map(|step| step.tokens.clone()).collect::<Vec<_>>()
    };
    let of_layer = tokens("layer", &["--layers", "1"]);
    let whole = tokens("whole", &[]);
    assert!(of_layer == whole && whole.len() == 4, "{of_layer:?} {whole:?}");
}

#[test]
fn explain_judges_the_layers_that_are_asked_for_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("mine");
    let capture = ["capture", "engine", "--fault", "cache-of-layer-0", "-o", path(&trace)];
    assert_eq!(outcome(&[&capture[..], &["-p", "Once upon a time", "-n", "2"]].concat()).0, 0);
    let explained = |layers: &str| report(&["explain", path(&trace), "--layers", layers]);
    let (exit, right) = explained("0");
    let text = right["headline"]["text"].as_str().unwrap();
    assert_eq!(exit, 0, "{text}");
    assert!(text.starts_with("nothing guilty: ") && text.ends_with(" (--layers 0)"), "{text}");
    let engine = &right["diagnosis"]["engine"];
    assert!(engine["left_out"].as_array().unwrap().len() > 50, "{engine}");
    assert!(engine["unmeasured"].as_array().unwrap().is_empty(), "{engine}");
    let (exit, wrong) = explained("2..");
    assert_eq!(exit, 1, "{}", wrong["headline"]);
    let operations = wrong["diagnosis"]["findings"][0]["operations"].as_array().unwrap();
    let is_asked = |operation: &Value| {
        let name = operation.as_str().unwrap();
        name.starts_with("blk.2.") || name.starts_with("blk.3.")
    };
    assert!(operations.iter().all(is_asked), "{operations:?}");
}

#[test]
fn until_first_ends_both_sides_with_the_layer_that_is_wrong_and_says_what_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let fault = ["-p", "Once upon a time", "-n", "2", "--fault", "scale-missing"];
    let run = [&["run", "--until", "first"][..], &fault].concat();
    let (exit, first) = report(&run);
    let text = first["headline"]["text"].as_str().unwrap();
    assert_eq!(exit, 1, "{text}");
    let sites = names(&first);
    assert_eq!(*sites.last().unwrap(), "0/blk.0.layer_out");
    let partial = &first["partial"];
    assert_eq!(partial["ended_by"], "until_first");
    assert_eq!(partial["after"], "0/blk.0.layer_out");
    let coverage = &first["compared"]["coverage"];
    let left = coverage["asked"].as_u64().unwrap() - sites.len() as u64;
    assert_eq!(partial["not_compared"], left);
    assert!(text.contains(&format!("{left} of {}", coverage["asked"])), "{text}");
    let finding = &first["diagnosis"]["findings"][0];
    assert_eq!(finding["operations"], serde_json::json!(["blk.0.scores"]), "{finding}");
    assert_eq!(finding["cause"]["certainty"], "proven", "{finding}");
    // What a side had ahead is no part of it.
    let (_, again) = report(&run);
    assert_eq!(first["diagnosis"], again["diagnosis"]);
    let (_, whole) = report(&[&["run"][..], &fault].concat());
    assert!(whole.get("partial").is_none() && whole["sites"].as_array().unwrap().len() > 200);

    let trace = folder.path().join("mine");
    let capture = [&["capture", "engine", "-o", path(&trace)][..], &fault].concat();
    assert_eq!(outcome(&capture).0, 0);
    let (exit, explained) = report(&["explain", path(&trace), "--until", "first"]);
    let text = explained["headline"]["text"].as_str().unwrap();
    assert_eq!(exit, 1, "{text}");
    assert!(text.contains("nothing after 0/blk.0.layer_out was replayed"), "{text}");
    let found = &explained["diagnosis"]["findings"][0];
    for same in ["operations", "elements", "beyond", "worst"] {
        assert_eq!(found[same], finding[same]);
    }
    assert_eq!(found["cause"]["text"], finding["cause"]["text"]);
}

#[test]
fn a_clean_run_until_first_is_whole() {
    let run = ["run", "-p", "Once upon a time", "-n", "1"];
    let (exit, first) = report(&[&run[..], &["--until", "first"]].concat());
    assert_eq!((exit, first.get("partial")), (0, None), "{}", first["headline"]);
    let (_, whole) = report(&run);
    assert_eq!(values(&first), values(&whole));
}

#[test]
fn layers_that_are_not_there_are_refused() {
    for command in [&["run"][..], &["capture", "reference", "-o", "none"]] {
        let with = |more: &[&'static str]| [command, more].concat();
        refused(&with(&["--layers", "4"]), 2, "the model's layers are 0 to 3; give some of these");
        refused(&with(&["--layers", "2..5"]), 2, "--layers 2..5: ");
        let none = with(&["--layers", "1", "--sites", "blk.2.q"]);
        refused(&none, 2, "no site in common; leave one of them out");
    }
    let (exit, _, err) = outcome(&["run", "--layers", "3..3"]);
    assert!(exit == 2 && err.contains("the end is not included"), "{err}");
}

#[test]
fn nodes_that_are_left_out_are_computed_again_in_the_next_step() {
    let file = ModelFile::open(&fixture()).unwrap();
    let reference = Reference::load(&file, ReferenceOptions::default()).unwrap();
    let choice = |first: Changes<'_>| {
        let mut session = reference.session(8, 4).unwrap();
        session.step_with(0, &[3, 1, 4, 1], &mut NoSink, first).unwrap();
        // Of the same shape, so that llama.cpp takes its graph again.
        session.step_with(1, &[5, 9, 2, 6], &mut NoSink, Changes::default()).unwrap()
    };
    let filter = SiteFilter::default().with_layers(Some("3".parse().unwrap()));
    let filter = filter.of_model(reference.graph()).unwrap();
    let places = filter.wanted_places(reference.graph()).unwrap();
    let needed = reference.graph().needed_for(&places);
    assert!(needed.iter().any(|needed| !needed));
    let some = choice(Changes { needed: Some(&needed), ..Changes::default() });
    assert_eq!(some, choice(Changes::default()));
}
