use firstdiff::{
    baseline::Task,
    compare::{DEFAULT_FACTOR, SiteFilter},
    diagnosis::{Certainty, Diagnosis},
    fault::{self, Faults},
    model::Arch,
    run::{EngineSpec, Run},
    synth::Spec,
    tensor::DType,
    verdict::Rule,
};

use crate::common::{Bench, engine};

/// The diagnosis of an engine with these faults.
fn diagnosis(bench: &Bench, storage: DType, faults: &[&str], tokens: usize) -> Diagnosis {
    let faults = Faults(faults.iter().map(|name| fault::find(name).unwrap()).collect());
    let spec = EngineSpec { faults, ..engine(storage) };
    let ids = bench.prompt(tokens);
    let rule = Rule { factor: DEFAULT_FACTOR, stop_at_first: false };
    let run = Run {
        model: &bench.model,
        reference: &bench.reference,
        task: Task { prompt: &ids, decode: 3 },
        engine: &spec,
        filter: &SiteFilter::default(),
        rule,
        replay: true,
    };
    run.run(&mut |_| {}).unwrap().diagnosis.unwrap()
}

/// What is blamed, and for what.
fn causes(diagnosis: &Diagnosis) -> Vec<(String, String)> {
    let finding = |finding: &firstdiff::diagnosis::Finding| {
        assert_eq!(finding.cause.certainty, Certainty::Proven, "{}", finding.cause.text);
        (finding.what.clone(), finding.cause.text.clone())
    };
    diagnosis.findings.iter().map(finding).collect()
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(what, cause)| (what.to_string(), cause.to_string())).collect()
}

#[test]
fn a_clean_engine_and_llama_cpp_itself_are_cleared_in_f32_and_f16_on_every_architecture() {
    let tiny = |name| Bench::synth(&Spec::preset(name).unwrap());
    for bench in [Bench::fixture(), tiny("tiny-llama"), tiny("tiny-qwen2"), tiny("tiny-qwen3")] {
        for storage in [DType::F32, DType::F16] {
            for tokens in [1, 40] {
                let diagnosis = diagnosis(&bench, storage, &[], tokens);
                assert_eq!(causes(&diagnosis), []);
                let reference = diagnosis.reference.unwrap();
                for side in [&diagnosis.engine, &reference] {
                    assert!(side.replayed > 50 && side.cleared == side.replayed);
                    assert!(side.unmeasured.is_empty() && side.broken.is_empty(), "{side:?}");
                    assert!(side.worst_cleared > 0.0, "exact results of f32 sums are no results");
                }
            }
        }
    }
}

#[test]
fn two_independent_bugs_are_both_proven_in_one_run() {
    let found =
        diagnosis(&Bench::fixture(), DType::F32, &["qkv-bias-zero", "rope-pairs-interleaved"], 64);
    let wanted = owned(&[
        ("q, k and v projection, all layers", "bias missing"),
        ("q and k rotation, all layers", "pairs (2i, 2i+1) instead of (i, i+d/2)"),
    ]);
    assert_eq!(causes(&found), wanted);
}

#[test]
fn a_uniform_scale_of_a_thousandth_is_found_and_its_factor_told() {
    let found = diagnosis(&Bench::fixture(), DType::F32, &["k-scaled-1.001"], 40);
    let wanted = owned(&[("k projection, all layers", "1.00100 times the right values")]);
    assert_eq!(causes(&found), wanted);
}

#[test]
fn an_engine_that_really_accumulates_in_f16_is_told_so() {
    let found = diagnosis(&Bench::fixture(), DType::F32, &["scores-f16-accumulate"], 40);
    let wanted = owned(&[("attention scores, all layers", "summed in f16, but declared f32")]);
    assert_eq!(causes(&found), wanted);
}

#[test]
fn bugs_of_an_f16_engine_are_proven_too() {
    for (fault, what, cause) in [
        (
            "wq-transposed",
            "q projection, all layers",
            "weight read transposed, as (inputs, outputs)",
        ),
        ("kv-head-1-unwritten", "k and v cache append, all layers", "KV head 1 never written"),
        ("scale-missing", "attention scores, all layers", "scale missing: 1 instead of 0.25"),
    ] {
        let found = diagnosis(&Bench::fixture(), DType::F16, &[fault], 40);
        assert_eq!(causes(&found), owned(&[(what, cause)]));
    }
}

#[test]
fn every_fault_of_a_random_llama_is_proven_for_its_cause() {
    let bench = Bench::synth(&Spec { tied_output: false, ..Spec::preset("tiny-llama").unwrap() });
    assert_eq!(bench.model.config.arch, Arch::Llama);
    for name in [
        "embd-previous-row",
        "norm-mean-subtracted",
        "wo-leading-dimension",
        "logits-tied-mistaken",
        "rope-base-1e4",
        "cache-stride-length",
        "kv-head-modulo",
        "mask-missing",
        "out-heads-reversed",
        "attn-residual-missing",
        "gelu-for-silu",
    ] {
        let fault = fault::find(name).unwrap();
        let found = diagnosis(&bench, DType::F32, &[name], 40);
        assert!(!found.findings.is_empty(), "{name}");
        for finding in &found.findings {
            let cause = &finding.cause;
            let proven = cause.certainty == Certainty::Proven;
            assert!(proven && cause.key == fault.cause, "{name}: {}", cause.text);
        }
    }
}
