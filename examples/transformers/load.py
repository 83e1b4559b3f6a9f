"""The model of transformers that a GGUF file holds: its sizes, and its weights under transformers' names.

The mapping is llama.cpp's converter's, backwards: rows permuted there are put back, a norm's weight that
holds 1 + w is w, matrices that were split or joined are joined or split.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "numpy_engine"))
from gguf import Gguf  # noqa: E402

# The architectures whose family has another name.
FAMILIES = {
    "qwen3moe": "qwen3_moe", "gemma3": "gemma3_text", "gpt-oss": "gpt_oss", "qwen3next": "qwen3_next",
    "qwen35": "qwen3_5_text", "qwen35moe": "qwen3_5_moe_text",
}  # fmt: skip
NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm", "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate", "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj", "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ssm_ba": "linear_attn.in_proj_ba", "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a", "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm", "ssm_out": "linear_attn.out_proj",
}  # fmt: skip
TILED = ("qwen35", "qwen35moe")  # the first value head of each key head comes before the second of any
ZERO_CENTRED = ("gemma3", "qwen3next", *TILED)  # a norm of transformers multiplies by 1 + w


class Sizes:
    """The keys of a GGUF file that transformers' configuration has too."""

    def __init__(self, file):
        self.file, self.arch = file, file.keys["general.architecture"]
        self.layers, self.heads = self.key("block_count"), self.key("attention.head_count")
        self.hidden = self.key("embedding_length")
        self.dim = self.key("attention.key_length", self.hidden // self.heads)
        self.k_heads, self.v_heads = self.key("ssm.group_count", 1), self.key("ssm.time_step_rank", 1)

    def key(self, name, absent=None):
        return self.file.keys.get(f"{self.arch}.{name}", absent)

    def config(self, family):
        base = self.key("rope.freq_base", 1e4)
        rope = {"rope_type": "default", "rope_theta": base}
        rotated = self.key("rope.dimension_count", self.dim) / self.dim
        every = self.key("full_attention_interval") or self.key("attention.sliding_window_pattern", 0)
        settings = {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key("attention.head_count_kv", self.heads),
            "head_dim": self.dim,
            "intermediate_size": self.key("feed_forward_length"),
            "vocab_size": self.file.tensors["token_embd.weight"][0][1],
            "rms_norm_eps": self.key("attention.layer_norm_rms_epsilon"),
            "max_position_embeddings": self.key("context_length"),
            "tie_word_embeddings": "output.weight" not in self.file.tensors,
            "pad_token_id": None,
            "rope_theta": base,  # of transformers 4; 5 has rope_parameters
        }
        if self.arch == "gemma3":
            local = {**rope, "rope_theta": self.key("rope.freq_base_swa", 1e4)}
            settings |= {
                "sliding_window": self.key("attention.sliding_window"),
                "layer_types": self.layer_types("sliding_attention", every or 6),
                "rope_parameters": {"full_attention": rope, "sliding_attention": local},
                "rope_local_base_freq": local["rope_theta"],
                "query_pre_attn_scalar": self.dim,
                "final_logit_softcapping": self.key("final_logit_softcapping"),
            }
        elif self.arch == "gpt-oss":
            settings |= {
                "sliding_window": self.key("attention.sliding_window"),
                "layer_types": self.layer_types("sliding_attention", every or 2),
                "rope_scaling": rope,
                "intermediate_size": self.key("expert_feed_forward_length"),
            }
        elif self.arch in ("qwen3next", *TILED):
            settings |= {
                "layer_types": self.layer_types("linear_attention", every or 4),
                "rope_parameters": {**rope, "partial_rotary_factor": rotated},
                "partial_rotary_factor": rotated,
                "linear_conv_kernel_dim": self.key("ssm.conv_kernel"),
                "linear_key_head_dim": self.key("ssm.state_size"),
                "linear_value_head_dim": self.key("ssm.inner_size") // self.v_heads,
                "linear_num_key_heads": self.k_heads,
                "linear_num_value_heads": self.v_heads,
                "shared_expert_intermediate_size": self.key("expert_shared_feed_forward_length"),
            }
            sections = self.key("rope.dimension_sections")
            if sections:
                settings["rope_parameters"]["mrope_section"] = sections[:3]
        else:
            settings["sliding_window"] = None
        if self.key("expert_count"):
            settings |= {
                "num_experts": self.key("expert_count"),
                "num_local_experts": self.key("expert_count"),
                "num_experts_per_tok": self.key("expert_used_count"),
                "moe_intermediate_size": self.key("expert_feed_forward_length"),
                "norm_topk_prob": True,
            }
        return AutoConfig.for_model(family or FAMILIES.get(self.arch, self.arch), **settings)

    def layer_types(self, kind, every):
        return [kind if (layer + 1) % every else "full_attention" for layer in range(self.layers)]

    def grouped(self, weight, axis, first=0):
        """Value heads that stand as key heads are repeated, put beside their key head along an axis."""
        head, axis, each = weight.shape[axis] - first, axis % weight.dim(), self.v_heads // self.k_heads
        whole, values = weight.split((first, head), axis)
        shape = (each, self.k_heads, head // self.v_heads)
        values = values.unflatten(axis, shape).transpose(axis, axis + 1).flatten(axis, axis + 2)
        return torch.cat((whole, values), axis)


def layer_weights(own, sizes):
    """The weights of a layer by their names in transformers, of those by their names in the GGUF."""
    taken, weights = dict(own), {}
    if sizes.arch == "llama":
        # A llama's GGUF has the rows of a pair side by side, transformers half a head apart.
        for name, weight in taken.items():
            if name.startswith(("attn_q.", "attn_k.")):
                pairs = weight.unflatten(0, (-1, sizes.dim // 2, 2))
                taken[name] = pairs.transpose(1, 2).flatten(0, 2)
    if sizes.arch in ZERO_CENTRED:
        for name in taken.keys() - {"ssm_norm.weight"}:
            if name.endswith("norm.weight"):
                taken[name] = taken[name] - 1
    if sizes.arch == "gemma3":
        weights["pre_feedforward_layernorm.weight"] = taken.pop("ffn_norm.weight")
    if "ssm_a" in taken:
        if sizes.arch in TILED:
            keys = 2 * sizes.k_heads * sizes.key("ssm.state_size")
            for name, axis, first in (
                ("attn_qkv.weight", 0, keys), ("ssm_conv1d.weight", 0, keys), ("attn_gate.weight", 0, 0),
                ("ssm_beta.weight", 0, 0), ("ssm_alpha.weight", 0, 0), ("ssm_out.weight", 1, 0),
                ("ssm_a", 0, 0), ("ssm_dt.bias", 0, 0),
            ):  # fmt: skip
                taken[name] = sizes.grouped(taken[name], axis, first)
            weights["linear_attn.in_proj_qkv.weight"] = taken.pop("attn_qkv.weight")
            weights["linear_attn.in_proj_z.weight"] = taken.pop("attn_gate.weight")
        elif "attn_qkv.weight" not in taken:
            weights["linear_attn.in_proj_qkvz.weight"] = taken.pop("ssm_in.weight")
        else:
            taken.pop("ssm_in.weight", None)
            # Of each key head the rows of its q and k, then those of its value heads and their gates.
            key, value = sizes.k_heads * sizes.key("ssm.state_size"), sizes.key("ssm.inner_size")
            parts = (*taken.pop("attn_qkv.weight").split((key, key, value)), taken.pop("attn_gate.weight"))
            parts = [part.unflatten(0, (sizes.k_heads, -1)) for part in parts]
            weights["linear_attn.in_proj_qkvz.weight"] = torch.cat(parts, 1).flatten(0, 1)
        weights["linear_attn.A_log"] = torch.log(-taken.pop("ssm_a"))
        weights["linear_attn.dt_bias"] = taken.pop("ssm_dt.bias")
        taken["ssm_conv1d.weight"] = taken["ssm_conv1d.weight"].unsqueeze(1)
    if "ffn_gate_inp_shexp.weight" in taken:
        taken["ffn_gate_inp_shexp.weight"] = taken["ffn_gate_inp_shexp.weight"].reshape(1, -1)
    if sizes.arch == "gpt-oss":
        weights["self_attn.sinks"] = taken.pop("attn_sinks.weight")
        for kind, of_kind in (("weight", ""), ("bias", "_bias")):
            # Gate and up take turns, and matrices have their inputs first.
            both = [taken.pop(f"ffn_{part}_exps.{kind}") for part in ("gate", "up")]
            both = torch.stack(both, 2).flatten(1, 2)
            down = taken.pop(f"ffn_down_exps.{kind}")
            turn = (lambda x: x.transpose(1, 2)) if kind == "weight" else (lambda x: x)
            weights[f"mlp.experts.gate_up_proj{of_kind}"] = turn(both)
            weights[f"mlp.experts.down_proj{of_kind}"] = turn(down)
            weights[f"mlp.router.{kind}"] = taken.pop(f"ffn_gate_inp.{kind}")
    elif "ffn_gate_exps.weight" in taken:
        both = [taken.pop(f"ffn_{part}_exps.weight") for part in ("gate", "up")]
        weights["mlp.experts.gate_up_proj"] = torch.cat(both, 1)
        weights["mlp.experts.down_proj"] = taken.pop("ffn_down_exps.weight")
    for name, weight in taken.items():
        part, kind = name.split(".")
        weights[f"{NAMES[part]}.{kind}"] = weight
    return weights


def state(file, sizes):
    """All weights by their names in transformers."""
    layers, weights = {}, {}
    for name in file.tensors.keys() - {"rope_freqs.weight"}:
        weight = torch.from_numpy(file.tensor(name))
        if name.startswith("blk."):
            _, layer, part = name.split(".", 2)
            layers.setdefault(layer, {})[part] = weight
        else:
            part, kind = name.split(".")
            weights[f"{NAMES[part]}.{kind}"] = weight
    if sizes.arch in ZERO_CENTRED:
        weights["model.norm.weight"] -= 1
    for layer, own in layers.items():
        own = layer_weights(own, sizes)
        weights.update({f"model.layers.{layer}.{name}": weight for name, weight in own.items()})
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    return weights


def apart(weights, model):
    """The weights with each expert's by themselves, where the model of transformers 4 has them so."""
    split, there = dict(weights), model.state_dict()
    for name in weights.keys() - there.keys():
        layer, _, part = name.rpartition(".")
        for expert, weight in enumerate(split.pop(name)):
            parts = {"down_proj": weight} if part == "down_proj" else {}
            parts = parts or dict(zip(("gate_proj", "up_proj"), weight.chunk(2), strict=True))
            split.update({f"{layer}.{expert}.{of}.weight": own for of, own in parts.items()})
    return split


def load(path, family, attention, dtype):
    """The model of a GGUF file, as transformers has that family."""
    file = Gguf(path)
    sizes = Sizes(file)
    # Not model.to(dtype), which would round the frequencies of the rotation too.
    torch.set_default_dtype(dtype)
    model = AutoModelForCausalLM.from_config(sizes.config(family), attn_implementation=attention)
    torch.set_default_dtype(torch.float32)
    model.load_state_dict(apart(state(file, sizes), model))
    factors = file.tensor("rope_freqs.weight")
    if factors is not None:
        model.model.rotary_emb.inv_freq /= torch.from_numpy(factors)
    return model.eval()
