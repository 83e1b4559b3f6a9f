//! How each tensor is drawn and stored, by its name and shape.
//!
//! The scales keep activations near 1: a matrix of n inputs has deviation 1/sqrt(n).

use llama_cpp_sys_2 as sys;

use super::{plan::Asked, table::Entry};
use crate::model::synth::{WeightType, values::Draw};

/// The deviation of the logits, about.
const LOGIT_GAIN: f32 = 3.0;

/// Parts of the names of matrices that llama.cpp's own quantiser leaves as they are, and of those
/// that its operations read in f32 alone.
const KEPT: [&str; 20] = [
    "_norm.weight",
    "ffn_gate_inp",
    "ffn_gate_tid2eid",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "position_embd",
    "token_types",
    "conv1d",
    "shortconv.conv",
    "indexer",
    "compressor",
    "hc_",
    "time_mix_first",
    "time_mix_decay",
    "time_mix_lerp",
    "time_mix_r_k",
    "ssm_a",
    "ssm_d",
    "attn_rel_b",
];

/// Tensors that llama.cpp could use in any architecture, and that models have only if their entry
/// in the table says so.
const OPTIONAL: [&str; 14] = [
    "attn_q.bias",
    "attn_k.bias",
    "attn_v.bias",
    "attn_qkv.bias",
    "attn_output.bias",
    "ffn_gate.bias",
    "ffn_up.bias",
    "ffn_down.bias",
    "output.bias",
    "cls.output.weight",
    "cls.output.bias",
    "dense_2.weight",
    "dense_2.bias",
    "rope_freqs.weight",
];

/// The tensors of the file: of those that llama.cpp asked for the ones that models of the
/// architecture have, split and joined as they are there.
pub(super) fn refined(asked: Vec<Asked>, entry: &Entry) -> Vec<Asked> {
    let mut tensors: Vec<Asked> = Vec::new();
    for tensor in asked.into_iter().filter(|tensor| is_real(part(&tensor.name), entry)) {
        // llama.cpp asks for both projections in one.
        if let Some(layer) = tensor.name.strip_suffix("ffn_gate_up_exps.weight")
            && let &[row, rows, experts] = &tensor.dims[..]
        {
            for part in ["gate", "up"] {
                let name = format!("{layer}ffn_{part}_exps.weight");
                tensors.push(Asked { name, dims: vec![row, rows / 2, experts] });
            }
        } else if !(entry.is_fused && fuse(&tensor, &mut tensors)) {
            tensors.push(tensor);
        }
    }
    tensors
}

/// Adds q, k or v to the one tensor of the three; false if it is none of them.
fn fuse(tensor: &Asked, tensors: &mut Vec<Asked>) -> bool {
    let mut parts = ["attn_q.", "attn_k.", "attn_v."].into_iter();
    let Some(part) = parts.find(|part| tensor.name.contains(part)) else { return false };
    let name = tensor.name.replace(part, "attn_qkv.");
    match (tensors.iter_mut().find(|other| other.name == name), tensor.dims.last()) {
        (Some(fused), Some(&more)) => {
            if let Some(outputs) = fused.dims.last_mut() {
                *outputs += more;
            }
        }
        _ => tensors.push(Asked { name, dims: tensor.dims.clone() }),
    }
    true
}

/// A tensor's name without its layer.
fn part(name: &str) -> &str {
    let inner = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    inner.map_or(name, |(_, part)| part)
}

fn is_real(part: &str, entry: &Entry) -> bool {
    // Of formats that no tensor here has: the second scale of blocks, the scales of activations.
    let is_scale = part.ends_with(".scale") || part.ends_with(".input_scale");
    let is_scale = is_scale || part == "ffn.act.scales";
    let is_left_out = OPTIONAL.contains(&part) && !entry.kept.contains(&part);
    !is_scale && !is_left_out && !entry.left_out.contains(&part)
}

/// How a tensor's values are drawn. `is_tied` says that the embedding is the output projection too.
pub(super) fn draw(tensor: &Asked, is_tied: bool) -> Draw {
    let name = tensor.name.as_str();
    let row = tensor.dims.first().copied().unwrap_or(1) as f32;
    let is_matrix = tensor.dims.get(1).is_some_and(|&rows| rows > 1);
    let (mean, deviation) = if name.contains("norm") && !name.ends_with("bias") {
        (1.0, 0.1)
    } else if name == "output.weight" || (name == "token_embd.weight" && is_tied) {
        (0.0, LOGIT_GAIN / row.sqrt())
    } else if name.contains("token_embd") || name.contains("position_embd") {
        (0.0, 1.0)
    } else if name.contains("ssm_a") {
        // The logarithm of a decay: at most 3.5 deviations from -0.7, so below 0.
        (-0.7, 0.14)
    } else if name.contains("rope_f") {
        (2.5, 0.4)
    } else if name.contains("sinks") {
        (0.0, 1.0)
    } else if name.contains("_scale") {
        (1.0, 0.1)
    } else if is_matrix {
        (0.0, 1.0 / row.sqrt())
    } else {
        (0.0, 0.15)
    };
    Draw::Normal { mean, deviation }
}

/// The type that a tensor is stored in: the file's, or a wider one if its rows are no whole blocks.
pub(super) fn stored(tensor: &Asked, weight_type: WeightType) -> sys::ggml_type {
    let is_matrix = tensor.dims.len() > 1 && tensor.name.ends_with(".weight");
    // Small matrices such as time_mix_w1.
    let mix = tensor.name.split_once("time_mix_").map_or("", |(_, mix)| mix);
    let is_small = mix.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
    if !is_matrix || is_small || KEPT.iter().any(|part| tensor.name.contains(part)) {
        return sys::GGML_TYPE_F32;
    }
    let fallbacks: &[WeightType] = match weight_type {
        WeightType::F32 => &[],
        WeightType::F16 => &[WeightType::F16],
        WeightType::Q8_0 => &[WeightType::Q8_0, WeightType::F16],
        WeightType::Q4K => &[WeightType::Q4K, WeightType::Q8_0, WeightType::F16],
    };
    let row = tensor.dims[0] as usize;
    let fitting = fallbacks.iter().find(|weight_type| row.is_multiple_of(weight_type.block()));
    fitting.map_or(sys::GGML_TYPE_F32, |weight_type| weight_type.ggml())
}
