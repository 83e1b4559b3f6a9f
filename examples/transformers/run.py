#!/usr/bin/env python3
"""Runs a GGUF's weights through transformers, to show how a model of transformers is recorded.

    python3 examples/transformers/run.py MODEL.gguf PLAN.txt TRACE [--dtype bfloat16] [--bug NAME]

Runs the token ids of a plan that `firstdiff capture reference` wrote, and records what the model
computes in the folder TRACE. The lines marked with #+ are all that recording takes. Needs torch and
transformers; f32 and f16 weights. --bug plants a mistake, as one in the program of the model's user.
"""

import argparse
import sys
from pathlib import Path

import torch
from bugs import BUGS
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "numpy_engine"))
from gguf import Gguf  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))  #+
import firstdiff_transformers  #+

NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip


def load(path, family, attention, dtype):
    """The model of a GGUF file, as transformers has that family."""
    file = Gguf(path)
    arch = file.keys["general.architecture"]
    key = lambda name, absent=None: file.keys.get(f"{arch}.{name}", absent)
    heads, hidden = key("attention.head_count"), key("embedding_length")
    dim = key("attention.key_length", hidden // heads)
    config = AutoConfig.for_model(
        family or arch,
        hidden_size=hidden,
        num_hidden_layers=key("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=key("attention.head_count_kv", heads),
        head_dim=dim,
        intermediate_size=key("feed_forward_length"),
        vocab_size=file.tensors["token_embd.weight"][0][1],
        rms_norm_eps=key("attention.layer_norm_rms_epsilon"),
        rope_theta=key("rope.freq_base", 1e4),
        max_position_embeddings=key("context_length"),
        tie_word_embeddings="output.weight" not in file.tensors,
        sliding_window=None,
    )
    # Not model.to(dtype), which would round the frequencies of the rotation too.
    torch.set_default_dtype(dtype)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    torch.set_default_dtype(torch.float32)
    weights = {}
    for name in file.tensors.keys() - {"rope_freqs.weight"}:
        *layer, part, kind = name.split(".")
        weight = torch.from_numpy(file.tensor(name))
        if arch == "llama" and part in ("attn_q", "attn_k"):
            # A llama's GGUF has the rows of a pair side by side, transformers half a head apart.
            weight = weight.unflatten(0, (-1, dim // 2, 2)).transpose(1, 2).flatten(0, 2)
        layer = f"model.layers.{layer[1]}." if layer else ""
        weights[f"{layer}{NAMES[part]}.{kind}"] = weight
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    model.load_state_dict(weights)
    factors = file.tensor("rope_freqs.weight")
    if factors is not None:
        model.model.rotary_emb.inv_freq /= torch.from_numpy(factors)
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("plan")
    parser.add_argument("trace")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--attention", default="eager", help="eager (default), sdpa, ...")
    parser.add_argument("--family", help="mistral, for a mistral's GGUF, which says llama")
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    model = load(args.model, args.family, args.attention, getattr(torch, args.dtype))
    model.to(args.device)
    if args.bug:
        BUGS[args.bug](model, sys.modules[type(model).__module__])
    firstdiff_transformers.record(model, args.trace, args.plan)  #+


if __name__ == "__main__":
    main()
