"""What the hooks refuse, and that they leave a model as it was: MODEL.gguf PLAN.txt TRACE.

Ends with an error where something is not as it should be. TRACE is the run of sdpa attention.
"""

import contextlib
import sys
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples/transformers")]
import run  # noqa: E402

firstdiff_transformers = run.firstdiff_transformers
gguf, plan, folder = sys.argv[1:]
model = run.load(gguf, None, "eager", torch.float32)
code = sys.modules[type(model).__module__]
bad = folder + "-bad"


@contextlib.contextmanager
def refused(says):
    """Fails unless the block ends with an error that says so, and an unfinished trace."""
    try:
        yield
    except ValueError as error:
        assert says in str(error), f"{says!r} is not in {str(error)!r}"
        assert not (Path(bad) / "manifest.json").exists(), says
        return
    raise AssertionError(f"nothing was refused: {says}")


@contextlib.contextmanager
def replaced(owner, name, value):
    own = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, own)


def of(text):
    """The trace of a plan like the real one with a line changed."""
    changed = Path(folder + "-plan.txt")
    changed.write_text(Path(plan).read_text().replace(*text))
    return changed


attention, layers = model.model.layers[1].self_attn, model.model.layers
names = ("apply_rotary_pos_emb", "eager_attention_forward", "ALL_ATTENTION_FUNCTIONS")
before = [getattr(code, name) for name in names]
with refused("has 4 of the plan's 5 layers"):
    firstdiff_transformers.record(model, bad, of(("site attn_norm 0-3", "site attn_norm 0-4")))
with refused("layer 2 has no mlp.gate_proj, so ffn_gate cannot be captured"), replaced(
    layers[2], "mlp", torch.nn.Identity()
):
    firstdiff_transformers.record(model, bad, plan)
with refused("layer 1 did not expose k_cache, k_rope, probs"), replaced(
    attention, "forward", lambda hidden_states, **_: (hidden_states, None)
):
    firstdiff_transformers.record(model, bad, plan)
with refused("layer 0 did not expose k_rope, q_rope:"):
    rotate = code.apply_rotary_pos_emb
    with firstdiff_transformers.trace(model, bad, plan):
        # Replaced once more, within the block.
        with replaced(code, "apply_rotary_pos_emb", rotate):
            model(torch.tensor([[1, 2, 3]]))
with refused("the model did not expose layer 3:"), replaced(
    model.config, "num_hidden_layers", 3
):
    firstdiff_transformers.record(model, bad, plan)
last = model.lm_head.register_forward_pre_hook(lambda _, args: args[0][:, -1:])
with refused("logits was given as"), firstdiff_transformers.trace(model, bad, plan):
    model(torch.tensor([[1, 2, 3]]))
last.remove()
with refused("input_ids of shape (1, tokens)"), firstdiff_transformers.trace(model, bad, plan):
    model(torch.tensor([[1, 2], [3, 4]]))
with refused("of layer 0 reads 1 of 4 positions"), firstdiff_transformers.trace(model, bad, plan):
    for ids in ([[1, 2, 3]], [[4]]):
        model(torch.tensor(ids), use_cache=False)
with refused("the model is in torch.float64"):
    firstdiff_transformers.record(model.double(), bad, plan)
model.float()
torch.set_float32_matmul_precision("high")
with refused("products of f32 are rounded"):
    firstdiff_transformers.record(model, bad, plan)
torch.set_float32_matmul_precision("highest")

# All is taken off again, after errors too.
assert [getattr(code, name) for name in names] == before
for module in model.modules():
    assert not module._forward_hooks and not module._forward_pre_hooks, module

model = run.load(gguf, None, "sdpa", torch.float32)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    firstdiff_transformers.record(model, folder, plan)
assert "sdpa attention exposes no scores and probs" in str(said[0].message), said
