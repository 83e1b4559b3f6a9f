//! The engine's device memory: KV caches, and the activations of a step.

use std::ops::Range;

use crate::{
    device::{Buffer, Device},
    engine::{EngineError, EngineOptions},
    fault::Faults,
    model::Config,
    site::Stage,
    tensor::DType,
};

/// One layer's keys and values, [kv_head][position][dim].
pub struct Cache {
    pub k: Buffer,
    pub v: Buffer,
}

/// The positions of a step's tokens, as each of their users takes them: the same for all, but for
/// seeded faults.
pub struct Positions {
    pub q_rope: Buffer,
    pub k_rope: Buffer,
    pub append: Buffer,
    pub mask: Buffer,
}

/// Activations of one step, each for the most tokens a step may have.
pub struct Scratch {
    pub ids: Buffer,
    pub positions: Positions,
    pub hidden: Buffer,
    pub normed: Buffer,
    pub q: Buffer,
    pub k: Buffer,
    pub v: Buffer,
    pub q_rope: Buffer,
    pub k_rope: Buffer,
    pub attn_out: Buffer,
    pub projected: Buffer,
    pub gate: Buffer,
    pub up: Buffer,
    pub act: Buffer,
}

impl Cache {
    /// A cache of zeros.
    pub fn new(
        device: &dyn Device,
        config: &Config,
        storage: DType,
        capacity: usize,
    ) -> Result<Cache, EngineError> {
        let bytes = config.n_head_kv * capacity * config.head_dim * storage.size();
        let (k, v) = (device.alloc(bytes, "k_cache")?, device.alloc(bytes, "v_cache")?);
        let cache = Cache { k, v };
        cache.clear(device)?;
        Ok(cache)
    }

    pub fn clear(&self, device: &dyn Device) -> Result<(), EngineError> {
        for buffer in [&self.k, &self.v] {
            device.upload(buffer, 0, &vec![0; buffer.bytes])?;
        }
        Ok(())
    }
}

impl Positions {
    /// Writes the positions of a step's tokens.
    pub fn upload(
        &self,
        device: &dyn Device,
        faults: &Faults,
        step: u32,
        positions: Range<usize>,
    ) -> Result<(), EngineError> {
        for (buffer, user) in [
            (&self.q_rope, Stage::QRope),
            (&self.k_rope, Stage::KRope),
            (&self.append, Stage::KCache),
            (&self.mask, Stage::Probs),
        ] {
            let as_taken = |position| faults.position(user, step, position as i32);
            let taken: Vec<i32> = positions.clone().map(as_taken).collect();
            device.upload(buffer, 0, bytemuck::cast_slice(&taken))?;
        }
        Ok(())
    }
}

impl Scratch {
    pub fn new(
        device: &dyn Device,
        config: &Config,
        options: &EngineOptions,
    ) -> Result<Scratch, EngineError> {
        let activation = |width: usize, what| {
            device.alloc(options.tokens * width * options.storage.size(), what)
        };
        let integers = |what| device.alloc(4 * options.tokens, what);
        let (e, f) = (config.n_embd, config.n_ff);
        let q_width = config.n_head * config.head_dim;
        let kv_width = config.n_head_kv * config.head_dim;
        Ok(Scratch {
            ids: integers("token ids")?,
            positions: Positions {
                q_rope: integers("positions")?,
                k_rope: integers("positions")?,
                append: integers("positions")?,
                mask: integers("positions")?,
            },
            hidden: activation(e, "hidden")?,
            normed: activation(e, "normed")?,
            q: activation(q_width, "q")?,
            k: activation(kv_width, "k")?,
            v: activation(kv_width, "v")?,
            q_rope: activation(q_width, "q_rope")?,
            k_rope: activation(kv_width, "k_rope")?,
            attn_out: activation(q_width, "attn_out")?,
            projected: activation(e, "projected")?,
            gate: activation(f, "ffn_gate")?,
            up: activation(f, "ffn_up")?,
            act: activation(f, "ffn_act")?,
        })
    }
}
