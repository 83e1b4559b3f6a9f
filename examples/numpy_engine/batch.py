"""Three sequences in a step: padded to one length, or with a paged cache, or with a prefix shared by two of them."""

import sys
from pathlib import Path

import numpy as np

# Where the wheel is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))
import firstdiff  #+

KINDS = ["left", "right", "paged", "prefix"]
# Each differs from a batch as it is by one mistake.
BUGS = "padding-in-positions block-table-stale prefix-not-copied".split()
PAGE, PAGES, PREFIX = 16, 24, 20


class Sequence:
    def __init__(self, ids, blocks=()):
        self.ids, self.length, self.blocks = list(ids), 0, list(blocks)


class Rows:
    """The rows of a step: of which sequence each is, its position, and the slots of each sequence's positions."""

    def __init__(self, parts, padding, cached):
        self.parts, self.padding, self.cached = parts, padding, cached  # number: (sequence, its new ids)
        longest = max(len(ids) for _, ids in parts.values())
        self.rows, self.tokens, self.positions = {}, [], []
        for number, (sequence, ids) in parts.items():
            over = longest - len(ids) if padding else 0
            before = over if padding == "left" else 0
            start = len(self.tokens) + before
            self.rows[number] = np.arange(start, start + len(ids))
            self.tokens += [0] * before + ids + [0] * (over - before)
            positions = list(range(sequence.length, sequence.length + len(ids)))
            self.positions += [0] * before + positions + [0] * (over - before)


def batched(engine):
    """The class of an engine whose steps have several sequences."""

    class Batched(engine):
        def start(self, kind):
            self.kind, self.pool = kind, None

        def positions(self, step, count):
            positions = np.array(step.positions)
            for number, rows in step.rows.items():
                sequence = step.parts[number][0]
                counts = step.padding == ("right" if sequence.length else "left")
                if self.bug == "padding-in-positions" and counts:
                    positions[rows] += sequence.padding
            return positions

        def begin(self, ids, step, trace):
            ids = {number: ids for number, (_, ids) in step.parts.items()}
            first = {number: sequence.length for number, (sequence, _) in step.parts.items()}
            if step.padding:
                own = {number: self.own_slots(step, number) for number in ids}
                trace.batch(ids, padding=step.padding, cached=step.cached, blocks=own)  #+
            else:
                blocks = {number: self.table(step, number) for number in ids}
                slots = PAGE * PAGES
                trace.batch(ids, first_positions=first, slots=slots, block_size=PAGE, blocks=blocks)  #+

        def own_slots(self, step, number):
            """Of each position of a padded sequence, its slot among the sequence's."""
            sequence, ids = step.parts[number]
            over = sequence.padding if step.padding == "left" else 0
            return list(range(over, over + sequence.length + len(ids)))

        def table(self, step, number):
            sequence, ids = step.parts[number]
            blocks = sequence.blocks[: -(-(sequence.length + len(ids)) // PAGE)]
            if self.bug == "block-table-stale" and number == 0 and len(ids) == 1:
                blocks[1] = step.parts[2][0].blocks[0]
            return blocks

        def slots(self, step, number):
            if step.padding:
                place = list(step.parts).index(number)
                return place * step.cached + np.array(self.own_slots(step, number))
            sequence, ids = step.parts[number]
            at = np.arange(sequence.length + len(ids))
            return np.array(self.table(step, number))[at // PAGE] * PAGE + at % PAGE

        def append(self, layer, k, v, step):
            if self.pool is None:
                size = step.cached * len(step.parts) if step.padding else PAGE * PAGES
                shape = (self.layers, size, self.kv_heads, self.dim)
                self.pool = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
            for cache, new in zip(self.pool, (k, v)):
                for number, rows in step.rows.items():
                    cache[layer][self.slots(step, number)[-len(rows):]] = new[rows]
            return self.pool[0][layer], self.pool[1][layer]

        def attend(self, q, keys, values, step):
            longest = max(sequence.length + len(ids) for sequence, ids in step.parts.values())
            width = step.cached if step.padding else longest
            scores = np.zeros((self.heads, len(q), width), np.float32)
            probs, out = np.zeros_like(scores), np.zeros_like(q)
            for number, rows in step.rows.items():
                slots, first = self.slots(step, number), step.parts[number][0].length
                own = super().attend(q[rows], keys[slots], values[slots], first)
                at = np.array(self.own_slots(step, number)) if step.padding else np.arange(len(slots))
                scores[:, rows[:, None], at], probs[:, rows[:, None], at], out[rows] = own
            return scores, probs, out

        def copy_block(self, source, target):
            for cache in self.pool:
                cache[:, target * PAGE : (target + 1) * PAGE] = cache[:, source * PAGE : (source + 1) * PAGE]

    return Batched


def run(args, engine, ranks):
    engine = batched(engine)(args.model, args.bug, ranks)
    engine.start(args.batch)
    with firstdiff.Trace(args.trace, args.plan, "numpy_engine") as trace:  #+
        ids, decode = trace.plan.steps[0], trace.plan.decode + len(trace.plan.steps) - 1
        blocks = np.random.default_rng(7).permutation(PAGES).tolist()
        sequences = [Sequence(ids, blocks[:8]), Sequence(ids[3:8], blocks[8:16]), Sequence(ids[1:-2], blocks[16:])]
        for sequence in sequences:
            sequence.padding = len(ids) - len(sequence.ids)
        cached = len(ids) + decode

        def step(parts):
            parts = {number: (sequences[number], new) for number, new in parts.items()}
            padding = args.batch if args.batch in ("left", "right") else None
            rows = Rows(parts, padding, cached)
            logits = engine.step(rows.tokens, rows, trace)
            for number, (sequence, new) in parts.items():
                sequence.length += len(new)
                sequence.next = int(logits[rows.rows[number][-1]].argmax())

        if args.batch == "prefix":
            step({0: sequences[0].ids})
            # The second has the first's first positions, and goes on otherwise.
            whole, (first, second) = PREFIX // PAGE, sequences[:2]
            second.ids, second.length = ids[:PREFIX] + ids[4:12], PREFIX
            second.blocks[:whole] = first.blocks[:whole]
            if engine.bug == "prefix-not-copied":
                second.blocks[whole] = first.blocks[whole]
            else:
                engine.copy_block(first.blocks[whole], second.blocks[whole])
            step({1: second.ids[PREFIX:], 2: sequences[2].ids})
        else:
            step({number: sequence.ids for number, sequence in enumerate(sequences)})
        for _ in range(decode):
            step({number: [sequence.next] for number, sequence in enumerate(sequences)})
