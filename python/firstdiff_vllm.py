"""Records a vLLM model for `firstdiff explain`: llama, mistral, qwen2, qwen3, and models whose modules have the
same names.

Needs firstdiff.py and firstdiff_transformers.py beside it, and vLLM without torch.compile and CUDA graphs:

    firstdiff capture reference -m model.gguf -p "Once upon a time" -n 4 -o ref

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import firstdiff_vllm
    llm = LLM("model", enforce_eager=True)
    firstdiff_vllm.record(llm, "mine", "ref/plan.txt")

    firstdiff explain mine --reference ref -m model.gguf

`record` runs the plan's prompt, then lets the model choose one token for each further step of the plan. Each call
of the model is a step. Run one request at a time, because a vLLM step does not tell which request owns a row.

The hooks record the outputs of modules: q, k and v of the fused product, gate and up of theirs, both outputs of a
norm that adds the residual, and logits of the sampled rows. The attention kernel exposes neither caches nor scores
and probabilities, so the attention is judged as one operation. With tensor parallelism, each worker records its
shard.
"""

import functools

import firstdiff
from firstdiff_transformers import PERMUTED, STORAGE, as_numpy, in_gguf_order

SHARDS = "head neuron"  # outputs of the row-parallel products are whole again
_recorder = None  # of this process


def record(llm, folder, plan):
    """Runs the prompt of a plan through vLLM, and records each step in `folder`."""
    from vllm import SamplingParams

    steps = firstdiff.Plan(plan)
    llm.apply_model(functools.partial(begin, folder=folder, plan=plan))
    count = len(steps.steps) + steps.decode
    greedy = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    llm.generate([{"prompt_token_ids": steps.steps[0]}], greedy)
    llm.apply_model(end)


def begin(model, folder, plan):
    """Hooks the model of a worker."""
    global _recorder
    _recorder = _Recorder(model, folder, plan)


def end(_):
    """Ends the trace of a worker, and takes the hooks off."""
    global _recorder
    _recorder.close()
    _recorder = None


class _Recorder:
    def __init__(self, model, folder, plan):
        from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

        base = model.model
        dtype = next(model.parameters()).dtype
        if dtype not in STORAGE:
            raise ValueError(f"the model is in {dtype}; load it as float32, float16 or bfloat16")
        storage, world = STORAGE[dtype], get_tensor_model_parallel_world_size()
        arithmetic = {"weights": storage, "default": {"storage": storage, "accumulator": "f32"}}
        if storage != "f32":
            arithmetic["vectors"] = storage
        shard = (get_tensor_model_parallel_rank(), world, SHARDS) if world > 1 else None
        engine = f"vLLM {type(model).__name__}"
        self.trace = firstdiff.Trace(folder, plan, engine, arithmetic=arithmetic, shard=shard)
        self.plan, self.layer, self.active, self.undo = self.trace.plan, None, False, []
        self.permuted = PERMUTED if self.plan.model["architecture"] == "llama" else ()
        # The inner model is called without its hooks.
        self._before(model, self._begin_step)
        self._after(base.embed_tokens, lambda out: self._put(None, embd=out))
        for index, layer in enumerate(base.layers):
            self._hook_layer(index, layer)
        last = len(base.layers) - 1
        self._after(base.norm, lambda out: self._put_normed(None, "final_norm", last, out))
        own = model.compute_logits
        model.compute_logits = lambda *args, **kwargs: self._logits(own(*args, **kwargs))
        self.undo.append(lambda: setattr(model, "compute_logits", own))

    def close(self):
        for undo in self.undo:
            undo()
        self.trace.end()

    def _before(self, module, show):
        self.undo.append(module.register_forward_pre_hook(show, with_kwargs=True).remove)

    def _after(self, module, show):
        def hook(_, __, out):
            if self.active:
                show(out)

        self.undo.append(module.register_forward_hook(hook).remove)

    def _hook_layer(self, index, layer):
        attention, mlp = layer.self_attn, layer.mlp
        # Layers share one rotation: what it gives is of the layer that runs.
        self._before(layer, lambda *_: setattr(self, "layer", index))
        self._after(layer.input_layernorm, lambda out: self._put_normed(index, "attn_norm", index - 1, out))
        sizes = (attention.q_size, attention.kv_size, attention.kv_size)
        self._after(attention.qkv_proj, lambda out: self._put(index, **dict(zip("qkv", out[0].split(sizes, -1)))))
        for name in ("q_norm", "k_norm"):
            if hasattr(attention, name):
                self._after(getattr(attention, name), lambda out, name=name: self._put(index, **{name: out}))
        if index == 0:
            self._after(attention.rotary_emb, lambda out: self._put(self.layer, q_rope=out[0], k_rope=out[1]))
        self._after(attention.attn, lambda out: self._put(index, attn_out=out))
        self._after(attention.o_proj, lambda out: self._put(index, o_proj=out[0]))
        self._after(layer.post_attention_layernorm, lambda out: self._put(index, ffn_norm=out[0], attn_residual=out[1]))
        halves = lambda out: dict(zip(("ffn_gate", "ffn_up"), out[0].chunk(2, -1)))
        self._after(mlp.gate_up_proj, lambda out: self._put(index, **halves(out)))
        self._after(mlp.act_fn, lambda out: self._put(index, ffn_act=out))
        self._after(mlp.down_proj, lambda out: self._put(index, ffn_down=out[0]))

    def _begin_step(self, _, args, kwargs):
        from vllm.forward_context import get_forward_context

        metadata = get_forward_context().attn_metadata
        self.active = metadata is not None  # else the run that measures memory
        if not self.active:
            return
        metadata = next(iter(metadata.values()))
        if len(metadata.seq_lens) != 1:
            raise ValueError(f"{len(metadata.seq_lens)} requests run in one step; give vLLM one at a time")
        ids = kwargs.get("input_ids", args[0] if args else None)
        count = int(metadata.num_actual_tokens)
        self.layer, self.tokens = None, count
        self.trace.step(ids[:count].tolist(), first_position=int(metadata.seq_lens[0]) - count)

    def _put_normed(self, layer, site, before, out):
        """What a norm gives, and the sum that it has made before: what the layer before leaves."""
        normed, residual = out if isinstance(out, tuple) else (out, None)
        if residual is not None:
            self._put(before, layer_out=residual)
        self._put(layer, **{site: normed})

    def _put(self, layer, **tensors):
        for site, tensor in tensors.items():
            if (site, layer) not in self.plan.sites and (site, None) not in self.plan.sites:
                continue
            place = self.plan.site(site, layer)
            shape = [self.tokens, *(int(size) for size in place.sizes[1:])]
            if "head" in place.axes:
                shape[1] = -1  # this rank's
            rows = tensor[: self.tokens]
            rows = rows.reshape(shape) if len(shape) == 3 else rows.reshape(self.tokens, -1)
            self.trace.put(layer, **{site: as_numpy(in_gguf_order(rows) if site in self.permuted else rows)})

    def _logits(self, logits):
        if self.active and logits is not None:
            self.trace.put(rows=range(self.tokens - len(logits), self.tokens), logits=as_numpy(logits.float()))
        return logits
