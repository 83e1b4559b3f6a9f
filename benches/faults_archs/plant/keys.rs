//! Faults of a file's keys: llama.cpp computes with other parameters than the right file's.

use super::{
    Fault, Subject,
    file::{Edit, Number},
};

/// A key, and the value that it has instead, made of its own.
struct Row {
    name: &'static str,
    key: &'static str,
    /// Its value where the file does not have it. `None`: only files that have it are edited.
    default: Option<f64>,
    of: fn(f64) -> Number,
    causes: Causes,
}

type Causes = &'static [&'static str];

const ROPE: Causes = &["rope-theta"];
const LINEAR: Causes = &["rope-scaling", "rope-position"];
const YARN: Causes = &["rope-scaling", "rope-magnitude"];
const WINDOW: Causes = &["window", "mask-missing"];
const EXPERT_NORM: Causes = &["expert-norm", "not-normalised"];
const SCALED: Causes = &["scaled", "factor", "factor-missing"];

const fn row(name: &'static str, key: &'static str, of: fn(f64) -> Number, causes: Causes) -> Row {
    Row { name, key, default: None, of, causes }
}

const fn or(default: f64, row: Row) -> Row {
    Row { default: Some(default), ..row }
}

fn float(value: f64) -> Number {
    Number::Float(value as f32)
}

fn whole(value: f64) -> Number {
    Number::Whole(value as u32)
}

const ROWS: &[Row] = &[
    row("rms-eps-1e-2", "attention.layer_norm_rms_epsilon", |_| float(1e-2), &["eps"]),
    row("norm-eps-1e-2", "attention.layer_norm_epsilon", |_| float(1e-2), &["eps"]),
    row("group-norm-eps-1e-2", "attention.group_norm_epsilon", |_| float(1e-2), &["eps"]),
    or(1e4, row("rope-theta-times-50", "rope.freq_base", |x| float(50.0 * x), ROPE)),
    row("rope-theta-swa-times-50", "rope.freq_base_swa", |x| float(50.0 * x), ROPE),
    row("rope-dims-halved", "rope.dimension_count", |x| whole(x / 2.0), &["rope-partial"]),
    row("window-three-quarters", "attention.sliding_window", |x| whole(x * 0.75), WINDOW),
    row("window-1000", "attention.sliding_window", |_| whole(1000.0), WINDOW),
    row("attention-cap-1", "attn_logit_softcapping", |_| float(1.0), &["soft-cap"]),
    row("final-cap-halved", "final_logit_softcapping", |x| float(0.5 * x), &["soft-cap"]),
    or(0.125, row("attention-scale", "attention.scale", |x| float(1.5 * x), &["score-scale"])),
    or(1.0, row("expert-scale", "expert_weights_scale", |x| float(1.6 * x), SCALED)),
    or(0.0, row("expert-norm", "expert_weights_norm", |x| Number::Flag(x == 0.0), EXPERT_NORM)),
    or(1.0, row("expert-gating", "expert_gating_func", other_gating, &["gating-function"])),
    row(
        "experts-fewer",
        "expert_used_count",
        |x| whole(x - 1.0),
        &["expert-choice", "term-missing"],
    ),
    or(1.0, row("logit-scale", "logit_scale", |x| float(1.5 * x), SCALED)),
    or(1.0, row("residual-scale", "residual_scale", |x| float(1.2 * x), SCALED)),
    or(1.0, row("embedding-scale", "embedding_scale", |x| float(1.5 * x), SCALED)),
    row("clamp-lowered", "attention.clamp_kqv", |_| float(0.5), &["clamp"]),
    row("alibi-bias-halved", "attention.max_alibi_bias", |x| float(0.5 * x), &["alibi"]),
    row("temperature-length", "attention.temperature_length", |_| whole(16.0), SCALED),
];

/// The sigmoid in place of the softmax, or the other way round.
fn other_gating(function: f64) -> Number {
    Number::Whole(if function == 1.0 { 2 } else { 1 })
}

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
    vec![Fault::of_file("rope-linear-4", linear, LINEAR), Fault::of_file("rope-yarn-4", yarn, YARN)]
}

pub fn all(subject: &Subject) -> Vec<Fault> {
    let fault = |row: &Row| {
        // What is no number is a flag that is set.
        let flag = || subject.file.gguf().has_key(&subject.key(row.key)).then_some(1.0);
        let value = subject.number(row.key).or_else(flag).or(row.default)?;
        let edit = Edit { keys: vec![(subject.key(row.key), (row.of)(value))], ..Edit::default() };
        Some(Fault::of_file(row.name, edit, row.causes))
    };
    let mut faults: Vec<Fault> = ROWS.iter().filter_map(fault).collect();
    faults.extend(scalings(subject));
    faults
}
