"""Reads tensors from torch.save files with numpy alone; torch is not needed.

    arrays = firstdiff_pt.read("dump/step0.pt")     # {"layers.0/q": array, ...}

Converts a folder of such files to safetensors, for `firstdiff import` and `firstdiff align`:

    python3 firstdiff_pt.py dump converted
    firstdiff align converted --reference ref -o map.toml

A torch.save file is a pickle, which may run any code when loaded. This module calls only what builds tensors,
parameters, dicts and lists, and rejects a file that needs anything else, by name. bfloat16 is returned as its bits
in uint16, as firstdiff.Trace takes it. Numbers, strings and None are ignored.
"""

import collections
import io
import json
import pickle
import pickletools
import sys
import zipfile
from pathlib import Path

import numpy as np

MAX_PICKLE = 64 << 20  # bytes
MAX_ELEMENTS = 1 << 32  # of a tensor
MAX_REPEATED = 1 << 28  # of one that has more elements than its storage, as an expanded one
MAX_MEMO = 1 << 24
MAX_DEPTH = 16  # of dicts and lists
MAX_VALUES = 1 << 20  # in them: one list may be in many places
MAX_AXES = 64
STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "<u2",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1",
    "ByteStorage": "<u1", "BoolStorage": "?",
}  # fmt: skip
SAFETENSORS = {
    "<f8": "F64", "<f4": "F32", "<f2": "F16", "<u2": "BF16", "<i8": "I64", "<i4": "I32", "<i2": "I16",
    "|i1": "I8", "|u1": "U8", "|b1": "BOOL",
}  # fmt: skip
# What makes dicts, lists, tuples, numbers and texts, and calls what KNOWN has.
OPCODES = frozenset("""PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1
    BINFLOAT FLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 UNICODE BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES
    EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 GLOBAL
    STACK_GLOBAL REDUCE BINPERSID BUILD BINPUT LONG_BINPUT PUT BINGET LONG_BINGET GET MEMOIZE""".split())


class Refused(ValueError):
    """A file that torch.save did not write, that is damaged, or that holds more than tensors."""


def read(path):
    """The arrays of a file by their names: the keys that lead to each, with a slash between. A file that is one
    tensor has it as `tensor`."""
    arrays = {}
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                value = _load(archive)
            _collect(value, "", arrays, MAX_DEPTH, [MAX_VALUES])
        except Refused as error:
            raise Refused(f"{path}: {error}") from None
        except zipfile.BadZipFile:
            raise Refused(f"{path} is not a zip file of torch.save; save it with torch 1.6 or later") from None
        # What a damaged pickle or archive makes its reader raise is no short list.
        except Exception as error:
            raise Refused(f"{path} is damaged: {str(error)[:200]}; save it again") from None
    return arrays


def convert(dump, out):
    """Writes each .pt and .pth file below `dump` as a safetensors file below `out`; how many there were."""
    found = (path for path in Path(dump).rglob("*") if path.suffix in (".pt", ".pth"))
    files = sorted(path for path in found if path.is_file())
    for path in files:
        target = Path(out) / path.relative_to(dump).with_suffix(".safetensors")
        arrays = read(path)
        if not arrays:
            raise Refused(f"{path} has no tensor; save a dict of tensors")
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(arrays, target)
    return len(files)


def _load(archive):
    entries = {info.filename: info for info in archive.infolist()}
    [name, *more] = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")] or [None]
    if name is None or more:
        raise Refused("has no data.pkl, so torch.save did not write it")
    folder = name.removesuffix("data.pkl")
    if folder + "byteorder" in entries and _stored(archive, entries, folder + "byteorder") != b"little":
        raise Refused("was written on a big-endian machine; write it on a little-endian one")
    if entries[name].file_size > MAX_PICKLE:
        raise Refused(f"its data.pkl is longer than {MAX_PICKLE} bytes")
    data = _stored(archive, entries, name)
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL":
            _known(*argument.split(" ", 1))
        is_memo = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if opcode.name not in OPCODES or is_memo and int(argument) > MAX_MEMO:
            raise Refused(f"its pickle has {opcode.name} {argument or ''}".rstrip() + ", which no tensor needs")
    return _Tensors(data, lambda key: _stored(archive, entries, f"{folder}data/{key}")).load()


def _stored(archive, entries, name):
    info = entries.get(name)
    if info is None:
        raise Refused(f"lacks {name}")
    # torch.save never compresses; a few bytes could be a great many.
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise Refused(f"has a compressed {name}; torch.save writes it as it is")
    return archive.read(info)


class _Storage:
    """What a pickle names as the type of a storage."""

    def __init__(self, dtype):
        self.dtype = dtype


class _Tensors(pickle.Unpickler):
    """An unpickler that knows tensors only."""

    def __init__(self, data, read_storage):
        super().__init__(io.BytesIO(data))
        self.read_storage, self.storages = read_storage, {}

    def find_class(self, module, name):
        return _known(module, name)

    def persistent_load(self, words):
        kind, storage, key, _, count = words
        if kind != "storage" or not isinstance(storage, _Storage):
            raise Refused(f"has an unknown kind of storage, {kind!r}")
        if key not in self.storages:
            self.storages[key] = self.read_storage(key)
        array = np.frombuffer(self.storages[key], storage.dtype)
        if len(array) != count:
            raise Refused(f"says {count} elements of the storage {key}, which has {len(array)}")
        return array


def _rebuild_tensor(storage, offset, shape, strides, *_):
    """The part of a storage that a tensor is, without a copy."""
    numbers = (offset, *shape, *strides)
    is_part = isinstance(storage, np.ndarray) and len(numbers) <= 2 * MAX_AXES + 1
    if not is_part or any(type(n) is not int or not 0 <= n < 1 << 62 for n in numbers):
        raise Refused("has a tensor that is not part of a storage")
    count = int(np.prod(shape, dtype=object)) if shape else 1
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if count and last >= len(storage):
        raise Refused(f"has a tensor of shape {shape} that ends after its storage of {len(storage)} elements")
    if count > MAX_ELEMENTS or count > max(len(storage), MAX_REPEATED):
        raise Refused(f"has a tensor of shape {shape}, which has too many elements")
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def _rebuild_parameter(tensor, *_):
    return tensor


KNOWN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): _Storage(dtype) for name, dtype in STORAGES.items()},
}


def _known(module, name):
    """What a pickle may ask for by its name."""
    if (module, name) not in KNOWN:
        raise Refused(f"asks for {module}.{name}, which is not supported; save a dict of tensors, of 8 to 64 bits as numpy "
                      "has them, or bfloat16")  # fmt: skip
    return KNOWN[module, name]


def _collect(value, name, arrays, depth, left):
    """Adds the arrays of a value by their names."""
    if depth == 0:
        raise Refused(f"has dicts or lists nested {MAX_DEPTH} deep; save a flatter one")
    left[0] -= 1
    if left[0] < 0:
        raise Refused(f"has more than {MAX_VALUES} values in its dicts and lists; save fewer in a file")
    if isinstance(value, np.ndarray):
        arrays[name or "tensor"] = value
    elif isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            if type(key) not in (str, int):
                raise Refused(f"has {type(key).__name__} as a key in {name or 'its dict'}; use a string or a number")
            _collect(part, f"{name}/{key}" if name else str(key), arrays, depth - 1, left)


def _write(arrays, path):
    header, start = {}, 0
    for name, array in arrays.items():
        end = start + array.nbytes
        dtype = SAFETENSORS[array.dtype.str]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())


def main(arguments):
    if len(arguments) != 2:
        raise SystemExit("usage: firstdiff_pt.py DUMP OUT")
    dump, out = arguments
    try:
        count = convert(dump, out)
    except (Refused, OSError) as error:
        print(f"firstdiff_pt.py: {error}", file=sys.stderr)
        return 2
    if not count:
        print(f"firstdiff_pt.py: {dump} has no .pt or .pth file; name the folder of the dump", file=sys.stderr)
        return 2
    print(f"wrote {count} files to {out}; next: firstdiff align {out} --reference REF -o map.toml")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
