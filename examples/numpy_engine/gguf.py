"""Reads a GGUF file: its keys, and its f32 and f16 tensors as f32."""

import struct

import numpy as np

# Value types by number; 8 is a string, 9 an array.
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Gguf:
    def __init__(self, path):
        self.path = path
        self.bytes = np.memmap(path, dtype=np.uint8, mode="r")
        self.at = 0
        if self._take(4) != b"GGUF" or self._number("I") < 2:
            raise SystemExit(f"{path} is not a GGUF file of version 2 or later")
        tensors, keys = self._number("Q"), self._number("Q")
        self.keys = {}
        for _ in range(keys):
            name = self._string()
            self.keys[name] = self._value(self._number("I"))
        self.tensors = {}
        for _ in range(tensors):
            name = self._string()
            dims = [self._number("Q") for _ in range(self._number("I"))]
            self.tensors[name] = (dims, self._number("I"), self._number("Q"))
        alignment = self.keys.get("general.alignment", 32)
        self.data = (self.at + alignment - 1) // alignment * alignment

    def tensor(self, name):
        """The tensor as f32, its slowest axis first; None where there is none."""
        if name not in self.tensors:
            return None
        dims, kind, offset = self.tensors[name]
        if kind not in (0, 1):
            raise SystemExit(f"{self.path}: {name} is quantised; this example reads f32 and f16")
        dtype = np.dtype("<f4" if kind == 0 else "<f2")
        start = self.data + offset
        raw = self.bytes[start : start + int(np.prod(dims)) * dtype.itemsize]
        return raw.view(dtype).astype(np.float32).reshape(dims[::-1])

    def _take(self, count):
        taken = self.bytes[self.at : self.at + count].tobytes()
        if len(taken) != count:
            raise SystemExit(f"{self.path} is truncated; download it again")
        self.at += count
        return taken

    def _number(self, code):
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _string(self):
        return self._take(self._number("Q")).decode("utf-8", "replace")

    def _value(self, kind):
        if kind == 8:
            return self._string()
        if kind == 9:
            inner = self._number("I")
            return [self._value(inner) for _ in range(self._number("Q"))]
        return self._number(FORMATS[kind])
