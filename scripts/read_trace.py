#!/usr/bin/env python3
"""Lists the tensors of a firstdiff trace: step, name, type, shape and sum.

    python3 scripts/read_trace.py TRACE [NAME...]

With names (blk.0.q_rope, logits, ...) their values are printed too. Needs only
`pip install safetensors numpy`, as any program of your own that reads a trace does.
"""

import json
import sys
from pathlib import Path

import numpy
from safetensors import safe_open


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder, wanted = Path(sys.argv[1]), sys.argv[2:]
    manifest = json.loads((folder / "manifest.json").read_text())
    model = manifest["model"]
    print(f"{manifest['side']} by {manifest['producer']['name']} on {manifest['device']}")
    layers = {layer for group in model["sites"] for layer in group.get("layers", [])}
    print(f"{model['name']}, {model['architecture']}, {len(layers)} layers")
    for number, step in enumerate(manifest["steps"]):
        first = step["first_position"]
        print(f"step {number}: {len(step['tokens'])} tokens from position {first}")
        with safe_open(folder / step["file"], framework="numpy") as tensors:
            for name in tensors.keys():
                values = tensors.get_tensor(name)
                # In f64, as a sum of many f32 would lose what it is printed for.
                total = values.sum(dtype=numpy.float64)
                # Of a quantised cache these are bytes.
                kind = step.get("quantised", {}).get(name, values.dtype)
                print(f"  {name}  {kind}  {list(values.shape)}  {float(total)!r}")
                if name in wanted:
                    print(values)


if __name__ == "__main__":
    main()
