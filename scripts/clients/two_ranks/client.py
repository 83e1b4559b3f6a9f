"""A model of transformers divided over two processes by its own tensor parallelism, started by torchrun: over NCCL
where two GPUs are, else over gloo on the CPU."""

import subprocess

import common

OWN = common.CLIENTS / "two_ranks"
CASES = [common.Case("a small random qwen2, f32", common.ROOT / "fixtures/tiny-qwen2/tiny-qwen2-f16.gguf")]

# Of each bug of run.py what firstdiff must say.
BUGS = {
    "all_reduce_missing": r"ranks disagree: .*o_proj.*missing all-reduce",
    "all_reduce_twice": r"down projection, all layers: doubled",
    "keys_of_first_rank": r"k projection, all layers: .*KV heads",
    "columns_of_next_rank": r"output projection, all layers: .*columns",
    "bias_on_first_rank_only": r"v projection, all layers: bias missing",
    "scale_of_two_heads": r"attention scores, all layers: scale",
}


def device():
    count = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([common.python(), "-c", count], stdout=subprocess.PIPE, text=True, check=True)
    return "cuda" if int(done.stdout) > 1 else "cpu"


def title():
    where = "NCCL on two GPUs" if device() == "cuda" else "gloo on the CPU"
    return f"transformers, tensor parallel, two ranks by torchrun over {where}"


def prepare():
    common.python()


def lines():
    return "none; two in the program that runs it, the import and the call of `record` with `shard`"


def record(case, plan, traces):
    bugs = [f"{bug}={trace}" for bug, trace in traces.items() if bug]
    said = common.call(common.python(), "-m", "torch.distributed.run", "--nproc-per-node", "2", OWN / "run.py",
                       case.model, plan, device(), traces[None], *bugs)  # fmt: skip
    return common.seconds_said(said, BUGS)
