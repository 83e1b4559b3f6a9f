//! Traces of versions 2 and 3 are read as those that are written now.

use std::fs;

use firstdiff::trace::{FORMAT_VERSION, Limit, TraceError, TraceReader, comparable};
use serde_json::{Value, json};

use super::support::{Recorded, config, manifest, site_list, tensors};

/// Makes the manifest of the small run one that version 2 wrote.
fn as_version_2(manifest: &mut Value) {
    let config = config();
    manifest["format_version"] = 2.into();
    let model = manifest["model"].as_object_mut().unwrap();
    model.remove("sites");
    model.remove("n_vocab");
    model.insert(
        "shapes".into(),
        json!({
            "n_layer": config.n_layer, "n_embd": config.n_embd, "n_head": config.n_head,
            "n_head_kv": config.n_head_kv, "head_dim": config.head_dim, "n_ff": config.n_ff,
            "n_vocab": config.n_vocab,
        }),
    );
}

#[test]
fn a_trace_of_version_2_has_the_same_sites_and_is_comparable_with_one_of_now() {
    let (old, now) = (Recorded::new(), Recorded::new());
    old.edit_manifest(as_version_2);
    let [old, now] = [&old, &now].map(|of| TraceReader::open(&of.folder).unwrap());
    assert_eq!(old.manifest().format_version, FORMAT_VERSION);
    assert_eq!(old.manifest().model, now.manifest().model);
    assert_eq!(old.list(), &site_list(&config()));
    assert!(comparable(old.manifest(), now.manifest()).unwrap().same_steps);
    for (site, tensor) in tensors(1) {
        assert_eq!(old.tensor(site).unwrap().unwrap(), tensor, "{site}");
    }
    assert!(old.graph().unwrap().is_none());
}

#[test]
fn an_architecture_without_head_norms_has_none() {
    let old = Recorded::new();
    old.edit_manifest(as_version_2);
    old.edit_manifest(|manifest| manifest["model"]["architecture"] = "qwen2".into());
    let text = old.refusal().to_string();
    assert!(text.contains("blk.0.q_norm") || text.contains("blk.0.k_norm"), "{text}");
}

#[test]
fn a_rank_is_of_version_3() {
    let rank = Recorded::new();
    rank.edit_manifest(as_version_2);
    let shard = json!({ "rank": 0, "world": 1, "split": { "q": "head", "q_norm": "head" } });
    rank.edit_manifest(|manifest| manifest["shard"] = shard.clone());
    assert!(rank.refusal().to_string().contains("shard is for version 3"));
    rank.edit_manifest(|manifest| manifest["format_version"] = 3.into());
    let world = rank.parent.path().join("world");
    fs::create_dir(&world).unwrap();
    fs::rename(&rank.folder, world.join("rank0")).unwrap();
    let trace = TraceReader::open(&world).unwrap();
    assert_eq!(trace.sites().count(), manifest_sites());
    assert_eq!(trace.manifest().format_version, FORMAT_VERSION);
}

fn manifest_sites() -> usize {
    3 * site_list(&config()).sites().len()
}

#[test]
fn an_old_manifest_that_no_model_has_is_refused() {
    type Edit = fn(&mut Value);
    let edits: [(&str, Edit); 7] = [
        ("model.architecture is \"gpt2\"", |m| m["model"]["architecture"] = "gpt2".into()),
        ("model.shapes.n_ff is 0", |m| m["model"]["shapes"]["n_ff"] = 0.into()),
        ("model.shapes.n_head_kv is 4, which does not divide 6", |m| {
            m["model"]["shapes"]["n_head_kv"] = 4.into();
        }),
        ("missing field `n_ff`", |m| {
            m["model"]["shapes"].as_object_mut().unwrap().remove("n_ff");
        }),
        ("unknown field `n_experts`", |m| m["model"]["shapes"]["n_experts"] = 4.into()),
        ("unknown field `speed`", |m| m["speed"] = 4.into()),
        ("model is missing", |m| m["model"] = Value::Null),
    ];
    for (says, edit) in edits {
        let old = Recorded::new();
        old.edit_manifest(as_version_2);
        old.edit_manifest(edit);
        let text = old.refusal().to_string();
        assert!(text.contains(says), "{says}: {text}");
    }
    let limits: [(Limit, &str, u64); 2] =
        [(Limit::Layers, "n_layer", 1 << 40), (Limit::Dimension, "n_embd", u64::MAX)];
    for (expected, name, value) in limits {
        let old = Recorded::new();
        old.edit_manifest(as_version_2);
        old.edit_manifest(|manifest| manifest["model"]["shapes"][name] = value.into());
        let error = old.refusal();
        assert!(
            matches!(error, TraceError::OverLimit { limit, .. } if limit == expected),
            "{error}"
        );
    }
    assert_eq!(manifest().format_version, FORMAT_VERSION);
}
