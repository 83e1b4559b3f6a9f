//! Each way in which a trace can be wrong is refused with its own reason.

use std::fs;

use firstdiff::{
    core::tensor::Tensor,
    graph::site::{Site, Stage},
    trace::{CHECKSUM_FILE, Kind, Limit, MANIFEST_FILE, TraceError, TraceReader},
};
use serde_json::{Value, json};

use super::support::{Recorded, group, named, shape_of};

#[test]
fn what_is_no_trace_is_bad_input() {
    let parent = tempfile::tempdir().unwrap();
    let error = TraceReader::open(&parent.path().join("none")).unwrap_err();
    assert!(matches!(error, TraceError::Missing { .. }) && error.kind() == Kind::BadInput);
    let error = TraceReader::open(parent.path()).unwrap_err();
    assert!(matches!(error, TraceError::NotATrace { .. }) && error.kind() == Kind::BadInput);
    let file = parent.path().join("file");
    fs::write(&file, "").unwrap();
    let error = TraceReader::open(&file).unwrap_err();
    assert!(matches!(error, TraceError::NotATrace { .. }), "{error}");
}

#[test]
fn a_foreign_manifest_is_refused() {
    let recorded = Recorded::new();
    for foreign in ["", "[]", "null", "{", "{\"name\":\"app\"}", "{\"format_version\":\"1\"}"] {
        fs::write(recorded.folder.join(MANIFEST_FILE), foreign).unwrap();
        recorded.seal();
        let error = recorded.refusal();
        assert!(matches!(error, TraceError::Manifest { .. }), "{foreign}: {error}");
    }
    let deep = format!("{{\"format_version\":2,\"floors\":{}", "[".repeat(100_000));
    fs::write(recorded.folder.join(MANIFEST_FILE), deep).unwrap();
    assert!(matches!(recorded.refusal(), TraceError::Manifest { .. }), "no stack overflow");
}

#[test]
fn a_field_that_the_version_has_not_is_refused() {
    let recorded = Recorded::new();
    recorded.edit_manifest(|manifest| manifest["steps"][1]["speed"] = 1.into());
    assert!(recorded.refusal().to_string().contains("`speed`"));
}

#[test]
fn another_format_version_is_refused_before_anything_else() {
    let recorded = Recorded::new();
    for version in [0, 1, u64::MAX] {
        let json = json!({ "format_version": version, "unheard": "of" });
        fs::write(recorded.folder.join(MANIFEST_FILE), json.to_string()).unwrap();
        let error = recorded.refusal();
        assert!(matches!(error, TraceError::Version { found, .. } if found == version), "{error}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let files = Recorded::new().files();
    for index in 1..files.len() {
        let recorded = Recorded::new();
        let path = &recorded.files()[index];
        fs::remove_file(path).unwrap();
        let error = recorded.refusal();
        assert!(matches!(&error, TraceError::MissingFile { path: p } if p == path), "{error}");
        fs::create_dir(path).unwrap();
        assert!(
            matches!(recorded.refusal(), TraceError::MissingFile { .. }),
            "a folder is no file"
        );
    }
}

#[test]
fn a_step_file_cut_or_grown_anywhere_is_refused() {
    let recorded = Recorded::new();
    let path = recorded.step(1);
    let whole = fs::read(&path).unwrap();
    let cuts = (0..16).chain((16..whole.len()).step_by(997)).chain([whole.len() - 1]);
    for cut in cuts {
        fs::write(&path, &whole[..cut]).unwrap();
        let error = recorded.refusal();
        let found = matches!(&error, TraceError::Length { path: p, .. } if *p == path);
        assert!(found, "{cut}: {error}");
        // Even a manifest that agrees does not make a cut file valid.
        recorded.replace_step(1, &whole[..cut]);
        let error = recorded.refusal();
        assert!(matches!(error, TraceError::SafeTensors { .. }), "{cut}: {error}");
        recorded.replace_step(1, &whole);
    }
    fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
    assert!(matches!(recorded.refusal(), TraceError::Length { .. }));
    recorded.replace_step(1, &[&whole[..], b"x"].concat());
    assert!(recorded.refusal().to_string().contains("its tensors end at byte"));
}

#[test]
fn swapped_step_files_and_entries_are_refused() {
    let recorded = Recorded::new();
    // Steps 1 and 2 have one token each; of step 2's cache only the length differs.
    let (one, two) = (fs::read(recorded.step(1)).unwrap(), fs::read(recorded.step(2)).unwrap());
    fs::write(recorded.step(1), &two).unwrap();
    fs::write(recorded.step(2), &one).unwrap();
    assert!(matches!(recorded.refusal(), TraceError::Length { .. }));

    let recorded = Recorded::new();
    recorded.edit_manifest(|manifest| manifest["steps"].as_array_mut().unwrap().swap(1, 2));
    assert!(matches!(recorded.refusal(), TraceError::Field { .. }));

    let (recorded, other) = (Recorded::new(), tempfile::tempdir().unwrap());
    let other = other.path().join("trace");
    super::support::record(&other, &super::support::tensors(2)).unwrap();
    fs::copy(other.join("step-0001.safetensors"), recorded.step(1)).unwrap();
    let error = recorded.refusal();
    assert!(matches!(error, TraceError::Checksum { .. }), "another run's step: {error}");
    assert!(error.to_string().contains("step-0001.safetensors"), "{error}");
}

#[test]
fn a_manifest_field_that_does_not_fit_is_named() {
    type Edit = fn(&mut Value);
    let edits: [(&str, Edit); 28] = [
        ("model.blake3 is \"AB\"", |m| m["model"]["blake3"] = "AB".into()),
        ("model.n_vocab is 0", |m| m["model"]["n_vocab"] = 0.into()),
        ("model.sites is empty", |m| m["model"]["sites"] = json!([])),
        ("(q) has different numbers of axes", |m| *shape_of(m, "q") = json!(["T", 24])),
        ("(q) has layers that do not ascend", |m| group(m, "q")["layers"] = json!([1, 0])),
        ("(q) is outside the layers", |m| group(m, "q")["layers"] = json!([])),
        ("model.sites has blk.0.q twice", |m| group(m, "k")["name"] = "q".into()),
        ("\"T*\" is not a size", |m| shape_of(m, "q")[0] = "T*".into()),
        ("which is one token too many instead of [4, 6, 4]", |m| {
            shape_of(m, "q")[0] = "T - 1".into();
        }),
        ("steps is empty", |m| m["steps"] = json!([])),
        ("steps[1].tokens is empty", |m| m["steps"][1]["tokens"] = json!([])),
        ("steps[0].tokens has id 13, n_vocab is 13", |m| m["steps"][0]["tokens"][2] = 13.into()),
        ("steps[0].tokens has id -1", |m| m["steps"][0]["tokens"][2] = (-1).into()),
        ("steps[1].first_position is 6 after 5", |m| m["steps"][1]["first_position"] = 6.into()),
        ("steps[0].rows.logits does not list one token or more, ascending", |m| {
            m["steps"][0]["rows"] = json!({ "logits": [] });
        }),
        ("steps[0].rows.logits does not list one token or more, ascending", |m| {
            m["steps"][0]["rows"] = json!({ "logits": [2, 2] });
        }),
        ("steps[0].rows.logits has token 5 of a step of 5", |m| {
            m["steps"][0]["rows"] = json!({ "logits": [1, 5] });
        }),
        ("it has no blk.7.q, for which the manifest names rows", |m| {
            m["steps"][0]["rows"] = json!({ "blk.7.q": [1] });
        }),
        ("blk.0.k_cache does not have a row for each token: remove its rows", |m| {
            m["steps"][0]["rows"] = json!({ "blk.0.k_cache": [1] });
        }),
        ("which has room for more tokens: write the first 1 instead of [1, 6, 4]", |m| {
            m["steps"][0]["rows"] = json!({ "blk.0.q": [1] });
        }),
        ("steps[0].file is \"../step-0000", |m| {
            m["steps"][0]["file"] = "../step-0000.safetensors".into();
        }),
        ("steps[0].file is \"/etc/passwd\"", |m| m["steps"][0]["file"] = "/etc/passwd".into()),
        ("steps[2].blake3 is \"\"", |m| m["steps"][2]["blake3"] = "".into()),
        ("steps[1].choice.token is 13, n_vocab is 13", |m| {
            m["steps"][1]["choice"] =
                json!({ "token": 13, "logit": 1.5, "second": 2, "second_logit": 1.25 });
        }),
        ("missing field `device`", |m| {
            m.as_object_mut().unwrap().remove("device");
        }),
        ("expected usize", |m| m["steps"][0]["sites"] = (-1).into()),
        ("graph.nodes.blake3 is \"\"", |m| {
            let seal = json!({ "bytes": 1, "blake3": "" });
            m["graph"] = json!({ "nodes": seal, "inputs": seal });
        }),
        ("it has 45 tensors, the manifest says 44", |m| m["steps"][1]["sites"] = 44.into()),
    ];
    for (message, edit) in edits {
        let recorded = Recorded::new();
        recorded.edit_manifest(edit);
        let error = recorded.refusal();
        assert!(error.to_string().contains(message), "{message}: {error}");
    }
}

#[test]
fn a_stated_length_above_its_limit_is_refused_before_it_is_used() {
    type Edit = fn(&mut Value);
    let edits: [(Limit, Edit); 7] = [
        (Limit::Layers, |m| group(m, "q")["layers"] = json!([1 << 30])),
        (Limit::Sites, |m| m["model"]["sites"] = vec![group(m, "logits").clone(); 140_000].into()),
        (Limit::Dimension, |m| m["model"]["n_vocab"] = (1u64 << 25).into()),
        (Limit::Tensors, |m| m["steps"][0]["sites"] = u64::MAX.into()),
        (Limit::Tokens, |m| m["steps"][0]["tokens"] = vec![1; (1 << 20) + 1].into()),
        (Limit::Steps, |m| {
            let step = json!({ "tokens": [], "first_position": 0, "file": "", "bytes": 0,
                               "blake3": "", "sites": 0 });
            m["steps"] = vec![step; (1 << 16) + 1].into();
        }),
        // 5 tokens of 2^24 heads of 2^24 elements.
        (Limit::Elements, |m| {
            *shape_of(m, "q") = json!(["T", 1 << 24, 1 << 24]);
        }),
    ];
    for (expected, edit) in edits {
        let recorded = Recorded::new();
        recorded.edit_manifest(edit);
        let error = recorded.refusal();
        let same = matches!(error, TraceError::OverLimit { limit, .. } if limit == expected);
        assert!(same, "{expected}: {error}");
    }
}

#[test]
fn a_manifest_or_header_too_long_is_refused_unread() {
    let recorded = Recorded::new();
    for length in [(64 << 20) + 1, u64::MAX] {
        let header = u64::to_le_bytes(length);
        recorded.replace_step(0, &[&header[..], b"{}"].concat());
        let error = recorded.refusal();
        let limit = matches!(error, TraceError::OverLimit { limit: Limit::HeaderBytes, .. });
        assert!(limit, "{error}");
    }
    // A hole: it takes no space on the disk.
    let file = fs::File::create(recorded.folder.join(MANIFEST_FILE)).unwrap();
    file.set_len(1 << 40).unwrap();
    let error = recorded.refusal();
    let limit = matches!(error, TraceError::OverLimit { limit: Limit::ManifestBytes, .. });
    assert!(limit, "{error}");
}

#[test]
fn a_checksum_file_of_any_size_is_only_compared() {
    let recorded = Recorded::new();
    let path = recorded.folder.join(CHECKSUM_FILE);
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(recorded.refusal(), TraceError::Checksum { .. }));
    for text in ["", "\n", "00", "\u{fffd}\u{0}"] {
        fs::write(&path, text).unwrap();
        assert!(matches!(recorded.refusal(), TraceError::Checksum { .. }), "{text:?}");
    }
}

/// An embd of step 1, shape (1, 9), as it must be.
const EMBD: &str = r#"{"embd":{"dtype":"F32","shape":[1,9],"data_offsets":[0,36]}}"#;

#[test]
fn a_tensor_that_the_model_has_not_is_named() {
    let recorded = Recorded::new();
    for name in ["embed", "blk.0.qkv", "blk.2.q", "blk.00.q", "blk.-1.q", "blk.0.logits", ""] {
        recorded.replace_header(1, &EMBD.replace("embd", name), &[0; 36]);
        let error = recorded.refusal();
        let named = matches!(&error, TraceError::UnknownTensor { name: n, .. } if n == name);
        assert!(named, "{error}");
    }
    // A site of another model.
    let q_norm = r#"{"blk.0.q_norm":{"dtype":"F32","shape":[1,6,4],"data_offsets":[0,96]}}"#;
    recorded.replace_header(1, q_norm, &[0; 96]);
    TraceReader::open(&recorded.folder).expect("the list has it");
    recorded.edit_manifest(|manifest| group(manifest, "q_norm")["name"] = "other".into());
    assert!(recorded.refusal().to_string().contains("q_norm"));
}

#[test]
fn a_tensor_of_another_shape_is_refused_even_if_its_size_fits() {
    let recorded = Recorded::new();
    for shape in ["[9,1]", "[9]", "[1,1,9]", "[3,3]"] {
        recorded.replace_header(1, &EMBD.replace("[1,9]", shape), &[0; 36]);
        let error = recorded.refusal();
        assert!(matches!(error, TraceError::TensorShape { .. }), "{error}");
        assert!(error.to_string().contains("embd") && error.to_string().contains("[1, 9]"));
    }
}

#[test]
fn an_unsupported_element_type_is_refused() {
    let recorded = Recorded::new();
    for dtype in ["I32", "U32"] {
        recorded.replace_header(1, &EMBD.replace("F32", dtype), &[0; 36]);
        let error = recorded.refusal();
        assert!(matches!(&error, TraceError::TensorType { found, .. } if found == dtype));
    }
}

#[test]
fn a_safetensors_file_with_gaps_overlaps_or_wrong_sizes_is_refused() {
    let recorded = Recorded::new();
    let tail = r#"{"dtype":"F32","shape":[1,9],"data_offsets":[18,54]}"#;
    let overlap = EMBD.replace("}}", &format!("}},\"final_norm\":{tail}}}"));
    let headers = [
        (overlap.as_str(), 54),
        (&EMBD.replace("[0,36]", "[4,40]"), 40),
        (&EMBD.replace("[0,36]", "[36,0]"), 36),
        (&EMBD.replace("[0,36]", "[0,32]"), 32),
        (&EMBD.replace("[1,9]", "[4611686018427387904,9]"), 36),
        (&EMBD.replace("[1,9]", "[1,-9]"), 36),
        (&EMBD.replace("F32", "F31"), 36),
        (EMBD, 35),
        (EMBD, 37),
        ("", 0),
        ("[]", 0),
        ("{\"embd\":1}", 0),
    ];
    for (header, data) in headers {
        recorded.replace_header(1, header, &vec![0; data]);
        let error = recorded.refusal();
        assert!(matches!(error, TraceError::SafeTensors { .. }), "{header}: {error}");
    }
}

#[test]
fn narrower_and_wider_element_types_are_read_as_f32() {
    let values = [1.0, -0.5, 0.0, f64::INFINITY, 1024.0, -3.0, 0.25, 1.5, 2.0];
    let f16 = |v: f64| half::f16::from_f64(v).to_le_bytes().to_vec();
    let bf16 = |v: f64| half::bf16::from_f64(v).to_le_bytes().to_vec();
    let cases = [
        ("F16", values.into_iter().flat_map(f16).collect::<Vec<u8>>()),
        ("BF16", values.into_iter().flat_map(bf16).collect()),
        ("F64", values.into_iter().flat_map(f64::to_le_bytes).collect()),
    ];
    for (dtype, data) in cases {
        let recorded = Recorded::new();
        let range = format!("[0,{}]", data.len());
        let header = EMBD.replace("F32", dtype).replace("[0,36]", &range);
        recorded.replace_header(1, &header, &data);
        let reader = TraceReader::open(&recorded.folder).unwrap();
        let tensor = reader.tensor(Site::global(1, Stage::Embd)).unwrap().unwrap();
        let expected = values.map(|value| value as f32).to_vec();
        assert_eq!(tensor, Tensor::new([1, 9], expected), "{dtype}");
    }
}

#[test]
fn a_file_that_vanishes_after_opening_is_an_error_not_a_panic() {
    let recorded = Recorded::new();
    let reader = TraceReader::open(&recorded.folder).unwrap();
    let logits = Site::global(2, Stage::Logits);
    fs::write(recorded.step(2), "short").unwrap();
    assert!(matches!(reader.tensor(logits), Err(TraceError::Io { .. })));
    fs::remove_file(recorded.step(2)).unwrap();
    let error = reader.tensor(logits).unwrap_err();
    assert!(error.to_string().contains("step-0002.safetensors"), "{error}");
}

#[test]
fn a_trace_without_hashes_is_read_if_its_files_name_one_run() {
    let recorded = Recorded::unhashed();
    let sites = TraceReader::open(&recorded.folder).unwrap().sites().count();
    assert_eq!(sites, TraceReader::open(&Recorded::new().folder).unwrap().sites().count());
}

#[test]
fn without_hashes_cut_swapped_and_foreign_files_are_refused() {
    type Damage = fn(&Recorded);
    let cases: [(&str, Damage); 6] = [
        ("step-0001.safetensors has", |recorded| {
            let file = fs::File::options().write(true).open(recorded.step(1)).unwrap();
            file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        }),
        ("was written as step 2 of run run-1, but the manifest expects step 1 of", |recorded| {
            let other = named(&fs::read(recorded.step(1)).unwrap(), "run-1", 2);
            fs::write(recorded.step(1), other).unwrap();
        }),
        ("was written as step 1 of run run-2, but the manifest expects", |recorded| {
            let other = named(&fs::read(recorded.step(1)).unwrap(), "run-2", 1);
            fs::write(recorded.step(1), other).unwrap();
        }),
        ("was written as step unstated of run unstated", |recorded| {
            let plain = fs::read(Recorded::new().step(1)).unwrap();
            fs::write(recorded.step(1), &plain).unwrap();
            let path = recorded.folder.join(MANIFEST_FILE);
            let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            manifest["steps"][1]["bytes"] = plain.len().into();
            fs::write(path, manifest.to_string()).unwrap();
        }),
        ("is not a trace manifest", |recorded| {
            let path = recorded.folder.join(MANIFEST_FILE);
            let whole = fs::read(&path).unwrap();
            fs::write(path, &whole[..whole.len() - 2]).unwrap();
        }),
        ("run is \"../run\", not 1 to 64 letters", |recorded| {
            recorded.edit_manifest(|manifest| manifest["run"] = "../run".into());
        }),
    ];
    for (says, damage) in cases {
        let recorded = Recorded::unhashed();
        damage(&recorded);
        let error = recorded.refusal();
        assert!(error.to_string().contains(says), "{says}: {error}");
    }
}

#[test]
fn what_is_hashed_is_checked_and_without_a_run_hashes_are_required() {
    let recorded = Recorded::unhashed();
    recorded.seal();
    TraceReader::open(&recorded.folder).expect("a fitting hash of the manifest");
    fs::write(recorded.folder.join(CHECKSUM_FILE), "00").unwrap();
    assert!(matches!(recorded.refusal(), TraceError::Checksum { .. }));

    let recorded = Recorded::unhashed();
    recorded.edit_manifest(|manifest| manifest["steps"][1]["blake3"] = "00".repeat(32).into());
    assert!(matches!(recorded.refusal(), TraceError::Checksum { .. }));

    let recorded = Recorded::new();
    recorded.edit_manifest(|manifest| {
        manifest["steps"][1].as_object_mut().unwrap().remove("blake3");
    });
    let error = recorded.refusal();
    assert!(error.to_string().contains("steps[1].blake3 is missing, and the manifest"), "{error}");
}

#[test]
fn an_unfinished_trace_is_refused_not_taken_for_none() {
    let recorded = Recorded::unhashed();
    let [from, to] = ["manifest.json", "manifest.json.unfinished"].map(|n| recorded.folder.join(n));
    fs::rename(from, to).unwrap();
    assert!(matches!(recorded.refusal(), TraceError::Unfinished { .. }));
}
