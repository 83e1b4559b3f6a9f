"""A cache kept in ggml's blocks or in 8-bit floats."""

import sys
from pathlib import Path

import numpy as np

# Where the wheel is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))
import firstdiff  #+

# Each differs from the quantisation as it is by one mistake.
BUGS = """
    scale-of-block-before integers-cut-off signs-lost integers-saturate scale-of-two-heads
""".split()
KINDS = "q8_0 q4_0 q4_1 q5_0 q5_1 e4m3 e5m2".split()
LENGTH = 32  # elements of a block


def numbers(kind):
    """What each byte of a number of 8 bits stands for."""
    fraction, bias = (3, 7) if kind == "e4m3" else (2, 15)
    byte = np.arange(256)
    sign, exponent, bits = 1 - 2 * (byte >> 7), (byte & 127) >> fraction, byte & ((1 << fraction) - 1)
    part = bits / (1 << fraction)
    x = np.where(exponent, (1 + part) * 2.0 ** (exponent - bias), part * 2.0 ** (1 - bias))
    last = (byte & 127) == 127 if kind == "e4m3" else exponent == 31
    return np.where(last, np.nan, sign * x)


class Cache:
    """Keys and values of a type, with the bytes of every layer."""

    def __init__(self, kind, bug, layers):
        self.kind, self.bug = kind, bug
        self.bytes = [[None, None] for _ in range(layers)]

    def append(self, layer, k, v):
        """Keeps new rows, (T, heads, dim); what an attention reads of them."""
        read = []
        for place, rows in enumerate((k, v)):
            kept = self.quantised(rows)
            before = self.bytes[layer][place]
            self.bytes[layer][place] = kept if before is None else np.concatenate([before, kept])
            read.append(self.widened(kept))
        return read

    def kept(self, layer):
        return [firstdiff.Blocks(self.kind, data) for data in self.bytes[layer]]  #+

    def scales(self, x):
        """Scale and minimum of each block of x: (..., blocks, 32)."""
        bits, zero = int(self.kind[1]), np.zeros(x.shape[:-1] + (1,), np.float32)
        if self.kind.endswith("_1"):
            low = x.min(-1, keepdims=True)
            return (x.max(-1, keepdims=True) - low) / np.float32((1 << bits) - 1), low
        if self.kind == "q8_0":
            return np.abs(x).max(-1, keepdims=True) / np.float32(127), zero
        largest = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)
        return largest / np.float32(-(1 << (bits - 1))), zero

    def quantised(self, rows):
        if self.kind in ("e4m3", "e5m2"):
            return self.of_numbers(rows)
        x = rows.reshape(*rows.shape[:-1], -1, LENGTH)
        scale, low = self.scales(x)
        if self.bug == "scale-of-two-heads":  # neighbouring heads share the larger one
            pair = scale.reshape(len(rows), -1, 2, *scale.shape[2:])
            largest = np.abs(pair).max(2, keepdims=True)
            scale = np.broadcast_to(largest, pair.shape).reshape(scale.shape)
        if self.bug == "integers-saturate":
            scale = scale / 2
        inverse = np.where(scale, 1 / np.where(scale, scale, 1), 0).astype(np.float32)
        bits, q = int(self.kind[1]), (x - low) * inverse
        if self.bug == "scale-of-block-before":
            scale = np.roll(scale.reshape(len(rows), -1), 1, -1).reshape(scale.shape)
        if self.bug == "signs-lost":
            q = np.abs(q)
        if self.kind == "q8_0":
            q = np.trunc(q) if self.bug == "integers-cut-off" else np.trunc(q + np.copysign(0.5, q))
            q = np.clip(q, -127, 127)
        else:
            middle = 0 if self.kind.endswith("_1") else 1 << (bits - 1)
            half = 0 if self.bug == "integers-cut-off" else 0.5
            q = np.clip(np.trunc(q + np.float32(middle + half)), 0, (1 << bits) - 1)
        return self.packed(scale, low, q.astype(np.int8 if bits == 8 else np.uint8))

    def packed(self, scale, low, q):
        halves = [scale] + [low] * self.kind.endswith("_1")
        parts = [x.astype("<f2").view(np.uint8) for x in halves]
        if self.kind[1] == "8":
            parts.append(q.view(np.uint8))
        else:
            if self.kind[1] == "5":
                parts.append(np.packbits(q >> 4, axis=-1, bitorder="little"))
            parts.append((q[..., :16] & 15) | ((q[..., 16:] & 15) << 4))
        blocks = np.concatenate(parts, -1)
        return blocks.reshape(*blocks.shape[:-2], -1)

    def widened(self, data):
        """The numbers that bytes stand for."""
        if self.kind in ("e4m3", "e5m2"):
            return numbers(self.kind)[data].astype(np.float32)
        has_low, bits = self.kind.endswith("_1"), int(self.kind[1])
        size = 2 + 2 * has_low + {8: 32, 5: 20, 4: 16}[bits]
        blocks = data.reshape(*data.shape[:-1], -1, size)
        half = lambda at: np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2").astype(np.float32)
        scale, low, at = half(0), half(2) if has_low else 0, 2 + 2 * has_low
        if bits == 8:
            q = np.ascontiguousarray(blocks[..., at:]).view(np.int8).astype(np.float32)
        else:
            nibbles = blocks[..., -16:]
            q = np.concatenate([nibbles & 15, nibbles >> 4], -1).astype(np.float32)
            if bits == 5:
                q += 16 * np.unpackbits(blocks[..., at : at + 4], axis=-1, bitorder="little")
            q -= 0 if has_low else 1 << (bits - 1)
        x = scale * q + np.float32(0) + low
        return x.reshape(*x.shape[:-2], -1)

    def of_numbers(self, rows):
        """The nearest number of 8 bits to each; of two the even one."""
        table = numbers(self.kind)[:127 if self.kind == "e4m3" else 124]
        x = np.abs(rows.astype(np.float64))
        if self.bug == "integers-cut-off":
            byte = np.searchsorted(table, x, "right") - 1
        else:
            above = np.clip(np.searchsorted(table, x), 1, len(table) - 1)
            below, up = x - table[above - 1], table[above] - x
            byte = np.where((up < below) | ((up == below) & (above % 2 == 0)), above, above - 1)
        lost = self.bug == "signs-lost"
        return (byte + np.where(np.signbit(rows) & (not lost), 128, 0)).astype(np.uint8)
