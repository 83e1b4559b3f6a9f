"""Records a transformers model for `firstdiff explain`: llama, mistral, qwen2, qwen3, qwen3_moe, gemma3, gpt_oss,
qwen3_next, qwen3_5, and models whose modules have the same names.

Needs firstdiff.py and firstdiff_gguf.py beside it, torch, and transformers 4.48 or later. You name no tensors:

    firstdiff capture reference -m model.gguf -p "Once upon a time" -o ref

    import firstdiff_transformers
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="eager")
    firstdiff_transformers.record(model, "mine", "ref/plan.txt")

    firstdiff explain mine --reference ref -m model.gguf

`record` runs the plan's ids with a cache. To record your own loop:

    with firstdiff_transformers.trace(model, "mine", "ref/plan.txt") as trace:
        for ids in trace.plan.steps:          # each call of the model is a step
            model(torch.tensor([ids]), ...)

A rank of a sharded model (`tp_plan="auto"`, torchrun) passes its number, the number of ranks, and how sites are
sharded; results of an all-reduce are whole on every rank:

    firstdiff_transformers.record(model, "mine", "ref/plan.txt", shard=(rank, world, "head neuron"))

The hooks record what the model computes, with the functions and modules that it has when recording starts. The name
and size of a module's output determine its site. Inside routers, experts and linear attention, the hooks watch
torch functions instead. A site that neither exposes is left out, and judged together with the next recorded one. A
module that exists but is never called is an error. Only eager attention exposes scores and probs; with any other
they are left out, with a warning, and the attention is judged as one operation. For a sliding-window cache,
positions before the window are recorded as they were.

The weights are recorded too, as the model holds them when recording starts; `weights=False` leaves them out.

For a llama, transformers rotates the pairs (i, i + d/2) of a head and llama.cpp the pairs (2i, 2i + 1), because the
GGUF has the q and k rows permuted. So a llama's q and k, and all tensors derived from them, are recorded in the
GGUF's order. The same holds for the value heads of a qwen3_5's linear attention: transformers keeps the value heads
of a key head side by side, the GGUF has the first of each key head, then the second of each.
"""

import contextlib
import sys
import warnings

import firstdiff
import firstdiff_gguf
import numpy as np
import torch
from torch.overrides import TorchFunctionMode

STORAGE = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
# Of each module the sites that its output may be, and those that its input may be: the first of them that the
# plan has in that layer, in that size.
MODEL = {
    "embed_tokens": (("inp_scaled", "embd"), ()),  # gemma's module scales
    "norm": (("final_norm",), ()),
    "lm_head": (("output",), ()),  # where logits are made of it
}
LAYER = {
    "input_layernorm": (("attn_norm",), ()),
    "self_attn.q_proj": (("q", "Qcur_full"), ()),  # with a gate in the same product
    "self_attn.k_proj": (("k",), ()),
    "self_attn.v_proj": (("v",), ()),
    "self_attn.q_norm": (("q_norm",), ()),
    "self_attn.k_norm": (("k_norm",), ()),
    "self_attn.o_proj": (("o_proj",), ("attn_gated", "attn_out")),
    "linear_attn.in_proj_qkvz": (("qkvz",), ()),  # attn_qkv and z, of each key head
    "linear_attn.in_proj_qkv": (("attn_qkv",), ()),
    "linear_attn.in_proj_z": (("z",), ()),
    "linear_attn.in_proj_ba": (("linear_attn_mixed_ba",), ()),
    "linear_attn.in_proj_b": (("ssm_beta",), ()),
    "linear_attn.norm": (("mul",), ("attn_output",)),  # with its gate
    "linear_attn.out_proj": (("linear_attn_out",), ()),
    "post_attention_layernorm": (("ffn_norm",), ("attn_residual",)),
    "mlp.gate_proj": (("ffn_gate",), ()),
    "mlp.up_proj": (("ffn_up",), ()),
    "mlp.down_proj": (("ffn_down",), ("ffn_act",)),
    "mlp.gate": (("ffn_moe_logits",), ()),
    "mlp.shared_expert.gate_proj": (("ffn_gate.2",), ()),
    "mlp.shared_expert.up_proj": (("ffn_up.2",), ()),
    "mlp.shared_expert.down_proj": (("ffn_shexp",), ("ffn_swiglu",)),
    "mlp.shared_expert_gate": (("shared_expert_gate",), ()),
    "": (("layer_out",), ()),
}
# Where norms stand on both sides of the attention and of the feed-forward network.
AROUND = {
    "post_attention_layernorm": (("attn_post_norm",), ()),
    "pre_feedforward_layernorm": (("ffn_norm",), ("attn_residual",)),
    "post_feedforward_layernorm": (("ffn_post_norm",), ()),
}
# A mixture of experts as a whole, and without the shared one.
EXPERTS = {"mlp": (("ffn_out", "ffn_moe_out"), ())}
ROUTED = {"mlp.experts": (("ffn_moe_out",), ())}
# The same of functions that torch runs inside of a module; "f of g" is f of what g has given. Each counts once
# in a call of the module, and those of a size that no site has not at all.
INSIDE = {
    "self_attn": {"sigmoid": (("gate_sigmoid",), ())},
    "linear_attn": {
        "silu": (("conv_output_silu", "silu"), ("conv_output_raw",)),
        "softplus": (("a_softplus",), ("ssm_dt",)),
        "mul of softplus": (("gate",), ()),
        "sigmoid": (("beta_sigmoid", "sigmoid"), ()),
    },
    "mlp": {
        "softmax": (("ffn_moe_probs",), ()),
        "topk": (("ffn_moe_weights",), ()),
        "sum": (("ffn_moe_weights_sum",), ()),
        "sigmoid": (("shared_expert_gate_sigmoid",), ()),
        "mul of sigmoid": (("ffn_shexp_gated",), ()),
    },
    "mlp.gate": {"linear": (("ffn_moe_logits",), ())},
    "mlp.router": {"linear": (("ffn_moe_logits", "ffn_moe_probs"), ())},
}
# What experts are given beside the rows and the ids, their products, and what is made of these, with biases or
# without.
PRODUCTS = ("linear", "matmul", "bmm", "grouped_mm")
OF_EXPERTS = {
    "weights": ("ffn_moe_weights_norm", "soft_max"),
    "gate": ("ffn_moe_gate", "ffn_moe_gate_biased"),
    "up": ("ffn_moe_up", "ffn_moe_up_biased"),
    "act": ("ffn_moe_swiglu", "ffn_moe_swiglu_oai"),
    "down": ("ffn_moe_down", "ffn_moe_down_biased"),
    "weighted": ("ffn_moe_weighted",),
}
# Sites that are never left out.
NEEDED = ("attn_norm", "q", "k", "v", "o_proj", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
OF_ATTENTION = ("q_rope", "k_rope", "k_cache", "v_cache", "scores", "probs")
PERMUTED = ("q", "k", "q_rope", "k_rope", "k_cache")
# What the value heads of a linear attention are an axis of, and where q and k stand before them.
OF_VALUES = ("z", "silu", "mul", "attn_output", "ssm_dt", "a_softplus", "gate", "ssm_beta", "beta_sigmoid")
CONVOLVED = ("conv_output_raw", "conv_output_silu")
AFTER_KEYS = ("attn_qkv", *CONVOLVED)


def parts(names, plan, layer):
    """Of the modules of those names in a layer, each with the sites of the plan that it may show."""
    known = LAYER | AROUND if "pre_feedforward_layernorm" in names else dict(LAYER)
    for path, (of_output, _) in known.items():
        needed = of_output[0] in NEEDED and (of_output[0], layer) in plan.sites
        if needed and path not in names:
            raise ValueError(f"layer {layer} has no {path}, so {of_output[0]} cannot be captured; record "
                             "it by hand, with firstdiff.py")
    if "mlp" in names and "mlp.down_proj" not in names:
        known |= EXPERTS
        # A list of experts is never called as a module.
        if ("ffn_out", layer) in plan.sites and "mlp.experts.0" not in names:
            known |= ROUTED
    if ("Qcur_full", layer) in plan.sites:
        known["self_attn.q_norm"] = (("q_norm",), ("q",))
    has = lambda sites: tuple(site for site in sites if (site, layer) in plan.sites or site == "qkvz")
    found = {path: tuple(map(has, sites)) for path, sites in known.items() if path in names}
    return {path: sites for path, sites in found.items() if any(sites)}


def record(model, folder, plan, weights=True, shard=None):
    """Runs the plan's ids through the model, with a cache, and records the run in `folder`."""
    with trace(model, folder, plan, weights, shard) as recorded, torch.no_grad():
        cache = {}
        for ids in recorded.plan.steps:
            out = model(torch.tensor([ids], device=model.device), use_cache=True, **cache)
            name = "cache" if "cache" in out else "past_key_values"  # by version
            cache = {name: out[name]}


@contextlib.contextmanager
def trace(model, folder, plan, weights=True, shard=None):
    """Records the weights, then each call of the model as a step, until the block ends. `shard` is as for
    firstdiff.Trace; every rank must hold an equal part of each sharded site."""
    storage = STORAGE.get(model.dtype)
    if storage is None:
        raise ValueError(f"the model is in {model.dtype}; load it as float32, float16 or bfloat16")
    if storage == "f32" and torch.get_float32_matmul_precision() != "highest":
        raise ValueError("products in f32 are rounded to a coarser format; before recording, call "
                         "torch.set_float32_matmul_precision('highest')")
    arithmetic = {"weights": storage, "default": {"storage": storage, "accumulator": "f32"}}
    if storage != "f32":
        # So are biases and the weights of norms, and what a kernel gives the next.
        arithmetic.update(vectors=storage, between=storage)
    engine = f"transformers {type(model).__name__}"
    recorded = firstdiff.Trace(folder, plan, engine, arithmetic=arithmetic, shard=shard)
    with recorded, contextlib.ExitStack() as undo:
        if recorded.on:
            _Hooks(model, recorded, shard[1] if shard else 1).attach(undo)
            for names, weight in firstdiff_gguf.named_weights(model) if weights else ():
                recorded.weight(names, as_numpy(weight))
        yield recorded


def as_numpy(tensor):
    """A tensor as numpy has it, of bfloat16 the bits."""
    own = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # this rank's part
    own, bits = own.detach().cpu(), lambda x: x.contiguous().view(torch.int16).numpy().view(np.uint16)
    return bits(own) if own.dtype == torch.bfloat16 else own.numpy()


def in_gguf_order(heads):
    """Heads of a llama: elements i and i + d/2 come to be 2i and 2i + 1."""
    return heads.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


class _Hooks:
    """What is hooked to a model, and what it has shown of the step and layer that run."""

    def __init__(self, model, recorded, world):
        self.model, self.trace, self.layer, self.seen = model, recorded, None, set()
        self.world = world  # ranks
        self.plan = recorded.plan
        architecture = self.plan.model["architecture"]
        self.permuted = PERMUTED if architecture == "llama" else ()
        self.tiled = OF_VALUES + AFTER_KEYS if architecture in ("qwen35", "qwen35moe") else ()
        # Of each layer its linear attention, and k and v as a cache that keeps a window had them.
        self.linear, self.kept = {}, {}
        attention = model.config._attn_implementation
        self.eager = attention == "eager"
        if not self.eager:
            warnings.warn(f"{attention} attention exposes no scores and probs; to record them, load "
                          'the model with attn_implementation="eager"', stacklevel=5)
        # Of each layer, the modules and sites that must be seen in a step.
        self.expected = []

    def attach(self, undo):
        """Hooks modules and functions; `undo` takes them off again."""
        base = getattr(self.model, "model", None)
        base = getattr(base, "language_model", base)
        layers = getattr(base, "layers", ())
        wanted = {layer for _, layer in self.plan.sites if layer is not None}
        if len(layers) != len(wanted):
            raise ValueError(f"{type(self.model).__name__} has {len(layers)} of the plan's "
                             f"{len(wanted)} layers in model.layers; give the plan of its GGUF, and "
                             "a model whose layers are there")
        undo.callback(self.model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        for path, sites in MODEL.items():
            if path != "lm_head":
                self._hook_module(undo, base, path, sites)
            elif ("output", None) in self.plan.sites:
                self._hook_module(undo, self.model, path, sites)
        if ("inp_scaled", None) in self.plan.sites:
            self._hook_inside(undo, base.embed_tokens, {"embedding": (("embd",), ())})
        for index, layer in enumerate(layers):
            enter = lambda *_, index=index: self._enter(index)
            undo.callback(layer.register_forward_pre_hook(enter).remove)
            names = {name for name, _ in layer.named_modules()}
            shown = parts(names, self.plan, index)
            for path, sites in shown.items():
                self._hook_module(undo, layer, path, sites)
            for path, functions in INSIDE.items():
                if path in names and type(layer.get_submodule(path)) is not torch.nn.Linear:
                    self._hook_inside(undo, layer.get_submodule(path), functions)
            if "mlp.experts" in names and "mlp.experts.0" not in names:
                self._hook_experts(undo, layer.mlp.experts)
            if "linear_attn" in names:
                self.linear[index] = layer.linear_attn
            self.expected.append({path or "layer" for path in shown} | self._of_attention(names, index))
            undo.callback(layer.register_forward_hook(self._leave).remove)
        undo.callback(self.model.register_forward_hook(self._end).remove)
        wraps = {
            "apply_rotary_pos_emb": self._rotary,
            "eager_attention_forward": self._attention,
            "ALL_ATTENTION_FUNCTIONS": lambda own: _Attentions(own, self._attention),
        }
        attentions = [layer.self_attn for layer in layers if hasattr(layer, "self_attn")]
        for file in {type(attention).__module__ for attention in attentions}:
            for name, wrap in wraps.items():
                self._hook_function(undo, sys.modules[file], name, wrap)

    def _of_attention(self, names, layer):
        """The sites that a layer's attention functions show."""
        shown = OF_ATTENTION if self.eager else OF_ATTENTION[:4]
        if "self_attn" not in names:
            return set()
        return {site for site in shown if (site, layer) in self.plan.sites}

    def _hook_module(self, undo, root, path, sites):
        of_output, of_input = sites
        try:
            module = root.get_submodule(path)
        except AttributeError as error:
            raise ValueError(f"{type(root).__name__} has no {path}, so {of_output[-1]} cannot be "
                             "captured; record it by hand, with firstdiff.py") from error
        if of_input:
            before = lambda _, args: self._put_rows(of_input, args[0])
            undo.callback(module.register_forward_pre_hook(before).remove)

        def after(_, __, out):
            # A layer of transformers 4 gives a tuple; so does a router, of something else.
            own = out[0] if type(out) is tuple and path in ("", "mlp") else out
            if of_output == ("qkvz",):
                self._put_qkvz(own)
            elif type(own) is not tuple and of_output:
                self._put_rows(of_output, own)
            self.seen.add(path or "layer")

        undo.callback(module.register_forward_hook(after).remove)

    def _hook_inside(self, undo, module, functions):
        """Watches functions while a module runs."""
        self._hook_mode(undo, module, lambda *_: _Inside(functions, self._put_inside))

    def _hook_experts(self, undo, module):
        """Watches the products of fused experts."""
        # Where gate and up are joined they take turns, or one is after the other.
        turns = firstdiff_gguf.take_turns(module)

        def mode(_, args, kwargs):
            given = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
            ids = next((x for x in given if not x.is_floating_point()), torch.empty(0))
            return _Experts(ids, next((x for x in given if x.is_floating_point() and x.shape == ids.shape), ids))

        self._hook_mode(undo, module, mode, lambda mode: self._put_experts(mode.results(turns)))

    def _hook_mode(self, undo, module, mode, after=lambda mode: None):
        """Runs a module within a mode."""
        running = []

        def enter(*given):
            running.append(mode(*given))
            running[-1].__enter__()

        def leave(_, __, out):
            running[-1].__exit__(None, None, None)
            mode = running.pop()
            if out is not None:
                after(mode)

        undo.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
        undo.callback(module.register_forward_hook(leave, always_call=True).remove)

    def _hook_function(self, undo, module, name, wrap):
        own = getattr(module, name, None)
        if own is None:
            raise ValueError(f"{module.__name__} has no {name}, so rotated q and k, or the caches, "
                             "cannot be captured; use transformers 4.48 or later")
        setattr(module, name, wrap(own))
        undo.callback(setattr, module, name, own)

    def _begin(self, _, args, kwargs):
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None or len(ids) != 1:
            raise ValueError("a step needs input_ids of shape (1, tokens); pass one sequence")
        self.trace.step(ids[0].tolist())
        self.layer, self.seen, self.inside = None, set(), set()

    def _enter(self, index):
        self.layer, self.inside = index, set()
        self.seen -= self.expected[index]

    def _leave(self, *_):
        # The layer's own hook runs before this one.
        self._check(self.expected[self.layer])
        self.layer, self.seen = None, self.seen | {f"layer {self.layer}"}

    def _end(self, _, __, out):
        self._put_rows(("logits",), out["logits"] if "logits" in out else out[0])
        layers = {f"layer {index}" for index in range(len(self.expected))}
        self._check(layers | {"embed_tokens", "norm"})

    def _check(self, wanted):
        missing = sorted(wanted - self.seen)
        if missing:
            where = "the model" if self.layer is None else f"layer {self.layer}"
            raise ValueError(f"{where} did not expose {', '.join(missing)}: its forward calls other "
                             "modules or functions; record these by hand, with firstdiff.py")

    def _shape(self, site):
        """Of a site in the open step, as this rank has it."""
        place = self.plan.site(site, self.layer)
        shape = place.shape(len(self.trace.open.tokens), self.trace.open.positions)
        split = self.trace.split.get(site)
        if split in place.axes:
            shape[place.axes.index(split)] //= self.world
        return shape

    def _put_rows(self, sites, tensor):
        """tensor: (1, T, ...) or (T, ...), heads side by side: the first of the sites that has its size."""
        tokens = len(self.trace.open.tokens)
        shapes = []
        for site in sites:
            if (site, self.layer) not in self.plan.sites and (site, None) not in self.plan.sites:
                continue
            place = self.plan.site(site, self.layer)
            shapes.append(self._shape(site))
            if tensor.numel() == np.prod(shapes[-1]):
                if "head" in place.axes:
                    tensor = _by_token(tensor, *shapes[-1][:2])
                return self._put(site, tensor.reshape(shapes[-1]), None)
            kept = tensor.shape[:-1].numel()  # `generate` has logits of the last tokens only
            if site in ("logits", "output") and tensor.numel() == kept * np.prod(shapes[-1][1:]):
                return self._put(site, tensor.reshape(kept, -1), None, range(tokens - kept, tokens))
        if shapes:
            raise ValueError(f"layer {self.layer}: {sites[0]} was given as {tuple(tensor.shape)}; the plan has "
                             f"{shapes[0]}; give the plan of the model's GGUF")

    def _put_inside(self, sites, tensor):
        """The first of the sites that has the size of what a function was given or gave, if it was not seen yet."""
        tokens = len(self.trace.open.tokens)
        for site in sites:
            if (site, self.layer) not in self.plan.sites and (site, None) not in self.plan.sites:
                continue
            shape = self._shape(site)
            if site in CONVOLVED and tensor.dim() == 3 and tensor.shape[1] == shape[1]:
                # Channels first, and perhaps with tokens of the steps before.
                tensor = tensor[:, :, -tokens:].transpose(1, 2)
            if site not in self.inside and tensor.numel() == np.prod(shape):
                self.inside.add(site)
                self._put(site, tensor.reshape(shape), None)
                return

    def _put_experts(self, results):
        """What fused experts have made for each token and slot."""
        for part, tensor in results.items():
            self._put_inside(OF_EXPERTS[part], tensor)

    def _put_qkvz(self, tensor):
        """A product whose rows are, of each key head, those of q, k, its value heads and their gates."""
        module = self.linear[self.layer]
        each = module.num_v_heads // module.num_k_heads * module.head_v_dim
        heads = tensor.unflatten(-1, (module.num_k_heads, -1))
        *qkv, z = heads.split((module.head_k_dim, module.head_k_dim, each, each), -1)
        self._put_inside(("attn_qkv",), torch.cat([part.flatten(-2) for part in qkv], -1))
        self._put_inside(("z",), z.flatten(-2))

    def _tile(self, site, tensor):
        """The value heads in the order of the GGUF: the first of each key head, then the second of each."""
        module = self.linear[self.layer]
        keys = 2 * module.key_dim if site in AFTER_KEYS else 0
        rows = tensor.flatten(1)
        values = rows[:, keys:].unflatten(1, (module.num_k_heads, module.num_v_heads // module.num_k_heads, -1))
        return torch.cat((rows[:, :keys], values.transpose(1, 2).flatten(1)), 1).reshape(tensor.shape)

    def _put(self, site, tensor, axes, rows=None):
        if site in self.tiled and self.layer in self.linear:
            tensor = self._tile(site, tensor)
        if site in self.permuted:
            tensor = in_gguf_order(tensor)
        self.trace.put(self.layer, axes, rows, **{site: as_numpy(tensor)})
        self.seen.add(site)

    def _rotary(self, own):
        def rotary(*args, **kwargs):
            q, k = own(*args, **kwargs)
            for site, tensor in (("q_rope", q), ("k_rope", k)):
                if (site, self.layer) in self.plan.sites:
                    self._put(site, tensor[0], "head token dim")
            return q, k

        return rotary

    def _attention(self, own):
        if hasattr(own, "of_firstdiff"):
            return own

        def attention(module, query, key, value, *args, **kwargs):
            positions = self.trace.open.positions
            before = max(positions - key.shape[2], 0)
            if before and not getattr(module, "sliding_window", None):
                raise ValueError(f"the attention of layer {self.layer} reads {key.shape[2]} of "
                                 f"{positions} positions; run with a cache")
            if ("k_cache", self.layer) in self.plan.sites:
                self._put_caches(module, key, value, before)
            with _Scores() as shown:
                out, probs = own(module, query, key, value, *args, **kwargs)
            if ("attn_gated", self.layer) in self.plan.sites:
                self._put_rows(("attn_out",), out)
            if self.eager and probs is not None:
                # Keys before a window have no scores, and no share.
                keys = lambda x: torch.nn.functional.pad(x[0], (before, 0))[..., :positions]
                scores = shown.scores
                # With sinks the softmax is given more, and less than the scores.
                if scores is not None and scores.shape[-1] == key.shape[2]:
                    self._put("scores", keys(scores), "head token key")
                elif hasattr(module, "sinks"):
                    self.seen.add("scores")
                self._put("probs", keys(probs), "head token key")
            return out, probs

        attention.of_firstdiff = True
        return attention

    def _put_caches(self, module, key, value, before):
        """k and v of every position; those `before` a window as they were while it had them."""
        positions = self.trace.open.positions
        whole = [tensor[0, :, :positions].detach() for tensor in (key, value)]  # there may be room after them
        if before:
            kept = self.kept.get(self.layer, ())
            if any(old.shape[1] < before for old in kept) or not kept:
                self.seen |= {"k_cache", "v_cache"}
                return
            whole = [torch.cat((old[:, :before], new), 1) for old, new in zip(kept, whole, strict=True)]
        if getattr(module, "sliding_window", None):
            self.kept[self.layer] = [tensor.clone() for tensor in whole]
        self._put("k_cache", whole[0], "head position dim")
        self._put("v_cache", whole[1], "head position dim")


def _by_token(tensor, tokens, heads):
    """A tensor (1, T, H, D) of one whose heads may come before its tokens."""
    if tensor.dim() != 4 or tensor.shape[1:3] != (heads, tokens):
        return tensor
    # As many heads as tokens: those of a projection's row stand side by side.
    first = tokens != heads or tensor.stride(1) < tensor.stride(2)
    return tensor.transpose(1, 2) if first else tensor


def _name(function):
    """A function's name, the same for those in place and of operators."""
    return getattr(function, "__name__", "").strip("_")


class _Inside(TorchFunctionMode):
    """Shows what functions are given and give, as INSIDE says."""

    def __init__(self, functions, show):
        super().__init__()
        self.functions, self.show, self.given = functions, show, {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = _name(function)
        of_input = self.functions.get(name, ((), ()))[1]
        if of_input:
            self.show(of_input, args[0])
        out = function(*args, **(kwargs or {}))
        if any(name == of.split(" ")[0] for of in self.functions):
            first = out if isinstance(out, torch.Tensor) else out[0]
            for other, tensor in self.given.items():
                if any(arg is tensor for arg in args):
                    self.show(self.functions.get(f"{name} of {other}", ((), ()))[0], first)
            self.show(self.functions.get(name, ((), ()))[0], first)
            self.given[name] = first
        return out


class _Experts(TorchFunctionMode):
    """Sees the products of fused experts, whatever the order in which they take tokens."""

    def __init__(self, ids, weights):
        super().__init__()
        self.slots, self.pairs, self.given = ids.shape[-1], ids.numel(), {"weights": weights}
        self.rows = torch.arange(self.pairs, device=ids.device)  # token * slots + slot, of each row that comes now
        self.products, self.weighted = [], []  # [rows, what it was given, what it gave]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name, last = _name(function), self.products[-1] if self.products else (None,) * 3
        if name == "sort" and out[1].numel() == self.pairs:
            self.rows = out[1]
        elif name == "where" and len(args) == 1 and len(out) == 2:
            slot, token = out
            self.rows = token * self.slots + slot
        elif name in PRODUCTS:
            self.products.append([self.rows, args, out])
        elif name == "add" and args[0] is last[2]:
            last[2] = out
        elif name == "mul" and _same(args[0], last[2]):
            self.weighted.append([self.rows, args, out])
        return out

    def results(self, turns):
        """By the parts of OF_EXPERTS, rows of tokens and slots; empty where the products are others."""
        first, second = self._whole(self.products[::2]), self._whole(self.products[1::2])
        if first is None or second is None:
            return self.given if self.pairs else {}
        neurons = first.shape[1] // 2
        halves = (first[:, ::2], first[:, 1::2]) if turns else first.split(neurons, 1)
        results = self.given | dict(zip(("gate", "up"), halves, strict=True)) | {"down": second}
        given = lambda rows, args: next((x for x in args[:2] if x.numel() == len(rows) * neurons), None)
        acts = [[rows, (), given(rows, args)] for rows, args, _ in self.products[1::2]]
        for part, calls in (("act", acts), ("weighted", self.weighted)):
            whole = self._whole(calls)
            if whole is not None:
                results[part] = whole
        return results

    def _whole(self, calls):
        """One tensor of what calls gave for their rows; None where they are not all rows, each once."""
        if sum(len(rows) for rows, _, _ in calls) != self.pairs or not self.pairs:
            return None
        # An expert that no token has chosen has no rows.
        calls = [(rows, out) for rows, _, out in calls if len(rows)]
        if any(out is None or out.numel() % len(rows) for rows, out in calls):
            return None
        rows = torch.cat([rows for rows, _ in calls])
        given = [out.reshape(len(rows), -1) for rows, out in calls]
        if len({out.shape[1] for out in given}) != 1:
            return None
        whole = torch.cat(given)
        return torch.empty_like(whole).index_copy_(0, rows, whole)


def _same(a, b):
    """Whether two tensors are one, or one is a view of the whole of the other."""
    tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
    return tensors and a.numel() == b.numel() and a.data_ptr() == b.data_ptr()


class _Scores(TorchFunctionMode):
    """Sees what the softmax is given, before the mask was added."""

    scores, sum = None, (None, None)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if name in ("add", "__add__", "add_", "__iadd__"):
            self.sum = (out, args[0])
        elif name == "softmax":
            masked = self.sum[0] is not None and args[0].shape[:-1] == self.sum[0].shape[:-1]
            self.scores = self.sum[1] if masked else args[0]
        return out


class _Attentions:
    """The attention functions of transformers, each recorded when it is asked for."""

    def __init__(self, own, wrap):
        self.own, self.wrap = own, wrap

    def __getitem__(self, name):
        return self.wrap(self.own[name])

    def get_interface(self, name, default):
        return self.wrap(self.own.get_interface(name, default))

    def __getattr__(self, name):
        return getattr(self.own, name)
