//! Which models our engine runs: those whose graph, as llama.cpp builds it, is made of what its kernels
//! compute, whatever their architecture is called and whatever keys their files have.

use std::path::{Path, PathBuf};

use firstdiff::{
    core::tensor::DType,
    model::{
        Model, RopePairs,
        synth::arch::{ArchModel, ArchSpec, Setting, Sizes},
    },
    run,
};

use crate::{
    cli::{path, refused},
    common::{Bench, assert_equal, engine},
};

/// A model in a folder that is removed with it. `name` may have keys after it: `llama key=value`.
#[track_caller]
fn made(name: &str) -> (tempfile::TempDir, PathBuf) {
    let mut words = name.split(' ');
    let mut spec = ArchSpec::new(words.next().unwrap());
    spec.sizes = Sizes { layers: Some(2), ..Sizes::default() };
    spec.settings = words.map(|word| Setting::parse(word).unwrap()).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let program = Path::new(env!("CARGO_BIN_EXE_firstdiff"));
    ArchModel::plan(&spec, program).unwrap().write(&path, program, &mut |_| {}).unwrap();
    (folder, path)
}

#[track_caller]
fn opened(name: &str) -> Model {
    run::open(&made(name).1).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn what_no_kernel_computes_is_named_by_llama_cpps_operation() {
    for (name, says) in [
        ("llama rope.scaling.factor=4", "ROPE with frequency scale 0.25 (blk.0.q_rope)"),
        (
            "qwen2 rope.scaling.factor=4 rope.scaling.type=linear",
            "ROPE with frequency scale 0.25 (blk.0.q_rope)",
        ),
        ("llama rope.scale_linear=2", "ROPE with frequency scale 0.5 (blk.0.q_rope)"),
        (
            "llama rope.scaling.type=yarn rope.scaling.factor=4",
            "ROPE with frequency scale 0.25 and YaRN, extrapolation factor 1 (blk.0.q_rope)",
        ),
        ("llama rope.scaling.attn_factor=1.5", "ROPE with attention factor 1.5 (blk.0.q_rope)"),
        ("qwen2vl", "ROPE with sections of positions (blk.0.q_rope)"),
        (
            "llama attention.causal=false",
            "SOFT_MAX that is not causal: position 0 sees position 1 (blk.0.probs)",
        ),
        ("gemma2 attn_logit_softcapping=50", "TANH of a soft cap (blk.0.kq_tanh)"),
        ("refact", "SOFT_MAX with ALiBi, largest bias 8 (blk.0.probs)"),
        ("mimo2", "SOFT_MAX with sinks (blk.0.probs)"),
        ("gpt2 attention.clamp_kqv=8", "NORM (norm-0), GELU (blk.0.ffn_act)"),
        ("mpt attention.clamp_kqv=8", "CLAMP (blk.0.wqkv_clamped)"),
        ("granite logit_scale=2 residual_scale=1", "SCALE (blk.0.scale)"),
        ("minicpm embedding_scale=2", "SCALE (embd.2)"),
        ("talkie logit_scale=2", "SCALE (logits)"),
        ("mistral3 attention.temperature_scale=0.1", "MUL where ROPE is expected"),
        ("llama expert_count=4 expert_used_count=2", "ARGSORT (blk.0.ffn_moe_argsort)"),
        ("llama expert_count=4 expert_used_count=2", " and 3 more: explain works, run does not"),
        ("deci feed_forward_length=512,256", "layers that differ: feed-forward size 512, then 256"),
        ("smollm3 block_count=4", "MUL_MAT where ROPE is expected (blk.3.q)"),
        ("hunyuan-dense", "MUL where ROPE is expected (blk.0.q_norm)"),
        ("olmo2", "MUL where MUL_MAT is expected (blk.0.attn_post_norm)"),
        ("qwen", "a part of ADD, or another order of it (blk.0.wqkv_b)"),
        ("glm4", "SWIGLU of the halves of one product (blk.0.ffn_act)"),
        ("mamba", "SSM_CONV (blk.0.ssm_conv1d)"),
        ("dream", "attention without a cache (blk.0.k_rope)"),
    ] {
        let (_folder, path) = made(name);
        let error = run::open(&path).err().unwrap_or_else(|| panic!("{name} has a plan"));
        assert_eq!(error.exit() as i32, 2);
        let error = error.to_string();
        assert!(error.contains(says), "{name}: {error}");
        assert!(error.starts_with(&format!("{}: no kernel for ", path.display())), "{error}");
        assert!(error.ends_with(": explain works, run does not"), "{error}");
    }
}

#[test]
fn keys_that_llama_cpp_ignores_change_nothing() {
    let plain = opened("llama");
    for ignored in [
        "attn_logit_softcapping=50",
        "final_logit_softcapping=30",
        "attention.clamp_kqv=8",
        "attention.max_alibi_bias=8",
        "attention.sliding_window=8",
        "logit_scale=0.5",
        "residual_scale=0.5",
        "embedding_scale=2",
    ] {
        let model = opened(&format!("llama {ignored}"));
        assert_eq!((&model.config, &model.names), (&plain.config, &plain.names), "{ignored}");
    }
}

#[test]
fn numbers_are_those_that_llama_cpp_computes_with() {
    let keys = "rope.freq_base=500 attention.layer_norm_rms_epsilon=0.01";
    let model = opened(&format!("llama {keys}"));
    let c = &model.config;
    assert_eq!((c.rope_theta, c.rms_eps, c.attention_scale), (500.0, 0.01, 0.125));
    assert_eq!((c.n_layer, c.n_head, c.n_head_kv, c.head_dim), (2, 4, 2, 64));
    assert_eq!((c.rope_pairs, c.qk_norm), (RopePairs::Norm, false));
    assert_eq!(model.names.rope_factors.as_deref(), Some("rope_freqs.weight"));
    assert_eq!(model.names.output.weight, "output.weight");
    // Here llama.cpp does not read that key.
    let c = opened("qwen3 attention.scale=0.3").config.clone();
    assert_eq!(c.attention_scale, 1.0 / (c.head_dim as f32).sqrt());
    assert_eq!((c.rope_pairs, c.qk_norm), (RopePairs::Neox, true));
}

#[test]
fn architectures_that_are_made_of_the_same_operations_run_and_are_equal() {
    for name in [
        "deci",
        "ernie4_5",
        "exaone",
        "internlm2",
        "mistral3",
        "nanbeige",
        "pangu-embedded",
        "seed_oss",
        "xverse",
        "llama attn_logit_softcapping=50",
    ] {
        let (_folder, path) = made(name);
        let bench = Bench::open(&path);
        assert_equal(&bench.run(&engine(DType::F32), 12, 2), name);
    }
}

#[test]
fn every_command_that_runs_our_engine_refuses_another_model_in_one_line() {
    let (folder, model) = made("mamba");
    let says = "model.gguf: no kernel for SCALE (";
    let out = folder.path().join("trace");
    let config = folder.path().join("firstdiff.toml");
    let text =
        "steps = 1\n[[models]]\npath = \"model.gguf\"\n[[prompts]]\nname = \"a\"\ntext = \"a\"\n";
    std::fs::write(&config, text).unwrap();
    let lock = folder.path().join("lock.json");
    for arguments in [
        &["run", "-m", path(&model), "-p", "a"][..],
        &["variants", "-m", path(&model), "-p", "a"],
        &["capture", "engine", "-m", path(&model), "-p", "a", "-o", path(&out)],
        &["check", "--config", path(&config)],
        &["bless", "--config", path(&config), "--baseline", path(&lock), "--all"],
    ] {
        refused(arguments, 2, says);
    }
}
