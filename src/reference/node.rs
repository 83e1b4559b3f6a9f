//! Which graph node is which site, and how its values are read.

use std::ffi::CStr;

use llama_cpp_sys_2 as sys;

use crate::{
    core::{pool, tensor::Tensor},
    graph::site::Stage,
};

/// A node of llama.cpp's graph, alive for one callback.
#[derive(Clone, Copy)]
pub struct Node(pub *mut sys::ggml_tensor);

/// What a node holds for us.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    /// The tensor of a stage, elements in the stage's own order.
    Stage(Stage, Option<u32>),
    /// kq: unscaled padded scores; its first source is the key cache.
    Scores(u32),
    /// kq_soft_max: padded probs, and the scale of the scores in its parameters.
    Probs(u32),
    /// kqv: its first source is the value cache, transposed.
    Values(u32),
}

/// Which optional biases a layer has: the site is after the bias.
#[derive(Clone, Debug, Default)]
pub struct Biases {
    pub q: Vec<bool>,
    pub k: Vec<bool>,
    pub v: Vec<bool>,
    pub o: Vec<bool>,
    pub gate: Vec<bool>,
    pub up: Vec<bool>,
    pub down: Vec<bool>,
    pub output: bool,
}

impl Node {
    fn tensor(&self) -> &sys::ggml_tensor {
        // SAFETY: llama.cpp passes a live tensor to the callback, and nodes do not outlive it.
        unsafe { &*self.0 }
    }

    pub fn name(&self) -> &str {
        let name = &self.tensor().name;
        // SAFETY: ggml NUL-terminates names within their 64 bytes.
        unsafe { CStr::from_ptr(name.as_ptr()) }.to_str().unwrap_or("")
    }

    fn op(&self) -> &'static str {
        // SAFETY: the tensor is live; ggml returns a static string.
        unsafe { CStr::from_ptr(sys::ggml_op_desc(self.0)) }.to_str().unwrap_or("")
    }

    /// A source of the node.
    pub fn source(&self, index: usize) -> Option<Node> {
        let source = self.tensor().src[index];
        (!source.is_null()).then_some(Node(source))
    }

    /// Elements per axis, ggml's order.
    pub fn ne(&self) -> [usize; 4] {
        self.tensor().ne.map(|n| n as usize)
    }

    /// A float parameter of the operation.
    pub fn float_param(&self, index: usize) -> f32 {
        f32::from_bits(self.tensor().op_params[index] as u32)
    }

    /// The role of this node in a graph of llama, qwen2 or qwen3.
    pub fn role(&self, biases: &Biases) -> Option<Role> {
        let (name, op) = (self.name(), self.op());
        let (base, layer) = match name.rsplit_once('-') {
            Some((base, layer)) => (base, layer.parse::<u32>().ok()),
            None => (name, None),
        };
        if op == "MUL_MAT"
            && let Some(role) = self.weight_role(biases)
        {
            return Some(role);
        }
        let at = |stage| Some(Role::Stage(stage, layer));
        let has = |list: &[bool]| layer.is_some_and(|l| list.get(l as usize) == Some(&true));
        match (base, op) {
            ("embd", "GET_ROWS") => Some(Role::Stage(Stage::Embd, None)),
            ("attn_norm", "MUL") => at(Stage::AttnNorm),
            ("Qcur", "ADD") if has(&biases.q) => at(Stage::Q),
            ("Kcur", "ADD") if has(&biases.k) => at(Stage::K),
            ("Vcur", "ADD") if has(&biases.v) => at(Stage::V),
            ("Qcur_normed", "MUL") => at(Stage::QNorm),
            ("Kcur_normed", "MUL") => at(Stage::KNorm),
            ("Qcur", "ROPE") => at(Stage::QRope),
            ("Kcur", "ROPE") => at(Stage::KRope),
            ("kq", "MUL_MAT") => layer.map(Role::Scores),
            ("kq_soft_max", "SOFT_MAX") => layer.map(Role::Probs),
            ("kqv", "MUL_MAT") => layer.map(Role::Values),
            ("kqv_out", "CONT") => at(Stage::AttnOut),
            ("ffn_inp", "ADD") => at(Stage::AttnResidual),
            ("ffn_norm", "MUL") => at(Stage::FfnNorm),
            ("ffn_gate_b", "ADD") => at(Stage::FfnGate),
            ("ffn_up_b", "ADD") => at(Stage::FfnUp),
            ("ffn_swiglu", _) => at(Stage::FfnAct),
            ("l_out", "ADD") => at(Stage::LayerOut),
            ("result_norm", "MUL") => Some(Role::Stage(Stage::FinalNorm, None)),
            ("result_output", "ADD") if biases.output => Some(Role::Stage(Stage::Logits, None)),
            (_, "ADD") => self.bias_role(biases),
            _ => None,
        }
    }

    /// The role of a product with a weight that has no bias after it.
    fn weight_role(&self, biases: &Biases) -> Option<Role> {
        let source = self.source(0)?;
        let weight = source.name();
        if self.name() == "result_output" {
            return (!biases.output).then_some(Role::Stage(Stage::Logits, None));
        }
        let (layer, part) = weight.strip_prefix("blk.")?.split_once('.')?;
        let layer: u32 = layer.parse().ok()?;
        let (stage, biases) = match part {
            "attn_q.weight" => (Stage::Q, &biases.q),
            "attn_k.weight" => (Stage::K, &biases.k),
            "attn_v.weight" => (Stage::V, &biases.v),
            "attn_output.weight" => (Stage::OProj, &biases.o),
            "ffn_gate.weight" => (Stage::FfnGate, &biases.gate),
            "ffn_up.weight" => (Stage::FfnUp, &biases.up),
            "ffn_down.weight" => (Stage::FfnDown, &biases.down),
            _ => return None,
        };
        let has_bias = biases.get(layer as usize) == Some(&true);
        (!has_bias).then_some(Role::Stage(stage, Some(layer)))
    }

    /// The role of an addition whose second source is the bias of an otherwise unnamed product.
    fn bias_role(&self, biases: &Biases) -> Option<Role> {
        let source = self.source(1)?;
        let (layer, part) = source.name().strip_prefix("blk.")?.split_once('.')?;
        let layer: u32 = layer.parse().ok()?;
        let has = |list: &[bool]| list.get(layer as usize) == Some(&true);
        let stage = match part {
            "attn_output.bias" if has(&biases.o) => Stage::OProj,
            "ffn_down.bias" if has(&biases.down) => Stage::FfnDown,
            _ => return None,
        };
        Some(Role::Stage(stage, Some(layer)))
    }

    /// Every element in ggml's order (first axis fastest), through the strides, widened to f32.
    pub fn read(&self) -> Vec<f32> {
        let [n0, n1, n2, n3] = self.ne();
        self.read_part([n0, n1, n2, n3])
    }

    /// The elements below `counts` of each axis, in ggml's order, through the strides.
    pub fn read_part(&self, counts: [usize; 4]) -> Vec<f32> {
        self.read_rows(counts, None)
    }

    /// The same, or of the second axis those that are listed, `counts[1]` of them.
    pub fn read_rows(&self, counts: [usize; 4], listed: Option<&[usize]>) -> Vec<f32> {
        let tensor = self.tensor();
        // SAFETY: the tensor is live.
        let bytes = unsafe { sys::ggml_nbytes(self.0) };
        // SAFETY: the reference runs on the CPU backend, where the computed tensor's span of bytes lies at
        // `data` until the next node is computed, which is after the callback.
        let raw: &[u8] = unsafe { std::slice::from_raw_parts(tensor.data.cast(), bytes) };
        let half = tensor.type_ == sys::GGML_TYPE_F16;
        let element = |at: usize| match half {
            true => half::f16::from_le_bytes([raw[at], raw[at + 1]]).to_f32(),
            false => f32::from_le_bytes(raw[at..at + 4].try_into().expect("four bytes")),
        };
        let [c0, c1, c2, c3] = counts;
        let nb = tensor.nb;
        let rows_are_dense = !half && nb[0] == size_of::<f32>();
        let mut values = pool::memory(c0 * c1 * c2 * c3);
        for (row, to) in values.chunks_exact_mut(c0.max(1)).enumerate() {
            let (i1, i2, i3) = (row % c1, row / c1 % c2, row / (c1 * c2));
            let i1 = listed.map_or(i1, |listed| listed[i1]);
            let from = i1 * nb[1] + i2 * nb[2] + i3 * nb[3];
            if rows_are_dense {
                bytemuck::cast_slice_mut(to).copy_from_slice(&raw[from..from + 4 * c0]);
            } else {
                to.iter_mut().enumerate().for_each(|(i0, to)| *to = element(from + i0 * nb[0]));
            }
        }
        values
    }

    /// Replaces every element, in ggml's order. The tensor must be contiguous f32.
    pub fn write(&self, values: &[f32]) {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        // SAFETY: the tensor is live and as long as `values`, which is read from it.
        unsafe { sys::ggml_backend_tensor_set(self.0, bytes.as_ptr().cast(), 0, bytes.len()) };
    }

    /// Whether the elements can be read as numbers: f32 or f16.
    pub fn is_readable(&self) -> bool {
        matches!(self.tensor().type_, sys::GGML_TYPE_F32 | sys::GGML_TYPE_F16)
    }
}

/// (T, H, P) from ggml's [padded, T, H] order, cropped and scaled.
pub fn heads_first_to_tokens(
    values: &[f32],
    (tokens, heads, positions): (usize, usize, usize),
    scale: f32,
) -> Tensor {
    let mut data = pool::memory(tokens * heads * positions);
    for head in 0..heads {
        for token in 0..tokens {
            let from = (head * tokens + token) * positions;
            let to = (token * heads + head) * positions;
            for key in 0..positions {
                data[to + key] = values[from + key] * scale;
            }
        }
    }
    Tensor::new([tokens, heads, positions], data)
}
