#!/usr/bin/env python3
"""A forward pass of llama, qwen2, qwen3 and qwen3moe models in plain numpy, to show how an engine is recorded.

    python3 examples/numpy_engine/engine.py MODEL.gguf PLAN.txt [TRACE] [--ranks N] [--bug NAME]

Runs the token ids of a plan that `firstdiff capture reference` wrote, and records what it computes
in the folder TRACE. Recording takes only the lines marked with #+. f32, with f32 and f16
weights. --ranks divides the heads, the feed-forward network and the vocabulary over that many
processes. --batch runs three sequences in a step. --cache keeps a quantised cache.
--bug plants a mistake.
"""

import argparse
import functools
import sys
from pathlib import Path

import batch
import experts
import numpy as np
import quantised
import ranks
from gguf import Gguf

# Where the wheel is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))
import firstdiff  #+

BUGS = """
    embd-previous-row attn-norm-weight-missing norm-mean-subtracted qkv-bias-zero q-bias-broadcast
    k-bias-of-v wk-of-next-layer rope-pairs-interleaved rope-base-1e4 rope-k-missing rope-backwards
    v-cache-heads-swapped decode-never-appended kv-head-modulo scale-squared mask-missing
    softmax-temperature out-heads-reversed wo-transposed attn-residual-of-normed relu-for-silu
    act-without-up ffn-down-zero logits-tied-mistaken
""".split()


class Engine:
    def __init__(self, path, bug, ranks):
        self.file, self.bug, self.ranks, self.last, self.cache = Gguf(path), bug, ranks, False, None
        arch = self.file.keys["general.architecture"]
        if arch not in ("llama", "qwen2", "qwen3", "qwen3moe"):
            raise SystemExit(f"{path} is a {arch} model; this example runs llama, qwen2, qwen3 and qwen3moe")
        key = lambda name, absent=None: self.file.keys.get(f"{arch}.{name}", absent)
        self.layers = key("block_count")
        self.heads = key("attention.head_count")
        self.kv_heads = key("attention.head_count_kv", self.heads)
        self.dim = key("attention.key_length", key("embedding_length") // self.heads)
        self.eps = np.float32(key("attention.layer_norm_rms_epsilon"))
        self.theta = 1e4 if bug == "rope-base-1e4" else key("rope.freq_base", 1e4)
        self.interleaved = (arch == "llama") != (bug == "rope-pairs-interleaved")
        self.weights = {name: self.file.tensor(name) for name in self.file.tensors}
        count = key("expert_count", 0)
        self.mixture = experts.Mixture(count, key("expert_used_count"), ranks, bug) if count else None
        words = f"o_proj=partial {experts.SPLIT if count else 'neuron ffn_down=partial'}"
        gathered = bug == "logits-of-ranks-reversed"
        ranks.declare(f"head {words}{' vocab' if not gathered else ''}")
        if ranks.world > 1:
            ranks.divide(self.weights, self.layers, self.heads, self.kv_heads, self.dim)
            self.heads, self.kv_heads = len(ranks.share(self.heads)), len(ranks.share(self.kv_heads))
        self.keys = [np.zeros((0, self.kv_heads, self.dim), np.float32)] * self.layers
        self.values = list(self.keys)

    def weight(self, name, layer=None):
        return self.weights.get(name if layer is None else f"blk.{layer}.{name}")

    def norm(self, x, weight):
        if self.bug == "norm-mean-subtracted":
            x = x - x.mean(-1, keepdims=True)
        y = x / np.sqrt((x * x).mean(-1, keepdims=True, dtype=np.float32) + self.eps)
        if self.bug == "norm-of-shard" and x.ndim == 2:
            y = x / np.sqrt(self.ranks.means_of_shares(x * x) + self.eps)
        return y if weight is None else y * weight

    def linear(self, x, name, layer=None):
        weight = self.weight(f"{name}.weight", layer)
        if self.bug == "wk-of-next-layer" and name == "attn_k":
            weight = self.weight("attn_k.weight", (layer + 1) % self.layers)
        if self.bug == "wo-transposed" and name == "attn_output":
            weight = weight.reshape(weight.shape[::-1]).T
        if self.bug == "ffn-down-zero" and name == "ffn_down":
            weight = np.zeros_like(weight)
        bias = self.weight(f"{name}.bias", layer)
        if self.bug == "k-bias-of-v" and name == "attn_k":
            bias = self.weight("attn_v.bias", layer)
        if self.bug == "q-bias-broadcast" and name == "attn_q":
            bias = np.tile(bias[: self.dim], self.heads)
        y = x @ weight.T
        return y if bias is None or self.bug == "qkv-bias-zero" else y + bias

    def positions(self, first, count):
        return first + np.arange(count)

    def rope(self, x, first):
        """x: (T, heads, dim)"""
        half = self.dim // 2
        turn = self.theta ** (-2.0 * np.arange(half) / self.dim)
        factors = self.weight("rope_freqs.weight")
        turn = turn if factors is None else turn / factors
        angle = (self.positions(first, len(x))[:, None] * turn).astype(np.float32)[:, None, :]
        cos, sin = np.cos(angle), np.sin(angle)
        if self.bug == "rope-backwards":
            sin = -sin
        pairs = (slice(0, None, 2), slice(1, None, 2))
        a, b = pairs if self.interleaved else (slice(0, half), slice(half, None))
        y = np.empty_like(x)
        y[..., a] = x[..., a] * cos - x[..., b] * sin
        y[..., b] = x[..., a] * sin + x[..., b] * cos
        return y

    def append(self, layer, k, v, first):
        if self.bug == "v-cache-heads-swapped":
            v = v[:, ::-1]
        if self.bug == "decode-never-appended" and first:
            k, v = np.zeros_like(k), np.zeros_like(v)
        if self.cache:
            k, v = self.cache.append(layer, k, v)
        self.keys[layer] = np.concatenate([self.keys[layer], k])
        self.values[layer] = np.concatenate([self.values[layer], v])
        return self.keys[layer], self.values[layer]

    def attend(self, q, keys, values, first):
        """q: (T, Hq, D), keys and values: (P, Hk, D); scores and probs: (Hq, T, P)"""
        group = self.heads // self.kv_heads
        kv = np.arange(self.heads) // group
        if self.bug == "kv-head-modulo":
            kv = np.arange(self.heads) % self.kv_heads
        scale = np.float32(1 / np.sqrt(self.dim))
        scale = scale * scale if self.bug == "scale-squared" else scale
        k, v = keys[:, kv].transpose(1, 0, 2), values[:, kv].transpose(1, 0, 2)
        scores = q.transpose(1, 0, 2) @ k.transpose(0, 2, 1) * scale
        later = np.arange(len(keys)) > (first + np.arange(len(q)))[:, None]
        masked = scores if self.bug == "mask-missing" else np.where(later, -np.inf, scores)
        masked = masked / 2 if self.bug == "softmax-temperature" else masked
        probs = np.exp(masked - masked.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        out = (probs @ v).transpose(1, 0, 2)
        return scores, probs, out[:, ::-1] if self.bug == "out-heads-reversed" else out

    def activation(self, gate, up):
        if self.bug == "relu-for-silu":
            return np.maximum(gate, 0) * up
        act = gate / (1 + np.exp(-gate))
        return act if self.bug == "act-without-up" else act * up

    def layer(self, x, l, first, trace):
        split = lambda y: y.reshape(len(y), -1, self.dim)
        attn_norm = self.norm(
            x, None if self.bug == "attn-norm-weight-missing" else self.weight("attn_norm.weight", l)
        )
        q, k, v = (split(self.linear(attn_norm, f"attn_{part}", l)) for part in "qkv")
        trace.put(l, attn_norm=attn_norm, q=q, k=k, v=v)  #+
        if self.weight("attn_q_norm.weight", l) is not None:
            q = self.norm(q, self.weight("attn_q_norm.weight", l))
            k = self.norm(k, self.weight("attn_k_norm.weight", l))
            trace.put(l, q_norm=q, k_norm=k)  #+
        q = self.rope(q, first)
        k = k if self.bug == "rope-k-missing" else self.rope(k, first)
        keys, values = self.append(l, k, v, first)
        scores, probs, out = self.attend(q, keys, values, first)
        if self.cache:
            keys, values = self.cache.kept(l)
        trace.put(l, q_rope=q, k_rope=k, k_cache=keys, v_cache=values, attn_out=out)  #+
        trace.put(l, axes="head token key", scores=scores, probs=probs)  #+
        o_proj = self.linear(out.reshape(len(x), -1), "attn_output", l)
        residual = (attn_norm if self.bug == "attn-residual-of-normed" else x) + self.ranks.all_reduce(o_proj)
        ffn_norm = self.norm(residual, self.weight("ffn_norm.weight", l))
        if self.mixture:
            down = self.mixture(self, ffn_norm, l, trace)
        else:
            down = self.feed_forward(ffn_norm, l, trace)
        x = residual + self.ranks.all_reduce(down)
        if self.bug == "residual-on-each-rank":
            x = self.ranks.all_reduce(residual + down)
        trace.put(l, o_proj=o_proj, attn_residual=residual, ffn_norm=ffn_norm, layer_out=x)  #+
        return x

    def feed_forward(self, ffn_norm, l, trace):
        gate, up = self.linear(ffn_norm, "ffn_gate", l), self.linear(ffn_norm, "ffn_up", l)
        act = self.activation(gate, up)
        down = self.linear(act, "ffn_down", l)
        trace.put(l, ffn_gate=gate, ffn_up=up, ffn_act=act, ffn_down=down)  #+
        return down

    def begin(self, ids, first, trace):
        trace.step(ids, first)  #+

    def step(self, ids, first, trace):
        """The logits of all tokens of a step: (T, V)"""
        embd = self.weight("token_embd.weight")
        x = embd[np.array(ids) - (self.bug == "embd-previous-row")]
        if self.ranks.world > 1:
            x = self.ranks.embed(embd, np.array(ids))
        self.begin(ids, first, trace)
        trace.put(embd=x)  #+
        for layer in range(self.layers):
            x = self.layer(x, layer, first, trace)
        final_norm = self.norm(x, self.weight("output_norm.weight"))
        output = self.weight("output.weight")
        tied = output is None or self.bug == "logits-tied-mistaken"
        output = embd if tied else output
        read = final_norm[-1:] if self.last else final_norm
        logits = read @ output[self.ranks.share(len(output))].T
        whole = self.ranks.gather(logits, lambda parts: np.concatenate(parts, axis=1))
        if self.bug == "logits-of-ranks-reversed":
            whole = logits = self.ranks.gather(logits, lambda parts: np.concatenate(parts[::-1], axis=1))
        trace.put(final_norm=final_norm, logits=logits)  #+
        return whole


def divided(steps, sizes):
    """All tokens in steps of these sizes; the last is repeated."""
    ids, parts = sum(steps, []), []
    while sizes and ids:
        size = sizes[min(len(parts), len(sizes) - 1)]
        parts, ids = parts + [ids[:size]], ids[size:]
    return parts or steps


def run(args, ranks):
    engine, first = Engine(args.model, args.bug, ranks), 0
    engine.last = args.last
    engine.cache = quantised.Cache(args.cache, args.bug, engine.layers) if args.cache else None
    with firstdiff.Trace(args.trace, args.plan, "numpy_engine", shard=ranks.shard) as trace:  #+
        for name, weight in engine.weights.items():  #+
            trace.weight(name, weight)  #+
        trace.plan.steps = divided(trace.plan.steps, args.chunks)
        recording, trace.on = trace.on, False
        for ids in trace.plan.steps[: args.after]:  # as if a cache of prefixes had them
            engine.step(ids, first, trace)
            first += len(ids)
        trace.plan.steps, trace.on = trace.plan.steps[args.after :], recording
        planned = len(trace.plan.steps)
        for step, ids in enumerate(trace.plan.steps):
            logits = engine.step(ids, first, trace)
            first += len(ids)
            if ranks.rank == 0:
                print(f"step {step}: {len(ids)} tokens, then {logits[-1].argmax()}")
            if step + 1 == len(trace.plan.steps) < planned + trace.plan.decode:
                trace.plan.steps.append([int(logits[-1].argmax())])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("plan")
    parser.add_argument("trace", nargs="?")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--chunks", type=lambda text: [int(n) for n in text.split(",")], default=[],
                        help="run the tokens in steps of these sizes, such as 7 or 16,1")  # fmt: skip
    parser.add_argument("--last", action="store_true", help="logits of a step's last token only")
    parser.add_argument("--after", type=int, default=0, help="record only the steps after the first N")
    parser.add_argument("--batch", choices=batch.KINDS, help="run several sequences in a step")
    parser.add_argument("--cache", choices=quantised.KINDS, help="keep the cache in blocks of this type")
    bugs = BUGS + ranks.BUGS + batch.BUGS + experts.BUGS + quantised.BUGS
    parser.add_argument("--bug", choices=bugs)
    args = parser.parse_args()
    if args.batch:
        batch.run(args, Engine, ranks.Ranks())
    elif args.ranks == 1:
        run(args, ranks.Ranks())
    else:
        ranks.start(args.ranks, functools.partial(run, args), args.bug)


if __name__ == "__main__":
    main()
