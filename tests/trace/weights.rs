//! weights.bin: what was recorded is read back, and each way in which it can be wrong has its own reason.

use std::fs;

use firstdiff::{
    core::loaded::LoadedWeight,
    trace::{
        FORMAT_VERSION, Inspection, Limit, TraceError, TraceReader, TraceWriter, WEIGHTS_FILE,
    },
};
use serde_json::{Value, json};

use super::support::{Random, Recorded, STEPS, manifest};

fn weights() -> Vec<LoadedWeight> {
    let mut random = Random(5);
    let mut weight = |names: &str, shape: &[usize]| {
        LoadedWeight::of(names, shape, &random.tensor(shape.to_vec()).data).unwrap()
    };
    vec![
        weight("blk.0.attn_q.weight", &[6, 9]),
        weight("own=blk.0.attn_k.weight blk.0.attn_v.weight[0:8]", &[3, 200, 120]),
        weight("output_norm.weight", &[9]),
    ]
}

/// The small run with weights before it.
fn recorded() -> Recorded {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("trace");
    let mut writer = TraceWriter::create(&folder, manifest(), false).unwrap();
    weights().iter().for_each(|weight| writer.put_weight(weight).unwrap());
    writer.begin_step(STEPS[0], 0).unwrap();
    writer.end_step().unwrap();
    writer.finish().unwrap();
    Recorded { parent, folder }
}

#[test]
fn weights_are_read_back_as_they_were_put() {
    let recorded = recorded();
    let trace = TraceReader::open(&recorded.folder).unwrap();
    let read: Vec<LoadedWeight> = trace.weights().unwrap().into_iter().map(|one| one.1).collect();
    assert_eq!(read, weights());
    assert_eq!(read[1].rows.as_ref().unwrap().len(), 32);
    assert_eq!((read[1].sums.len(), &read[1].name[..]), (600, "own"));
    let found = Inspection::of(&recorded.folder).unwrap();
    assert!(found.weights == 3 && found.errors.is_empty(), "{:?}", found.errors);
    assert!(TraceReader::open(&Recorded::new().folder).unwrap().weights().unwrap().is_empty());
}

#[test]
fn a_weight_is_put_once_and_before_the_first_step() {
    let parent = tempfile::tempdir().unwrap();
    let weight = &weights()[0];
    let writer =
        |name: &str| TraceWriter::create(&parent.path().join(name), manifest(), false).unwrap();
    let mut late = writer("late");
    late.begin_step(STEPS[0], 0).unwrap();
    let error = late.put_weight(weight).unwrap_err().to_string();
    assert!(error.contains("attn_q.weight was put after the first step began"), "{error}");
    let mut twice = writer("twice");
    twice.put_weight(weight).unwrap();
    let error = twice.put_weight(weight).unwrap_err().to_string();
    assert!(error.contains("was put twice"), "{error}");
    let short = LoadedWeight { values: vec![0.0], ..weight.clone() };
    let error = writer("short").put_weight(&short).unwrap_err().to_string();
    assert!(error.contains("a number of elements that does not match"), "{error}");
}

#[test]
fn a_field_of_a_weight_that_does_not_fit_is_refused_by_name() {
    type Edit = fn(&mut Value);
    let edits: [(Edit, &str); 16] = [
        (|w| w["tensors"][0]["name"] = "a b".into(), "(a b) is not a valid weight name"),
        (|w| w["tensors"][0]["name"] = "own".into(), "tensors[1] (own) is listed twice"),
        (
            |w| w["tensors"][1]["of"][1] = "a[8:0]".into(),
            "\"a[8:0]\", which is not a valid tensor name",
        ),
        (|w| w["tensors"][1]["of"] = vec!["a"; 1025].into(), "stands for 1025 tensors"),
        (|w| w["tensors"][0]["shape"] = json!([]), "has the shape []"),
        (|w| w["tensors"][0]["shape"] = json!([0, 9]), "has the shape [0, 9]"),
        (|w| w["tensors"][0]["shape"] = vec![1; 9].into(), "has the shape"),
        (|w| w["tensors"][0]["shape"] = json!([7, 9]), "weights.bytes is"),
        (|w| w["tensors"][0]["dtype"] = "tf32".into(), "which is not a storage format"),
        (|w| w["tensors"][1]["rows"][1] = 0.into(), "do not ascend"),
        (|w| w["tensors"][1]["rows"][31] = 600.into(), "exceed its 600 rows"),
        (|w| w["tensors"][1]["rows"] = json!([]), "do not ascend"),
        (|w| w["tensors"][1]["sums"] = false.into(), "weights.bytes is"),
        (|w| w["bytes"] = 1.into(), "weights.bytes is 1"),
        (|w| w["blake3"] = "AB".into(), "not 64 lowercase hex digits"),
        (|w| w["blake3"] = Value::Null, "is missing, and the manifest names no run"),
    ];
    for (edit, says) in edits {
        let recorded = recorded();
        recorded.edit_manifest(|manifest| edit(&mut manifest["weights"]));
        let error = recorded.refusal();
        let is_field =
            matches!(&error, TraceError::Field { field, .. } if field.contains("weights"));
        assert!(is_field && error.to_string().contains(says), "{says}: {error}");
    }
    let syntax: [Edit; 3] = [
        |w| w["tensors"][0]["speed"] = 1.into(),
        |w| w["tensors"][0]["dtype"] = "q4_0".into(),
        |w| w["tensors"][0]["shape"] = json!([-1]),
    ];
    for edit in syntax {
        let recorded = recorded();
        recorded.edit_manifest(|manifest| edit(&mut manifest["weights"]));
        assert!(matches!(recorded.refusal(), TraceError::Manifest { .. }));
    }
}

#[test]
fn lengths_of_weights_are_capped_before_anything_is_read() {
    let recorded = recorded();
    recorded.edit_manifest(|manifest| {
        manifest["weights"]["tensors"][0]["shape"] = json!([1u64 << 40, 1u64 << 40]);
    });
    let error = recorded.refusal();
    let is_elements = matches!(error, TraceError::OverLimit { limit: Limit::Elements, .. });
    assert!(is_elements, "{error}");
    let many = Limit::Weights.max() as usize + 1;
    recorded.edit_manifest(|manifest| {
        let entry = json!({"name": "a", "shape": [1], "dtype": "f32"});
        manifest["weights"]["tensors"] = vec![entry; many].into();
    });
    let error = recorded.refusal();
    assert!(matches!(error, TraceError::OverLimit { limit: Limit::Weights, .. }), "{error}");
}

#[test]
fn a_file_of_weights_that_is_cut_changed_missing_or_of_another_run_is_refused() {
    let recorded = recorded();
    let path = recorded.folder.join(WEIGHTS_FILE);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(matches!(recorded.refusal(), TraceError::Length { .. }));
    let mut changed = bytes.clone();
    changed[100] ^= 1;
    fs::write(&path, &changed).unwrap();
    assert!(matches!(recorded.refusal(), TraceError::Checksum { .. }));
    let mut other = bytes.clone();
    other[4] = b'x';
    fs::write(&path, &other).unwrap();
    assert!(matches!(recorded.refusal(), TraceError::OtherRun { .. }));
    let found = Inspection::of(&recorded.folder).unwrap();
    assert_eq!(found.errors.len(), 1, "{:?}", found.errors);
    fs::remove_file(&path).unwrap();
    assert!(matches!(recorded.refusal(), TraceError::MissingFile { .. }));
}

#[test]
fn version_4_is_read_and_has_no_weights() {
    let plain = Recorded::new();
    plain.edit_manifest(|manifest| manifest["format_version"] = 4.into());
    assert_eq!(TraceReader::open(&plain.folder).unwrap().manifest().format_version, FORMAT_VERSION);
    let recorded = recorded();
    recorded.edit_manifest(|manifest| manifest["format_version"] = 4.into());
    let error = recorded.refusal().to_string();
    assert!(
        error.contains("weights belongs to version 5, but the manifest has version 4"),
        "{error}"
    );
}
