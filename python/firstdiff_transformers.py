"""Records a llama, qwen2, qwen3 or mistral model of transformers, for `firstdiff explain`.

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
starts. A site that cannot be seen is an error. Only eager attention shows scores and probs; with another
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
# Of each module the site of its output, and that of its input. A layer's own output is "".
MODEL = {
    "model.embed_tokens": ("embd", None),
    "model.norm": ("final_norm", None),
    "lm_head": ("logits", None),
}
LAYER = {
    "input_layernorm": ("attn_norm", None),
    "self_attn.q_proj": ("q", None),
    "self_attn.k_proj": ("k", None),
    "self_attn.v_proj": ("v", None),
    "self_attn.o_proj": ("o_proj", "attn_out"),
    "post_attention_layernorm": ("ffn_norm", "attn_residual"),
    "mlp.gate_proj": ("ffn_gate", None),
    "mlp.up_proj": ("ffn_up", None),
    "mlp.down_proj": ("ffn_down", "ffn_act"),
    "": ("layer_out", None),
}
QK_NORM = {"self_attn.q_norm": ("q_norm", None), "self_attn.k_norm": ("k_norm", None)}
PERMUTED = ("q", "k", "q_rope", "k_rope", "k_cache")


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
        self.shapes = recorded.plan.shapes
        architecture = recorded.plan.model["architecture"]
        self.permuted = PERMUTED if architecture == "llama" else ()
        self.parts = LAYER | QK_NORM if architecture == "qwen3" else LAYER
        attention = model.config._attn_implementation
        self.eager = attention == "eager"
        if not self.eager:
            warnings.warn(f"{attention} attention shows no scores and probs; to record them, load "
                          'the model with attn_implementation="eager"', stacklevel=5)
        sites = {site for pair in self.parts.values() for site in pair if site}
        sites |= {"q_rope", "k_rope", "k_cache", "v_cache"}
        self.expected = sites | {"scores", "probs"} if self.eager else sites

    def attach(self, undo):
        """Hooks modules and functions; `undo` takes them off again."""
        layers = getattr(getattr(self.model, "model", None), "layers", ())
        if len(layers) != self.shapes["n_layer"]:
            raise ValueError(f"{type(self.model).__name__} has {len(layers)} of the plan's "
                             f"{self.shapes['n_layer']} layers in model.layers; give the plan of "
                             "its GGUF, and a llama, qwen2, qwen3 or mistral model")
        undo.callback(self.model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        for path, sites in MODEL.items():
            self._hook_module(undo, self.model, path, sites)
        for index, layer in enumerate(layers):
            enter = lambda *_, index=index: self._enter(index)
            undo.callback(layer.register_forward_pre_hook(enter).remove)
            for path, sites in self.parts.items():
                self._hook_module(undo, layer, path, sites)
            undo.callback(layer.register_forward_hook(self._leave).remove)
        undo.callback(self.model.register_forward_hook(self._end).remove)
        wraps = {
            "apply_rotary_pos_emb": self._rotary,
            "eager_attention_forward": self._attention,
            "ALL_ATTENTION_FUNCTIONS": lambda own: _Attentions(own, self._attention),
        }
        for file in {type(layer.self_attn).__module__ for layer in layers}:
            for name, wrap in wraps.items():
                self._hook_function(undo, sys.modules[file], name, wrap)

    def _hook_module(self, undo, root, path, sites):
        of_output, of_input = sites
        try:
            module = root.get_submodule(path)
        except AttributeError as error:
            raise ValueError(f"{type(root).__name__} has no {path}, so {of_output} cannot be seen; "
                             "give a llama, qwen2, qwen3 or mistral model") from error
        if of_input:
            before = lambda _, args: self._put_rows(of_input, args[0])
            undo.callback(module.register_forward_pre_hook(before).remove)
        # A layer of transformers 4 gives a tuple.
        after = lambda _, __, out: self._put_rows(of_output, out[0] if type(out) is tuple else out)
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
        self.layer, self.seen = index, self.seen - self.expected

    def _leave(self, *_):
        self._check(self.expected)
        self.layer, self.seen = None, self.seen | {f"layer {self.layer}"}

    def _end(self, *_):
        layers = {f"layer {index}" for index in range(self.shapes["n_layer"])}
        self._check(layers | {"embd", "final_norm", "logits"})

    def _check(self, wanted):
        missing = sorted(wanted - self.seen)
        if missing:
            where = "the model" if self.layer is None else f"layer {self.layer}"
            raise ValueError(f"{where} has not shown {', '.join(missing)}: its forward calls other "
                             "modules or functions; record these by hand, with firstdiff.py")

    def _put_rows(self, site, tensor):
        """tensor: (1, T, ...), heads side by side."""
        tensor = tensor[0]
        if "dim" in firstdiff.AXES[site]:
            tensor = tensor.reshape(len(tensor), -1, self.shapes["head_dim"])
        self._put(site, tensor, None)

    def _put(self, site, tensor, axes):
        if site in self.permuted:
            # Elements i and i + d/2 of a head come to be 2i and 2i + 1.
            tensor = tensor.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        tensor = tensor.detach().cpu()
        if tensor.dtype == torch.bfloat16:
            array = tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
        else:
            array = tensor.numpy()
        self.trace.put(None if site in firstdiff.GLOBAL else self.layer, axes, **{site: array})
        self.seen.add(site)

    def _rotary(self, own):
        def rotary(*args, **kwargs):
            q, k = own(*args, **kwargs)
            self._put("q_rope", q[0], "head token dim")
            self._put("k_rope", k[0], "head token dim")
            return q, k

        return rotary

    def _attention(self, own):
        if hasattr(own, "of_firstdiff"):
            return own

        def attention(module, query, key, value, *args, **kwargs):
            positions = self.trace.open.counts["position"]
            if key.shape[2] < positions:
                raise ValueError(f"the attention of layer {self.layer} reads {key.shape[2]} of "
                                 f"{positions} positions; run with a cache and no sliding window")
            # A cache of fixed size has room after them.
            self._put("k_cache", key[0, :, :positions], "head position dim")
            self._put("v_cache", value[0, :, :positions], "head position dim")
            with _Scores() as shown:
                out, probs = own(module, query, key, value, *args, **kwargs)
            if self.eager and shown.scores is not None and probs is not None:
                self._put("scores", shown.scores[0, :, :, :positions], "head token key")
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
            self.scores = self.sum[1] if args[0] is self.sum[0] else args[0]
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
