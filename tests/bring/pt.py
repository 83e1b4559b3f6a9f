"""Writes files as torch.save does, without torch, and files that it would not write; prints what is read of each."""

import collections
import io
import os
import pickle
import random
import re
import sys
import types
import zipfile
from pathlib import Path

import numpy as np

import firstdiff_pt


def module(name, **members):
    made = sys.modules[name] = types.ModuleType(name)
    for key, value in members.items():
        value.__module__, value.__qualname__, value.__name__ = name, key, key
        setattr(made, key, value)



STORAGES = {"<f4": "FloatStorage", "<f2": "HalfStorage", "<u2": "BFloat16Storage", "<f8": "DoubleStorage", "<i8": "LongStorage"}
module("torch", **{name: type(name, (), {}) for name in STORAGES.values()})
module("torch._utils", _rebuild_tensor_v2=lambda *_: None, _rebuild_parameter=lambda *_: None)
module("torch.nn", Module=type("Module", (), {}))


class Tensor:
    """A part of a storage."""

    def __init__(self, storage, shape=None, strides=None, offset=0, parameter=False):
        self.storage, self.offset, self.parameter = storage, offset, parameter
        self.shape = storage.shape if shape is None else shape
        self.strides = tuple(step // storage.itemsize for step in storage.strides) if strides is None else strides

    def __reduce__(self):
        words = (Storage(self.storage), self.offset, self.shape, self.strides, False, collections.OrderedDict())
        if not self.parameter:
            return sys.modules["torch._utils"]._rebuild_tensor_v2, words
        inner = Tensor(self.storage, self.shape, self.strides, self.offset)
        return sys.modules["torch._utils"]._rebuild_parameter, (inner, True, collections.OrderedDict())


class Storage:
    def __init__(self, array):
        self.array = array


class Writer(pickle.Pickler):
    def __init__(self, file, protocol=2):
        super().__init__(file, protocol)
        self.arrays = []

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        self.arrays.append(value.array)
        kind = getattr(sys.modules["torch"], STORAGES[value.array.dtype.str])
        return "storage", kind, str(len(self.arrays) - 1), "cpu", value.array.size


def save(path, value, byteorder=b"little", compression=zipfile.ZIP_STORED, cut=0, change=lambda data: data):
    file = io.BytesIO()
    writer = Writer(file)
    writer.dump(value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", change(file.getvalue()))
        archive.writestr("archive/byteorder", byteorder)
        for key, array in enumerate(writer.arrays):
            data = array.tobytes()
            archive.writestr(f"archive/data/{key}", data[: len(data) - cut], compression)


class Call:
    def __init__(self, function, *words):
        self.words = function, words

    def __reduce__(self):
        return self.words


def show(name):
    try:
        for key, array in firstdiff_pt.read(name).items():
            print(f"{name} {key} {array.dtype} {array.shape} {array.astype(np.float64).sum():g}")
    except firstdiff_pt.Refused as error:
        print(re.sub(" is damaged: .*", " is damaged", str(error)))  # further words are Python's


def main(folder):
    os.chdir(folder)
    x = np.arange(12, dtype="<f4").reshape(3, 4)
    good = {
        "layers": [{"q": Tensor(x), "k": Tensor(x.astype("<f2"), parameter=True)}],
        "v": Tensor(x, (4, 3), (1, 4)), "last": Tensor(x, (4,), (1,), 8), "bits": Tensor(np.array([16256], "<u2")),
        "one": Tensor(x[0, :1], (), ()), "many": Tensor(x[0, :1], (5,), (0,)), 7: Tensor(np.array([3], "<i8")), "step": 4,
    }  # fmt: skip
    save("good.pt", good)
    save("alone.pt", Tensor(x))
    for name in ("good.pt", "alone.pt"):
        show(name)
    save("system.pt", {"q": Call(os.system, "touch harmed")})
    save("module.pt", Call(sys.modules["torch.nn"].Module))
    save("past.pt", Tensor(x, (4, 4), (4, 1)))
    save("negative.pt", Tensor(x, (2,), (-1,), 3))
    save("huge.pt", Tensor(x, (1 << 30, 1 << 30), (0, 0)))
    save("short.pt", Tensor(x), cut=4)
    save("big.pt", Tensor(x), byteorder=b"big")
    save("zipped.pt", Tensor(x), compression=zipfile.ZIP_DEFLATED)
    save("memo.pt", Tensor(x), change=lambda data: data[:-1] + b"r\xff\xff\xff\x7f.")
    save("extension.pt", Tensor(x), change=lambda data: b"\x80\x02\x82\x01.")
    save("halved.pt", good, change=lambda data: data[: len(data) // 2])
    nested = Tensor(x)
    for _ in range(20):
        nested = [nested]
    save("deep.pt", nested)
    laughs = [Tensor(x)]
    for _ in range(8):
        laughs = [laughs] * 10
    save("laughs.pt", laughs)
    save("axes.pt", Tensor(x[0, :1], (1,) * 65, (0,) * 65))
    Path("old.pt").write_bytes(pickle.dumps([1, 2]))
    with zipfile.ZipFile("empty.pt", "w") as archive:
        archive.writestr("a", "b")
    for name in ("system", "module", "past", "negative", "huge", "short", "big", "zipped", "memo", "extension", "halved",
                 "deep", "laughs", "axes", "old", "empty"):  # fmt: skip
        show(f"{name}.pt")
    whole, refused = Path("good.pt").read_bytes(), 0
    for seed in range(500):
        chance, data = random.Random(seed), bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(data))
            data[at : at + chance.choice([1, 1, 8])] = chance.randbytes(chance.choice([0, 1, 1, 8]))
        Path("damaged.pt").write_bytes(data)
        try:
            firstdiff_pt.read("damaged.pt")
        except firstdiff_pt.Refused:
            refused += 1
    print("damaged:", 100 < refused < 500)
    print("harmed:", Path("harmed").exists())
    Path("dump/a").mkdir(parents=True)
    save("dump/a/s0.pt", {"q": Tensor(x)})
    print(firstdiff_pt.main(["dump", "out"]), firstdiff_pt.main(["out", "none"]))
    from safetensors.numpy import load_file

    print(load_file("out/a/s0.safetensors")["q"].tolist() == x.tolist())


if __name__ == "__main__":
    main(sys.argv[1])
