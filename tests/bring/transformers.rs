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

/// Experts, windows, sinks and linear attention: each architecture with the keys of its random model.
const OTHERS: [(&str, &[&str]); 6] = [
    ("qwen3moe", &[]),
    ("gemma3", &["attention.sliding_window_pattern=2", "final_logit_softcapping=30.0"]),
    ("gpt-oss", &[]),
    ("qwen3next", &["rope.dimension_count=16"]),
    ("qwen35", &["rope.dimension_count=16"]),
    ("qwen35moe", &["rope.dimension_count=16"]),
];

/// The reference of a random model of one of them, three layers of which every second is of the other kind.
fn other(arch: &str) -> Recorded {
    let (_, keys) = OTHERS.iter().find(|(name, _)| *name == arch).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.gguf");
    let of = ["synth", "--arch", arch, "-o", path(&model), "--layers", "3", "--embd", "128"];
    let both = ["attention.layer_norm_rms_epsilon=1e-6", "rope.freq_base=1000000.0"];
    let set = both.iter().chain(*keys).flat_map(|&key| ["--set", key]);
    let synth: Vec<&str> = of.into_iter().chain(set).collect();
    let (exit, _, err) = outcome(&synth);
    assert_eq!(exit, 0, "{arch}: {err}");
    Recorded::of(folder, model)
}

/// Which site each module of a layer is, without torch.
const PARTS: &str = "
import sys, types
torch = types.ModuleType('torch')
torch.float32, torch.float16, torch.bfloat16 = 1, 2, 3
torch.overrides = types.ModuleType('torch.overrides')
torch.overrides.TorchFunctionMode = object
sys.modules |= {'torch': torch, 'torch.overrides': torch.overrides}
import firstdiff, firstdiff_transformers as ft
plan = firstdiff.Plan(sys.argv[1])
attention = ['self_attn'] + ['self_attn.' + part for part in ('q_proj', 'k_proj', 'v_proj', 'o_proj')]
norms = ['', 'input_layernorm', 'post_attention_layernorm', 'mlp']
for path, (out, before) in sorted(ft.parts({*norms, *attention, *sys.argv[2:]}, plan, 0).items()):
    print(path or 'layer', *out, *('<' + site for site in before))
try: ft.parts({*norms, *attention[1:]} - {'self_attn.k_proj'}, plan, 0)
except ValueError as error: print(error)
";

#[test]
fn modules_of_experts_are_the_sites_that_the_plan_has() {
    let parts = |name: &str, modules: &[&str]| {
        let mut command = Command::new(crate::trace::python::python());
        command.args(["-B", "-c", PARTS]).arg(crate::trace::any::plan(name)).args(modules);
        let output = command.env("PYTHONPATH", project().join("python")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let missing = "layer 0 has no self_attn.k_proj, so k cannot be captured; record it by hand, with \
                   firstdiff.py\n";
    let common = "layer layer_out\ninput_layernorm attn_norm\nmlp ffn_moe_out\n";
    let attention = "self_attn.k_proj k\n";
    let said = parts("gpt-oss", &["mlp.router", "mlp.experts"]);
    assert!(
        said.starts_with(common) && said.contains(attention) && said.ends_with(missing),
        "{said}"
    );
    assert!(said.contains("post_attention_layernorm ffn_norm <attn_residual\n"), "{said}");
    let norms = ["mlp.gate", "mlp.experts", "self_attn.q_norm", "self_attn.k_norm"];
    let said = parts("qwen3moe", &norms);
    assert!(said.contains("mlp.gate ffn_moe_logits\n"), "{said}");
    assert!(said.contains("self_attn.q_norm q_norm\nself_attn.q_proj q\n"), "{said}");
    assert!(said.contains("self_attn.o_proj o_proj <attn_out\n"), "{said}");
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

#[test]
#[ignore = "needs torch and transformers: make transformers-test"]
fn models_of_experts_windows_and_linear_attention_have_no_wrong_operation() {
    let engine = engine(&[]);
    // What torch computes of llama.cpp's graph: the rest is judged together with what comes after it.
    let sites =
        ["261 of 279", "222 of 237", "225 of 234", "342 of 426", "207 of 261", "342 of 414"];
    for ((arch, _), sites) in OTHERS.iter().zip(sites) {
        let (exit, said) = explained(&engine, &other(arch), arch, None);
        assert!(said.contains("guilty operations: 0"), "{arch}: {exit} {said}");
        assert!(said.contains(&format!("coverage   {sites} sites compared")), "{arch}: {said}");
        // llama.cpp's own GELU and softplus are less exact than torch's.
        let inexact = "every operation is within its bound";
        assert!(exit == 4 || said.contains(inexact), "{arch}: {exit} {said}");
    }
}

#[test]
#[ignore = "needs torch and transformers: make transformers-test"]
fn mistakes_in_experts_windows_and_linear_attention_are_blamed_on_their_operation() {
    let bugs: [(&str, &[(&str, &str)]); 6] = [
        (
            "qwen3moe",
            &[
                ("q-norm-missing", "q norm, all layers: the norm is left out, with its weight"),
                (
                    "experts-unnormalised",
                    "ffn_moe_weights_norm, all layers: not divided by ffn_moe_weights_sum_clamped",
                ),
                (
                    "gate-up-exchanged",
                    "ffn_moe_gate, all layers: ffn_up_exps.weight in place of its own weight",
                ),
            ],
        ),
        (
            "gemma3",
            &[
                ("window-missing", "softmax, layers 0, 2: "),
                (
                    "local-base-global",
                    "q and k rotation, layers 0, 2: theta 1000000 instead of 10000",
                ),
                ("logit-cap-missing", "logits projection: no soft cap"),
            ],
        ),
        (
            "gpt-oss",
            &[
                ("sinks-missing", "softmax, all layers: no sinks"),
                ("swiglu-alpha-one", "ffn_moe_swiglu_oai, all layers: alpha 1 instead of 1.702"),
            ],
        ),
        (
            "qwen3next",
            &[
                ("rope-whole-heads", "q and k rotation, layer 1: 32 dims rotate instead of 16"),
                ("delta-state-lost", "attn_output, layers 0, 2: the state is zero at the start"),
            ],
        ),
        (
            "qwen35",
            &[
                ("dt-bias-zero", "ssm_dt, layers 0, 2: bias missing"),
                (
                    "convolution-state-lost",
                    "conv_output_raw, layers 0, 2: the tokens before a step are zero",
                ),
            ],
        ),
        (
            "qwen35moe",
            &[(
                "shared-expert-gate-zero",
                "shared_expert_gate, all layers: the weight is all zero",
            )],
        ),
    ];
    let engine = engine(&[]);
    for (arch, bugs) in bugs {
        let of = other(arch);
        for &(bug, cause) in bugs {
            let (exit, said) = explained(&engine, &of, bug, Some(bug));
            let first = format!("   1. {cause}");
            let proven =
                said.lines().any(|line| line.starts_with(&first) && line.contains("(proven"));
            assert!(exit == 1 && proven, "{arch} {bug}: {exit} {said}");
        }
    }
}

/// Which tensors of the GGUF each weight is, of models without torch: shapes and names alone.
const WEIGHTS: &str = "
import numpy as np, firstdiff_gguf
class Tensor(np.ndarray):
    def transpose(self, a, b): return self.swapaxes(a, b)
    def chunk(self, n, axis): return np.split(self, n, axis)
class Module:
    def __init__(self, **parts): self.parts = parts; self.__dict__.update(parts)
    def named_parameters(self):
        for name, part in self.parts.items():
            if isinstance(part, Module): yield from ((f'{name}.{path}', x) for path, x in part.named_parameters())
            else: yield name, part
    def named_modules(self, own=''):
        yield own, self
        for name, part in self.parts.items():
            if isinstance(part, Module): yield from part.named_modules(f'{own}.{name}'.strip('.'))
of = lambda *shape: np.zeros(shape).view(Tensor)
linear = lambda *shape: Module(weight=of(*shape), bias=of(shape[0]))
norm = lambda: Module(weight=of(8))
attention = Module(q_proj=linear(8, 8), o_proj=linear(8, 8))
listed = Module(**{str(i): Module(gate_proj=Module(weight=of(6, 8)), down_proj=Module(weight=of(8, 6))) for i in (0, 1)})
turning = Module(gate_up_proj=of(4, 8, 12), gate_up_proj_bias=of(4, 12), down_proj=of(4, 6, 8))
joined = Module(gate_up_proj=of(4, 12, 8), down_proj=of(4, 8, 6), is_concatenated=True)
turning.is_concatenated = False; del joined.parts['is_concatenated']
layer = lambda **more: Module(self_attn=attention, post_attention_layernorm=norm(), **more)
def show(*layers):
    base = Module(embed_tokens=Module(weight=of(32, 8)), norm=norm())
    base.layers = layers
    model = Module(lm_head=Module(weight=of(32, 8)))
    model.model = base
    for names, weight in firstdiff_gguf.named_weights(model): print(names, list(weight.shape))
show(*(layer(mlp=Module(experts=experts)) for experts in (listed, turning, joined)))
show(layer(pre_feedforward_layernorm=norm()))
show(layer(), layer(linear_attn=Module(A_log=of(4), in_proj_qkvz=Module(weight=of(24, 8)))))
";

#[test]
fn weights_of_modules_are_the_tensors_of_the_gguf() {
    let mut command = Command::new(crate::trace::python::python());
    command.args(["-B", "-c", WEIGHTS]).env("PYTHONPATH", project().join("python"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    for line in [
        "lm_head.weight=output.weight [32, 8]",
        "model.embed_tokens.weight=token_embd.weight [32, 8]",
        "model.norm.weight=output_norm.weight [8]",
        "model.layers.0.self_attn.q_proj.bias=blk.0.attn_q.bias [8]",
        "model.layers.0.post_attention_layernorm.weight=blk.0.ffn_norm.weight [8]",
        "model.layers.0.mlp.experts.1.gate_proj.weight=blk.0.ffn_gate_exps.weight[6:12] [6, 8]",
        "model.layers.0.mlp.experts.1.down_proj.weight=blk.0.ffn_down_exps.weight[8:16] [8, 6]",
        "model.layers.1.mlp.experts.gate_up_proj.up=blk.1.ffn_up_exps.weight [4, 6, 8]",
        "model.layers.1.mlp.experts.gate_up_proj_bias.gate=blk.1.ffn_gate_exps.bias [4, 6]",
        "model.layers.1.mlp.experts.down_proj=blk.1.ffn_down_exps.weight [4, 8, 6]",
        "model.layers.2.mlp.experts.gate_up_proj.gate=blk.2.ffn_gate_exps.weight [4, 6, 8]",
        "model.layers.2.mlp.experts.down_proj=blk.2.ffn_down_exps.weight [4, 8, 6]",
        "model.layers.0.pre_feedforward_layernorm.weight=blk.0.ffn_norm.weight [8]",
        "model.layers.0.post_attention_layernorm.weight=blk.0.post_attention_norm.weight [8]",
        "model.layers.1.post_attention_layernorm.weight=blk.1.post_attention_norm.weight [8]",
        "model.layers.1.linear_attn.A_log=blk.1.ssm_a [4]",
        "model.layers.1.linear_attn.in_proj_qkvz.weight=blk.1.attn_qkv.weight blk.1.attn_gate.weight [24, 8]",
    ] {
        assert!(said.lines().any(|own| own == line), "{line}: {said}");
    }
}
