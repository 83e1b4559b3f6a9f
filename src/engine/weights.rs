//! The model's weights on a device.

use half::{f16, slice::HalfFloatSliceExt};

use crate::{
    device::{Buffer, Device},
    engine::EngineError,
    fault::{Faults, Wiring},
    model::{Config, Model},
    tensor::DType,
};

/// y = x W^T + bias; W is (outputs, inputs) in the storage type, the bias f32.
pub struct Linear {
    pub weight: Buffer,
    pub bias: Option<Buffer>,
    pub outputs: usize,
    pub inputs: usize,
    /// Seeded fault: read W as (inputs, outputs).
    pub transposed: bool,
}

/// The weights of one layer. Norm weights are f32.
pub struct Layer {
    pub attn_norm: Buffer,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub q_norm: Option<Buffer>,
    pub k_norm: Option<Buffer>,
    pub o: Linear,
    pub ffn_norm: Buffer,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// All weights of the model.
pub struct Weights {
    /// (V, E) in the storage type.
    pub embedding: Buffer,
    pub layers: Vec<Layer>,
    pub final_norm: Buffer,
    /// `None` where the output is tied to the embedding.
    pub output: Option<Linear>,
    /// Divisors of rope's angles (D/2) f32.
    pub rope_factors: Option<Buffer>,
}

/// Reads tensors of a model and puts them on a device.
struct Loader<'a> {
    device: &'a dyn Device,
    model: &'a Model,
    storage: DType,
    faults: &'a Faults,
}

impl Weights {
    /// Loads every weight, rounded to `storage`.
    pub fn load(
        device: &dyn Device,
        model: &Model,
        storage: DType,
        faults: &Faults,
    ) -> Result<Weights, EngineError> {
        let loader = Loader { device, model, storage, faults };
        let config = &model.config;
        let layers = (0..config.n_layer).map(|layer| loader.layer(config, layer));
        let output = match model.has("output.weight") {
            true => Some(loader.linear("output", config.n_vocab, config.n_embd)?),
            false => None,
        };
        Ok(Weights {
            embedding: loader.matrix("token_embd.weight")?,
            layers: layers.collect::<Result<_, _>>()?,
            final_norm: loader.vector("output_norm.weight")?,
            output,
            rope_factors: loader.optional_vector("rope_freqs.weight")?,
        })
    }
}

impl Loader<'_> {
    fn layer(&self, config: &Config, layer: usize) -> Result<Layer, EngineError> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let (e, f) = (config.n_embd, config.n_ff);
        let q_width = config.n_head * config.head_dim;
        let kv_width = config.n_head_kv * config.head_dim;
        let projection = |part: &str, outputs| {
            let mut linear = self.linear(&name(part), outputs, e)?;
            if self.faults.has(Wiring::QkvBiasZero) {
                linear.bias = None;
            }
            Ok::<_, EngineError>(linear)
        };
        let mut q = projection("attn_q", q_width)?;
        q.transposed = self.faults.has(Wiring::WqTransposed);
        let down = self.linear(&name("ffn_down"), e, f)?;
        if self.faults.has(Wiring::FfnDownZero) {
            self.device.upload(&down.weight, 0, &vec![0; down.weight.bytes])?;
        }
        Ok(Layer {
            attn_norm: self.vector(&name("attn_norm.weight"))?,
            q,
            k: projection("attn_k", kv_width)?,
            v: projection("attn_v", kv_width)?,
            q_norm: self.optional_vector(&name("attn_q_norm.weight"))?,
            k_norm: self.optional_vector(&name("attn_k_norm.weight"))?,
            o: self.linear(&name("attn_output"), e, q_width)?,
            ffn_norm: self.vector(&name("ffn_norm.weight"))?,
            gate: self.linear(&name("ffn_gate"), f, e)?,
            up: self.linear(&name("ffn_up"), f, e)?,
            down,
        })
    }

    fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear, EngineError> {
        let weight = self.matrix(&format!("{name}.weight"))?;
        let bias = self.optional_vector(&format!("{name}.bias"))?;
        Ok(Linear { weight, bias, outputs, inputs, transposed: false })
    }

    /// A matrix in the storage type.
    fn matrix(&self, name: &str) -> Result<Buffer, EngineError> {
        let values = self.model.weights(name)?;
        match self.storage {
            DType::F16 => {
                let mut narrow = vec![f16::ZERO; values.len()];
                narrow.convert_from_f32_slice(&values);
                self.upload(name, bytemuck::cast_slice(&narrow))
            }
            _ => self.upload(name, bytemuck::cast_slice(&values)),
        }
    }

    /// A vector in f32: norm weights, biases and rope factors are never narrowed.
    fn vector(&self, name: &str) -> Result<Buffer, EngineError> {
        self.upload(name, bytemuck::cast_slice(&self.model.weights(name)?))
    }

    fn optional_vector(&self, name: &str) -> Result<Option<Buffer>, EngineError> {
        self.model.has(name).then(|| self.vector(name)).transpose()
    }

    fn upload(&self, name: &str, bytes: &[u8]) -> Result<Buffer, EngineError> {
        let buffer = self.device.alloc(bytes.len(), name)?;
        self.device.upload(&buffer, 0, bytes)?;
        Ok(buffer)
    }
}
