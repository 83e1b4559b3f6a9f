"""A mixture of experts as in qwen3moe: all experts, or those of one rank."""

import numpy as np

# Each differs from the mixture as it is by one mistake.
BUGS = """
    expert-map-in-turn expert-map-shifted expert-of-other expert-down-of-other slots-exchanged
    weights-of-other-slots experts-of-a-rank-lost experts-of-a-rank-twice
""".split()
# What a rank has of the slots of its own experts, and zeros of the others.
SPLIT = " ".join(f"ffn_moe_{part}=partial" for part in "gate up swiglu down weighted out".split())


class Mixture:
    """Which experts are this rank's, and how many each token goes to."""

    def __init__(self, experts, used, ranks, bug):
        self.used, self.ranks, self.bug = used, ranks, bug
        self.all, self.own = np.arange(experts), ranks.share(experts)

    def weights_of(self, expert, part, layer):
        """The expert whose weights are used for one."""
        place, world = expert - self.own[0], self.ranks.world
        if self.bug == "expert-map-in-turn":  # loaded in turn, looked up in blocks
            return place * world + self.ranks.rank
        if self.bug == "expert-map-shifted":
            return (expert + 1) % len(self.all)
        of_down = self.bug == "expert-down-of-other" and part == "down" and layer == 1
        return 5 if expert == 3 and (self.bug == "expert-of-other" or of_down) else expert

    def route(self, logits):
        """Of each token all experts, the chosen first, and the weights of these."""
        probs = np.exp(logits - logits.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        order = np.argsort(-probs, axis=-1, kind="stable")
        return probs, order, np.take_along_axis(probs, order[:, : self.used], -1)

    def __call__(self, engine, x, l, trace):
        """x: (T, E); the sum over this rank's experts, before that over the ranks."""
        logits = engine.linear(x, "ffn_gate_inp", l)
        probs, order, weights = self.route(logits)
        chosen, total = order[:, : self.used], weights.sum(-1)
        norm = weights / total[:, None]
        trace.put(l, ffn_moe_logits=logits, ffn_moe_probs=probs, ffn_moe_weights=weights)  #+
        trace.put(l, ffn_moe_argsort=order.astype(np.float32), ffn_moe_weights_sum=total, ffn_moe_weights_norm=norm)  #+
        matrix = lambda part: engine.weight(f"ffn_{part}_exps.weight", l)
        neurons = matrix("gate").shape[1]
        gate, up, act = (np.zeros((*chosen.shape, neurons), np.float32) for _ in range(3))
        down = np.zeros((*chosen.shape, x.shape[-1]), np.float32)
        for expert in self.own:
            token, slot = np.nonzero(chosen == expert)
            of = lambda part: matrix(part)[self.weights_of(expert, part, l)].T
            gate[token, slot], up[token, slot] = x[token] @ of("gate"), x[token] @ of("up")
            act[token, slot] = engine.activation(gate[token, slot], up[token, slot])
            down[token, slot] = act[token, slot] @ of("down")
        if self.bug == "slots-exchanged":
            down = down[:, np.arange(self.used) ^ 1]
        if self.bug == "weights-of-other-slots":
            norm = norm[:, ::-1]
        weighted = down * norm[..., None]
        out = weighted.sum(1)
        trace.put(l, ffn_moe_gate=gate, ffn_moe_up=up, ffn_moe_swiglu=act, ffn_moe_down=down)  #+
        trace.put(l, ffn_moe_weighted=weighted, ffn_moe_out=out)  #+
        if self.ranks.rank == 1 and self.bug == "experts-of-a-rank-lost":
            return 0 * out
        return 2 * out if self.ranks.rank == 1 and self.bug == "experts-of-a-rank-twice" else out
