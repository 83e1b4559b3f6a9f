use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{
    cli::{SHORT, outcome, path, refused},
    trace::support::shape_of,
};

const TWO_BUGS: [&str; 4] = ["--fault", "qkv-bias-zero", "--fault", "rope-pairs-interleaved"];

/// A folder of traces that goes away at the end.
struct Traces(tempfile::TempDir);

impl Traces {
    fn new() -> Traces {
        Traces(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Records a side of the short run.
    fn record(&self, side: &str, name: &str, more: &[&str]) -> String {
        let to = self.at(name);
        let capture = [&["capture", side, "-o", path(&to)][..], &SHORT, more].concat();
        let (exit, _, err) = outcome(&capture);
        assert_eq!(exit, 0, "{err}");
        path(&to).to_string()
    }
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&outcome(&[arguments, &["--json", "-"]].concat()).1).unwrap()
}

/// Changes a manifest as a wrong writer would: its hash fits.
fn edit_manifest(trace: &str, edit: impl FnOnce(&mut Value)) {
    let file = Path::new(trace).join("manifest.json");
    let mut manifest = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    edit(&mut manifest);
    let bytes = serde_json::to_vec(&manifest).unwrap();
    std::fs::write(&file, &bytes).unwrap();
    let sum = format!("{}  manifest.json\n", blake3::hash(&bytes));
    std::fs::write(file.with_extension("json.blake3"), sum).unwrap();
}

#[test]
fn a_trace_is_blamed_for_what_run_blames_its_engine_for() {
    let traces = Traces::new();
    let bad = traces.record("engine", "bad", &TWO_BUGS);
    let reference = traces.record("reference", "reference", &[]);
    let run = json(&[&["run"][..], &SHORT, &TWO_BUGS].concat());

    let (exit, out, err) = outcome(&["explain", &bad]);
    assert_eq!((exit, err.as_str()), (1, ""));
    insta::with_settings!({filters => vec![
        (r"host \(.*\)", "host (COMPILER)"),
        (r"/\S*/fixture/tiny-qwen2\S*", "FIXTURE"),
        (r"worst [0-9.e]+ x bound: .*", "worst N x bound: PLACE"),
        (r"worst 0\.\d+ x", "worst 0.N x"),
        (r"recorded by firstdiff \S+", "recorded by firstdiff V"),
        // As many as there are hypotheses.
        (r"\d+ other causes", "N other causes"),
        (r"firstdiff explain \S+", "firstdiff explain TRACE"),
    ]}, { insta::assert_snapshot!(out) });

    let alone = json(&["explain", &bad]);
    assert_eq!(alone["diagnosis"]["findings"], run["diagnosis"]["findings"]);
    assert_eq!(alone["diagnosis"]["engine"], run["diagnosis"]["engine"]);
    assert_eq!(alone["model"]["blake3"], run["model"]["blake3"]);
    assert!(alone["compared"].is_null() && alone["diagnosis"]["reference"].is_null());

    let both = json(&["explain", &bad, "--reference", &reference]);
    assert_eq!(both["diagnosis"], run["diagnosis"]);
    assert_eq!(both["headline"], run["headline"]);
    assert_eq!(both["sites"], run["sites"]);
}

#[test]
fn a_right_engine_is_cleared_in_f32_and_f16_and_a_native_reference_is_not_replayed() {
    let traces = Traces::new();
    for dtype in ["f32", "f16"] {
        let (exit, out, _) =
            outcome(&["explain", &traces.record("engine", dtype, &["--dtype", dtype])]);
        let wanted = "nothing guilty: 79 of 79 operations within their rounding bounds\n";
        assert!(exit == 0 && out.starts_with(wanted), "{exit} {out}");
    }
    let native = traces.record("reference", "native", &["--reference", "native"]);
    let (exit, out, _) = outcome(&["explain", path(&traces.at("f32")), "--reference", &native]);
    assert!(exit == 0 && out.starts_with("equal within the floor: 237 of 237 sites"), "{out}");
    assert!(out.contains("not replayed: its arithmetic is only known in f32"), "{out}");
}

#[test]
fn the_floor_of_arithmetic_that_the_references_trace_lacks_is_measured() {
    let traces = Traces::new();
    let reference = traces.record("reference", "reference", &[]);
    let storage = serde_json::json!({ "storage": "bf16", "accumulator": "f32" });
    for (faults, exit, first) in [
        (&[][..], 0, "equal within the floor: 237 of 237 sites"),
        (&["--fault", "rope-backwards"], 1, "first divergence: step 0 layer 0 q_rope"),
    ] {
        let engine = traces.record("engine", &format!("engine-{exit}"), faults);
        edit_manifest(&engine, |manifest| manifest["arithmetic"]["default"] = storage.clone());
        refused(&["diff", &engine, &reference], 3, "no floor for the engine's arithmetic (bf16");
        let (found, out, err) = outcome(&["explain", &engine, "--reference", &reference]);
        assert!(found == exit && out.starts_with(first), "{found} {out}{err}");
    }
}

#[test]
fn results_that_were_not_recorded_are_named_and_green_only_where_a_recorded_one_follows() {
    let traces = Traces::new();
    let cases = [
        ("layer_out,logits", 0, "nothing guilty: 5 of 5 recorded operations within", "74 not"),
        ("embd", 4, "not enough recorded: 1 of 1 recorded operations within", "78 not recorded"),
    ];
    for (sites, code, first, missing) in cases {
        let (exit, out, _) =
            outcome(&["explain", &traces.record("engine", sites, &["--sites", sites])]);
        let line = out.lines().next().unwrap();
        assert!(exit == code && line.starts_with(first) && line.contains(missing), "{line}");
        assert!(out.contains("; not recorded: ") && out.contains("with a wider bound"), "{out}");
    }
    // A bug among what was not recorded is found behind it.
    let hidden = [&["--sites", "layer_out,logits"][..], &["--fault", "gelu-for-silu"]].concat();
    let (exit, out, _) = outcome(&["explain", &traces.record("engine", "hidden", &hidden)]);
    let cause = "guilty: feed-forward residual, all layers: SwiGLU: gelu_tanh(gate) * up instead of \
                 silu(gate) * up (proven)\n";
    assert!(exit == 1 && out.starts_with(cause), "{out}");
    assert!(out.contains("or an earlier operation, because blk.0.attn_norm, "), "{out}");
}

#[test]
fn a_mistake_anywhere_in_a_gap_is_named_with_the_operations_that_make_it() {
    let traces = Traces::new();
    let cases = [
        ("gelu-for-silu", "SwiGLU: gelu_tanh(gate) * up instead of silu(gate) * up"),
        // What the keys and values of one step lack, later steps find in the caches.
        ("qkv-bias-zero", "q, k and v projection: bias missing"),
        ("rope-pairs-interleaved", "q and k rotation: pairs (2i, 2i+1) instead of (i, i+d/2)"),
    ];
    for (fault, cause) in cases {
        let gap = ["--sites", "embd,layer_out,logits", "--fault", fault];
        let (exit, out, _) = outcome(&["explain", &traces.record("engine", fault, &gap)]);
        let guilty = format!(
            "guilty: between the layer's input and layer_out, all layers: {cause} (proven)"
        );
        let first = out.lines().next().unwrap();
        assert!(exit == 1 && first.ends_with(&guilty), "{fault}: {out}");
    }
}

#[test]
fn layers_and_logits_name_the_layer_and_what_rope_gives_names_the_operation() {
    let parent = tempfile::tempdir().unwrap();
    let reference = path(&parent.path().join("reference")).to_string();
    let capture = ["capture", "reference", "-o", &reference];
    assert_eq!(outcome(&[&capture[..], &SHORT].concat()).0, 0);
    let cases = [
        (
            "layer_out,logits",
            "layer_out",
            "0 sites before it are equal; 14 of 14 after it",
            "q and k rotation: pairs (2i, 2i+1) instead of (i, i+d/2) (proven",
        ),
        (
            "layer_out,logits,q_rope,k_rope",
            "q_rope",
            "0 sites before it are equal; 38 of 38 after it",
            "pairs (2i, 2i+1) instead of (i, i+d/2) (proven",
        ),
    ];
    for (sites, first, around, cause) in cases {
        let trace = path(&parent.path().join(sites)).to_string();
        let capture = ["capture", "engine", "-o", &trace, "--sites", sites];
        let fault = ["--fault", "rope-pairs-interleaved"];
        assert_eq!(outcome(&[&capture[..], &fault, &SHORT].concat()).0, 0);
        let (exit, out, _) = outcome(&["explain", &trace, "--reference", &reference, "-v"]);
        let says = format!("first divergence: step 0 layer 0 {first} [position 1, ");
        assert!(exit == 1 && out.starts_with(&says), "{out}");
        assert!(out.contains(around) && out.contains(cause), "{out}");
        assert!(out.contains("\n  unmeasured step 0 embd: the engine does not have it\n"), "{out}");
    }
}

#[test]
fn a_wrong_operation_is_the_answer_where_no_site_diverges_or_some_are_missing() {
    let traces = Traces::new();
    let reference = traces.record("reference", "reference", &[]);
    // A floor so high that nothing diverges.
    edit_manifest(&reference, |manifest| {
        let floors = manifest["floors"].as_array_mut().unwrap().iter_mut();
        for floor in floors.flat_map(|floors| floors["floor"].as_object_mut().unwrap().values_mut())
        {
            *floor = serde_json::json!({ "elementwise": 0.05, "relative_l2": 0.05 });
        }
    });
    for (name, sites, then) in [
        ("all", "*", "equal within the floor: 237"),
        ("part", "q_rope,k_rope,k_cache,scores", "not enough measured: 48"),
    ] {
        let bad = ["--sites", sites, "--fault", "scores-f16-accumulate"];
        let bad = traces.record("engine", name, &bad);
        let (exit, out, _) = outcome(&["explain", &bad, "--reference", &reference]);
        let line = out.lines().next().unwrap();
        let says =
            "wrong within the floor: attention scores, all layers: summed in f16, but declared f32";
        assert!(exit == 1 && line.starts_with(says), "{line}");
        assert!(line.contains(&format!("; {then} of 237 sites")), "{line}");
    }
}

#[test]
fn nothing_recorded_is_not_green() {
    let traces = Traces::new();
    let empty = traces.record("engine", "empty", &["--sites", "embd"]);
    // An engine whose every step has no tensors.
    let header = b"{}      ";
    let file = [&(header.len() as u64).to_le_bytes()[..], header].concat();
    for step in 0..3 {
        std::fs::write(Path::new(&empty).join(format!("step-000{step}.safetensors")), &file)
            .unwrap();
    }
    edit_manifest(&empty, |manifest| {
        for step in manifest["steps"].as_array_mut().unwrap() {
            step["bytes"] = file.len().into();
            step["blake3"] = blake3::hash(&file).to_string().into();
            step["sites"] = 0.into();
        }
    });
    let (exit, out, _) = outcome(&["explain", &empty]);
    assert!(exit == 4 && out.starts_with("nothing was replayed: no operation's result"), "{out}");
}

#[test]
fn what_cannot_be_explained_gets_one_line_with_the_next_step() {
    let traces = Traces::new();
    let synth = traces.at("m.gguf");
    let synth = path(&synth);
    assert_eq!(outcome(&["synth", "-o", synth, "--vocab", "2048"]).0, 0);
    let engine = traces.record("engine", "engine", &["--sites", "embd"]);
    let reference = traces.record("reference", "reference", &["--sites", "embd"]);
    let other = traces.record("engine", "other", &["--sites", "embd", "-m", synth]);
    let absent = traces.at("absent");

    refused(&["explain", path(&absent)], 2, "absent; check the path");
    refused(&["explain", path(traces.0.path())], 2, "it has no manifest.json");
    refused(&["explain", &reference], 2, "is a reference's trace; name the engine's");
    refused(
        &["explain", &engine, "--reference", &engine],
        2,
        "pass --reference a trace of `firstdiff",
    );
    refused(&["explain", &engine, "--reference", path(&absent)], 2, "absent; check the path");
    refused(&["explain", &engine, "-m", "absent.gguf"], 2, "cannot read absent.gguf");
    refused(&["explain", &engine, "-m", synth], 3, "name the first with -m");
    refused(&["explain", &other], 2, "name that file with -m");
    refused(&["explain", &other, "-m", synth, "--reference", &reference], 3, "different models");
    refused(&["explain", &engine, "--json", "absent/r.json"], 2, "cannot write absent/r.json");
    let (exit, _, err) = outcome(&["explain", &other, "-m", synth]);
    assert_eq!(exit, 4, "the model that was recorded is taken: {err}");

    edit_manifest(&other, |manifest| shape_of(manifest, "ffn_up")[1] = 8.into());
    refused(&["explain", &other, "-m", synth], 3, "states shapes that differ from those of");
    let step = Path::new(&engine).join("step-0001.safetensors");
    let whole = std::fs::read(&step).unwrap();
    std::fs::write(&step, &whole[..whole.len() - 1]).unwrap();
    refused(&["explain", &engine], 3, "step-0001.safetensors has");
}
