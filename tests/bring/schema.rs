//! docs/trace-manifest.schema.json says of manifests what the reader says.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::support::project;
use crate::cli::{SHORT, outcome, path};

/// The part of JSON Schema that docs/trace-manifest.schema.json uses.
fn check(schema: &Value, root: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = reference.strip_prefix("#/$defs/").unwrap();
        return check(&root["$defs"][target], root, value, at);
    }
    for key in schema.as_object().unwrap().keys() {
        let known = [
            "$schema",
            "$id",
            "$defs",
            "title",
            "description",
            "type",
            "const",
            "enum",
            "pattern",
            "minimum",
            "maximum",
            "minItems",
            "items",
            "properties",
            "required",
            "additionalProperties",
            "anyOf",
        ];
        assert!(known.contains(&key.as_str()), "{at}: this check does not know {key}");
    }
    if let Some(any) = schema["anyOf"].as_array() {
        let fits = any.iter().any(|one| check(one, root, value, at).is_ok());
        fits.then_some(()).ok_or(format!("{at} fits none of {any:?}"))?;
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    };
    let is = |kind: &&str| match *kind {
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        kind => kind == "null" && value.is_null(),
    };
    (types.is_empty() || types.iter().any(is)).then_some(()).ok_or(format!("{at} is {value}"))?;
    let listed = schema["enum"].as_array().is_none_or(|values| values.contains(value));
    let constant = schema.get("const").is_none_or(|wanted| wanted == value);
    let low = schema["minimum"].as_f64().is_none_or(|low| value.as_f64().is_none_or(|v| v >= low));
    let high = schema["maximum"].as_f64().is_none_or(|m| value.as_f64().is_none_or(|v| v <= m));
    let hex = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let pattern = match schema["pattern"].as_str() {
        Some("^[0-9a-f]{64}$") => value.as_str().is_none_or(hex),
        Some(pattern) => {
            let known = [
                "^step-[0-9]{4,}\\.safetensors$",
                "^[A-Za-z0-9_-]{1,64}$",
                "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}$",
                "^-?[TPF0-9*]+( ?[+-] ?[TPF0-9*]+)*$",
            ];
            assert!(known.contains(&pattern));
            true
        }
        None => true,
    };
    let most = schema["minItems"].as_u64().unwrap_or(0) as usize;
    let long = value.as_array().is_none_or(|items| items.len() >= most);
    let fits = listed && constant && low && high && pattern && long;
    fits.then_some(()).ok_or(format!("{at} is {value}"))?;
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        if schema.get("items").is_some() {
            check(&schema["items"], root, item, &format!("{at}[{index}]"))?;
        }
    }
    let Some(object) = value.as_object() else { return Ok(()) };
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        object.contains_key(name).then_some(()).ok_or(format!("{at} lacks {name}"))?;
    }
    for (name, field) in object {
        let at = format!("{at}.{name}");
        match (schema["properties"].get(name), schema.get("additionalProperties")) {
            (Some(schema), _) => check(schema, root, field, &at)?,
            (None, Some(Value::Bool(false))) => return Err(format!("{at} is unknown")),
            (None, Some(schema)) => check(schema, root, field, &at)?,
            (None, None) => {}
        }
    }
    Ok(())
}

#[test]
fn the_schema_takes_every_manifest_that_is_written_and_none_that_is_refused() {
    let schema = fs::read(project().join("docs/trace-manifest.schema.json")).unwrap();
    let schema: Value = serde_json::from_slice(&schema).unwrap();
    let parent = tempfile::tempdir().unwrap();
    let read = |folder: &Path| -> Value {
        serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap()
    };
    let capture = |side: &str, more: &[&str]| {
        let folder = parent.path().join(side);
        let capture = ["capture", side, "-o", path(&folder), "--sites", "embd"];
        let (exit, _, err) = outcome(&[&capture[..], &SHORT, more].concat());
        assert_eq!(exit, 0, "{err}");
        read(&folder)
    };
    let reference = capture("reference", &[]);
    let engine = capture("engine", &["--dtype", "f16", "--fault", "scale-missing"]);
    let page = fs::read_to_string(project().join("docs/trace-format.md")).unwrap();
    let example = page.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    let example: Value = serde_json::from_str(
        &example
            .replace(
                "64 lowercase hex digits: b3sum of \
        the GGUF file",
                &"0".repeat(64),
            )
            .replace("b3sum of the source file", &"0".repeat(64)),
    )
    .unwrap();
    let mut rank = engine.clone();
    rank["shard"] = json!({"rank": 0, "world": 2, "split": {"q": "head", "o_proj": "partial"}});
    let mut batch = engine.clone();
    batch["steps"][0]["batch"] = json!({ "slots": 4, "block_size": 2, "keys": 5, "sequences": [
        { "sequence": 0, "first_position": 0, "rows": [1, 0], "blocks": [1], "keys": [3, 4] }
    ]});
    for manifest in [&reference, &engine, &example, &rank, &batch] {
        check(&schema, &schema, manifest, "manifest").unwrap();
    }
    type Edit = fn(&mut Value);
    let edits: [Edit; 15] = [
        |m| m["format_version"] = 1.into(),
        |m| m["speed"] = 1.into(),
        |m| m["steps"][0]["speed"] = 1.into(),
        |m| m["steps"] = json!([]),
        |m| m["steps"][0]["tokens"] = json!([]),
        |m| m["model"]["sites"][1]["axes"][0] = "tokens".into(),
        |m| m["model"]["blake3"] = "AB".into(),
        |m| m["arithmetic"]["default"]["storage"] = "f8".into(),
        |m| m["side"] = "left".into(),
        |m| m["weights"]["tensors"][0]["dtype"] = "tf32".into(),
        |m| m["weights"]["tensors"][0]["shape"] = json!([0]),
        |m| m["weights"]["bytes"] = Value::Null,
        |m| m["shard"] = json!({"rank": 0}),
        |m| m["shard"] = json!({"rank": 0, "world": 2, "split": {"q": "dim"}}),
        |m| m["shard"] = json!({"rank": 0, "world": 2, "ranks": 2}),
    ];
    for (index, edit) in edits.into_iter().enumerate() {
        let mut manifest = engine.clone();
        edit(&mut manifest);
        assert!(check(&schema, &schema, &manifest, "manifest").is_err(), "edit {index}");
    }
}
