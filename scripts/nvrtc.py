#!/usr/bin/env python3
"""Compiles every kernel with the real NVRTC, which needs no GPU: do they compile for devices?

Usage: nvrtc.py [--arch sm_90]... (from a Python that has the packages of scripts/nvrtc.sh)

Each file of kernels/ and kernels/cuda/ is compiled for each architecture: attention.cu in all eight
variants, attention_tiled.cu and attention_split.cu for several shapes of heads. Exit status: 0 all compile, 1 one does not, 2 NVRTC
is missing.
"""

import argparse
import ctypes
import itertools
import os
import pathlib
import re
import sys
import time

ARCHITECTURES = ["sm_80", "sm_90", "sm_120"]
KERNELS = pathlib.Path(__file__).resolve().parent.parent / "kernels"
EXAMPLES = KERNELS.parent / "examples/kernels"
# What a contract adds to a kernel (src/engine/contract/signature.rs), as short as it gets.
SIGNATURE = """
#include "signature.cuh"
typedef firstdiff_parameters<decltype(&ENTRY)> firstdiff_of_entry;
static_assert(firstdiff_of_entry::count > 0 && firstdiff_of_entry::code(0) > 0, "");
"""
# The options of the cuda device (src/engine/device/cuda/mod.rs).
OPTIONS = ["--generate-line-info", "--std=c++17", "--device-as-default-execution-space"]
# Definitions of a file: the attention variants, and head sizes with query heads of a block.
VARIANTS = {
    "attention.cu": [
        [f"SCALE_POST={scale}", f"DOT_WARP={dot}", f"SOFTMAX_ONLINE={online}"]
        for scale, dot, online in itertools.product((0, 1), repeat=3)
    ],
    "attention_tiled.cu": [[f"HEAD_DIM={dim}"] for dim in (8, 24, 64, 128)],
    "attention_split.cu": [
        [f"HEAD_DIM={dim}", f"HEADS={heads}"] for dim, heads in ((24, 1), (64, 1), (64, 7), (80, 1), (128, 8))
    ],
}


def find(pattern: str) -> pathlib.Path | None:
    """The first match of a pattern in the nvidia folder of a site-packages."""
    for folder in map(pathlib.Path, sys.path):
        found = sorted(folder.glob(f"nvidia/{pattern}"))
        if found:
            return found[0]
    return None


class Nvrtc:
    """The library, and the folder of CUDA's headers."""

    def __init__(self) -> None:
        library, headers = find("*/lib/libnvrtc.so.*"), find("*/include/cuda_fp16.h")
        if library is None or headers is None:
            print("nvrtc.py: no NVRTC in this Python; run scripts/nvrtc.sh", file=sys.stderr)
            raise SystemExit(2)
        self.library = ctypes.CDLL(os.fspath(library))
        self.headers = headers.parent
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def compile(self, name: str, text: str, options: list[str]) -> tuple[list[str], str]:
        """The entries of a compiled text, or none and the compiler's log."""
        lib, program = self.library, ctypes.c_void_p()
        status = lib.nvrtcCreateProgram(
            ctypes.byref(program), text.encode(), name.encode(), 0, None, None
        )
        if status != 0:
            return [], f"nvrtcCreateProgram: error {status}"
        encoded = [option.encode() for option in options]
        array = (ctypes.c_char_p * len(encoded))(*encoded)
        status = lib.nvrtcCompileProgram(program, len(encoded), array)
        log = self.read(lib.nvrtcGetProgramLogSize, lib.nvrtcGetProgramLog, program)
        ptx = "" if status else self.read(lib.nvrtcGetPTXSize, lib.nvrtcGetPTX, program)
        lib.nvrtcDestroyProgram(ctypes.byref(program))
        return re.findall(r"\.entry (\w+)", ptx), log

    @staticmethod
    def read(size_of, read_into, program: ctypes.c_void_p) -> str:
        size = ctypes.c_size_t()
        size_of(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        read_into(program, buffer)
        return buffer.value.decode(errors="replace")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", metavar="ARCH", help=f"default: {ARCHITECTURES}")
    architectures = parser.parse_args().arch or ARCHITECTURES
    nvrtc, start = Nvrtc(), time.monotonic()
    failures = compiled = entries = 0
    for path in sorted([*KERNELS.glob("*.cu"), *KERNELS.glob("cuda/*.cu"), *EXAMPLES.glob("*.cu")]):
        text = path.read_text()
        wanted = re.findall(r'^extern "C" __global__ void (\w+)\(', text, re.MULTILINE)
        if path.parent == EXAMPLES:
            text += SIGNATURE.replace("ENTRY", wanted[0])
        for arch, defines in itertools.product(architectures, VARIANTS.get(path.name, [[]])):
            options = [f"--gpu-architecture={arch}", *OPTIONS, *(f"-D{d}" for d in defines)]
            options += [f"--include-path={KERNELS}", f"--include-path={nvrtc.headers}"]
            found, log = nvrtc.compile(path.name, text, options)
            compiled += 1
            entries += len(found)
            if not wanted or sorted(found) != sorted(wanted):
                failures += 1
                what = " ".join([path.name, arch, *defines])
                print(f"{what}: does not compile to {', '.join(wanted)}\n{log}", file=sys.stderr)
    seconds, archs = time.monotonic() - start, ", ".join(architectures)
    done = f"{compiled - failures} of {compiled} compilations for {archs}, {entries} entries"
    print(f"NVRTC {nvrtc.version}: {done}, {seconds:.1f} s")
    return 1 if failures or not compiled else 0


if __name__ == "__main__":
    sys.exit(main())
