//! The engine's device memory: KV caches, and the integers and activations of a step.

use crate::{
    device::{Buffer, Device},
    engine::{EngineError, EngineOptions},
    fault::Faults,
    kernels::launch::Splits,
    model::Config,
    site::Stage,
    tensor::DType,
};

/// One layer's keys and values, [kv_head][position][dim].
pub struct Cache {
    pub k: Buffer,
    pub v: Buffer,
}

/// The token ids of a step, and their positions as each of their users takes them: the same for all,
/// but for seeded faults. One buffer, so one upload a step.
pub struct Integers {
    buffer: Buffer,
}

/// Who takes integers, in the order of the buffer.
#[derive(Clone, Copy)]
pub enum User {
    Embedding,
    QRope,
    KRope,
    Append,
    Mask,
}

const USERS: usize = 5;

/// Activations of one step, each for the most tokens a step may have.
pub struct Scratch {
    pub integers: Integers,
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
    /// Of one token, f32.
    pub logits: Buffer,
    pub splits: Splits,
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

impl Integers {
    /// Writes a step's token ids, which start at position `first`.
    pub fn upload(
        &self,
        device: &dyn Device,
        faults: &Faults,
        step: u32,
        (tokens, first): (&[i32], usize),
    ) -> Result<(), EngineError> {
        let mut all = tokens.to_vec();
        for user in [Stage::QRope, Stage::KRope, Stage::KCache, Stage::Probs] {
            let positions = first..first + tokens.len();
            all.extend(positions.map(|position| faults.position(user, step, position as i32)));
        }
        Ok(device.upload(&self.buffer, 0, bytemuck::cast_slice(&all))?)
    }

    /// What a user takes in a step of that many tokens.
    pub fn of(&self, user: User, tokens: usize) -> (&Buffer, usize) {
        (&self.buffer, 4 * user as usize * tokens)
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
        let integers = device.alloc(4 * USERS * options.tokens, "token ids and positions")?;
        let (e, f) = (config.n_embd, config.n_ff);
        let q_width = config.n_head * config.head_dim;
        let kv_width = config.n_head_kv * config.head_dim;
        Ok(Scratch {
            integers: Integers { buffer: integers },
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
            logits: device.alloc(4 * config.n_vocab, "logits")?,
            splits: Splits::new(device, config)?,
        })
    }
}
