//! What each architecture needs beside the defaults, and the sizes that must agree in it.
//!
//! The one place that names architectures. The order is llama.cpp's own.

use super::value::Given::{self, *};

/// A key without the architecture's name, and its value.
pub(super) type Key = (&'static str, Given);

/// An architecture.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) arch: &'static str,
    /// Later keys replace earlier ones.
    pub(super) keys: &'static [&'static [Key]],
    /// The smallest vocabulary, where the architecture dictates one.
    pub(super) min_vocab: usize,
    /// Tensors that its models have, of those that others lack: names without the layer.
    pub(super) kept: &'static [&'static str],
    /// Tensors that llama.cpp could use and its models lack.
    pub(super) left_out: &'static [&'static str],
    /// The projections of q, k and v are one tensor.
    pub(super) is_fused: bool,
}

impl Entry {
    const fn keep(self, kept: &'static [&'static str]) -> Entry {
        Entry { kept, ..self }
    }

    const fn leave_out(self, left_out: &'static [&'static str]) -> Entry {
        Entry { left_out, ..self }
    }

    const fn fused(self) -> Entry {
        Entry { is_fused: true, ..self }
    }

    const fn vocab(self, min_vocab: usize) -> Entry {
        Entry { min_vocab, ..self }
    }
}

/// An architecture with further keys.
#[derive(Debug)]
pub(super) struct Variant {
    pub(super) arch: &'static str,
    pub(super) name: &'static str,
    pub(super) keys: &'static [Key],
}

const fn arch(arch: &'static str, keys: &'static [&'static [Key]]) -> Entry {
    Entry { arch, keys, min_vocab: 0, kept: &[], left_out: &[], is_fused: false }
}

const fn variant(arch: &'static str, name: &'static str, keys: &'static [Key]) -> Variant {
    Variant { arch, name, keys }
}

/// The head size said outright.
const HEADS: &[Key] = &[
    ("attention.key_length", Head(0)),
    ("attention.value_length", Head(0)),
    ("rope.dimension_count", Head(0)),
];
const ALL_KV_HEADS: &[Key] = &[("attention.head_count_kv", Heads)];
const EXPERTS: &[Key] =
    &[("expert_count", U(8)), ("expert_used_count", U(2)), ("expert_feed_forward_length", U(128))];
/// Experts, one more that every token takes, and a first layer without any.
const SHARED: &[Key] = &[
    ("expert_shared_feed_forward_length", U(128)),
    ("expert_shared_count", U(1)),
    ("leading_dense_block_count", U(1)),
];
const SIGMOID: &[Key] = &[("expert_gating_func", U(2))];
/// Attention through a low rank, with half as many more elements in a key that rope turns.
const LATENT: &[Key] = &[
    ("attention.key_length", Head(32)),
    ("attention.value_length", Head(0)),
    ("rope.dimension_count", U(32)),
    ("attention.q_lora_rank", U(64)),
    ("attention.kv_lora_rank", U(64)),
    ("attention.head_count_kv", Heads),
];
/// The same with its own names for the sizes, and one KV head.
const LATENT_ONE_KV: &[Key] = &[
    ("attention.key_length", U(96)),
    ("attention.value_length", U(64)),
    ("attention.key_length_mla", Head(32)),
    ("attention.value_length_mla", Head(0)),
    ("rope.dimension_count", U(32)),
    ("attention.q_lora_rank", U(64)),
    ("attention.kv_lora_rank", U(64)),
    ("attention.head_count_kv", U(1)),
];
/// Low-rank attention in every second layer, a delta rule in the others.
const DELTA_LATENT: &[Key] = &[
    ("attention.key_length", U(96)),
    ("attention.value_length", U(64)),
    ("attention.key_length_mla", Head(32)),
    ("attention.value_length_mla", Head(0)),
    ("rope.dimension_count", U(32)),
    ("attention.kv_lora_rank", U(64)),
    ("attention.head_count_kv", Layers(&[0, 1])),
    ("kda.head_dim", U(64)),
    ("ssm.conv_kernel", U(4)),
];
const WINDOW: &[Key] = &[("attention.sliding_window", U(16))];
/// Every second layer has a window.
const WINDOW_PATTERN: &[Key] = &[
    ("attention.sliding_window", U(16)),
    ("attention.sliding_window_pattern", LayerFlags(&[true, false])),
];
/// A state-space layer of twice the hidden size.
const STATE_SPACE: &[Key] =
    &[("ssm.conv_kernel", U(4)), ("ssm.inner_size", Embd(2)), ("ssm.state_size", U(16))];
const HYPER: &[Key] = &[("hyper_connection.count", U(4)), ("hyper_connection.epsilon", F(1e-5))];
/// Attention in every second layer: said by an interval, or by the KV heads of each layer.
const SECOND_FULL: &[Key] = &[("full_attention_interval", U(2))];
const EVERY_SECOND: &[Key] = &[("attention.head_count_kv", Layers(&[0, 2]))];

const QKV_BIAS: &[&str] = &["attn_qkv.bias", "attn_q.bias", "attn_k.bias", "attn_v.bias"];
const BIASES: &[&str] = &[
    "attn_qkv.bias",
    "attn_q.bias",
    "attn_k.bias",
    "attn_v.bias",
    "attn_output.bias",
    "ffn_gate.bias",
    "ffn_up.bias",
    "ffn_down.bias",
];
const ATTENTION_BIAS: &[&str] = &["attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"];
const ROPE_FREQS: &[&str] = &["rope_freqs.weight"];

/// The parameters of an activation, one a layer.
const XIELU: &[Key] = &[
    ("xielu.alpha_n", LayerFloats(&[0.5, 0.6, 0.7, 0.8])),
    ("xielu.alpha_p", LayerFloats(&[0.5, 0.6, 0.7, 0.8])),
    ("xielu.beta", LayerFloats(&[0.5])),
    ("xielu.eps", LayerFloats(&[-1e-6])),
];

pub(super) const TABLE: &[Entry] = &[
    arch("llama", &[]).keep(ROPE_FREQS),
    arch("llama4", &[EXPERTS]).keep(ROPE_FREQS),
    arch("deci", &[]).keep(ROPE_FREQS),
    arch("falcon", &[]),
    arch("grok", &[EXPERTS]),
    arch("gpt2", &[]).keep(BIASES),
    arch("gptneox", &[]).keep(BIASES),
    arch("mpt", &[&[("attention.max_alibi_bias", F(8.0))]]).leave_out(&[
        "position_embd.weight",
        "attn_q_norm.weight",
        "attn_q_norm.bias",
        "attn_k_norm.weight",
        "attn_k_norm.bias",
    ]),
    arch("baichuan", &[]),
    arch("starcoder", &[]).keep(BIASES),
    arch("refact", &[]),
    arch("bloom", &[]).keep(BIASES),
    arch("stablelm", &[]),
    arch("qwen", &[]).keep(QKV_BIAS),
    arch("qwen2", &[]).keep(QKV_BIAS),
    arch("qwen2moe", &[EXPERTS, &[("expert_shared_feed_forward_length", U(128))]]).keep(QKV_BIAS),
    arch("qwen2vl", &[]).keep(QKV_BIAS),
    arch("qwen3", &[]),
    arch("qwen3moe", &[EXPERTS]),
    arch("qwen3next", &[SECOND_FULL, EXPERTS, &[("expert_shared_feed_forward_length", U(128))]]),
    arch("qwen3vl", &[]),
    arch("qwen3vlmoe", &[EXPERTS]),
    arch("qwen35", &[SECOND_FULL]),
    arch("qwen35moe", &[SECOND_FULL, EXPERTS, &[("expert_shared_feed_forward_length", U(128))]]),
    arch(
        "qwen4exp",
        &[
            SECOND_FULL,
            HEADS,
            EXPERTS,
            &[
                ("hyper_connection.count", U(4)),
                ("hyper_connection.low_rank", U(32)),
                ("ssm.conv_kernel", U(4)),
                ("ssm.inner_size", U(256)),
                ("ssm.state_size", U(64)),
                ("ssm.time_step_rank", U(4)),
                ("ssm.group_count", U(2)),
                ("attention.compress_ratios", Layers(&[0, 4])),
            ],
        ],
    ),
    arch("phi2", &[]).keep(&[
        "attn_q.bias",
        "attn_k.bias",
        "attn_v.bias",
        "attn_output.bias",
        "ffn_up.bias",
        "ffn_down.bias",
        "output.bias",
    ]),
    arch("phi3", &[]).fused(),
    arch("phimoe", &[EXPERTS]).keep(&[
        "attn_q.bias",
        "attn_k.bias",
        "attn_v.bias",
        "attn_output.bias",
        "output.bias",
    ]),
    arch("plamo", &[]),
    arch(
        "plamo2",
        &[
            HEADS,
            EVERY_SECOND,
            &[
                ("ssm.inner_size", U(256)),
                ("ssm.state_size", U(64)),
                ("ssm.time_step_rank", U(4)),
                ("ssm.group_count", U(0)),
            ],
        ],
    ),
    arch("plamo3", &[WINDOW]),
    arch("codeshell", &[]).keep(BIASES).fused(),
    arch("orion", &[]),
    arch("internlm2", &[]),
    arch("minicpm", &[]),
    arch("minicpm3", &[HEADS, ALL_KV_HEADS]),
    arch("gemma", &[]),
    arch("gemma2", &[WINDOW]),
    arch("gemma3", &[WINDOW]),
    arch("gemma3n", &[WINDOW]),
    arch(
        "gemma4",
        &[
            WINDOW_PATTERN,
            &[("attention.key_length_swa", Head(0)), ("attention.value_length_swa", Head(0))],
        ],
    )
    .keep(ROPE_FREQS),
    arch("starcoder2", &[]).keep(BIASES),
    arch("mamba", &[STATE_SPACE, &[("ssm.time_step_rank", U(16))]]),
    arch("mamba2", &[]),
    arch("maple", &[EXPERTS, WINDOW_PATTERN, &[("swiglu_clamp_exp", F(1.0))]]),
    arch("jamba", &[STATE_SPACE, HEADS, EVERY_SECOND, &[("ssm.time_step_rank", U(16))]]),
    arch("falcon-h1", &[]),
    arch("xverse", &[]),
    arch("command-r", &[]),
    arch("cohere2", &[WINDOW]),
    arch("cohere2moe", &[EXPERTS, SHARED]),
    arch("dbrx", &[EXPERTS]),
    arch("olmo", &[]),
    arch("olmo2", &[]),
    arch("olmoe", &[EXPERTS, HEADS, ALL_KV_HEADS]),
    arch("muse-glimmer", &[]),
    arch("openelm", &[]),
    arch("arctic", &[EXPERTS]),
    arch("deepseek", &[EXPERTS, SHARED]),
    arch("deepseek2", &[EXPERTS, SHARED, SIGMOID, LATENT]),
    arch("deepseek32", &[EXPERTS, SHARED, LATENT_ONE_KV]),
    arch(
        "deepseek4",
        &[
            EXPERTS,
            WINDOW,
            HYPER,
            &[
                ("expert_shared_count", U(1)),
                ("expert_gating_func", U(4)),
                ("swiglu_clamp_exp", F(7.0)),
                ("attention.key_length", U(128)),
                ("attention.value_length", U(128)),
                ("rope.dimension_count", U(32)),
                ("attention.head_count_kv", U(1)),
                ("attention.output_group_count", U(2)),
                ("attention.compress_rope_freq_base", F(10_000.0)),
                ("attention.compress_ratios", Layers(&[0, 4, 0, 128])),
                ("hyper_connection.sinkhorn_iterations", U(4)),
                ("hash_layer_count", U(0)),
            ],
        ],
    ),
    arch("chatglm", &[]).keep(QKV_BIAS).fused(),
    arch("glm4", &[]),
    arch("glm4moe", &[EXPERTS, SHARED]).keep(QKV_BIAS),
    arch("glm-dsa", &[EXPERTS, SHARED, LATENT_ONE_KV]),
    arch("bitnet", &[]),
    arch("jais", &[]).keep(BIASES),
    arch("jais2", &[]).keep(BIASES),
    arch("nemotron", &[]),
    arch(
        "nemotron_h",
        &[
            STATE_SPACE,
            HEADS,
            &[
                ("ssm.time_step_rank", U(8)),
                ("ssm.group_count", U(2)),
                ("attention.head_count_kv", Layers(&[0, 2, 0, 0])),
                ("feed_forward_length", Layers(&[0, 0, 512, 0])),
            ],
        ],
    ),
    arch(
        "nemotron_h_moe",
        &[
            STATE_SPACE,
            HEADS,
            EXPERTS,
            &[
                ("expert_shared_feed_forward_length", U(128)),
                ("ssm.time_step_rank", U(8)),
                ("ssm.group_count", U(2)),
                ("attention.head_count_kv", Layers(&[0, 2, 0, 0])),
                ("feed_forward_length", Layers(&[0, 0, 512, 512])),
            ],
        ],
    ),
    arch("exaone", &[]).keep(ROPE_FREQS),
    arch("exaone4", &[]).keep(ROPE_FREQS),
    arch("exaone-moe", &[EXPERTS, SHARED]),
    arch("rwkv6", &[&[("attention.head_count_kv", U(0))]]).leave_out(&[
        "time_mix_lerp_w.weight",
        "time_mix_lerp_k.weight",
        "time_mix_lerp_v.weight",
        "time_mix_lerp_r.weight",
        "time_mix_lerp_g.weight",
    ]),
    arch("rwkv6qwen2", &[&[("token_shift_count", U(1))]]).leave_out(&["time_mix_first.weight"]),
    arch("rwkv7", &[&[("feed_forward_length", Embd(4)), ("attention.gate_lora_rank", U(32))]]),
    arch("arwkv7", &[&[("token_shift_count", U(1)), ("attention.gate_lora_rank", U(32))]]),
    arch("granite", &[]),
    arch("granitemoe", &[EXPERTS]),
    arch(
        "granitehybrid",
        &[
            STATE_SPACE,
            HEADS,
            EVERY_SECOND,
            &[("ssm.time_step_rank", U(8)), ("ssm.group_count", U(1))],
        ],
    ),
    arch(
        "graniteswitch",
        &[&[
            ("adapters.count", U(2)),
            ("adapters.lora_rank", U(8)),
            ("adapters.token_ids_activate", Ints(&[5, 6])),
            ("adapters.token_ids_substitute", Ints(&[7, 8])),
        ]],
    ),
    arch("granite_swa", &[WINDOW_PATTERN]),
    // The ids of its picture tokens are fixed.
    arch("chameleon", &[HEADS, ALL_KV_HEADS]).vocab(9000),
    arch("plm", &[HEADS, ALL_KV_HEADS]),
    arch("bailingmoe", &[EXPERTS, SHARED]),
    arch("bailingmoe2", &[EXPERTS, SHARED]),
    arch("bailingmoe3", &[EXPERTS, DELTA_LATENT, &[("kda.gate_lower_bound", F(-5.0))]]),
    arch("dots1", &[EXPERTS, SHARED, SIGMOID, HEADS, ALL_KV_HEADS]),
    arch(
        "dots3note",
        &[
            EXPERTS,
            SHARED,
            SIGMOID,
            LATENT_ONE_KV,
            WINDOW_PATTERN,
            &[
                ("attention.kv_lora_rank_swa", U(64)),
                ("attention.key_length_swa", U(96)),
                ("attention.value_length_swa", U(64)),
                ("attention.key_length_mla_swa", Head(32)),
                ("attention.value_length_mla_swa", Head(0)),
                ("attention.indexer.types", LayerFlags(&[false, true])),
            ],
        ],
    ),
    arch("arcee", &[]),
    arch("afmoe", &[EXPERTS, SHARED, HEADS, WINDOW]),
    arch("laguna", &[EXPERTS, SHARED, WINDOW]),
    arch("ernie4_5", &[]),
    arch("ernie4_5-moe", &[EXPERTS, SHARED]),
    arch("hunyuan-moe", &[EXPERTS, SHARED]),
    arch("hunyuan-dense", &[]),
    arch("hunyuan_vl", &[]),
    arch("hy_v3", &[EXPERTS, SHARED]),
    arch(
        "hy_v4",
        &[
            EXPERTS,
            SHARED,
            SIGMOID,
            LATENT_ONE_KV,
            HYPER,
            &[("hyper_connection.magnitude", F(1.0))],
        ],
    ),
    arch("smollm3", &[]),
    arch("gpt-oss", &[EXPERTS, WINDOW]).keep(BIASES),
    arch("lfm2", &[EVERY_SECOND]),
    arch("lfm2moe", &[EXPERTS, SHARED, EVERY_SECOND]),
    arch("dream", &[]).keep(QKV_BIAS),
    arch("smallthinker", &[EXPERTS, SIGMOID, WINDOW]),
    arch("llada", &[]),
    arch("llada-moe", &[EXPERTS]),
    arch("seed_oss", &[]).keep(QKV_BIAS),
    arch("grovemoe", &[EXPERTS, &[("expert_group_scale", F(0.05)), ("experts_per_group", U(2))]]),
    arch("apertus", &[XIELU]).keep(ROPE_FREQS),
    arch("minimax-01", &[EXPERTS, HEADS, SECOND_FULL]),
    arch(
        "hrm_text",
        &[&[("hrm.layers_per_stack", U(1)), ("hrm.h_cycles", U(2)), ("hrm.l_cycles", U(1))]],
    ),
    arch("minimax-m2", &[EXPERTS, SIGMOID]),
    arch(
        "minimax-m3",
        &[
            EXPERTS,
            HEADS,
            &[("attention.indexer.block_size", U(8)), ("attention.indexer.local_blocks", U(1))],
        ],
    ),
    arch("cogvlm", &[]),
    arch("rnd1", &[EXPERTS]),
    arch("pangu-embedded", &[]).keep(ATTENTION_BIAS),
    arch("mistral3", &[]),
    arch("mistral4", &[EXPERTS, SHARED, SIGMOID, LATENT]),
    arch("paddleocr", &[HEADS, &[("rope.dimension_sections", Ints(&[8, 12, 12, 0]))]]),
    arch(
        "mimo2",
        &[
            WINDOW_PATTERN,
            HEADS,
            &[
                ("attention.key_length_swa", Head(0)),
                ("attention.value_length_swa", Head(0)),
                ("attention.head_count_kv_swa", U(2)),
                ("rope.freq_base_swa", F(10_000.0)),
            ],
        ],
    ),
    arch("step35", &[WINDOW_PATTERN]).keep(ROPE_FREQS),
    arch("spark2_5", &[WINDOW_PATTERN]),
    arch("maincoder", &[]),
    arch("kimi-linear", &[EXPERTS, DELTA_LATENT]),
    arch(
        "kimi-k3",
        &[
            EXPERTS,
            DELTA_LATENT,
            &[
                ("attn_res.block_size", U(2)),
                ("activation.situ_beta", F(1.0)),
                ("activation.situ_linear_beta", F(1.0)),
            ],
        ],
    ),
    arch(
        "glm5-next",
        &[
            EXPERTS,
            DELTA_LATENT,
            HYPER,
            &[
                ("rope.dimension_count", U(0)),
                ("attention.key_length", U(64)),
                ("attention.key_length_mla", Head(0)),
                ("attention.indexer.kpool", U(4)),
                ("hyper_connection.sinkhorn_iterations", U(4)),
            ],
        ],
    ),
    arch("talkie", &[]),
    arch("mellum", &[EXPERTS, WINDOW]),
    arch("nanbeige", &[]),
];

const YARN: &[Key] = &[
    ("rope.scaling.type", S("yarn")),
    ("rope.scaling.factor", F(4.0)),
    ("rope.scaling.original_context_length", U(64)),
];

pub(super) const VARIANTS: &[Variant] = &[
    variant("llama", "yarn", YARN),
    variant(
        "llama",
        "linear",
        &[("rope.scaling.type", S("linear")), ("rope.scaling.factor", F(4.0))],
    ),
    variant("llama", "moe", EXPERTS),
    variant(
        "gemma2",
        "caps",
        &[("attn_logit_softcapping", F(2.0)), ("final_logit_softcapping", F(3.0))],
    ),
    variant("gemma3", "yarn", YARN),
    variant("gpt-oss", "yarn", YARN),
    variant("mpt", "clamped", &[("attention.clamp_kqv", F(0.5))]),
    variant(
        "deepseek2",
        "groups",
        &[
            ("expert_group_count", U(4)),
            ("expert_group_used_count", U(2)),
            ("expert_weights_norm", B(true)),
        ],
    ),
    variant(
        "granitemoe",
        "scales",
        &[
            ("residual_scale", F(0.22)),
            ("embedding_scale", F(12.0)),
            ("attention.scale", F(0.015)),
            ("logit_scale", F(6.0)),
        ],
    ),
    variant("olmo2", "window", WINDOW),
];
