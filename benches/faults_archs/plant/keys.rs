//! Faults of a file's keys: llama.cpp computes with other parameters than the right file's.

use super::{
    Fault, Subject,
    file::{Edit, Number},
};

const ROPE: &[&str] = &["rope-theta", "rope-factors", "rope-position", "rope-scaling"];
const WINDOW: &[&str] = &["window", "mask-missing"];
const CAP: &[&str] = &["softcap", "soft-cap", "score-cap", "cap"];
const GATING: &[&str] = &["activation", "gating", "gating-function", "softmax-axis"];

/// A key, and the value that it has instead, made of its own.
type Row = (&'static str, &'static str, fn(f64) -> Number, &'static [&'static str]);

const ROWS: &[Row] = &[
    ("rms-eps-1e-2", "attention.layer_norm_rms_epsilon", |_| Number::Float(1e-2), &["eps"]),
    ("norm-eps-1e-2", "attention.layer_norm_epsilon", |_| Number::Float(1e-2), &["eps"]),
    ("rope-theta-times-50", "rope.freq_base", |x| Number::Float(50.0 * x as f32), ROPE),
    ("rope-theta-swa-times-50", "rope.freq_base_swa", |x| Number::Float(50.0 * x as f32), ROPE),
    (
        "rope-dims-halved",
        "rope.dimension_count",
        |x| Number::Whole(x as u32 / 2),
        &["rope-partial"],
    ),
    ("window-12", "attention.sliding_window", |x| Number::Whole(x as u32 * 3 / 4), WINDOW),
    ("window-1000", "attention.sliding_window", |_| Number::Whole(1000), WINDOW),
    ("attention-cap-halved", "attn_logit_softcapping", |x| Number::Float(0.02 * x as f32), CAP),
    ("final-cap-halved", "final_logit_softcapping", |x| Number::Float(0.5 * x as f32), CAP),
    ("attention-scale", "attention.scale", |x| Number::Float(1.5 * x as f32), &["score-scale"]),
    ("expert-scale", "expert_weights_scale", |x| Number::Float(1.6 * x as f32), &["scaled"]),
    ("expert-norm-off", "expert_weights_norm", |_| Number::Flag(false), &["expert-norm"]),
    (
        "expert-gating-other",
        "expert_gating_func",
        |x| Number::Whole(if x == 1.0 { 2 } else { 1 }),
        GATING,
    ),
    ("logit-scale", "logit_scale", |x| Number::Float(1.5 * x as f32), &["scaled"]),
    ("residual-scale", "residual_scale", |x| Number::Float(1.2 * x as f32), &["scaled"]),
    ("embedding-scale", "embedding_scale", |x| Number::Float(1.5 * x as f32), &["scaled"]),
    ("clamp-lowered", "attention.clamp_kqv", |_| Number::Float(0.5), &["clamp", "clamped"]),
    ("alibi-bias-4", "attention.max_alibi_bias", |x| Number::Float(0.5 * x as f32), &["alibi"]),
    ("group-norm-eps", "attention.group_norm_epsilon", |_| Number::Float(1e-2), &["eps"]),
    (
        "temperature-length",
        "attention.temperature_length",
        |_| Number::Whole(16),
        &["scaled", "attention-temperature"],
    ),
];

/// The keys of a scaling of the rotation, which few files have.
fn scalings(subject: &Subject) -> Vec<Fault> {
    let turns = subject.model.graph.nodes.iter().any(|node| node.op == firstdiff::graph::Op::Rope);
    let has_own = ["rope.scaling.type", "rope.dimension_sections"]
        .iter()
        .any(|key| subject.file.gguf().has_key(&subject.key(key)));
    let has_factors = subject.file.has("rope_factors_short.weight");
    if !turns || has_own || has_factors {
        return Vec::new();
    }
    let key = |name: &str, number: Number| (subject.key(name), number);
    let edit = |keys| Edit { keys, ..Edit::default() };
    let linear = edit(vec![
        key("rope.scaling.type", Number::Text("linear")),
        key("rope.scaling.factor", Number::Float(4.0)),
    ]);
    let yarn = edit(vec![
        key("rope.scaling.type", Number::Text("yarn")),
        key("rope.scaling.factor", Number::Float(4.0)),
        key("rope.scaling.original_context_length", Number::Whole(512)),
    ]);
    vec![Fault::of_file("rope-linear-4", linear, ROPE), Fault::of_file("rope-yarn-4", yarn, ROPE)]
}

pub fn all(subject: &Subject) -> Vec<Fault> {
    let row = |&(name, key, of, causes): &Row| {
        let value = subject.number(key)?;
        let edit = Edit { keys: vec![(subject.key(key), of(value))], ..Edit::default() };
        Some(Fault::of_file(name, edit, causes))
    };
    let mut faults: Vec<Fault> = ROWS.iter().filter_map(row).collect();
    faults.extend(scalings(subject));
    faults
}
