"""Records a model of transformers, for `firstdiff explain`: llama, mistral, qwen2, qwen3, qwen3_moe, gemma3,
gpt_oss, qwen3_next, and those whose modules are called as theirs.

Needs firstdiff.py beside it, torch, and transformers 4.48 or later. Nothing is named by hand:

    firstdiff capture reference -m model.gguf -p "Once upon a time" -o ref

    import firstdiff_transformers
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="eager")
    firstdiff_transformers.record(model, "mine", "ref/plan.txt")

    firstdiff explain mine --reference ref -m model.gguf

`record` runs the plan's ids with a cache. A loop of your own is recorded as it is:

    with firstdiff_transformers.trace(model, "mine", "ref/plan.txt") as trace:
        for ids in trace.plan.steps:          # each call of the model is a step
            model(torch.tensor([ids]), ...)

What is recorded is what the model computes, with the functions and modules that it has when recording
starts. A module's output is the site of the plan that its name and its size say; a site of the plan that no
module shows, such as one inside of fused experts, is left out. A module that is there and is not called is an
error. Only eager attention shows scores and probs; with another
they are left out, with a warning, and the attention is judged as one operation.

transformers rotates the pairs (i, i + d/2) of a head, llama.cpp those (2i, 2i + 1) of a llama, whose
GGUF has its q and k rows permuted. So a llama's q and k, and what is made of them, are recorded in the
order of the GGUF.
"""

import contextlib
import sys
import warnings

import firstdiff
import numpy as np
import torch
from torch.overrides import TorchFunctionMode

STORAGE = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
# Of each module the sites that its output may be, and those that its input may be: the first of them that the
# plan has in that layer, in that size.
MODEL = {
    "embed_tokens": (("inp_scaled", "embd"), ()),  # gemma's module scales
    "norm": (("final_norm",), ()),
}
LAYER = {
    "input_layernorm": (("attn_norm",), ()),
    "self_attn.q_proj": (("q", "Qcur_full"), ()),  # with a gate in the same product
    "self_attn.k_proj": (("k",), ()),
    "self_attn.v_proj": (("v",), ()),
    "self_attn.q_norm": (("q_norm",), ()),
    "self_attn.k_norm": (("k_norm",), ()),
    "self_attn.o_proj": (("o_proj",), ("attn_gated", "attn_out")),
    "linear_attn.in_proj_ba": (("linear_attn_mixed_ba",), ()),
    "linear_attn.out_proj": (("linear_attn_out",), ()),
    "post_attention_layernorm": (("ffn_norm",), ("attn_residual",)),
    "mlp.gate_proj": (("ffn_gate",), ()),
    "mlp.up_proj": (("ffn_up",), ()),
    "mlp.down_proj": (("ffn_down",), ("ffn_act",)),
    "mlp.gate": (("ffn_moe_logits",), ()),
    "mlp.shared_expert.gate_proj": (("ffn_gate.2",), ()),
    "mlp.shared_expert.up_proj": (("ffn_up.2",), ()),
    "mlp.shared_expert.down_proj": (("ffn_shexp",), ("ffn_swiglu",)),
    "": (("layer_out",), ()),
}
# Where norms stand on both sides of the attention and of the feed-forward network.
AROUND = {
    "post_attention_layernorm": (("attn_post_norm",), ()),
    "pre_feedforward_layernorm": (("ffn_norm",), ("attn_residual",)),
    "post_feedforward_layernorm": (("ffn_post_norm",), ()),
}
# A mixture of experts as a whole.
EXPERTS = {"mlp": (("ffn_out", "ffn_moe_out"), ())}
# Sites that are never left out.
NEEDED = ("attn_norm", "q", "k", "v", "o_proj", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
OF_ATTENTION = ("q_rope", "k_rope", "k_cache", "v_cache", "scores", "probs")
PERMUTED = ("q", "k", "q_rope", "k_rope", "k_cache")


def parts(names, plan, layer):
    """Of the modules of those names in a layer, each with the sites of the plan that it may show."""
    known = LAYER | AROUND if "pre_feedforward_layernorm" in names else dict(LAYER)
    for path, (of_output, _) in known.items():
        needed = of_output[0] in NEEDED and (of_output[0], layer) in plan.sites
        if needed and path not in names:
            raise ValueError(f"layer {layer} has no {path}, so {of_output[0]} cannot be seen; record "
                             "it by hand, with firstdiff.py")
    if "mlp" in names and "mlp.down_proj" not in names:
        known |= EXPERTS
    has = lambda sites: tuple(site for site in sites if (site, layer) in plan.sites)
    found = {path: tuple(map(has, sites)) for path, sites in known.items() if path in names}
    return {path: sites for path, sites in found.items() if any(sites)}


def record(model, folder, plan):
    """Runs the ids of a plan through the model, with a cache, and records them in `folder`."""
    with trace(model, folder, plan) as recorded, torch.no_grad():
        cache = {}
        for ids in recorded.plan.steps:
            out = model(torch.tensor([ids], device=model.device), use_cache=True, **cache)
            name = "cache" if "cache" in out else "past_key_values"  # by version
            cache = {name: out[name]}


@contextlib.contextmanager
def trace(model, folder, plan):
    """Records each call of the model as a step, until the block ends."""
    storage = STORAGE.get(model.dtype)
    if storage is None:
        raise ValueError(f"the model is in {model.dtype}; load it as float32, float16 or bfloat16")
    if storage == "f32" and torch.get_float32_matmul_precision() != "highest":
        raise ValueError("products of f32 are rounded to less; before recording, call "
                         "torch.set_float32_matmul_precision('highest')")
    arithmetic = {"weights": storage, "default": {"storage": storage, "accumulator": "f32"}}
    if storage != "f32":
        # So are biases and the weights of norms, and what a kernel gives the next.
        arithmetic.update(vectors=storage, between=storage)
    engine = f"transformers {type(model).__name__}"
    recorded = firstdiff.Trace(folder, plan, engine, arithmetic=arithmetic)
    with recorded, contextlib.ExitStack() as undo:
        if recorded.on:
            _Hooks(model, recorded).attach(undo)
        yield recorded


class _Hooks:
    """What is hooked to a model, and what it has shown of the step and layer that run."""

    def __init__(self, model, recorded):
        self.model, self.trace, self.layer, self.seen = model, recorded, None, set()
        self.plan = recorded.plan
        self.permuted = PERMUTED if self.plan.model["architecture"] == "llama" else ()
        attention = model.config._attn_implementation
        self.eager = attention == "eager"
        if not self.eager:
            warnings.warn(f"{attention} attention shows no scores and probs; to record them, load "
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
            self._hook_module(undo, base, path, sites)
        self._hook_module(undo, self.model, "lm_head", (("logits",), ()))
        for index, layer in enumerate(layers):
            enter = lambda *_, index=index: self._enter(index)
            undo.callback(layer.register_forward_pre_hook(enter).remove)
            names = {name for name, _ in layer.named_modules()}
            shown = parts(names, self.plan, index)
            for path, sites in shown.items():
                self._hook_module(undo, layer, path, sites)
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
                             "seen; record it by hand, with firstdiff.py") from error
        if of_input:
            before = lambda _, args: self._put_rows(of_input, args[0])
            undo.callback(module.register_forward_pre_hook(before).remove)

        def after(_, __, out):
            # A layer of transformers 4 gives a tuple; so does a router, of something else.
            own = out[0] if type(out) is tuple and path in ("", "mlp") else out
            if type(own) is not tuple and of_output:
                self._put_rows(of_output, own)
            self.seen.add(path or "layer")

        undo.callback(module.register_forward_hook(after).remove)

    def _hook_function(self, undo, module, name, wrap):
        own = getattr(module, name, None)
        if own is None:
            raise ValueError(f"{module.__name__} has no {name}, so rotated q and k, or the caches, "
                             "cannot be seen; use transformers 4.48 or later")
        setattr(module, name, wrap(own))
        undo.callback(setattr, module, name, own)

    def _begin(self, _, args, kwargs):
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None or len(ids) != 1:
            raise ValueError("a step is a call with input_ids of shape (1, tokens); make it so")
        self.trace.step(ids[0].tolist())
        self.layer, self.seen = None, set()

    def _enter(self, index):
        self.layer = index
        self.seen -= self.expected[index]

    def _leave(self, *_):
        # The layer's own hook runs before this one.
        self._check(self.expected[self.layer])
        self.layer, self.seen = None, self.seen | {f"layer {self.layer}"}

    def _end(self, *_):
        layers = {f"layer {index}" for index in range(len(self.expected))}
        self._check(layers | {"embed_tokens", "norm", "lm_head"})

    def _check(self, wanted):
        missing = sorted(wanted - self.seen)
        if missing:
            where = "the model" if self.layer is None else f"layer {self.layer}"
            raise ValueError(f"{where} has not shown {', '.join(missing)}: its forward calls other "
                             "modules or functions; record these by hand, with firstdiff.py")

    def _put_rows(self, sites, tensor):
        """tensor: (1, T, ...) or (T, ...), heads side by side: the first of the sites that has its size."""
        tokens, positions = len(self.trace.open.tokens), self.trace.open.positions
        shapes = []
        for site in sites:
            if (site, self.layer) not in self.plan.sites and (site, None) not in self.plan.sites:
                continue
            shapes.append(self.plan.site(site, self.layer).shape(tokens, positions))
            if tensor.numel() == np.prod(shapes[-1]):
                self._put(site, tensor.reshape(shapes[-1]), None)
                return
        if shapes:
            raise ValueError(f"layer {self.layer}: {sites[0]} came as {tuple(tensor.shape)}, the plan has "
                             f"{shapes[0]}; give the plan of the model's GGUF")

    def _put(self, site, tensor, axes):
        if site in self.permuted:
            # Elements i and i + d/2 of a head come to be 2i and 2i + 1.
            tensor = tensor.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        tensor = tensor.detach().cpu()
        if tensor.dtype == torch.bfloat16:
            array = tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
        else:
            array = tensor.numpy()
        self.trace.put(self.layer, axes, **{site: array})
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
            whole = key.shape[2] >= positions
            if not whole and not getattr(module, "sliding_window", None):
                raise ValueError(f"the attention of layer {self.layer} reads {key.shape[2]} of "
                                 f"{positions} positions; run with a cache")
            if not whole:
                # A cache that keeps a window only.
                self.seen |= {"k_cache", "v_cache", "scores", "probs"}
            elif ("k_cache", self.layer) in self.plan.sites:
                # A cache of fixed size has room after them.
                self._put("k_cache", key[0, :, :positions], "head position dim")
                self._put("v_cache", value[0, :, :positions], "head position dim")
            with _Scores() as shown:
                out, probs = own(module, query, key, value, *args, **kwargs)
            if whole and self.eager and probs is not None:
                scores = shown.scores
                # With sinks the softmax is given more, and less than the scores.
                if scores is not None and scores.shape[-1] == key.shape[2]:
                    self._put("scores", scores[0, :, :, :positions], "head token key")
                elif hasattr(module, "sinks"):
                    self.seen.add("scores")
                self._put("probs", probs[0, :, :, :positions], "head token key")
            return out, probs

        attention.of_firstdiff = True
        return attention


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
