"""Loads a GGUF by transformers' own loader, and records it right and with each bug.

    python3 run.py MODEL.gguf PLAN.txt DTYPE TRACE [BUG=TRACE ...]
"""

import copy
import sys
import time
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "examples/transformers")]
import firstdiff_transformers  # noqa: E402
from bugs import BUGS  # noqa: E402


def down_transposed(model, code):
    for layer in model.model.layers:
        weight = layer.mlp.down_proj.weight.data
        weight.copy_(weight.T.reshape(weight.shape).clone())


def main(model_path, plan, dtype, trace, *bugs):
    transformers.logging.set_verbosity_error()
    path = Path(model_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=getattr(torch, dtype), attn_implementation="eager"
    )
    record(None, model, trace, plan)
    for name, of_bug in (words.split("=", 1) for words in bugs):
        record(name, model, of_bug, plan)


def record(bug, model, trace, plan):
    """Records a copy of the model with a bug; what the bug changes of the modelling file is put back."""
    code = sys.modules[type(model).__module__]
    kept, start = dict(vars(code)), time.monotonic()
    if bug:
        model = copy.deepcopy(model)
        (BUGS | {"ffn-down-transposed": down_transposed})[bug](model, code)
    firstdiff_transformers.record(model, trace, plan)
    vars(code).update(kept)
    print(bug or "right", round(time.monotonic() - start, 1))


if __name__ == "__main__":
    main(*sys.argv[1:])
