"""Files that torch.save writes, read without it: each array is the tensor's, and a whole module is refused."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python"))
import firstdiff_pt  # noqa: E402


def main():
    x = torch.randn(4, 6)
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.LayerNorm(5))
    saved = {
        "parameter": module[0].weight, "rows": x, "transposed": x.T, "strided": x[1:3, ::2], "half": x.half(),
        "double": x.double(), "bits": x.bfloat16(), "ids": torch.arange(5), "expanded": x[:1].expand(3, 6),
        "scalar": torch.tensor(3.0), "mask": x > 0, "bytes": torch.arange(3, dtype=torch.uint8),
    }  # fmt: skip
    expected = saved | {f"weights/{name}": weight for name, weight in module.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved.pt"
        torch.save(saved | {"weights": module.state_dict(), "step": 3}, path)
        read = firstdiff_pt.read(path)
        if read.keys() != expected.keys():
            raise SystemExit(f"{read.keys()} were read of {expected.keys()}")
        for name, tensor in expected.items():
            own = tensor.detach()
            own = own.view(torch.int16).numpy().view(np.uint16) if own.dtype == torch.bfloat16 else own.numpy()
            if own.dtype != read[name].dtype or not np.array_equal(own, read[name]):
                raise SystemExit(f"{name} was read otherwise than it was saved")
        torch.save(module, path)
        try:
            firstdiff_pt.read(path)
        except firstdiff_pt.Refused:
            print(f"{len(expected)} tensors of torch {torch.__version__} are read as they were saved")
        else:
            raise SystemExit("a whole module was read")


if __name__ == "__main__":
    main()
