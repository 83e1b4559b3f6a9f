//! Faults of a file's tensors: llama.cpp computes with other weights than the right file's.

use super::{Fault, Subject, file::Edit};

/// What is done with a tensor, in every layer that has it.
#[derive(Clone, Copy)]
enum Way {
    PlusOne,
    Ones,
    Zero,
    Negated,
    Times(f32),
    /// That of the next layer that has it.
    OtherLayer,
    /// Rows 2i and 2i + 1 exchanged.
    RowPairs,
    /// The last row first, and so on.
    RowsReversed,
    /// The first half of the rows after the second.
    HalvesSwapped,
    /// Square matrices only.
    Transposed,
    /// Each row backwards.
    ColumnsReversed,
    /// Experts 2i and 2i + 1 exchanged.
    Experts,
    /// Row i has row i + 1.
    RowsShifted,
}

/// Rows and their length of a tensor.
struct Grid {
    width: usize,
    rows: usize,
    /// Matrices one after another.
    groups: usize,
}

impl Way {
    fn applied(self, values: &[f32], grid: &Grid) -> Option<Vec<f32>> {
        let each = |of: &dyn Fn(f32) -> f32| Some(values.iter().map(|&x| of(x)).collect());
        let Grid { width, rows, groups } = *grid;
        let half = rows / 2;
        match self {
            Way::PlusOne => each(&|x| x + 1.0),
            Way::Ones => each(&|_| 1.0),
            Way::Zero => each(&|_| 0.0),
            Way::Negated => each(&|x| -x),
            Way::Times(factor) => each(&|x| x * factor),
            Way::OtherLayer => None,
            Way::RowPairs => (rows > 1 && rows % 2 == 0).then(|| grid.rows_of(values, |i| i ^ 1)),
            Way::RowsReversed => (rows > 1).then(|| grid.rows_of(values, |i| rows - 1 - i)),
            Way::HalvesSwapped => {
                (rows > 1 && rows % 2 == 0).then(|| grid.rows_of(values, |i| (i + half) % rows))
            }
            Way::RowsShifted => (rows > 1).then(|| grid.rows_of(values, |i| (i + 1) % rows)),
            Way::Transposed => (rows == width && groups == 1).then(|| {
                (0..width * width).map(|at| values[at % width * width + at / width]).collect()
            }),
            Way::ColumnsReversed => {
                Some(values.chunks(width).flat_map(|row| row.iter().rev().copied()).collect())
            }
            Way::Experts => (groups > 1 && groups % 2 == 0).then(|| {
                let experts: Vec<&[f32]> = values.chunks(width * rows).collect();
                (0..groups).flat_map(|i| experts[i ^ 1].iter().copied()).collect()
            }),
        }
    }
}

impl Grid {
    /// The rows of each matrix, the one that `from` says in place of each.
    fn rows_of(&self, values: &[f32], from: impl Fn(usize) -> usize) -> Vec<f32> {
        let matrices = values.chunks(self.width * self.rows);
        let rows = matrices.flat_map(|matrix| {
            let row = |i: usize| &matrix[from(i) * self.width..(from(i) + 1) * self.width];
            (0..self.rows).flat_map(row).copied().collect::<Vec<f32>>()
        });
        rows.collect()
    }
}

type Causes = &'static [&'static str];
type Row = (&'static str, Way, Causes);

const ROWS_MOVED: Causes = &["rows-permuted", "heads-permuted"];
const BIAS: Causes = &["bias-missing"];
const NORM_PLUS_ONE: Causes = &["norm-weight-plus-one"];
const OTHER_LAYER: Causes = &["weight-of-other-layer", "weight-of-other"];
const GATE_UP: Causes = &["gate-up-swapped", "parts-swapped", "rows-permuted"];
const EXPERTS: Causes = &["experts-swapped"];
const SCALED: Causes = &["scaled"];
/// What is zero is as good as not added.
const ZERO: Causes = &["weight-zero", "zero", "bias-missing", "term-missing"];

/// Parts of the names of a layer's tensors, and what is done with them.
const LAYER: &[Row] = &[
    ("attn_norm.weight", Way::PlusOne, NORM_PLUS_ONE),
    ("ffn_norm.weight", Way::OtherLayer, &["norm-weight-of-other", "weight-of-other-layer"]),
    ("attn_norm.bias", Way::Zero, BIAS),
    ("attn_q_norm.weight", Way::Ones, &["norm-weight-missing"]),
    ("attn_k_norm.weight", Way::PlusOne, NORM_PLUS_ONE),
    ("post_attention_norm.weight", Way::Ones, &["norm-weight-missing"]),
    ("post_ffw_norm.weight", Way::PlusOne, NORM_PLUS_ONE),
    ("attn_q_a_norm.weight", Way::PlusOne, NORM_PLUS_ONE),
    ("attn_kv_a_norm.weight", Way::Ones, &["norm-weight-missing"]),
    ("ssm_norm.weight", Way::PlusOne, NORM_PLUS_ONE),
    ("ssm_dt_norm.weight", Way::Ones, &["norm-weight-missing"]),
    ("attn_q.weight", Way::RowPairs, ROWS_MOVED),
    ("attn_k.weight", Way::HalvesSwapped, ROWS_MOVED),
    ("attn_v.weight", Way::OtherLayer, OTHER_LAYER),
    ("attn_qkv.weight", Way::RowPairs, ROWS_MOVED),
    ("attn_output.weight", Way::Transposed, &["weight-transposed"]),
    ("attn_output.weight", Way::OtherLayer, OTHER_LAYER),
    ("attn_gate.weight", Way::OtherLayer, OTHER_LAYER),
    ("attn_q_b.weight", Way::RowPairs, ROWS_MOVED),
    ("attn_kv_a_mqa.weight", Way::OtherLayer, OTHER_LAYER),
    ("attn_kv_b.weight", Way::RowPairs, ROWS_MOVED),
    ("attn_q.bias", Way::Zero, BIAS),
    ("attn_k.bias", Way::Negated, &["bias-negated"]),
    ("attn_v.bias", Way::OtherLayer, &["bias-of-other-layer"]),
    ("attn_qkv.bias", Way::Zero, BIAS),
    ("attn_output.bias", Way::Zero, BIAS),
    ("attn_sinks.weight", Way::Zero, &["sinks"]),
    ("ffn_up.bias", Way::Zero, BIAS),
    ("ffn_down.bias", Way::Negated, &["bias-negated"]),
    ("ffn_down.weight", Way::Times(1.01), SCALED),
    ("ffn_up.weight", Way::HalvesSwapped, GATE_UP),
    ("ffn_gate_inp.weight", Way::RowsReversed, ROWS_MOVED),
    ("ffn_gate_inp.bias", Way::Zero, BIAS),
    ("exp_probs_b.bias", Way::Zero, BIAS),
    ("ffn_down_exps.weight", Way::Experts, EXPERTS),
    ("ffn_up_exps.weight", Way::OtherLayer, OTHER_LAYER),
    ("ffn_gate_exps.bias", Way::Zero, BIAS),
    ("ffn_down_exps.bias", Way::Zero, BIAS),
    ("ffn_down_shexp.weight", Way::OtherLayer, OTHER_LAYER),
    ("ffn_gate_inp_shexp.weight", Way::Zero, ZERO),
    ("ssm_in.weight", Way::RowPairs, ROWS_MOVED),
    ("ssm_out.weight", Way::OtherLayer, OTHER_LAYER),
    ("ssm_x.weight", Way::OtherLayer, OTHER_LAYER),
    ("ssm_dt.bias", Way::Zero, BIAS),
    ("ssm_a", Way::Times(1.5), &["scaled", "factor"]),
    ("ssm_d", Way::Zero, &["weight-zero", "zero"]),
    ("ssm_conv1d.weight", Way::ColumnsReversed, &["kernel-reversed"]),
    ("ssm_conv1d.bias", Way::Zero, BIAS),
    ("ssm_beta.weight", Way::OtherLayer, OTHER_LAYER),
    ("ssm_beta_alpha.weight", Way::RowPairs, ROWS_MOVED),
    ("shortconv.conv.weight", Way::ColumnsReversed, &["kernel-reversed"]),
    ("shortconv.in_proj.weight", Way::RowPairs, ROWS_MOVED),
    ("shortconv.out_proj.weight", Way::OtherLayer, OTHER_LAYER),
    ("time_mix_key.weight", Way::OtherLayer, OTHER_LAYER),
    ("time_mix_receptance.weight", Way::RowPairs, ROWS_MOVED),
    ("time_mix_output.weight", Way::Transposed, &["weight-transposed"]),
    ("time_mix_lerp_fused.weight", Way::Zero, ZERO),
    ("time_mix_w0.weight", Way::Zero, &["bias-missing", "term-missing"]),
    ("time_mix_r_k.weight", Way::OtherLayer, OTHER_LAYER),
    ("time_mix_ln.weight", Way::PlusOne, NORM_PLUS_ONE),
    ("channel_mix_key.weight", Way::OtherLayer, OTHER_LAYER),
    ("laurel_l.weight", Way::OtherLayer, OTHER_LAYER),
    ("altup_router.weight", Way::RowsReversed, ROWS_MOVED),
    ("inp_gate.weight", Way::OtherLayer, OTHER_LAYER),
];

/// Tensors of no layer.
const GLOBAL: &[Row] = &[
    ("token_embd.weight", Way::RowsShifted, &["embedding-row"]),
    ("position_embd.weight", Way::RowsShifted, &["embedding-row"]),
    ("token_embd_norm.weight", Way::PlusOne, NORM_PLUS_ONE),
    ("output_norm.weight", Way::PlusOne, NORM_PLUS_ONE),
    ("output_norm.bias", Way::Zero, BIAS),
    ("output.weight", Way::RowPairs, ROWS_MOVED),
    ("rope_freqs.weight", Way::Ones, &["rope-factors"]),
    ("rope_factors_short.weight", Way::Ones, &["rope-factors"]),
];

pub fn all(subject: &Subject) -> Vec<Fault> {
    let mut faults = Vec::new();
    for &(part, way, causes) in LAYER {
        faults.push(Fault::of_file(named(part, way), of_layers(subject, part, way), causes));
    }
    for &(name, way, causes) in GLOBAL {
        let tensors = changed(subject, name, way).map(|values| (name.to_string(), values));
        let edit = Edit { tensors: tensors.into_iter().collect(), ..Edit::default() };
        faults.push(Fault::of_file(named(name, way), edit, causes));
    }
    for [gate, up] in [
        ["ffn_gate.weight", "ffn_up.weight"],
        ["ffn_gate_exps.weight", "ffn_up_exps.weight"],
        ["ffn_gate_shexp.weight", "ffn_up_shexp.weight"],
    ] {
        let edit = exchanged(subject, gate, up);
        let causes = &["gate-up-swapped", "weight-of-other"];
        faults.push(Fault::of_file(format!("{gate}-of-up"), edit, causes));
    }
    let edit = tied(subject);
    faults.push(Fault::of_file("output-of-embedding", edit, &["tied-output", "weight-of-other"]));
    faults
}

fn named(part: &str, way: Way) -> String {
    let way = match way {
        Way::PlusOne => "plus-one",
        Way::Ones => "ones",
        Way::Zero => "zero",
        Way::Negated => "negated",
        Way::Times(_) => "scaled",
        Way::OtherLayer => "of-other-layer",
        Way::RowPairs => "row-pairs",
        Way::RowsReversed => "rows-reversed",
        Way::HalvesSwapped => "halves-swapped",
        Way::Transposed => "transposed",
        Way::ColumnsReversed => "columns-reversed",
        Way::Experts => "experts-swapped",
        Way::RowsShifted => "rows-shifted",
    };
    format!("{part}-{way}")
}

/// The edit of every layer that has the tensor.
fn of_layers(subject: &Subject, part: &str, way: Way) -> Edit {
    let layers = subject.layers_with(part);
    let name = |layer: usize| format!("blk.{layer}.{part}");
    let mut tensors = Vec::new();
    for (place, &layer) in layers.iter().enumerate() {
        let values = match way {
            Way::OtherLayer => {
                let other = name(layers[(place + 1) % layers.len()]);
                let dims = |name: &str| subject.file.info(name).map(|info| info.dims.clone()).ok();
                let fits = layers.len() > 1 && dims(&other) == dims(&name(layer));
                if fits { subject.file.weights(&other).ok() } else { None }
            }
            // The halves of a matrix that holds gate and up: without a gate of its own.
            Way::HalvesSwapped if part == "ffn_up.weight" && is_plain_up(subject, layer) => None,
            _ => changed(subject, &name(layer), way),
        };
        tensors.extend(values.map(|values| (name(layer), values)));
    }
    Edit { tensors, ..Edit::default() }
}

/// Whether the up projection of a layer has nothing of the gate's.
fn is_plain_up(subject: &Subject, layer: usize) -> bool {
    let rows = |part: &str| {
        let info = subject.file.info(&format!("blk.{layer}.{part}.weight")).ok()?;
        Some((info.row_length(), info.rows()))
    };
    match (rows("ffn_up"), rows("ffn_down")) {
        (Some((_, up)), Some((down, _))) => up == down,
        _ => true,
    }
}

fn changed(subject: &Subject, name: &str, way: Way) -> Option<Vec<f32>> {
    let info = subject.file.info(name).ok()?;
    let values = subject.file.weights(name).ok()?;
    let groups = info.dims.get(2).map_or(1, |&groups| groups as usize);
    // A vector is one row; its elements are what rows are to a matrix.
    let grid = if info.rows() == 1 {
        Grid { width: 1, rows: values.len(), groups: 1 }
    } else {
        Grid { width: info.row_length(), rows: info.rows() / groups, groups }
    };
    way.applied(&values, &grid)
}

/// Two tensors of each layer in one another's place.
fn exchanged(subject: &Subject, a: &str, b: &str) -> Edit {
    let mut tensors = Vec::new();
    for layer in subject.layers_with(a) {
        let [a, b] = [a, b].map(|part| format!("blk.{layer}.{part}"));
        if let (Ok(left), Ok(right)) = (subject.file.weights(&a), subject.file.weights(&b)) {
            tensors.extend([(a, right), (b, left)]);
        }
    }
    Edit { tensors, ..Edit::default() }
}

/// The embedding in place of an output projection of its own.
fn tied(subject: &Subject) -> Edit {
    let of = |name: &str| subject.file.weights(name).ok();
    let tensors = match (of("output.weight"), of("token_embd.weight")) {
        (Some(output), Some(embedding)) if output.len() == embedding.len() => {
            vec![("output.weight".to_string(), embedding)]
        }
        _ => Vec::new(),
    };
    Edit { tensors, ..Edit::default() }
}
