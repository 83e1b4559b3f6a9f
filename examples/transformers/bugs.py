"""Mistakes to plant in a model of transformers: BUGS are named as those of `firstdiff faults`, OTHERS are
of experts, windows and linear attention.

Each changes the model, or a function of its modelling file (`code`), as the model's user would.
"""

import torch
from transformers import DynamicCache


def norm_eps_1e_2(model, code):
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-2


def qkv_bias_zero(model, code):
    for layer in model.model.layers:
        attention = layer.self_attn
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.bias.data.zero_()


def rope_pairs_interleaved(model, code):
    def rotate(q, k, cos, sin, *_, **__):
        half = cos.shape[-1] // 2
        cos, sin = (x[:, None, :, :half].repeat_interleave(2, -1) for x in (cos, sin))
        turn = lambda x: torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        return q * cos + turn(q) * sin, k * cos + turn(k) * sin

    code.apply_rotary_pos_emb = rotate


def rope_base_1e4(model, code):
    frequencies = model.model.rotary_emb.inv_freq
    pairs = len(frequencies)
    frequencies.copy_(1e4 ** (-torch.arange(pairs) / pairs))


def rope_backwards(model, code):
    own = code.apply_rotary_pos_emb
    code.apply_rotary_pos_emb = lambda q, k, cos, sin, *_, **__: own(q, k, cos, -sin)


def rope_k_missing(model, code):
    own = code.apply_rotary_pos_emb
    code.apply_rotary_pos_emb = lambda q, k, *args, **kwargs: (own(q, k, *args, **kwargs)[0], k)


def v_cache_heads_swapped(model, code):
    own = DynamicCache.update
    DynamicCache.update = lambda cache, k, v, *args, **kwargs: own(
        cache, k, v.flip(1), *args, **kwargs
    )


def kv_head_modulo(model, code):
    code.repeat_kv = lambda x, times: x.repeat(1, times, 1, 1)


def scale_missing(model, code):
    for layer in model.model.layers:
        layer.self_attn.scaling = 1.0


def mask_missing(model, code):
    own = code.eager_attention_forward
    code.eager_attention_forward = lambda module, q, k, v, mask, *args, **kwargs: own(
        module, q, k, v, None, *args, **kwargs
    )


def out_heads_reversed(model, code):
    own = code.eager_attention_forward

    def attention(*args, **kwargs):
        out, probs = own(*args, **kwargs)
        return out.flip(2), probs

    code.eager_attention_forward = attention


def relu_for_silu(model, code):
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.ReLU()


def ffn_down_zero(model, code):
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data.zero_()


def q_norm_missing(model, code):
    for attention in attentions(model):
        attention.q_norm.forward = lambda x: x


def experts_unnormalised(model, code):
    for layer in model.model.layers:
        layer.mlp.gate.norm_topk_prob = False


def experts_first_twice(model, code):
    own = type(model.model.layers[0].mlp.experts).forward
    for layer in model.model.layers:
        layer.mlp.experts.forward = lambda x, ids, *weights, experts=layer.mlp.experts: own(
            experts, x, ids[:, :1].expand_as(ids), *weights
        )


def gate_up_exchanged(model, code):
    for layer in model.model.layers:
        weight = layer.mlp.experts.gate_up_proj.data
        weight.copy_(weight.roll(weight.shape[1] // 2, 1))


def shared_expert_gate_zero(model, code):
    for layer in model.model.layers:
        layer.mlp.shared_expert_gate.weight.data.zero_()


def window_missing(model, code):
    own = code.create_sliding_window_causal_mask

    def mask(*args, inputs_embeds, **kwargs):
        # The cache has the window only, once the prompt is read.
        make = code.create_causal_mask if inputs_embeds.shape[1] > 1 else own
        return make(*args, inputs_embeds=inputs_embeds, **kwargs)

    code.create_sliding_window_causal_mask = mask


def local_base_global(model, code):
    rotary = model.model.rotary_emb
    rotary.sliding_attention_inv_freq.copy_(rotary.full_attention_inv_freq)


def embedding_scale_missing(model, code):
    model.model.embed_tokens.embed_scale.fill_(1)


def norm_one_missing(model, code):
    norms = [layer.input_layernorm for layer in model.model.layers]
    for norm in norms:
        norm.forward = lambda x, norm=norm: norm._norm(x) * norm.weight


def logit_cap_missing(model, code):
    model.config.final_logit_softcapping = None


def sinks_missing(model, code):
    for attention in attentions(model):
        attention.sinks.data.fill_(-1e30)


def swiglu_alpha_one(model, code):
    for layer in model.model.layers:
        layer.mlp.experts.alpha = 1.0


def router_softmax_first(model, code):
    own = torch.nn.functional.softmax
    for layer in model.model.layers:
        router = layer.mlp.router

        def forward(x, router=router):
            logits = torch.nn.functional.linear(x, router.weight, router.bias)
            weights, ids = torch.topk(own(logits, dim=-1), router.top_k, dim=-1)
            return logits, weights, ids

        router.forward = forward


def rope_whole_heads(model, code):
    rotary, attention = model.model.rotary_emb, next(attentions(model))
    base = model.config.rope_parameters["rope_theta"]
    pairs = attention.head_dim // 2
    rotary.inv_freq = base ** (-torch.arange(pairs) / pairs)


def decay_reciprocal(model, code):
    for linear in linears(model):
        linear.A_log.data.neg_()


def dt_bias_zero(model, code):
    for linear in linears(model):
        linear.dt_bias.data.zero_()


def convolution_shifted(model, code):
    own = code.causal_conv1d_fn
    earlier = lambda x: torch.nn.functional.pad(x, (1, 0))[..., :-1]
    code.causal_conv1d_fn = lambda x, *args, **kwargs: own(earlier(x), *args, **kwargs)


def convolution_state_lost(model, code):
    own = code.causal_conv1d_update
    code.causal_conv1d_update = lambda x, state, *rest: own(x, torch.zeros_like(state), *rest)


def delta_state_lost(model, code):
    own = code.torch_recurrent_gated_delta_rule
    code.torch_recurrent_gated_delta_rule = lambda *args, **kwargs: own(
        *args, **{**kwargs, "initial_state": None}
    )


def delta_queries_unnormalised(model, code):
    rules(code, lambda q, k: (q, code.l2norm(k)), use_qk_l2norm_in_kernel=False)


def key_heads_modulo(model, code):
    each = next(linears(model)).num_v_heads // next(linears(model)).num_k_heads
    rules(code, lambda q, k: (q.repeat(1, 1, each, 1), k.repeat(1, 1, each, 1)))


def rules(code, change, **more):
    """Changes what the delta rule is given."""
    for name in ("torch_recurrent_gated_delta_rule", "torch_chunk_gated_delta_rule"):
        own = getattr(code, name)
        rule = lambda q, k, *args, own=own, **kwargs: own(*change(q, k), *args, **{**kwargs, **more})
        setattr(code, name, rule)


def attentions(model):
    return (layer.self_attn for layer in model.model.layers if hasattr(layer, "self_attn"))


def linears(model):
    return (layer.linear_attn for layer in model.model.layers if hasattr(layer, "linear_attn"))


def named(*bugs):
    return {bug.__name__.replace("_", "-"): bug for bug in bugs}


BUGS = named(
    norm_eps_1e_2, qkv_bias_zero, rope_pairs_interleaved, rope_base_1e4, rope_backwards,
    rope_k_missing, v_cache_heads_swapped, kv_head_modulo, scale_missing, mask_missing,
    out_heads_reversed, relu_for_silu, ffn_down_zero,
)  # fmt: skip
OTHERS = named(
    q_norm_missing, experts_unnormalised, experts_first_twice, gate_up_exchanged,
    shared_expert_gate_zero, window_missing, local_base_global, embedding_scale_missing,
    norm_one_missing, logit_cap_missing, sinks_missing, swiglu_alpha_one, router_softmax_first,
    rope_whole_heads, decay_reciprocal, dt_bias_zero, convolution_shifted, convolution_state_lost,
    delta_state_lost, delta_queries_unnormalised, key_heads_modulo,
)  # fmt: skip
