"""Writes a llama's GGUF as the checkpoint of llama2.c: f32, and a key and value head for each query head.

    python3 checkpoint.py MODEL.gguf MODEL.bin
"""

import sys

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

POSITIONS = 64
EACH_LAYER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_down", "ffn_up")


def main(model, out):
    file = GGUFReader(model)
    key = lambda name: file.get_field(f"llama.{name}").contents()
    tensors = {tensor.name: tensor for tensor in file.tensors}
    weight = lambda name: dequantize(tensors[name].data, tensors[name].tensor_type).astype("<f4")
    dim, heads, kv_heads = (key(f"{part}") for part in ("embedding_length", "attention.head_count",
                                                       "attention.head_count_kv"))  # fmt: skip
    head, layers, hidden = dim // heads, key("block_count"), key("feed_forward_length")
    vocab = len(weight("token_embd.weight"))
    tied = "output.weight" not in tensors
    angles = np.arange(POSITIONS)[:, None] * key("rope.freq_base") ** (-np.arange(head // 2) * 2 / head)
    with open(out, "wb") as checkpoint:
        sizes = (dim, hidden, layers, heads, kv_heads, vocab if tied else -vocab, POSITIONS)
        np.array(sizes, "<i4").tofile(checkpoint)
        weight("token_embd.weight").tofile(checkpoint)
        for part in EACH_LAYER:
            for layer in range(layers):
                own = weight(f"blk.{layer}.{part}.weight")
                if part in ("attn_k", "attn_v"):
                    own = own.reshape(kv_heads, head, dim).repeat(heads // kv_heads, 0)
                own.tofile(checkpoint)
        weight("output_norm.weight").tofile(checkpoint)
        for table in (np.cos(angles), np.sin(angles)):
            table.astype("<f4").tofile(checkpoint)
        if not tied:
            weight("output.weight").tofile(checkpoint)


if __name__ == "__main__":
    main(*sys.argv[1:])
