//! Architectures that no table knows: recorded, compared and checked by what the graph says.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use firstdiff::{
    core::{arithmetic::Arithmetic, tensor::DType},
    graph::{SiteList, site::Stage},
    run::SeenKeys,
    trace::{Manifest, Plan, Side as TraceSide, TraceReader, TraceWriter},
};
use serde_json::Value;

use super::support::Random;
use crate::cli::{outcome, path, refused};

const PROMPT: [&str; 4] = ["-p", "Once upon a time there was", "-n", "2"];

/// The reference's plan of a random model.
pub fn plan(name: &str) -> PathBuf {
    REFERENCES.trace(name).join("plan.txt")
}

/// References of random models.
pub struct References {
    folder: tempfile::TempDir,
}

/// Experts, a convolution and a recurrent state, windows with sinks, layers in an order of their own.
const ARCHS: [&str; 4] = ["qwen3moe", "mamba", "gpt-oss", "lfm2"];

pub static REFERENCES: LazyLock<References> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    for name in ARCHS {
        let model = folder.path().join(format!("{name}.gguf"));
        let (exit, _, err) = outcome(&["synth", "--arch", name, "-o", path(&model)]);
        assert_eq!(exit, 0, "{err}");
        let trace = folder.path().join(name);
        let capture = ["capture", "reference", "-m", path(&model), "-o", path(&trace)];
        let (exit, _, err) = outcome(&[&capture[..], &PROMPT].concat());
        assert_eq!(exit, 0, "{name}: {err}");
    }
    References { folder }
});

impl References {
    pub fn trace(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A copy that may be damaged.
    fn copy(&self, name: &str) -> (tempfile::TempDir, PathBuf) {
        let parent = tempfile::tempdir().unwrap();
        let to = parent.path().join("trace");
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(self.trace(name)).unwrap() {
            let from = entry.unwrap().path();
            fs::copy(&from, to.join(from.file_name().unwrap())).unwrap();
        }
        (parent, to)
    }
}

#[test]
fn a_reference_of_any_architecture_is_whole_and_equal_to_itself() {
    for name in ARCHS {
        let trace = REFERENCES.trace(name);
        let (exit, out, err) = outcome(&["validate", path(&trace)]);
        assert!(exit == 0 && out.starts_with("valid: "), "{name}: {out} {err}");
        let (exit, out, err) = outcome(&["diff", path(&trace), path(&trace)]);
        assert!(exit == 0 && out.starts_with("equal within the floor: "), "{name}: {out} {err}");
        let reader = TraceReader::open(&trace).unwrap();
        let (graph, inputs) = reader.graph().unwrap().expect("a reference has its graph");
        assert_eq!(&SiteList::from(&graph.sites), reader.list());
        let tokens: usize = reader.manifest().steps.iter().map(|step| step.tokens.len()).sum();
        assert_eq!(inputs.tokens, tokens);
        assert!(reader.sites().eq(reader.model_sites()), "{name}");
        let plan = Plan::open(&trace.join("plan.txt")).unwrap();
        assert_eq!(plan.model, reader.manifest().model);
    }
}

/// An engine that computed what the reference did, but for its logits, which are `factor` times those.
pub fn engine(reference: &Path, folder: &Path, factor: f32) -> PathBuf {
    let reader = TraceReader::open(reference).unwrap();
    let (model, arithmetic) = (reader.manifest().model.clone(), Arithmetic::engine(DType::F32));
    let manifest = Manifest::new(TraceSide::Engine, model, arithmetic, "mine".to_string());
    let to = folder.join(format!("times-{factor}"));
    let mut writer = TraceWriter::create(&to, manifest, false).unwrap();
    for (index, step) in reader.manifest().steps.iter().enumerate() {
        writer.begin_step(&step.tokens, step.first_position).unwrap();
        for site in reader.sites().filter(|site| site.step as usize == index) {
            let mut tensor = reader.tensor(site).unwrap().unwrap();
            if site.stage == Stage::Logits {
                tensor.data.iter_mut().for_each(|x| *x *= factor);
            }
            writer.put(site, &tensor).unwrap();
        }
        writer.end_step().unwrap();
    }
    writer.finish().unwrap();
    to
}

#[test]
fn an_engine_of_any_architecture_is_cleared_or_blamed_with_and_without_a_reference() {
    let folder = tempfile::tempdir().unwrap();
    for name in ARCHS {
        let folder = folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        let reference = REFERENCES.trace(name);
        let model = reference.with_extension("gguf");
        let model = ["-m", path(&model)];
        let beside = ["--reference", path(&reference)];
        let [right, wrong] = [1.0, 1.5].map(|factor| engine(&reference, &folder, factor));
        let explain = |trace: &Path, more: &[&str]| {
            outcome(&[&["explain", path(trace)][..], &model, more].concat())
        };
        let (exit, out, err) = explain(&right, &beside);
        assert!(exit == 0 && out.starts_with("equal within the floor: "), "{name}: {out} {err}");
        let (exit, out, err) = explain(&right, &[]);
        assert!(exit == 0 && out.starts_with("nothing guilty: "), "{name}: {out} {err}");
        let cause = "logits projection: 1.500 times the correct values (proven";
        let (exit, out, err) = explain(&wrong, &beside);
        assert!(exit == 1 && out.contains(cause), "{name}: {out} {err}");
        assert!(out.starts_with("first divergence: step 0 logits"), "{name}: {out}");
        let (exit, out, err) = explain(&wrong, &[]);
        assert!(
            exit == 1 && out.starts_with("guilty: ") && out.contains(cause),
            "{name}: {out} {err}"
        );
    }
}

#[test]
fn a_site_without_a_role_is_chosen_by_its_name() {
    let trace = REFERENCES.trace("qwen3moe");
    let sites = ["diff", path(&trace), path(&trace), "--sites", "ffn_moe_logits*,blk.1.ffn_moe*"];
    let (exit, out, err) = outcome(&sites);
    assert!(exit == 0 && out.contains("ffn_moe_"), "{out} {err}");
    let (exit, _, err) = outcome(&["diff", path(&trace), path(&trace), "--sites", "no_such"]);
    assert!(exit == 2 && err.contains("no_such matches no site"), "{err}");
}

#[test]
fn keys_outside_of_a_window_do_not_count_in_scores() {
    let reader = TraceReader::open(&REFERENCES.trace("gpt-oss")).unwrap();
    let seen = SeenKeys::of(&reader).unwrap();
    let mut starts = Vec::new();
    for site in reader.sites().filter(|site| site.stage == Stage::Scores) {
        let first = reader.manifest().steps[site.step as usize].first_position;
        let probs = firstdiff::graph::site::Site { stage: Stage::Probs, ..site };
        let probs = reader.tensor(probs).unwrap().unwrap();
        let (heads, keys) = (probs.shape[1], probs.shape[2]);
        for (token, range) in seen.get(site).unwrap().iter().enumerate() {
            assert_eq!(range.end, first + token + 1, "{site}");
            let weighs = |key: usize| {
                (0..heads).any(|head| probs.data[(token * heads + head) * keys + key] != 0.0)
            };
            assert!((0..keys).all(|key| weighs(key) == range.contains(&key)), "{site} {token}");
            starts.push(range.start);
        }
    }
    assert!(starts.iter().any(|&start| start > 0), "the prompt is longer than the window");
}

/// Makes the hashes of a trace's graph fit what lies there.
fn seal(trace: &Path) {
    let manifest = trace.join("manifest.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    for (key, file) in [("nodes", "graph.json"), ("inputs", "inputs.safetensors")] {
        let bytes = fs::read(trace.join(file)).unwrap();
        json["graph"][key]["bytes"] = bytes.len().into();
        json["graph"][key]["blake3"] = blake3::hash(&bytes).to_string().into();
    }
    fs::write(&manifest, serde_json::to_vec(&json).unwrap()).unwrap();
    let line = format!("{}  manifest.json\n", blake3::hash(&fs::read(&manifest).unwrap()));
    fs::write(trace.join("manifest.json.blake3"), line).unwrap();
}

fn graph_error(trace: &Path) -> String {
    let error = TraceReader::open(trace).unwrap().graph().expect_err("a damaged graph was read");
    assert!(error.is_refusal(), "{error}");
    error.to_string()
}

#[test]
fn a_graph_of_another_model_or_run_is_refused() {
    let other = REFERENCES.trace("mamba");
    for file in ["graph.json", "inputs.safetensors"] {
        let (_parent, trace) = REFERENCES.copy("qwen3moe");
        fs::remove_file(trace.join(file)).unwrap();
        assert!(graph_error(&trace).contains("is missing or not a file"));
        fs::copy(other.join(file), trace.join(file)).unwrap();
        assert!(graph_error(&trace).contains(file));
        seal(&trace);
        assert!(graph_error(&trace).contains(file));
        refused(&["diff", path(&trace), path(&trace)], 3, file);
    }
    let (_parent, trace) = REFERENCES.copy("mamba");
    let bytes = fs::read(trace.join("graph.json")).unwrap();
    fs::write(trace.join("graph.json"), &bytes[..bytes.len() - 1]).unwrap();
    assert!(graph_error(&trace).contains("it was truncated or replaced"));
}

#[test]
fn a_hostile_graph_is_refused_and_never_panics() {
    type Edit = fn(&mut Value);
    let edits: [(&str, Edit); 6] = [
        ("reads a node that comes after it", |g| {
            let nodes = g["graph"]["nodes"].as_array_mut().unwrap();
            let last = nodes.iter_mut().rev().find(|node| node["sources"].is_array()).unwrap();
            last["sources"][0] = 4_000_000_000u32.into();
        }),
        ("is a window on a window", |g| {
            let nodes = g["graph"]["nodes"].as_array_mut().unwrap();
            let window = nodes.iter().position(|node| node["window"].is_object()).unwrap();
            let late = nodes.iter_mut().skip(window + 1);
            let mut late = late.filter(|node| node["window"].is_object());
            late.next().unwrap()["window"]["root"] = window.into();
        }),
        ("has a size beyond all", |g| g["graph"]["nodes"][0]["ne"][0] = i64::MAX.into()),
        ("has too many sources", |g| {
            let nodes = g["graph"]["nodes"].as_array_mut().unwrap();
            nodes.last_mut().unwrap()["sources"] = vec![0; 99].into();
        }),
        ("nodes are computed that", |g| g["asked"][0] = 4_000_000_000u32.into()),
        ("the graph has other sites", |g| {
            let nodes = g["graph"]["nodes"].as_array_mut().unwrap();
            nodes.truncate(nodes.len() / 2);
            g["asked"] = serde_json::json!([]);
        }),
    ];
    for (says, edit) in edits {
        let (_parent, trace) = REFERENCES.copy("qwen3moe");
        let file = trace.join("graph.json");
        let mut graph: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        edit(&mut graph);
        fs::write(&file, serde_json::to_vec(&graph).unwrap()).unwrap();
        seal(&trace);
        let text = graph_error(&trace);
        assert!(text.contains(says), "{says}: {text}");
    }
}

#[test]
fn a_graph_damaged_in_many_ways_is_read_or_refused() {
    let mut random = Random(21);
    for name in ["gpt-oss", "mamba"] {
        let (_parent, trace) = REFERENCES.copy(name);
        for file in ["graph.json", "inputs.safetensors"] {
            let whole = fs::read(trace.join(file)).unwrap();
            for _ in 0..150 {
                let mut bytes = whole.clone();
                for _ in 0..1 + random.below(3) {
                    // Another digit keeps the JSON; of the inputs the header is looked at.
                    let end = if file == "graph.json" { bytes.len() } else { 2000 };
                    let at = random.below(end);
                    let digit = bytes[at].is_ascii_digit() || file != "graph.json";
                    bytes[at] = if digit { b'0' + random.below(10) as u8 } else { bytes[at] };
                }
                fs::write(trace.join(file), &bytes).unwrap();
                seal(&trace);
                let _ = TraceReader::open(&trace).unwrap().graph();
            }
            fs::write(trace.join(file), &whole).unwrap();
            seal(&trace);
        }
    }
}
