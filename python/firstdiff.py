"""Records the tensors of your engine, for `firstdiff explain` to compare with llama.cpp.

This one file needs only numpy. The plan lists the sites, and so does `firstdiff sites`; docs/trace-format.md
describes them.

    firstdiff capture reference -m model.gguf -p "Once upon a time" -o ref

    import firstdiff
    with firstdiff.Trace("mine", "ref/plan.txt", "my engine") as trace:
        trace.weight("blk.0.attn_q.weight", wq)   # as the engine holds it after loading
        for ids in trace.plan.steps:          # its token ids; after a `firstdiff plan`, then your own
            trace.step(ids)
            ...
            trace.put(layer, q=q, k=k)        # (tokens, heads, dim)
            trace.put(logits=logits)          # (tokens, vocab), or (1, vocab) for the last token

    firstdiff explain mine --reference ref -m model.gguf

You may leave out any site. put copies its arrays. An engine that runs one token at a time puts one row at a time:
rows are stacked in the order of the calls. Declare any other order of the axes: put(layer, axes="head token dim",
q=q), put(layer, axes="head dim token", v_cache=v). Express other strides with numpy: q = qkv[:, :n_head]. Pass
bfloat16 as its bits in uint16. If only some of the step's tokens have a row, list them: put(layer, rows=[-1], q=q).
A single row of logits is taken as the last token's.
A step may have any number of tokens. If the first step follows a cached prefix, pass the prefix's length: step(ids,
first_position=16). If positions left the cache since the previous step (rejected drafts at its end, or the oldest
in a context shift), declare them: step(ids, removed=(first, count)).

For several sequences in a step, call batch({0: ids, 1: ids}) instead of step. Its tensors hold the rows of one
sequence after the other, or rows padded to one length: batch({0: ids, 1: ids}, padding="left"). An array may then
have a batch axis: put(layer, axes="batch head token key", scores=scores). Put a paged cache whole, (slots, heads,
dim), and pass the blocks of each sequence: batch(..., slots=96, block_size=16, blocks={0: [4, 1], 1: [0]}).
`firstdiff explain mine` explains each sequence in turn.

Put a quantised cache as the engine's own bytes, in uint8 with the bytes of a row as the last axis: put(layer,
k_cache=firstdiff.Blocks("q8_0", bytes)). The formats are ggml's blocks and 8-bit floats (e4m3, e5m2).

With several processes, each passes its rank, the number of ranks, and how its sites are sharded: an axis applies to
all sites that have it, and SITE=partial marks partial sums before an all-reduce. All other sites are whole on every
rank. Each rank writes a subfolder of `mine`, and firstdiff reads them as one trace:

    firstdiff.Trace("mine", "ref/plan.txt", "my engine",
                    shard=(rank, 2, "head neuron o_proj=partial ffn_down=partial"))

If the folder is None, nothing is recorded. A run that fails or is killed leaves an unfinished folder, which
firstdiff rejects; `firstdiff validate mine` reports what is readable in it. firstdiff_pt.py reads dumps of
torch.save.
"""

import json
import os
import re
import secrets
from pathlib import Path

import numpy as np

FORMAT_VERSION = 6
DTYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "float64": "F64"}
AXES = ("token", "position", "head", "dim", "key", "channel", "neuron", "vocab", "expert", "slot",
        "element")  # fmt: skip
# Ranks cannot divide what is summed or chosen over.
SPLITS = (*(axis for axis in AXES if axis not in ("dim", "key", "slot")), "partial", "replicated")
# Of a cache in blocks: the elements of a block, and its bytes.
BLOCKS = {"q8_0": (32, 34), "q4_0": (32, 18), "q4_1": (32, 20), "q5_0": (32, 22), "q5_1": (32, 24),
          "e4m3": (1, 1), "e5m2": (1, 1)}  # fmt: skip
# Sites that exist once a step, and those of a layer, of the names that mean the same in every architecture.
ONCE = ("embd", "final_norm", "logits")
IN_LAYER = ("attn_norm q k v q_norm k_norm q_rope k_rope k_cache v_cache scores probs attn_out o_proj "
            "attn_residual ffn_norm ffn_gate ffn_up ffn_act ffn_down layer_out").split()  # fmt: skip
MOST_OF_PLAN = 64 << 20  # bytes
WHOLE, ROWS, LEAST_ROWS, SAMPLED = 1 << 16, 32, 4, 1 << 18  # of weights: see _sampled_rows
ROOM = 350  # bytes that the entry of a tensor may take in a step file's header


class Site:
    """A tensor of every step: its name there, the axes and the sizes as texts in T and P."""

    def __init__(self, name, axes, sizes):
        self.name, self.axes, self.sizes = name, axes, sizes

    def shape(self, tokens, positions):
        """In a step of that many tokens, with that many positions in the cache after it."""
        numbers = {"T": tokens, "P": positions, "F": int(tokens == positions)}
        return [_size(text, numbers) for text in self.sizes]


def _size(text, numbers):
    """The number that a size such as 64, T or 2*T+3 stands for."""
    total = 0
    for term in text.replace("-", "+-").split("+"):
        if term:
            factors = term.lstrip("-").split("*")
            product = -1 if term.startswith("-") else 1
            for factor in factors:
                product *= numbers[factor] if factor in numbers else int(factor)
            total += product
    return total


def _left(removed, positions):
    """Positions of a cache after some of them were removed."""
    first, count = removed
    if first < 0 or count < 1 or first + count > positions:
        raise ValueError(f"cannot remove {count} positions from {first} on: the cache holds {positions}")
    return positions - count


def _number(text, most):
    """A number of digits alone, up to the largest."""
    if not re.fullmatch("[0-9]+", text) or len(text) > 4000 or int(text) > most:
        raise ValueError(f"{text[:80]!r} is not a number up to {most}")
    return int(text)


def _check_size(text):
    """Refuses what is no sum of products of numbers, T, P and F, or never above 0."""
    sums = {}
    for sign, term in re.findall("([+-]?)([^+-]*)", text if text[:1] == "-" else "+" + text)[:-1]:
        number, letters = -1 if sign == "-" else 1, ""
        for factor in term.split("*"):
            if factor in ("T", "P", "F"):
                letters += factor
            else:
                number *= _number(factor, 1 << 40)
        letters = "".join(sorted(letters))
        sums[letters] = sums.get(letters, 0) + number
        if letters not in ("", "T", "P", "F", "PT", "TT") or max(abs(number), abs(sums[letters])) > 1 << 40:
            raise ValueError(f"{text[:80]!r} is not a size")
    if not any(sums[letters] for letters in sums if letters) and sums.get("", 0) < 1:
        raise ValueError(f"{text[:80]!r} is not a size")


def _layers(text):
    """The layers of a plan's line, such as 0-3,5; [None] for a site outside of layers."""
    if text == "-":
        return [None]
    layers = []
    for run in text.split(","):
        first, dash, last = run.partition("-")
        run = range(_number(first, 1023), _number(last if dash else first, 1023) + 1)
        if not run or (layers and run[0] <= layers[-1]):
            raise ValueError(f"layers {text[:80]!r} do not ascend")
        layers += run
    return layers


class Blocks:
    """A cache as the engine keeps it: the block format, and the bytes, with the bytes of a row as the last axis.
    For q8_0, (P, heads, dim) is uint8 of shape (P, heads, dim / 32 * 34)."""

    def __init__(self, kind, data):
        if kind not in BLOCKS:
            raise ValueError(f"{kind!r} is not a block format of a cache; they are {', '.join(BLOCKS)}")
        self.kind, self.data = kind, np.asarray(data)
        if self.data.dtype != np.uint8:
            raise ValueError(f"blocks of {kind} were given as {self.data.dtype}; give their bytes as uint8")


class Plan:
    """What to run, as the plan.txt of a reference's trace says: model, sites, token ids of each step."""

    KEYS = ("model", "blake3", "architecture", "n_vocab", "decode")

    def __init__(self, path):
        self.keys, self.steps, self.groups, self.sites = {}, [], [], {}
        self.section = False
        try:
            with open(path, "rb") as file:
                self._read(file.read(MOST_OF_PLAN + 1).decode())
        except ValueError as error:
            advice = "give the plan.txt of a reference's trace"
            raise ValueError(f"{path} is not a firstdiff plan: {error}; {advice}") from error

    def _read(self, text):
        if "\0" in text or not text.endswith("\n") or len(text) > MOST_OF_PLAN:
            raise ValueError("it has a NUL byte, is too long, or is truncated: it does not end with a newline")
        for line in text[:-1].split("\n"):
            if line.removesuffix("\r"):
                self._line(line.removesuffix("\r"))
        missing = [key for key in self.KEYS[:4] if key not in self.keys]
        if missing or not self.steps or not self.sites:
            raise ValueError(f"{', '.join(missing) or 'a step or a site'} is missing")
        names = {"name": "model", "blake3": "blake3", "architecture": "architecture"}
        self.model = {field: self.keys[key] for field, key in names.items()}
        if not re.fullmatch("[0-9a-f]{64}", self.keys["blake3"]):
            raise ValueError("blake3 is not 64 lowercase hex digits")
        self.model["n_vocab"] = n_vocab = _number(self.keys["n_vocab"], 1 << 24)
        largest = max(max(step) for step in self.steps)
        if largest >= n_vocab:
            raise ValueError(f"tokens has id {largest}, n_vocab is {n_vocab}")
        if len(self.steps) > 1 << 16 or sum(map(len, self.steps)) > 1 << 20:
            raise ValueError("it has too many steps or tokens")
        # Steps after those, each of a token of the engine's own choice.
        self.decode = _number(self.keys.get("decode", "0"), 1 << 16)
        self.model["sites"] = self.groups

    def _line(self, line):
        key, space, value = line.partition(" ")
        if line == "section":
            self.section = True
        elif key == "tokens":
            self.steps.append([_number(word, (1 << 31) - 1) for word in value.split(" ")])
        elif key == "site":
            self._add(value)
            self.section = False
        elif key not in self.KEYS or not space or key in self.keys:
            raise ValueError(f"{key[:80]!r} is not a line of a plan, or appears twice")
        else:
            self.keys[key] = value

    def _add(self, line):
        words = line.split(" ")
        if len(words) != 4:
            raise ValueError(f"site {line[:80]!r} does not have four words")
        name, layers, axes, sizes = words
        layers, axes, sizes = _layers(layers), axes.split(","), sizes.split(",")
        fits_role = name not in (IN_LAYER if layers == [None] else ONCE)
        is_name = re.fullmatch(r"[\w.-]{1,128}", name, re.ASCII) and name.strip(".") == name
        if not fits_role or not is_name or not set(axes) <= set(AXES) or len(axes) != len(sizes) or len(axes) > 8:
            raise ValueError(f"site {line[:80]!r} has a wrong name, layer or axis")
        for size in sizes:
            _check_size(size)
        group = {"name": name, "layers": layers} if layers != [None] else {"name": name}
        shape = [int(size) if size.isdigit() else size for size in sizes]
        group |= {"axes": axes, "shape": shape}
        if len(self.sites) + len(layers) > 1 << 17:
            raise ValueError("it has too many sites")
        self.groups.append(group | {"section": True} if self.section else group)
        for layer in layers:
            of_step = name if layer is None else f"blk.{layer}.{name}"
            if (name, layer) in self.sites:
                raise ValueError(f"site {of_step} appears twice")
            self.sites[name, layer] = Site(of_step, axes, sizes)

    def site(self, name, layer=None):
        """The site of that name; one outside of layers is found whatever the layer."""
        found = self.sites.get((name, layer)) or self.sites.get((name, None))
        if found is None:
            raise ValueError(f"the plan has no site {name} of layer {layer}; `firstdiff sites` lists them")
        return found


def split_sites(words, groups):
    """How each site is split, as words say it: AXIS, SITE=AXIS, SITE=partial, SITE=replicated."""
    splits = {}
    for word in words.split():
        site, _, split = word.rpartition("=")
        whole = site and split in ("partial", "replicated")
        fits = lambda group: whole or split in group["axes"]
        sites = {g["name"]: split for g in groups if site in ("", g["name"]) and fits(g)}
        if split not in SPLITS or not sites:
            raise ValueError(f"{word!r} does not say how a site is split; see docs/trace-format.md")
        splits.update(sites)
    return splits


class Trace:
    """Writes a trace, or nothing if `folder` is None. `storage` is the format of weights, activations and cache
    (f32, f16, bf16, f64); it sets the tolerance for rounding. `arithmetic` declares the arithmetic in full, as in
    docs/trace-format.md. `shard` is (rank, world, words) if this process is one of several."""

    def __init__(self, folder, plan, engine, storage="f32", arithmetic=None, shard=None):
        self.plan, self.on = Plan(plan), folder is not None
        if not self.on:
            return
        rank, world, words = shard or (0, 1, "")
        self.split = split_sites(words, self.plan.groups)
        if not 0 <= rank < world:
            raise ValueError(f"there is no rank {rank} of {world}; ranks count from 0")
        self.folder = Path(folder) / f"rank{rank}" if shard else Path(folder)
        self.run = secrets.token_hex(16)
        self.first_position, self.steps, self.open, self.weights = 0, [], None, None
        self.ends = {}  # the position after the last of each sequence
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / "plan.txt").exists():
            raise ValueError(f"{folder} holds a reference's trace; choose another folder")
        # The manifest first: a folder without it is no whole trace.
        for name in ("manifest.json", "manifest.json.blake3", "manifest.json.unfinished", "weights.bin"):
            (self.folder / name).unlink(missing_ok=True)
        for old in self.folder.glob("step-[0-9]*.safetensors"):
            old.unlink()
        if arithmetic is None:
            op = {"storage": storage, "accumulator": "f32"}
            arithmetic = {"weights": storage, "default": op}
            if storage in ("f16", "bf16"):
                wide = {"storage": "f32", "accumulator": "f32"}
                arithmetic["stages"] = {stage: wide for stage in ("scores", "probs", "logits")}
        self.manifest = {
            "format_version": FORMAT_VERSION,
            "run": self.run,
            "producer": {"name": engine, "version": "firstdiff.py"},
            "side": "engine",
            "model": self.plan.model,
            "arithmetic": arithmetic,
            "device": engine,
            "steps": self.steps,
        }
        if shard:
            self.manifest["shard"] = {"rank": rank, "world": world, "split": self.split}
        self._write_manifest()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.end()

    def weight(self, names, array):
        """Records a weight as the engine holds it after loading. Call it before the first step. `names` is the GGUF
        tensor, or "OWN=TENSOR TENSOR ...": the engine's own name, and the GGUF tensors stacked in it;
        NAME[FIRST:END] selects rows of one. The last axis is a row: (outputs, inputs)."""
        if not self.on:
            return
        if self.steps or self.open is not None:
            raise ValueError(f"the weight {names} was recorded after the first step; record it before")
        self.weights = self.weights or _Weights(self.folder, self.run)
        self.weights.put(names, np.asarray(array))

    def step(self, tokens, first_position=None, removed=None, prefix=None):
        """Starts a step that runs these ids after those of all previous steps. `first_position` is the position of
        the first id; only in the first step may it be arbitrary, after a cached prefix. `removed` is (first, count)
        of the positions removed from the cache since the previous step. `prefix` has the ids of a cached prefix;
        the first step then begins after it."""
        if not self.on:
            return
        self._close_step()
        if self.weights:
            self.manifest["weights"] = self.weights.close()
            self.weights = None
        if prefix is not None:
            if self.steps:
                raise ValueError(f"a prefix was passed with step {len(self.steps)}; pass it with the first step")
            first_position = len(prefix) if first_position is None else first_position
            if first_position != len(prefix):
                raise ValueError(f"a prefix of {len(prefix)} ids does not end at position {first_position}, "
                                 f"where the step begins")
        if removed is not None:
            self.first_position = _left(removed, self.first_position if self.steps else 0)
        if first_position is not None:
            if first_position < 0 or self.steps and first_position != self.first_position:
                raise ValueError(f"step {len(self.steps)} begins at position {self.first_position}, not "
                                 f"{first_position}")
            self.first_position = first_position
        self.open = _Step(self.folder, len(self.steps), list(map(int, tokens)), self)
        self.open.removed, self.open.prefix = removed, [int(token) for token in prefix or ()]

    def batch(self, sequences, padding=None, pad=0, first_positions=None, slots=0, block_size=1, blocks=None,
              cached=None, keys=None, removed=None, prefixes=None):
        """Starts a step of several sequences: their ids by sequence number. Each continues its earlier steps.

        `padding` ("left" or "right") gives all sequences the same number of rows, filled up with the id `pad`.
        Without it, the rows of one sequence follow those of another. `first_positions` has the first position of
        each sequence that begins after a cached prefix, by number; `prefixes` has the prefix's ids instead, if they
        are known.

        A cache has `slots` rows: a sequence's position p is in slot blocks[p // block_size] * block_size +
        p % block_size of its `blocks`. If every sequence has the same number of slots, including padding, pass that
        number as `cached` instead. `blocks` then lists the slot of each position within its sequence, and may be
        omitted if position p is in slot p. `keys` is the length of the key axis, if it is not the number of
        positions of the longest sequence; with `cached`, a sequence's keys are its slots. `removed` has, by number,
        the (first, count) of the positions that each sequence's cache lost since its previous step."""
        if not self.on:
            return
        prefixes = {number: list(map(int, ids)) for number, ids in (prefixes or {}).items()}
        for number in prefixes.keys() & self.ends.keys():
            raise ValueError(f"a prefix was passed with sequence {number}, which has begun; pass it with its "
                             f"first step")
        numbers, given = list(sequences), {number: len(ids) for number, ids in prefixes.items()} | (first_positions or {})
        longest = max(map(len, sequences.values()))
        tokens, parts, blocks = [], [], dict(blocks or {})
        for place, number in enumerate(numbers):
            ids = [int(token) for token in sequences[number]]
            padded = [int(pad)] * (longest - len(ids)) if padding else []
            start = len(tokens) + (len(padded) if padding == "left" else 0)
            tokens += padded + ids if padding == "left" else ids + padded
            cut, end = (removed or {}).get(number), self.ends.get(number, 0)
            first = given.get(number, end if cut is None else _left(cut, end))
            part = {"sequence": number, "first_position": first, "rows": list(range(start, start + len(ids)))}
            if prefixes.get(number):
                if first != len(prefixes[number]):
                    raise ValueError(f"a prefix of {len(prefixes[number])} ids does not end at position {first}, "
                                     f"where the sequence begins")
                part["prefix"] = prefixes[number]
            if cut is not None:
                part["removed"] = {"first": int(cut[0]), "count": int(cut[1])}
            end = self.ends[number] = first + len(ids)
            own = blocks.get(number)
            if cached is not None:
                part["keys"] = [int(slot) for slot in (range(end) if own is None else own)]
                own = [place * cached + slot for slot in part["keys"]]
            if own is not None:
                part["blocks"] = [int(block) for block in own]
            parts.append(part)
        if cached is not None:
            slots, block_size, keys = cached * len(numbers), 1, cached
        batch = {"slots": slots, "block_size": block_size, "sequences": parts}
        self.step(tokens)
        self.open.batch = batch | ({} if keys is None else {"keys": keys})

    def put(self, layer=None, axes=None, rows=None, **tensors):
        """Records tensors of the open step by site name, or some rows of them. `rows` lists the tokens of these
        rows, ascending, if the other tokens have none."""
        if not self.on:
            return
        if self.open is None:
            raise ValueError("a tensor was put before the first step; call step first")
        for site, array in tensors.items():
            kind = array.kind if isinstance(array, Blocks) else None
            self.open.put(site, layer, axes, np.asarray(array.data if kind else array), rows, kind)

    def end(self):
        """Ends the trace; the folder is then complete."""
        if not self.on:
            return
        self._close_step()
        if not self.steps:
            raise ValueError("no step was recorded; call step")
        os.replace(self.folder / "manifest.json.unfinished", self.folder / "manifest.json")

    def _close_step(self):
        if self.open is None:
            return
        self.steps.append(self.open.close())
        self.first_position += len(self.open.tokens)
        self.open = None
        self._write_manifest()

    def _write_manifest(self):
        path = self.folder / "manifest.json.unfinished"
        path.with_suffix(".new").write_text(json.dumps(self.manifest, indent=1) + "\n")
        os.replace(path.with_suffix(".new"), path)


class _Weights:
    """The file of the weights, and what the manifest lists of it."""

    def __init__(self, folder, run):
        self.file, self.tensors, self.names = open(folder / "weights.bin", "wb"), [], set()
        self.bytes = self.file.write(f"run {run}\n".encode())

    def put(self, names, array):
        own, _, of = names.rpartition("=")
        of = of.split(" ")
        own = own or of[0]
        # Ones at the end are no axes.
        shape = list(array.shape) or [1]
        while len(shape) > 1 and shape[-1] == 1:
            shape.pop()
        if own in self.names or not array.size or array.dtype.name not in DTYPES:
            raise ValueError(f"the weight {own} was given as {array.dtype} {array.shape}, or a second time")
        rows = array.reshape(-1, shape[-1])
        chosen = _sampled_rows(own, *rows.shape)
        entry = {"name": own, "of": of, "shape": shape, "dtype": DTYPES[array.dtype.name].lower()}
        self._write(rows if chosen is None else rows[chosen])
        if chosen is not None:
            entry |= {"rows": chosen, "sums": True}
            self._write(_row_sums(rows))
        self.names.add(own)
        self.tensors.append(entry)

    def close(self):
        self.file.close()
        return {"bytes": self.bytes, "tensors": self.tensors}

    def _write(self, array):
        self.bytes += self.file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())


def _sampled_rows(name, rows, width):
    """The recorded rows of a weight: None if it is small and recorded whole; else the first, the last, and one from
    each equal share between, chosen by the name."""
    count = max(LEAST_ROWS, min(ROWS, SAMPLED // width))
    if rows * width <= WHOLE or rows <= count:
        return None
    state, chosen = 2166136261, []
    for byte in name.encode():
        state = (state ^ byte) * 16777619 & 0xFFFFFFFF
    for share in range(count):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        first, after = share * rows // count, (share + 1) * rows // count
        chosen.append(first + (state >> 8) % (after - first))
    return [0, *chosen[1:-1], rows - 1]


def _row_sums(rows):
    """Of each row the sum of (j + 1) x_j, in float64."""
    places, some = np.arange(1.0, rows.shape[1] + 1), max(1, (1 << 22) // rows.shape[1])
    sums = np.empty(len(rows))
    for first in range(0, len(rows), some):
        part = rows[first : first + some]
        if part.dtype == np.uint16:  # bfloat16
            part = (part.astype(np.uint32) << 16).view(np.float32)
        sums[first : first + some] = part.astype(np.float64) @ places
    return sums


def _cut(split, axes):
    """The place of the axis that a site is split by; None where it is whole."""
    return axes.index(split) if split in axes else None


def _joined(array, order, first):
    """The array with its axis of sequences and that of their rows as one, and the order of its axes."""
    places = [order.index("batch"), order.index(first)]
    rest = [axis for axis in range(array.ndim) if axis not in places]
    moved = array.transpose(places + rest)
    return moved.reshape(-1, *moved.shape[2:]), [first] + [order[axis] for axis in rest]


class _Step:
    """The file of a step. A tensor goes to disk when all of its rows are there."""

    def __init__(self, folder, index, tokens, trace):
        self.index, self.tokens, self.trace, self.batch, self.removed, self.prefix = index, tokens, trace, None, None, []
        self.name = f"step-{index:04}.safetensors"
        self.positions = trace.first_position + len(tokens)
        self.room = 256 + ROOM * len(trace.plan.sites)
        self.file = open(folder / self.name, "wb")
        self.file.seek(8 + self.room)
        metadata = {"run": trace.run, "step": str(index)}
        self.parts = {}  # this rank's share of the axis that is cut, by name
        self.header, self.rows, self.data = {"__metadata__": metadata}, {}, 0
        self.missed = {}  # positions of caches that were not whole, by name
        self.quantised = {}  # the types of caches in blocks, by name
        self.tokens_of = {}  # the tokens of a tensor's rows, where they are not all, by name

    def put(self, site, layer, axes, array, tokens=None, kind=None):
        place = self.trace.plan.site(site, layer)
        name, wanted = place.name, place.axes
        order = axes.split() if axes else list(wanted)
        # A user's "token" may be the cache's.
        order = ["position" if axis == "token" and "position" in wanted else axis for axis in order]
        if self.batch and "batch" in order and array.ndim == len(order):
            array, order = _joined(array, order, wanted[0])
        if sorted(order) != sorted(wanted) or array.ndim != len(wanted):
            said = f"axes {' '.join(order)!r} and {array.ndim} of them"
            raise ValueError(f"{name} has the axes {' '.join(wanted)!r}, not {said}")
        if order != wanted:
            array = array.transpose([order.index(axis) for axis in wanted])
        shape = self._shape(place)
        if kind:
            shape[-1] = self._bytes(name, place, kind, shape[-1])
            self.quantised[name] = kind
        if tokens is not None:
            tokens = self._tokens(name, place, tokens)
            shape[0] = len(tokens)
        cut = _cut(self.trace.split.get(site), wanted)
        if cut == 0 and len(array) == 0:
            return  # none of the step's tokens are this rank's
        if cut is not None and array.shape[cut] <= shape[cut]:
            shape[cut] = self.parts.setdefault(name, array.shape[cut])
        if wanted[0] == "position" and len(array) < shape[0]:
            self.missed[name] = len(array)
            return  # a cache that grows token by token; it is recorded when it is whole
        if wanted[-1] == "key" and array.shape[-1] < shape[-1]:
            # Later keys are masked.
            array = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, shape[-1] - array.shape[-1])])
        rows = self.rows.setdefault(name, [])
        there = sum(map(len, rows))
        fits = list(array.shape[1:]) == shape[1:] and 0 < len(array) <= shape[0] - there
        if name in self.header or not fits or array.dtype.name not in DTYPES and not kind:
            found = f"{array.dtype} {array.shape}"
            raise ValueError(f"step {self.index}: {name} was given as {found}; expected {shape}, "
                             f"and {shape[0] if name in self.header else there} rows came before")
        if tokens is not None and (there or len(array) != shape[0]):
            raise ValueError(f"step {self.index}: {name} was given as {len(array)} rows after {there}, of the "
                             f"tokens {tokens}; put them together")
        if rows and rows[0].dtype != array.dtype:
            raise ValueError(f"step {self.index}: {name} was given as {array.dtype} and {rows[0].dtype}")
        rows.append(np.array(array, order="C"))
        if there + len(array) == shape[0]:
            if tokens is not None and len(tokens) < len(self.tokens):
                self.tokens_of[name] = tokens
            self._write(name, shape, self.rows.pop(name))

    def _shape(self, place):
        """Of a batch, caches have its slots, and what has rows of nothing else those of each sequence."""
        if not self.batch:
            return place.shape(len(self.tokens), self.positions)
        ends = [part["first_position"] + len(part["rows"]) for part in self.batch["sequences"]]
        shape = place.shape(len(self.tokens), self.batch.get("keys", max(ends)))
        if place.axes[0] == "position":
            shape[0] = self.batch["slots"]
        elif not any(letter in size for size in place.sizes for letter in "TP"):
            shape[0] *= len(ends)
        return shape

    def _bytes(self, name, place, kind, row):
        """The bytes of a cache's row in blocks."""
        elements, size = BLOCKS[kind]
        if place.axes[0] != "position":
            raise ValueError(f"{name} was given in blocks of {kind} but is not a cache: give its values")
        if row % elements:
            raise ValueError(f"{name} has rows of {row} elements, not a multiple of the {elements} of a {kind} block")
        return row // elements * size

    def _tokens(self, name, place, tokens):
        """The tokens of rows, counted from the first of the step; negative ones count from its end."""
        n = len(self.tokens)
        tokens = [int(token) + n * (token < 0) for token in tokens]
        if place.axes[0] != "token" or place.sizes[0] != "T":
            raise ValueError(f"{name} does not have a row for each token; leave out rows")
        ascending = all(a < b for a, b in zip(tokens, tokens[1:]))
        if not tokens or not ascending or tokens[0] < 0 or tokens[-1] >= n:
            raise ValueError(f"step {self.index}: {name} has rows of {tokens}, which are not ascending tokens of "
                             f"a step of {n}")
        return tokens

    def close(self):
        one = not self.batch and len(self.rows.get("logits", [])) == 1
        if one and len(self.rows["logits"][0]) == 1:
            last = self.rows.pop("logits")  # logits are computed for the last token only
            self._write("logits", [1, *last[0].shape[1:]], last)
        for name, found in self.missed.items():
            if name not in self.header:
                raise ValueError(f"step {self.index}: {name} has {found} of {self.positions} positions and was never "
                                 f"completed: put it in one array, or leave it out")
        if self.rows:
            name = next(iter(self.rows))
            raise ValueError(f"step {self.index}: {name} lacks rows; record every token, or name the recorded ones "
                             f"with rows=")
        header = json.dumps(self.header, separators=(",", ":")).encode()
        self.file.seek(0)
        self.file.write(self.room.to_bytes(8, "little") + header.ljust(self.room))
        self.file.close()
        removed = {"first": int(self.removed[0]), "count": int(self.removed[1])} if self.removed else None
        more = {"prefix": self.prefix, "removed": removed, "rows": self.tokens_of, "quantised": self.quantised, "batch": self.batch}
        return {
            "tokens": self.tokens,
            "first_position": self.trace.first_position,
            "file": self.name,
            "bytes": 8 + self.room + self.data,
            "sites": len(self.header) - 1,
        } | {name: value for name, value in more.items() if value}

    def _write(self, name, shape, rows):
        start = self.data
        for array in rows:
            data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
            self.file.write(data)
            self.data += len(data)
        self.header[name] = {
            "dtype": "U8" if name in self.quantised else DTYPES[rows[0].dtype.name],
            "shape": shape,
            "data_offsets": [start, self.data],
        }
