//! Mistakes of the recording are said beside the verdict, and a right recording gets no note.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use firstdiff::{
    core::tensor::Tensor,
    graph::site::{Site, Stage},
    trace::{TraceReader, TraceWriter},
};
use half::{bf16, f16};
use serde_json::{Value, json};

use crate::{
    cli::{SHORT, outcome, path, refused},
    trace::support::{Random, Recorded, record, tensors},
};

type Tensors = BTreeMap<Site, Tensor>;

fn site(step: u32, name: &str) -> Site {
    Site::from_tensor_name(step, name).unwrap()
}

/// The small run, whose caches hold what was put in, as those of a right engine do.
fn small_run() -> Tensors {
    let mut all: Tensors = tensors(1).into_iter().collect();
    for layer in 0..2 {
        for (cache, from) in [(Stage::KCache, Stage::KRope), (Stage::VCache, Stage::V)] {
            let values = all[&Site::in_layer(0, layer, from)].clone();
            all.insert(Site::in_layer(0, layer, cache), values);
        }
    }
    all
}

/// What `validate` calls suspicious in the small run, after its tensors were changed.
fn suspicious(edit: impl Fn(&mut Tensors)) -> Vec<String> {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("trace");
    let mut all = small_run();
    edit(&mut all);
    record(&folder, &all.into_iter().collect::<Vec<_>>()).unwrap();
    let (exit, out, err) = outcome(&["validate", path(&folder)]);
    assert_eq!((exit, err.as_str()), (0, ""), "{out}");
    let line = |line: &str| line.strip_prefix("  suspicious ").map(str::to_string);
    out.lines().filter_map(line).collect()
}

#[test]
fn a_right_trace_is_not_suspicious() {
    assert_eq!(suspicious(|_| {}), [""; 0]);
}

#[test]
fn zeros_and_values_that_belong_elsewhere_are_suspicious() {
    type Edit = fn(&mut Tensors);
    let cases: [(&str, Edit); 8] = [
        ("step 0 layer 0 ffn_up is all zeros: not computed, or not copied", |all| {
            all.get_mut(&site(0, "blk.0.ffn_up")).unwrap().data.fill(0.0);
        }),
        ("step 0 layer 1 v is zero at token 3 only: never written, or NaN replaced", |all| {
            all.get_mut(&site(0, "blk.1.v")).unwrap().data[3 * 8..4 * 8].fill(0.0);
            all.get_mut(&site(0, "blk.1.v_cache")).unwrap().data[0] = 0.0;
        }),
        ("step 0 layer 1 q is zero at 2 of 5 tokens, from 1 to 3", |all| {
            let q = all.get_mut(&site(0, "blk.1.q")).unwrap();
            q.data[24..48].fill(0.0);
            q.data[72..96].fill(0.0);
        }),
        ("step 0 layer 0 q_rope has exactly the values of q: one buffer", |all| {
            let q = all[&site(0, "blk.0.q")].clone();
            all.insert(site(0, "blk.0.q_rope"), q);
        }),
        ("step 0 layer 1 q has exactly the values of q of layer 0: one buffer", |all| {
            let q = all[&site(0, "blk.0.q")].clone();
            all.insert(site(0, "blk.1.q"), q);
        }),
        (
            "step 2 layer 1 ffn_act has exactly the values of the previous step's last token",
            |all| {
                let old = all[&site(1, "blk.1.ffn_act")].clone();
                all.insert(site(2, "blk.1.ffn_act"), old);
            },
        ),
        ("step 1 logits has exactly the values of the previous step's last token: prompt", |all| {
            let prompt = all[&site(0, "logits")].data[4 * 13..].to_vec();
            all.insert(site(1, "logits"), Tensor::new([1, 13], prompt));
        }),
        ("step 1 layer 0 q_norm is all zeros", |all| {
            for layer in 0..2 {
                all.get_mut(&Site::in_layer(1, layer, Stage::QNorm)).unwrap().data.fill(0.0);
            }
        }),
    ];
    for (says, edit) in cases {
        let lines = suspicious(edit);
        assert!(lines.len() == 1 && lines[0].starts_with(says), "{says}: {lines:?}");
        let twice = lines[0].ends_with("; the same at 1 more site");
        assert_eq!(twice, says.contains("q_norm"), "{lines:?}");
    }
}

#[test]
fn bytes_in_a_foreign_order_are_refused_in_every_format() {
    let swap = |bytes: &[u8], size: usize| -> Vec<u8> {
        bytes.chunks(size).flat_map(|element| element.iter().rev().copied()).collect()
    };
    let values = Random(5).tensor(vec![5, 13]).data;
    let wide = |values: Vec<f32>| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let narrow: Vec<f32> = values.iter().map(|&v| f16::from_f32(v).to_f32()).collect();
    let formats: [(&str, usize, Vec<u8>); 5] = [
        ("F32", 4, wide(values.clone())),
        ("F32", 4, wide(narrow)),
        ("F64", 8, values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect()),
        ("F16", 2, values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()),
        ("BF16", 2, values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()),
    ];
    for (index, (dtype, size, bytes)) in formats.into_iter().enumerate() {
        let recorded = Recorded::new();
        let info = json!({"dtype": dtype, "shape": [5, 13], "data_offsets": [0, bytes.len()]});
        let header = json!({ "logits": info }).to_string();
        recorded.replace_header(0, &header, &bytes);
        let (exit, out, err) = outcome(&["validate", path(&recorded.folder)]);
        assert_eq!(exit, 0, "{index} {dtype}: {out}{err}");
        recorded.replace_header(0, &header, &swap(&bytes, size));
        let says = "step-0000.safetensors has step 0 logits in big-endian";
        refused(&["validate", path(&recorded.folder)], 3, says);
    }
    let recorded = Recorded::new();
    let mut bytes = fs::read(recorded.step(1)).unwrap();
    bytes[..8].reverse();
    recorded.replace_step(1, &bytes);
    assert!(recorded.refusal().to_string().contains("length is big-endian"));
}

/// Our engine's and llama.cpp's traces of the short prompt.
pub struct Sides {
    pub parent: tempfile::TempDir,
    pub engine: PathBuf,
    pub reference: PathBuf,
}

impl Sides {
    pub fn new() -> Sides {
        let parent = tempfile::tempdir().unwrap();
        let at = |side: &str| {
            let folder = parent.path().join(side);
            let capture = [&["capture", side, "-o", path(&folder)][..], &SHORT].concat();
            let (exit, _, err) = outcome(&capture);
            assert_eq!(exit, 0, "{err}");
            folder
        };
        let (engine, reference) = (at("engine"), at("reference"));
        Sides { parent, engine, reference }
    }

    /// The engine's trace after a change of its tensors.
    fn edited(&self, name: &str, edit: impl FnOnce(&mut Tensors)) -> PathBuf {
        let reader = TraceReader::open(&self.engine).unwrap();
        let read = |site| (site, reader.tensor(site).unwrap().unwrap());
        let mut all: Tensors = reader.sites().map(read).collect();
        edit(&mut all);
        let folder = self.parent.path().join(name);
        let mut writer = TraceWriter::create(&folder, reader.manifest().clone(), false).unwrap();
        for (index, step) in reader.manifest().steps.iter().enumerate() {
            writer.begin_step(&step.tokens, step.first_position).unwrap();
            for (site, tensor) in all.iter().filter(|(site, _)| site.step as usize == index) {
                writer.put(*site, tensor).unwrap();
            }
            writer.end_step().unwrap();
        }
        writer.finish().unwrap();
        folder
    }

    /// The exit code, the notes and the first guilty operation of `explain`.
    fn explain(&self, trace: &Path) -> (i32, Vec<String>, Value) {
        let reference = path(&self.reference);
        let explain = ["explain", path(trace), "--reference", reference, "--json", "-"];
        let (exit, out, err) = outcome(&explain);
        assert_eq!(err, "");
        let report: Value = serde_json::from_str(&out).unwrap();
        let notes: Vec<String> = serde_json::from_value(report["notes"].clone()).unwrap();
        assert!(notes[0].starts_with("traces of the same model"), "{notes:?}");
        let guilty = report["diagnosis"]["findings"][0]["operations"][0].clone();
        (exit, notes[1..].to_vec(), guilty)
    }
}

/// Moves the rows of a tensor down by one; the first stays.
fn shift(tensor: &mut Tensor) {
    let width = tensor.data.len() / tensor.shape[0];
    let end = tensor.data.len() - width;
    tensor.data.copy_within(..end, width);
}

#[test]
fn what_was_recorded_wrongly_is_said_beside_a_diagnosis_that_stands() {
    let sides = Sides::new();
    let (exit, notes, _) = sides.explain(&sides.engine);
    assert_eq!((exit, notes), (0, vec![]));
    type Edit = fn(&mut Tensors);
    let cases: [(&str, &str, &str, Edit); 7] = [
        ("zero", "blk.1.attn_out", "step 0 layer 1 attn_out is all zeros", |all| {
            all.get_mut(&site(0, "blk.1.attn_out")).unwrap().data.fill(0.0);
        }),
        ("nan", "blk.0.ffn_up", "step 0 layer 0 ffn_up is exactly 0 at ", |all| {
            let up = all.get_mut(&site(0, "blk.0.ffn_up")).unwrap();
            up.data.iter_mut().step_by(3).for_each(|value| *value = 0.0);
        }),
        (
            "shift",
            "blk.0.q_rope",
            "step 0 layer 0 q_rope has at each token the reference's values \
          of the token before it: positions are off by one",
            |all| {
                shift(all.get_mut(&site(0, "blk.0.q_rope")).unwrap());
            },
        ),
        (
            "name",
            "blk.2.attn_residual",
            "step 1 layer 2 attn_residual has the values of the \
          reference's o_proj: recorded at the wrong place",
            |all| {
                let other = all[&site(1, "blk.2.o_proj")].clone();
                all.insert(site(1, "blk.2.attn_residual"), other);
            },
        ),
        (
            "prompt",
            "logits",
            "step 1 logits has the reference's values of the token before it: \
          positions are off by one, or prompt logits were recorded",
            |all| {
                let prompt = all[&site(0, "logits")].clone();
                let logits = all.get_mut(&site(1, "logits")).unwrap();
                let start = prompt.data.len() - logits.data.len();
                logits.data.copy_from_slice(&prompt.data[start..]);
            },
        ),
        ("coarse", "embd", "embd differs from the model's by 2.", |all| {
            for value in &mut all.get_mut(&site(0, "embd")).unwrap().data {
                *value = (*value * 1.02).clamp(-1e3, 1e3);
            }
        }),
        ("ids", "embd", "embd at position 1 is the row of token ", |all| {
            shift(all.get_mut(&site(0, "embd")).unwrap());
        }),
    ];
    for (name, guilty, says, edit) in cases {
        let (exit, notes, found) = sides.explain(&sides.edited(name, edit));
        assert_eq!((exit, found), (1, guilty.into()), "{name}: {notes:?}");
        assert!(notes.iter().any(|note| note.starts_with(says)), "{name}: {notes:?}");
    }
}

#[test]
fn one_token_and_f16_storage_give_no_note() {
    let parent = tempfile::tempdir().unwrap();
    let runs: [(&str, &[&str]); 2] =
        [("one", &["-p", "a", "-n", "1"]), ("half", &["-p", "Once upon", "--dtype", "f16"])];
    for (name, more) in runs {
        let folder = parent.path().join(name);
        let capture = [&["capture", "engine", "-o", path(&folder)][..], more].concat();
        assert_eq!(outcome(&capture).0, 0);
        let (exit, out, err) = outcome(&["explain", path(&folder), "--json", "-"]);
        assert_eq!(exit, 0, "{err}");
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(report["notes"], json!([]), "{name}");
    }
}

#[test]
fn other_ids_are_refused_with_both_texts_and_another_quantisation_as_such() {
    let sides = Sides::new();
    let manifest = |trace: &Path, edit: &dyn Fn(&mut Value)| {
        let file = trace.join("manifest.json");
        let mut manifest: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        edit(&mut manifest);
        let bytes = serde_json::to_vec(&manifest).unwrap();
        fs::write(&file, &bytes).unwrap();
        let sum = format!("{}  manifest.json\n", blake3::hash(&bytes));
        fs::write(trace.join("manifest.json.blake3"), sum).unwrap();
    };
    let explain = ["explain", path(&sides.engine), "--reference", path(&sides.reference)];
    manifest(&sides.engine, &|m| m["steps"][0]["tokens"][1] = 300.into());
    let (exit, out, err) = outcome(&explain);
    assert_eq!((exit, out.as_str()), (3, ""));
    assert!(err.contains("step 0, position 1 has 300 and "), "{err}");
    assert!(err.contains("(the engine has \"ow\", the reference \"n\")"), "{err}");

    manifest(&sides.engine, &|m| m["model"]["blake3"] = "ab".repeat(32).into());
    let diff = ["diff", path(&sides.engine), path(&sides.reference)];
    refused(&diff, 3, "have the same shapes: another quantisation or fine-tune; record both");
}

#[test]
fn a_shape_that_fits_another_layout_says_which() {
    // 5 tokens of 9 channels, 6 and 2 heads of 4, 11 neurons, 13 ids.
    let cases: [(&str, &[usize], &str); 11] = [
        ("blk.0.q", &[6, 5, 4], "fits as (head, token, dim): write it as (token, head, dim)"),
        ("blk.0.v", &[2, 4, 5], "fits as (head, dim, token)"),
        ("embd", &[9, 5], "fits as (channel, token)"),
        ("blk.0.q", &[5, 24], "has as many elements: give it as (token, head, dim)"),
        ("blk.0.k", &[5, 40], "fits a fused qkv"),
        ("blk.0.attn_norm", &[1, 9], "instead of [5, 9]"),
        ("logits", &[13], "is one token's: record it as one row"),
        ("blk.0.k_cache", &[4, 2, 4], "one position too few: it was recorded before"),
        ("blk.0.q_rope", &[6, 6, 4], "is one token too many"),
        ("blk.0.v_cache", &[64, 2, 4], "has room for more positions: write the first 5"),
        ("blk.0.ffn_up", &[5, 17], "of shape [5, 17] instead of [5, 11]"),
    ];
    for (name, shape, says) in cases {
        let recorded = Recorded::new();
        let bytes = 4 * shape.iter().product::<usize>();
        let info = json!({"dtype": "F32", "shape": shape, "data_offsets": [0, bytes]});
        recorded.replace_header(0, &json!({ name: info }).to_string(), &vec![0; bytes]);
        let text = recorded.refusal().to_string();
        assert!(text.contains(says), "{name} {shape:?}: {text}");
    }
}
