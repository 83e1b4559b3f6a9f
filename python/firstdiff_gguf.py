"""Maps the weights of a transformers model to GGUF tensors, for firstdiff_transformers.py.

The names are those of llama.cpp's converter. The comparison of weights recognises what the converter changes: the
order of a llama's q and k rows, norms that hold 1 + w, decays that hold -exp(w), the order of value heads.
"""

# Of a layer, by the modules and parameters that hold them.
WEIGHTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.sinks": "attn_sinks.weight",
    "linear_attn.in_proj_qkvz": "attn_qkv attn_gate",
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_ba": "ssm_ba",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
WEIGHTS_AROUND = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
# Of a model with linear attention, and of gpt_oss.
WEIGHTS_AFTER = {"post_attention_layernorm": "post_attention_norm"}
WHOLE_MODEL = {"embed_tokens": "token_embd", "norm": "output_norm"}


def named_weights(model):
    """The weights of a model, each with its own name and those of the GGUF."""
    base = getattr(model, "model", model)
    base = getattr(base, "language_model", base)
    yield from _named(model, "", {"lm_head": "output"})
    yield from _named(base, "model.", WHOLE_MODEL)
    paths_of = [{name for name, _ in layer.named_modules()} for layer in base.layers]
    has = lambda path: any(path in paths for paths in paths_of)
    around = WEIGHTS_AROUND if has("pre_feedforward_layernorm") else {}
    known = WEIGHTS | around | (WEIGHTS_AFTER if has("linear_attn") or has("mlp.router") else {})
    for index, (layer, paths) in enumerate(zip(base.layers, paths_of, strict=True)):
        own, block = f"model.layers.{index}.", f"blk.{index}."
        yield from _named(layer, own, known, block)
        if "mlp.experts.0" in paths:
            yield from _listed_experts(layer.mlp.experts, f"{own}mlp.experts.", block)
        elif "mlp.experts" in paths:
            yield from _fused_experts(layer.mlp.experts, f"{own}mlp.experts.", block)


def _named(root, own, known, block=""):
    """The parameters of some modules, or that are named themselves."""
    for path, weight in root.named_parameters():
        module, _, kind = path.rpartition(".")
        if path in known:
            yield f"{own}{path}={block}{known[path]}", weight
        elif module in known:
            of = " ".join(f"{block}{part}.{kind}" for part in known[module].split())
            yield f"{own}{path}={of}", weight


def _listed_experts(experts, own, block):
    """Each expert by itself: some rows of a tensor that has all."""
    for path, weight in experts.named_parameters():
        expert, part, kind = path.split(".")
        first = int(expert) * len(weight)
        rows = f"[{first}:{first + len(weight)}]"
        yield f"{own}{path}={block}ffn_{part.removesuffix('_proj')}_exps.{kind}{rows}", weight


def _fused_experts(experts, own, block):
    """The matrices of all experts, gate and up apart: they take turns, or one is after the other."""
    turns = take_turns(experts)
    for path, weight in experts.named_parameters():
        part, kind = path.removesuffix("_bias"), "bias" if path.endswith("_bias") else "weight"
        # gpt-oss has the inputs of a matrix first.
        weight = weight.transpose(1, 2) if turns and kind == "weight" else weight
        if part == "down_proj":
            yield f"{own}{path}={block}ffn_down_exps.{kind}", weight
        elif part == "gate_up_proj":
            halves = (weight[:, ::2], weight[:, 1::2]) if turns else weight.chunk(2, 1)
            for of, half in zip(("gate", "up"), halves, strict=True):
                yield f"{own}{path}.{of}={block}ffn_{of}_exps.{kind}", half


def take_turns(experts):
    """Whether the rows of gate and up take turns."""
    return not getattr(experts, "is_concatenated", not hasattr(experts, "alpha"))
