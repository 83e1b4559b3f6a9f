//! A few of `make faults-archs`: faults planted in llama.cpp, found, blamed and named by the graph.

#[path = "../benches/faults_archs/plant/mod.rs"]
mod plant;

use plant::{Outcome, Subject};

/// Plants faults of a model, each of which must be named; its clean run must raise no alarm.
fn plant(model: &str, names: &[&str]) {
    assert!(plant::MODELS.iter().any(|&(name, _)| name == model), "{model} is none of the bench's");
    let subject = Subject::new(&plant::spec(model, 1)).unwrap();
    assert_eq!(plant::clean(&subject).unwrap(), None, "{model} clean");
    let faults = plant::all(&subject);
    for name in names {
        let fault = faults.iter().find(|fault| fault.name == *name).expect(name);
        let outcome = Outcome::of(&subject, fault).unwrap().expect(name);
        let line = outcome.line();
        assert!(outcome.detected && outcome.guilty && outcome.cause, "{model}: {line}");
    }
}

#[test]
fn faults_of_a_mixture_of_experts_are_named() {
    plant("qwen3moe", &["ffn_up_exps.weight-of-other-layer", "expert-ids-rotated", "rms-eps-1e-2"]);
}

#[test]
fn faults_of_a_windowed_attention_with_caps_are_named() {
    plant("gemma2:caps", &["window-1000", "attention-cap-1", "attn_q.weight-row-pairs"]);
}

#[test]
fn faults_of_a_state_space_model_are_named() {
    plant("mamba2", &["ssm_conv1d.weight-columns-reversed", "ssm_dt.bias-zero", "state-cleared"]);
}

#[test]
fn faults_of_a_delta_rule_are_named() {
    plant("qwen35", &["ssm_norm.weight-plus-one", "k-not-rotated", "silu-by-relu"]);
}

#[test]
fn faults_of_attention_with_sinks_are_named() {
    plant("gpt-oss", &["attn_sinks.weight-zero", "attn_k.bias-negated", "residual-missing"]);
}
