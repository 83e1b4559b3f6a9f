"""transformers with real weights, which its own GGUF loader reads and decodes; recorded by the hooks."""

import common

OWN = common.CLIENTS / "transformers_gguf"
# Of each bug of examples/transformers/bugs.py, and one of run.py, what firstdiff must say.
BUGS = {
    "qkv-bias-zero": r"weights are wrong: blk\.\*\.attn_.\.bias: all zero|attn_[qkv]\.bias.*all zero",
    "norm-eps-1e-2": r"norm.*: eps 1e-2 instead of 1e-5",
    "rope-pairs-interleaved": r"q and k rotation, all layers: pairs \(2i, 2i\+1\)",
    "kv-head-modulo": r"attention scores.*, all layers: query head h reads KV head h % Hk",
    "scale-missing": r"attention scores, all layers: scale missing",
    "relu-for-silu": r"SwiGLU, all layers: relu",
    "ffn-down-transposed": r"blk\.\*\.ffn_down\.weight",
}
# A llama has no biases. Of narrow and of larger models some bugs only, as each takes a minute.
OF_LLAMA = tuple(BUGS)[1:]
NARROW = ("rope-pairs-interleaved", "ffn-down-transposed")
CASES = [
    common.Case("SmolLM2 135M Q4_1, f32", common.SMOLLM, ("float32",), OF_LLAMA),
    common.Case("SmolLM2 135M Q4_1, bf16", common.SMOLLM, ("bfloat16",), NARROW),
    common.Case("Qwen2.5 Coder 0.5B Q4_K_M, f32", common.QWEN, ("float32",), ("qkv-bias-zero", "kv-head-modulo")),
    common.Case("Qwen2.5 Coder 0.5B Q4_K_M, bf16", common.QWEN, ("bfloat16",), ("qkv-bias-zero",)),
]


def title():
    return "transformers, real weights by its GGUF loader"


def prepare():
    common.python()


def lines():
    return "none; two in the program that runs it, the import and the call of `record`"


def record(case, plan, traces):
    bugs = [f"{bug}={trace}" for bug, trace in traces.items() if bug]
    said = common.call(common.python(), OWN / "run.py", case.model, plan, *case.options, traces[None], *bugs)
    return common.seconds_said(said, BUGS)
