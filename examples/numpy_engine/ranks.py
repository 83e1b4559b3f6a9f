"""Tensor parallelism: one process per rank, with its shard of the weights, and all-reduces between them."""

import multiprocessing
import sys

import numpy as np

# Each differs from tensor parallelism as it is by one mistake.
BUGS = """
    all-reduce-missing all-reduce-twice residual-on-each-rank bias-on-each-rank heads-in-turn
    heads-of-first-rank fused-qkv-cut kv-heads-in-turn norm-of-shard ids-not-masked ids-offset
    logits-of-ranks-reversed
""".split()


class Ranks:
    """One rank of `world`. Its pipes lead to rank 0, and rank 0's to all others."""

    def __init__(self, rank=0, world=1, pipes=(), bug=None):
        self.rank, self.world, self.pipes, self.bug = rank, world, pipes, bug
        self.shard = None

    def declare(self, words):
        """How the sites are split, where there are several ranks."""
        self.shard = (self.rank, self.world, words) if self.world > 1 else None

    def gather(self, x, join):
        """What `join` makes of a list of every rank's x, on every rank."""
        if self.rank:
            self.pipes[0].send(x)
            return self.pipes[0].recv()
        whole = join([x] + [pipe.recv() for pipe in self.pipes])
        for pipe in self.pipes:
            pipe.send(whole)
        return whole

    def all_reduce(self, x):
        x = self.gather(x, sum) if self.bug == "all-reduce-twice" else x
        return x if self.bug == "all-reduce-missing" else self.gather(x, sum)

    def embed(self, table, ids):
        """Rows of a table that is divided by ids: others' are zero before they are summed."""
        own = self.share(len(table))
        place = ids - own[0] - (self.rank if self.bug == "ids-offset" else 0)
        is_own = (ids >= own[0]) & (ids <= own[-1])
        rows = table[own][np.where(is_own, place, 0)]
        return self.gather(rows if self.bug == "ids-not-masked" else rows * is_own[:, None], sum)

    def means_of_shares(self, x):
        """The mean of each rank's share of a row, as if that were the whole."""
        parts = np.array_split(x, self.world, -1)
        return np.concatenate([np.broadcast_to(part.mean(-1, keepdims=True), part.shape) for part in parts], -1)

    def share(self, n):
        """Which of n heads, neurons or ids are this rank's; of fewer KV heads than ranks, one."""
        if n < self.world:
            in_turn = self.bug == "kv-heads-in-turn"
            return np.array([self.rank % n if in_turn else self.rank * n // self.world])
        return np.array_split(np.arange(n), self.world)[self.rank]

    def heads(self, n):
        if self.bug == "heads-in-turn":
            return np.arange(n)[self.rank :: self.world]
        return np.arange(n // self.world) if self.bug == "heads-of-first-rank" else self.share(n)

    def divide(self, weights, layers, heads, kv_heads, dim):
        """Leaves of each weight what this rank multiplies with."""
        of_heads = lambda heads: (heads[:, None] * dim + np.arange(dim)).ravel()
        q, kv = of_heads(self.heads(heads)), of_heads(self.heads(kv_heads))
        rows = {"attn_q": q, "attn_k": kv, "attn_v": kv}
        for l in range(layers):
            name = lambda part: f"blk.{l}.{part}"
            if self.rank and self.bug != "bias-on-each-rank":  # the first rank's sum has it
                weights.pop(name("attn_output.bias"), None)
                weights.pop(name("ffn_down.bias"), None)
            for kind in "weight", "bias":
                parts = [weights.get(name(f"attn_{part}.{kind}")) for part in "qkv"]
                if self.bug == "fused-qkv-cut" and parts[0] is not None:
                    own = np.array_split(np.concatenate(parts), self.world)[self.rank]
                    cut = np.split(own, [len(q), len(q) + len(kv)])
                    weights.update(zip([name(f"attn_{part}.{kind}") for part in "qkv"], cut))
                    continue
                for part, of in rows.items():
                    if name(f"{part}.{kind}") in weights:
                        weights[name(f"{part}.{kind}")] = weights[name(f"{part}.{kind}")][of]
            columns = {"attn_output.weight": of_heads(self.share(heads))}
            if name("ffn_gate.weight") in weights:
                neurons = self.share(len(weights[name("ffn_gate.weight")]))
                columns["ffn_down.weight"] = neurons
                for part in "ffn_gate", "ffn_up":
                    for kind in "weight", "bias":
                        if name(f"{part}.{kind}") in weights:
                            weights[name(f"{part}.{kind}")] = weights[name(f"{part}.{kind}")][neurons]
            for part, of in columns.items():
                weights[name(part)] = weights[name(part)][:, of]


def start(world, run, bug):
    """Calls run(ranks) in a process for each rank; the first that fails ends all."""
    pairs = [multiprocessing.Pipe() for _ in range(world - 1)]
    pipes = [tuple(pair[0] for pair in pairs)] + [(pair[1],) for pair in pairs]
    all_ranks = [Ranks(rank, world, pipes[rank], bug) for rank in range(world)]
    processes = [multiprocessing.Process(target=run, args=(ranks,)) for ranks in all_ranks]
    for process in processes:
        process.start()
    left = list(processes)
    while left:
        multiprocessing.connection.wait([process.sentinel for process in left])
        left = [process for process in left if process.is_alive()]
        if any(process.exitcode for process in processes):
            for process in left:
                process.terminate()
            sys.exit(1)
