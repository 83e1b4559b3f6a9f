"""vLLM on the CPU, recorded by forward hooks of its model classes; not among those of `make clients`, as it takes 7 GB."""

import os

import common

OWN = common.CLIENTS / "vllm"
MODEL = common.WORK / "vllm/random-qwen2.gguf"
CASES = [common.Case("a small random qwen2, f32", MODEL)]

# Of each bug of run.py what firstdiff must say.
BUGS = {
    "v_bias_zero": r"v projection, all layers: bias missing",
    "rope_pairs_interleaved": r"q and k rotation, all layers: pairs \(2i, 2i\+1\)",
    "eps_1e_2": r"norm, all layers: eps 1e-2 instead of 1e-6",
    "scale_of_double_head": r"attention, all layers: scale",
    "positions_after": r"q and k rotation, all layers: position",
    "attention_residual_missing": r"attention residual, all layers: the hidden vector is not added",
}


def title():
    return "vLLM 0.32.0 on the CPU, by `firstdiff_vllm`"


def python():
    """A Python that has vLLM: FIRSTDIFF_VLLM_PYTHON, or that of target/vllm."""
    own = os.environ.get("FIRSTDIFF_VLLM_PYTHON")
    if not own:
        common.call(OWN / "setup.sh", common.TARGET / "vllm")
    return own or common.TARGET / "vllm/bin/python"


def prepare():
    python()
    MODEL.parent.mkdir(parents=True, exist_ok=True)
    sizes = "--layers 3 --embd 256 --heads 4 --kv-heads 2 --head-dim 64".split()
    common.call(common.FIRSTDIFF, "synth", "--shape", "tiny-qwen2", *sizes, "--type", "f16", "-o", MODEL)


def lines():
    return "none; two in the program that runs it, the import and the call of `record`"


def record(case, plan, traces):
    bugs = [f"{bug}={trace}" for bug, trace in traces.items() if bug]
    said = common.call(python(), OWN / "run.py", case.model, plan, traces[None], *bugs)
    return common.seconds_said(said, BUGS)
