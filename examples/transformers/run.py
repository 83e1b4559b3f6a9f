#!/usr/bin/env python3
"""Runs a GGUF's weights through transformers, to show how a model of transformers is recorded.

    python3 examples/transformers/run.py MODEL.gguf PLAN.txt TRACE [--dtype bfloat16] [--bug NAME]

Runs the token ids of a plan that `firstdiff capture reference` wrote, and records what the model
computes in the folder TRACE. Recording takes only the lines marked with #+. Needs torch and
transformers; f32 and f16 weights. --bug plants a mistake, as one in the program of the model's user.
"""

import argparse
import sys
from pathlib import Path

import torch
import transformers
from bugs import BUGS, OTHERS
from load import load

# Where the wheel is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))
import firstdiff_transformers  #+


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("plan")
    parser.add_argument("trace")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--attention", default="eager", help="eager (default), sdpa, ...")
    parser.add_argument("--family", help="mistral, for a Mistral GGUF, which declares itself a llama")
    parser.add_argument("--bug", choices=[*BUGS, *OTHERS])
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()  # not of kernels that are not installed
    model = load(args.model, args.family, args.attention, getattr(torch, args.dtype))
    model.to(args.device)
    if args.bug:
        (BUGS | OTHERS)[args.bug](model, sys.modules[type(model).__module__])
    firstdiff_transformers.record(model, args.trace, args.plan)  #+


if __name__ == "__main__":
    main()
