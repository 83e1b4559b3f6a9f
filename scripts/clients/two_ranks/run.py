"""A model of transformers that torchrun divides over ranks (tensor parallel), recorded by each, right and with each bug.

    torchrun --nproc-per-node 2 run.py MODEL.gguf PLAN.txt DEVICE TRACE [BUG=TRACE ...]

DEVICE is cuda (NCCL, a GPU a rank) or cpu (gloo). The GGUF's weights are f32 or f16.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import transformers

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "examples/transformers")]
import firstdiff_transformers  # noqa: E402
from load import load  # noqa: E402


def all_reduce_missing(attention, mlp, rank):
    """The partial sums of o_proj are not added."""
    projection = attention.o_proj
    projection._forward_hooks.clear(), projection._forward_pre_hooks.clear()
    projection.forward = lambda x: torch.nn.functional.linear(x, own(projection.weight))


def all_reduce_twice(attention, mlp, rank):
    """The whole of ffn_down is added up again."""
    mlp.down_proj.register_forward_hook(lambda _, __, out: reduced(out.clone()))


def keys_of_first_rank(attention, mlp, rank):
    """Every rank has loaded the first rank's key heads."""
    for part in (attention.k_proj.weight, attention.k_proj.bias):
        dist.broadcast(own(part), 0)


def columns_of_next_rank(attention, mlp, rank):
    """Each rank has those columns of the output projection that are the next one's."""
    weight = own(attention.o_proj.weight)
    every = [torch.empty_like(weight) for _ in range(dist.get_world_size())]
    dist.all_gather(every, weight.contiguous())
    weight.copy_(every[(rank + 1) % len(every)])


def bias_on_first_rank_only(attention, mlp, rank):
    """The other ranks have no bias of v."""
    if rank:
        own(attention.v_proj.bias).zero_()


def scale_of_two_heads(attention, mlp, rank):
    """The scores are scaled as if a head were as long as those of all ranks."""
    attention.scaling /= dist.get_world_size() ** 0.5


def own(parameter):
    """This rank's part of a parameter."""
    data = parameter.detach()
    return data.to_local() if hasattr(data, "to_local") else data


def reduced(tensor):
    dist.all_reduce(tensor)
    return tensor


BUGS = {bug.__name__: bug for bug in (all_reduce_missing, all_reduce_twice, keys_of_first_rank, columns_of_next_rank,
                                      bias_on_first_rank_only, scale_of_two_heads)}  # fmt: skip


def main(gguf, plan, device, trace, *bugs):
    transformers.logging.set_verbosity_error()
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    folders = [tempfile.mkdtemp() if rank == 0 else None]
    if rank == 0:
        load(gguf, None, "eager", torch.float32).save_pretrained(folders[0])
    dist.broadcast_object_list(folders, 0)
    for words in (f"right={trace}", *bugs):
        name, folder = words.split("=", 1)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folders[0], tp_plan="auto", dtype=torch.float32, attn_implementation="eager"
        )
        start = time.monotonic()
        for layer in model.model.layers if name in BUGS else ():
            with torch.no_grad():
                BUGS[name](layer.self_attn, layer.mlp, rank)
        firstdiff_transformers.record(model, folder, plan, shard=(rank, world, "head neuron"))
        if rank == 0:
            print(name, round(time.monotonic() - start, 1), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
