//! The engine's device memory: KV caches, and the integers and activations of a step.

use std::ops::Index;

use crate::{
    core::tensor::DType,
    engine::{
        EngineError, EngineOptions,
        device::{Buffer, Device},
        fault::Faults,
        kernels::launch::Splits,
    },
    graph::site::Stage,
    model::Config,
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

/// The activations of a step's tokens: a buffer for each stage that is one.
pub struct Activations(Vec<Option<Buffer>>);

/// What a step works in.
pub struct Scratch {
    pub integers: Integers,
    /// Of every layer, one after another, each for the most tokens a step may have.
    pub activations: Activations,
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
        tokens: &[i32],
        first: usize,
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

/// Whether a stage is an activation in the engine's storage: the others belong to the cache, or are f32.
fn is_activation(stage: &Stage) -> bool {
    use Stage::*;
    !matches!(stage, KCache | VCache | Scores | Probs | Logits)
}

impl Activations {
    fn new(
        device: &dyn Device,
        config: &Config,
        tokens: usize,
        storage: DType,
    ) -> Result<Activations, EngineError> {
        let mut buffers = vec![None; Stage::ALL.len()];
        for stage in config.stages().into_iter().filter(is_activation) {
            let elements: usize = config.shape(stage, tokens, 0).iter().product();
            buffers[stage.index()] = Some(device.alloc(elements * storage.size(), stage.name())?);
        }
        Ok(Activations(buffers))
    }

    /// The same buffers, but others for some stages.
    pub fn with(&self, other: impl Fn(Stage) -> Option<Buffer>) -> Activations {
        let replaced = |(stage, buffer): (&Stage, &Option<Buffer>)| {
            buffer.as_ref().map(|buffer| other(*stage).unwrap_or_else(|| buffer.clone()))
        };
        Activations(Stage::ALL.iter().zip(&self.0).map(replaced).collect())
    }

    /// The buffer of a stage, if the model has it.
    pub fn get(&self, stage: Stage) -> Option<&Buffer> {
        self.0[stage.index()].as_ref()
    }
}

impl Index<Stage> for Activations {
    type Output = Buffer;

    fn index(&self, stage: Stage) -> &Buffer {
        self.get(stage).expect("an activation of this model")
    }
}

impl Scratch {
    pub fn new(
        device: &dyn Device,
        config: &Config,
        options: &EngineOptions,
    ) -> Result<Scratch, EngineError> {
        let integers = device.alloc(4 * USERS * options.tokens, "token ids and positions")?;
        Ok(Scratch {
            integers: Integers { buffer: integers },
            activations: Activations::new(device, config, options.tokens, options.storage)?,
            logits: device.alloc(4 * config.n_vocab, "logits")?,
            splits: Splits::new(device, config)?,
        })
    }
}
