//! Models of transformers record themselves by python/firstdiff_transformers.py, and are judged.
//!
//! `make transformers-test` runs these; FIRSTDIFF_TEST_PYTHON names a Python that has torch and
//! transformers, FIRSTDIFF_TEST_DEVICE=cuda runs the models on a GPU.

use std::{path::Path, process::Command, sync::LazyLock};

use super::{
    engines::{Engine, FIXTURE, LLAMA, QWEN3, Recorded},
    support::project,
};
use crate::cli::{outcome, path};

static PYTHON: LazyLock<String> = LazyLock::new(|| {
    std::env::var("FIRSTDIFF_TEST_PYTHON").expect("make transformers-test names the Python")
});

/// examples/transformers with some more options.
fn engine(options: &[&str]) -> Engine {
    let mut engine = Engine::of_python(Path::new(&*PYTHON), "transformers", "run");
    let device = std::env::var("FIRSTDIFF_TEST_DEVICE").ok();
    let device = device.iter().flat_map(|device| ["--device", device.as_str()]);
    engine.program.extend(options.iter().copied().chain(device).map(Into::into));
    engine
}

/// What `explain` says of a run beside the reference.
fn explained(engine: &Engine, of: &Recorded, name: &str, bug: Option<&str>) -> (i32, String) {
    let trace = engine.record(of, name, bug);
    let (model, reference) = (path(&of.model), path(&of.reference));
    let (exit, out, err) = outcome(&["explain", &trace, "-m", model, "--reference", reference]);
    (exit, out + &err)
}

#[test]
#[ignore = "needs torch and transformers: make transformers-test"]
fn models_of_transformers_are_equal_to_llama_cpp() {
    engine(&[]).is_equal_to_llama_cpp("transformers");
    // Its GGUF is a llama's.
    let mistral = engine(&["--family", "mistral"]);
    let (exit, said) = explained(&mistral, &LLAMA, "mistral", None);
    assert!(exit == 0 && said.starts_with("equal within the floor: 180 of 180 sites"), "{said}");
}

#[test]
#[ignore = "needs torch and transformers: make transformers-test"]
fn narrow_models_of_transformers_are_equal_within_the_floor_of_their_own_arithmetic() {
    let models = [(&*FIXTURE, "237 of 237"), (&*LLAMA, "180 of 180"), (&*QWEN3, "198 of 198")];
    for dtype in ["bfloat16", "float16"] {
        let engine = engine(&["--dtype", dtype]);
        for (of, sites) in models {
            let (exit, said) = explained(&engine, of, dtype, None);
            let equal = format!("equal within the floor: {sites} sites");
            assert!(exit == 0 && said.starts_with(&equal), "{dtype}: {exit} {said}");
            assert!(said.contains("guilty operations: 0"), "{dtype}: {said}");
        }
        for bug in ["rope-pairs-interleaved", "qkv-bias-zero", "kv-head-modulo"] {
            let (exit, said) = explained(&engine, &FIXTURE, "narrow-bug", Some(bug));
            let cause = match bug {
                "rope-pairs-interleaved" => "pairs (2i, 2i+1) instead of (i, i+d/2) (proven",
                "qkv-bias-zero" => "bias missing (proven",
                _ => "query head h reads KV head h % Hk (proven",
            };
            assert!(exit == 1 && said.contains(cause), "{dtype} {bug}: {exit} {said}");
        }
    }
}

#[test]
#[ignore = "needs torch and transformers: make transformers-test"]
fn each_bug_of_a_model_of_transformers_is_blamed_on_its_operation_and_named() {
    engine(&[]).each_bug_is_named("transformers");
}

#[test]
#[ignore = "needs torch and transformers: make transformers-test"]
fn a_replaced_rotation_of_a_llama_is_named_though_its_rows_are_permuted() {
    let llama = engine(&[]);
    let (exit, said) = explained(&llama, &LLAMA, "pairs", Some("rope-pairs-interleaved"));
    assert!(exit == 1 && said.starts_with("first divergence: step 0 layer 0 q_rope"), "{said}");
    let cause = "1. q and k rotation, all layers: pairs (2i, 2i+1) instead of (i, i+d/2) in \
                 transformers' order of rows (proven";
    assert!(said.contains(cause), "{said}");
}

#[test]
#[ignore = "needs torch and transformers: make transformers-test"]
fn what_a_model_of_transformers_does_not_show_is_said() {
    let of = &*FIXTURE;
    let script = project().join("tests/bring/unseen.py");
    let mut command = Command::new(&*PYTHON);
    command.arg("-B").arg(script).arg(&of.model).args([of.plan(), of.trace("unseen")]);
    let output = command.output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    // Without scores and probs the attention is one operation.
    let (model, reference) = (path(&of.model), path(&of.reference));
    let trace = of.trace("unseen");
    let (exit, out, _) = outcome(&["explain", &trace, "-m", model, "--reference", reference]);
    assert!(exit == 4 && out.starts_with("not enough measured: 213 of 237 sites"), "{exit} {out}");
    assert!(out.contains("guilty operations: 0"), "{out}");
}
