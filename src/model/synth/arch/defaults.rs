//! The keys that most architectures share.

use super::{
    table::Key,
    value::Given::{self, *},
};

/// What every model has, whether its architecture reads it or not.
pub(super) const BASE: &[Key] = &[
    ("context_length", U(2048)),
    ("embedding_length", U(256)),
    ("block_count", U(4)),
    ("feed_forward_length", U(512)),
    ("attention.head_count", U(4)),
    ("attention.head_count_kv", U(2)),
    ("attention.layer_norm_rms_epsilon", F(1e-5)),
    ("attention.layer_norm_epsilon", F(1e-5)),
];

/// What a model has only if llama.cpp asks for it.
const ON_DEMAND: &[Key] = &[
    ("rope.dimension_count", Head(0)),
    ("rope.dimension_sections", Ints(&[8, 8, 8, 8])),
    ("rope.freq_base", F(10_000.0)),
    ("rope.freq_base_swa", F(10_000.0)),
    ("rope.scaling.factor", F(1.0)),
    ("attention.group_norm_epsilon", F(1e-5)),
    ("attention.key_length", Head(0)),
    ("attention.value_length", Head(0)),
    ("attention.sliding_window", U(16)),
    ("attention.scale", F(0.1)),
    ("attention.clamp_kqv", F(8.0)),
    ("attention.max_alibi_bias", F(8.0)),
    ("attention.causal", B(true)),
    ("attention.shared_kv_layers", U(0)),
    ("attn_logit_softcapping", F(50.0)),
    ("final_logit_softcapping", F(30.0)),
    ("logit_scale", F(0.5)),
    ("residual_scale", F(0.9)),
    ("embedding_scale", F(2.0)),
    ("use_parallel_residual", B(true)),
    // Experts
    ("expert_count", U(8)),
    ("expert_used_count", U(2)),
    ("expert_feed_forward_length", U(128)),
    ("expert_shared_feed_forward_length", U(128)),
    ("expert_chunk_feed_forward_length", U(64)),
    ("expert_shared_count", U(1)),
    ("expert_weights_scale", F(1.5)),
    ("expert_weights_norm", B(true)),
    ("expert_gating_func", U(2)),
    ("expert_group_count", U(1)),
    ("expert_group_used_count", U(1)),
    ("leading_dense_block_count", U(1)),
    ("moe_every_n_layers", U(1)),
    ("interleave_moe_layer_step", U(1)),
    ("nextn_predict_layers", U(0)),
    // Low-rank attention and its indexer
    ("attention.q_lora_rank", U(64)),
    ("attention.kv_lora_rank", U(64)),
    ("attention.output_lora_rank", U(64)),
    ("attention.key_length_mla", Head(32)),
    ("attention.value_length_mla", Head(0)),
    ("attention.indexer.head_count", U(4)),
    ("attention.indexer.key_length", U(64)),
    ("attention.indexer.top_k", U(8)),
    // Layers with a state
    ("full_attention_interval", U(2)),
    ("shortconv.l_cache", U(3)),
    ("ssm.conv_kernel", U(4)),
    ("ssm.inner_size", U(256)),
    ("ssm.state_size", U(64)),
    ("ssm.time_step_rank", U(4)),
    ("ssm.group_count", U(2)),
    ("ssm.dt_b_c_rms", B(false)),
    ("kda.head_dim", U(64)),
    ("wkv.head_size", U(64)),
    ("time_mix_extra_dim", U(32)),
    ("time_decay_extra_dim", U(64)),
    ("attention.decay_lora_rank", U(32)),
    ("attention.iclr_lora_rank", U(32)),
    ("attention.value_residual_mix_lora_rank", U(32)),
    ("attention.gate_lora_rank", U(32)),
    ("rescale_every_n_layers", U(6)),
    ("token_shift_count", U(2)),
    // Several streams
    ("embedding_length_per_layer_input", U(64)),
    ("altup.num_inputs", U(4)),
    ("altup.active_idx", U(0)),
    ("laurel_rank", U(32)),
];

/// The default of a key, by its name without the architecture.
pub(super) fn on_demand(key: &str) -> Option<Given> {
    let mut keys = ON_DEMAND.iter().chain(BASE);
    keys.find(|(name, _)| *name == key).map(|&(_, given)| given)
}
