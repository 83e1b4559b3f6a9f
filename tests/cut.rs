//! The first layers of a model as a model.

use std::path::Path;

use firstdiff::{model::ModelFile, trace::TraceReader};

use crate::{
    cli::{outcome, path},
    common::fixture,
};

/// The exit code and what is printed.
fn cut(model: &Path, layers: &str, to: &Path) -> (i32, String, String) {
    outcome(&["cut", path(model), "--layers", layers, "-o", path(to)])
}

#[test]
fn a_cut_model_runs_and_its_layers_are_those_of_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let two = folder.path().join("two.gguf");
    let (exit, out, err) = cut(&fixture(), "2", &two);
    assert_eq!((exit, &*err), (0, ""), "{out}");
    assert!(out.contains("2 of 4 layers"), "{out}");
    let (exit, out, _) = outcome(&["run", "-m", path(&two), "-p", "Once upon a time", "-n", "1"]);
    assert!(exit == 0 && out.starts_with("equal within the floor: "), "{out}");

    let captured = |model: &Path, name: &str| {
        let trace = folder.path().join(name);
        let sites = ["--sites", "blk.0.*"];
        let tokens = ["--tokens", "3,1,4,1,5", "-o", path(&trace)];
        let command = ["capture", "reference", "-m", path(model)];
        let (exit, _, err) = outcome(&[&command[..], &sites, &tokens].concat());
        assert_eq!(exit, 0, "{err}");
        let trace = TraceReader::open(&trace).unwrap();
        let first = trace.sites().filter(|site| site.step == 0);
        first.map(|site| (site, trace.tensor(site).unwrap().unwrap().data)).collect::<Vec<_>>()
    };
    let (cut, whole) = (captured(&two, "cut"), captured(&fixture(), "whole"));
    assert!(cut.len() > 15 && cut == whole, "{} and {} sites", cut.len(), whole.len());
}

#[test]
fn keys_with_a_number_for_each_layer_are_cut_too() {
    let folder = tempfile::tempdir().unwrap();
    for arch in ["openelm", "deci", "lfm2"] {
        let (model, two) = (folder.path().join("m.gguf"), folder.path().join("two.gguf"));
        let (exit, _, err) = outcome(&["synth", "--arch", arch, "-o", path(&model)]);
        assert_eq!(exit, 0, "{err}");
        let (exit, _, err) = cut(&model, "2", &two);
        assert_eq!(exit, 0, "{arch}: {err}");
        let (exit, out, err) = outcome(&["sites", "-m", path(&two)]);
        assert!(exit == 0 && out.contains("blk.1.") && !out.contains("blk.2."), "{arch}: {err}");
    }
}

#[test]
fn what_cannot_be_cut_is_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("cut.gguf");
    for (layers, says) in [("0", "has 4 layers; give 1 to 3"), ("4", "give 1 to 3 of them")] {
        let (exit, out, err) = cut(&fixture(), layers, &to);
        assert_eq!((exit, &*out), (2, ""), "{err}");
        assert!(err.contains(says) && err.lines().count() == 1, "{err}");
    }
    let (exit, _, err) = cut(&folder.path().join("none.gguf"), "1", &to);
    assert!(exit == 2 && err.contains("none.gguf"), "{err}");
    assert!(!to.exists());
    let (model, two) = (folder.path().join("m.gguf"), folder.path().join("two.gguf"));
    assert_eq!(outcome(&["synth", "--arch", "gemma3n", "-o", path(&model)]).0, 0);
    let (exit, _, err) = cut(&model, "2", &two);
    assert!(
        exit == 2 && err.contains("cannot be cut, because its architecture is gemma3n: llama.cpp"),
        "{err}"
    );
    assert!(!two.exists());
    let own = folder.path().join("own.gguf");
    std::fs::copy(fixture(), &own).unwrap();
    let (exit, _, err) = cut(&own, "1", &own);
    assert!(exit == 2 && err.contains("the model itself"), "{err}");
    // What cannot be used is removed again: a pipe of the user's must not be.
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let (exit, _, err) = cut(&fixture(), "1", &pipe);
    assert!(exit == 2 && err.contains("pipe is a device or a pipe"), "{err}");
    assert!(pipe.exists());
    assert!(ModelFile::open(&own).unwrap().gguf().tensor("blk.3.attn_q.weight").is_some());
}
