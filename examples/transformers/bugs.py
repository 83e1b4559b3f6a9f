"""Mistakes to plant in a model of transformers, named as those of `firstdiff faults`.

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


BUGS = (
    norm_eps_1e_2, qkv_bias_zero, rope_pairs_interleaved, rope_base_1e4, rope_backwards,
    rope_k_missing, v_cache_heads_swapped, kv_head_modulo, scale_missing, mask_missing,
    out_heads_reversed, relu_for_silu, ffn_down_zero,
)  # fmt: skip
BUGS = {bug.__name__.replace("_", "-"): bug for bug in BUGS}
