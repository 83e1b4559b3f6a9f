"""Runs a GGUF's weights in vLLM on the CPU, recorded right and with each bug.

    python3 run.py MODEL.gguf PLAN.txt TRACE [BUG=TRACE ...]
"""

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "examples/transformers")]
import firstdiff_vllm  # noqa: E402
import torch  # noqa: E402
from load import load  # noqa: E402
from vllm import LLM  # noqa: E402


def v_bias_zero(layer):
    """The bias of v is all zero."""
    attention = layer.self_attn
    bias = attention.qkv_proj.bias.data[-attention.kv_size :]
    own = bias.clone()
    bias.zero_()
    return lambda: bias.copy_(own)


def rope_pairs_interleaved(layer):
    return changed(layer.self_attn.rotary_emb, "is_neox_style", False)


def eps_1e_2(layer):
    return changed(layer.post_attention_layernorm, "variance_epsilon", 1e-2)


def scale_of_double_head(layer):
    impl = layer.self_attn.attn.impl
    return changed(impl, "scale", impl.scale / 2**0.5)


def positions_after(layer):
    """Positions begin at 1."""
    later = lambda _, args: (args[0] + 1, *args[1:])
    rotation = layer.self_attn.rotary_emb
    # One rotation is that of all layers.
    return rotation.register_forward_pre_hook(later).remove if not rotation._forward_pre_hooks else lambda: None


def attention_residual_missing(layer):
    """What came before the attention is not added."""
    alone = lambda _, args: (args[0], torch.zeros_like(args[1]))
    return layer.post_attention_layernorm.register_forward_pre_hook(alone).remove


def changed(module, name, value):
    own = getattr(module, name)
    setattr(module, name, value)
    return lambda: setattr(module, name, own)


BUGS = {bug.__name__: bug for bug in (v_bias_zero, rope_pairs_interleaved, eps_1e_2, scale_of_double_head,
                                      positions_after, attention_residual_missing)}  # fmt: skip


def main(gguf, plan, trace, *bugs):
    folder = tempfile.mkdtemp()
    load(gguf, None, "eager", torch.float32).save_pretrained(folder)
    llm = LLM(folder, dtype="float32", enforce_eager=True, skip_tokenizer_init=True, max_model_len=64, max_num_seqs=1,
              enable_prefix_caching=False)  # fmt: skip
    for words in (f"right={trace}", *bugs):
        name, of_bug = words.split("=", 1)
        start = time.monotonic()
        with contextlib.ExitStack() as undo:
            if name in BUGS:
                plant = lambda model: [undo.callback(BUGS[name](layer)) for layer in model.model.layers]
                llm.apply_model(lambda model: plant(model) and None)
            firstdiff_vllm.record(llm, of_bug, plan)
        print(name, round(time.monotonic() - start, 1), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
