use firstdiff::{
    compare::{
        SiteFilter,
        verdict::{Outcome, Rule},
    },
    core::{floor::DEFAULT_FACTOR, task::Task, tensor::DType},
    diagnosis::replay::Replay,
    engine::{EngineSpec, kernels::KernelSet},
    graph::site::{Site, Stage},
    report::DevicesSummary,
    run::Run,
};
use serde_json::Value;

use crate::{
    cli::{SHORT, outcome, refused},
    common::{Bench, engine},
};

#[test]
fn two_devices_that_agree_are_said_to_and_one_device_twice_is_refused() {
    let run = [&["run", "--device", "host,checked"][..], &SHORT].concat();
    let (exit, out, err) = outcome(&run);
    assert_eq!(exit, 0, "{err}");
    assert!(out.starts_with("equal within the floor: 237 of 237 sites"), "{out}");
    assert!(
        out.contains("  devices    host and checked agree on 237 of 237 sites, worst "),
        "{out}"
    );
    assert!(out.contains(", the same operations are within their bounds"), "{out}");

    refused(&["run", "--device", "host,host"], 2, "two different ones as in host,cuda");
    let twice = ["capture", "engine", "-o", "absent", "--device", "host,checked"];
    refused(&twice, 2, "--device takes one device here");
}

/// A device whose compiler makes something else of a kernel.
#[test]
fn a_kernel_that_one_device_computes_differently_is_the_devices_fault() {
    let folder = tempfile::tempdir().unwrap();
    let source = KernelSet::embedded().source("rope.cu", vec![]).unwrap().text;
    let other = source.replace("sine = sinf(angle)", "sine = sinf(angle) * 1.0001f");
    assert_ne!(source, other);
    std::fs::write(folder.path().join("rope.cu"), other).unwrap();
    let bench = Bench::fixture();
    let first = engine(DType::F32);
    let kernels = KernelSet::overridden_by(folder.path()).unwrap();
    let second = EngineSpec { kernels, ..first.clone() };

    let ids = bench.prompt(12);
    let filter = SiteFilter::default();
    let run = Run {
        model: &bench.model,
        reference: &bench.reference,
        task: Task { prompt: &ids, decode: 1 },
        engine: &first,
        filter: &filter,
        rule: Rule { factor: DEFAULT_FACTOR, until_first: false },
        replay: Some(Replay::Quick),
    };
    let finished = run.run(&mut |_| {}).unwrap();
    let diagnosis = finished.diagnosis.as_ref();
    let check = run.cross_check(&second, &finished.baseline, diagnosis, &mut |_| {}).unwrap();
    assert!(!check.agree());
    let differing = check.sites.iter().find(|report| report.outcome == Outcome::Diverged).unwrap();
    assert_eq!(differing.site, Site::in_layer(0, 0, Stage::QRope));
    let [on_first, on_second] = check.guilty_on_one.as_ref().unwrap();
    assert!(on_first.is_empty(), "{on_first:?}");
    let rotations = on_second.iter().all(|operation| operation.result().ends_with("_rope"));
    assert!(rotations && on_second.len() == 8, "{on_second:?}");
    let text = DevicesSummary::of(check, &|_| 0).text;
    assert!(text.starts_with("host and host differ first at step 0 layer 0 q_rope [position "));
    assert!(text.ends_with("a compiler, a race or the host's CUDA runtime is wrong"), "{text}");

    let same = run.cross_check(&first, &finished.baseline, diagnosis, &mut |_| {}).unwrap();
    assert!(same.agree() && same.sites.iter().all(|report| report.outcome == Outcome::Equal));
}

#[test]
fn the_json_of_two_devices_names_both() {
    let run = [&["run", "--device", "host,checked", "--json", "-"][..], &SHORT].concat();
    let report: Value = serde_json::from_str(&outcome(&run).1).unwrap();
    let devices = &report["devices"];
    assert_eq!(devices["agree"], true);
    assert!(devices["first"].as_str().unwrap().starts_with("host ("), "{devices}");
    assert!(devices["second"].as_str().unwrap().starts_with("checked"), "{devices}");
    assert_eq!(devices["coverage"]["equal"], 237);
    assert!(devices["differing"].as_array().unwrap().is_empty());
}
