"""candle's quantised qwen2, of the crate candle-transformers: its source is fetched by cargo, and changed here."""

import json
from pathlib import Path

import common
from patch import Source

VERSION = "0.11.1"
RANDOM = common.WORK / "candle/random-qwen2-q4_k.gguf"
CASES = [
    common.Case("a small random qwen2, Q4_K", RANDOM),
    common.Case("Qwen2.5 Coder 0.5B Q4_K_M", common.QWEN, bugs=("bias_missing",)),
]
OWN = common.CLIENTS / "candle"
FOLDER = common.WORK / "candle"
# The model, and what it uses of its crate.
ENGINE = "models/quantized_qwen2.rs"
BESIDE = ("models/with_tracing.rs", "quantized_nn.rs", "quantized_var_builder.rs", "utils.rs")

MANIFEST = f"""[package]
name = "candle_client"
version = "0.0.0"
edition = "2024"
publish = false

[dependencies]
candle = {{ package = "candle-core", version = "={VERSION}" }}
candle-nn = "={VERSION}"
tracing = "0.1"
firstdiff = {{ path = "{common.ROOT}", default-features = false, features = ["writer"] }}

# Fetched for its source, of which only the files of one model are built.
[target.'cfg(any())'.dependencies]
candle-transformers = "={VERSION}"

[workspace]
"""


def bias_missing(source):
    source.replace(".broadcast_add(&self.attention_bk)?", "")


def rope_pairs_interleaved(source):
    source.replace("rotary_emb::rope(", "rotary_emb::rope_i(")


def eps_1e_5(source):
    source.replace("attention_norm), rms_norm_eps)", "attention_norm), 1e-5)")


def kv_heads_modulo(source):
    source.replace("repeat_kv(k, self.n_head / self.n_kv_head)?",
                   "Tensor::cat(&vec![&k; self.n_head / self.n_kv_head], 1)?")  # fmt: skip


def residual_after_norm(source):
    source.before("layer.mlp.forward(&x)", "let residual = &x;")
    source.replace("let x = layer.mlp.forward(&x)", "let x = layer.mlp.forward(residual)")


def scale_of_hidden_size(source):
    source.replace("(self.head_dim as f64).sqrt()", "(n_embd as f64).sqrt()")


def position_off_by_one(source):
    source.before("self.cos.narrow", "let index_pos = index_pos.saturating_sub(1);")


# Of each bug what firstdiff must say.
PLANTED = {
    bias_missing: r"k projection, all layers: .*bias (is )?missing",
    rope_pairs_interleaved: r"q and k rotation, all layers: pairs \(2i, 2i\+1\)",
    eps_1e_5: r"attention norm, .*: eps 1e-5 instead of 1e-6",
    kv_heads_modulo: r"attention scores.*, all layers: query head h reads KV head h % Hk",
    residual_after_norm: r"feed-forward residual, all layers: ",
    scale_of_hidden_size: r"attention scores, all layers: scale",
    position_off_by_one: r"q and k rotation, all layers: position",
}
BUGS = {bug.__name__: said for bug, said in PLANTED.items()}
MISTAKES = {bug.__name__: bug for bug in PLANTED} | {None: None}


# Sites whose tensors have the site's own order, the lines after which they are there, and their names there.
ROWS = (
    ("ffn_gate", "w1", "let w1 ="), ("ffn_up", "w3", "let w3 ="),
    ("q", "q", "let q = q.broadcast_add"), ("k", "k", "let k = k.broadcast_add"),
    ("v", "v", "let v = v.broadcast_add"), ("attn_out", "y", "let y = y.transpose"),
    ("embd", "layer_in", "let mut layer_in ="), ("attn_norm", "x", "layer.attention_norm.forward"),
    ("o_proj", "attn", "layer.forward_attn("), ("attn_residual", "x", "(attn + residual)?"),
    ("ffn_norm", "x", "layer.ffn_norm.forward"), ("ffn_down", "x", "layer.mlp.forward"),
    ("layer_out", "x", "(x + residual)?"), ("final_norm", "x", "let x = self.norm.forward"),
)  # fmt: skip
# The same of tensors with the axes of heads first.
HEADS = (
    ("q_rope", "head token dim", "q", "let q = self.apply_rotary_emb"),
    ("k_rope", "head token dim", "k", "let k = self.apply_rotary_emb"),
    ("v_cache", "head position dim", "v", "self.kv_cache = Some("),
    ("k_cache", "head position dim", "k", "self.kv_cache = Some("),
    ("scores", "head token key", "att", "let att = (q.matmul"),
    ("probs", "head token key", "att", "softmax_last_dim(&att)"),
)
# Weights of a layer where the engine takes them.
WEIGHTS = (
    ("attn_q.weight", "from_qtensor(", "attention_wq"), ("attn_k.weight", "from_qtensor(", "attention_wk"),
    ("attn_v.weight", "from_qtensor(", "attention_wv"), ("attn_output.weight", "from_qtensor(", "attention_wo"),
    ("attn_q.bias", "bq: ", "attention_bq"), ("attn_k.bias", "bk: ", "attention_bk"),
    ("attn_v.bias", "bv: ", "attention_bv"), ("attn_norm.weight", "from_qtensor(", "attention_norm"),
    ("ffn_norm.weight", "from_qtensor(", "ffn_norm"), ("ffn_gate.weight", "from_qtensor(", "feed_forward_w1"),
    ("ffn_down.weight", "from_qtensor(", "feed_forward_w2"), ("ffn_up.weight", "from_qtensor(", "feed_forward_w3"),
)  # fmt: skip


def recorded(source):
    """The lines that record what the engine computes, added or changed."""
    source.after("use candle_nn::{Embedding", "use crate::record;")
    for site, name, place in ROWS:
        source.after(place, f'record::put("{site}", &{name});')
    for site, axes, name, place in HEADS:
        source.after(place, f'record::put_axes("{site}", "{axes}", &{name});')
    source.replace("(candle_nn::ops::silu(&w1)? * w3)?", 'record::shown("ffn_act", (candle_nn::ops::silu(&w1)? * w3)?)')
    source.after("for layer in self.layers.iter_mut() {", "record::next_layer();", nth=1)
    source.before("let x = self.norm.forward", "record::after_layers();")
    for name, before, own in WEIGHTS:
        source.replace(before + own, f'{before}record::weight(&prefix, "{name}", {own})')


def title():
    return f"candle {VERSION}, `quantized_qwen2`: activations in blocks of int8"


def prepare():
    """Fetches the crate, and writes the project that builds some of its files."""
    common.write_if_other(FOLDER / "Cargo.toml", MANIFEST)
    for name in ("main.rs", "record.rs"):
        common.write_if_other(FOLDER / "src" / name, (OWN / name).read_text())
    (FOLDER / "src/models").mkdir(exist_ok=True)
    cargo("fetch")
    sizes = "--layers 3 --embd 256 --heads 4 --kv-heads 2 --head-dim 64 --ffn 512".split()
    common.call(common.FIRSTDIFF, "synth", "--shape", "tiny-qwen2", *sizes, "--type", "q4_k", "-o", RANDOM)
    for name in BESIDE:
        common.write_if_other(FOLDER / "src" / name, (crate() / name).read_text())


def cargo(command, *more):
    return common.call("cargo", command, "--quiet", "--manifest-path", FOLDER / "Cargo.toml", *more)


def crate():
    """The folder of the crate's source."""
    packages = json.loads(cargo("metadata", "--format-version", "1"))["packages"]
    [manifest] = [package["manifest_path"] for package in packages if package["name"] == "candle-transformers"]
    return Path(manifest).parent / "src"


def patched():
    """The engine's source with what records it."""
    source = Source(crate() / ENGINE)
    recorded(source)
    return source


def lines():
    own = (OWN / "record.rs").read_text().count("\n")
    return f"{patched().changed}, which call a recorder of {own} lines (`scripts/clients/candle/record.rs`)"


def build(mistake):
    source = patched()
    if mistake:
        mistake(source)
    source.write(FOLDER / "src" / ENGINE)
    cargo("build", "--release", "--target-dir", FOLDER / "target")


def record(case, plan, traces):
    program = FOLDER / "target/release/candle_client"
    return common.built_and_run(build, MISTAKES, traces, program, case.model, plan)
