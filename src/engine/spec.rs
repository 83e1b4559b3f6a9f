//! Which engine is put to the test, and on which device.

use crate::{
    core::{
        arithmetic::{Arithmetic, Convention},
        attending::Attending,
        task::Task,
        tensor::DType,
    },
    engine::{
        AttentionVariant, Engine, EngineError, EngineOptions,
        contract::{Contract, Op, Role},
        device::{
            Device, DeviceError,
            cuda::CudaDevice,
            host::{HostDevice, HostOptions},
        },
        fault::Faults,
        kernels::KernelSet,
    },
    graph::site::Stage,
    model::Model,
};

/// Which device runs the kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceKind {
    /// The kernels compiled for this machine's CPU.
    #[default]
    Host,
    /// The same, with every access of shared and global memory checked.
    Checked,
    /// The first CUDA GPU.
    Cuda,
}

impl DeviceKind {
    /// Opens the device.
    pub fn open(self) -> Result<Box<dyn Device>, DeviceError> {
        match self {
            DeviceKind::Host => Ok(Box::new(HostDevice::new(Default::default())?)),
            DeviceKind::Checked => {
                let options = HostOptions { checked: true, ..HostOptions::default() };
                Ok(Box::new(HostDevice::new(options)?))
            }
            DeviceKind::Cuda => Ok(Box::new(CudaDevice::new()?)),
        }
    }
}

/// The engine that is put to the test.
#[derive(Clone, Debug)]
pub struct EngineSpec {
    pub device: DeviceKind,
    /// f32 or f16.
    pub storage: DType,
    pub attention: AttentionVariant,
    pub faults: Faults,
    pub kernels: KernelSet,
    /// What its kernels round on the way.
    pub roundings: Vec<Convention>,
}

impl EngineSpec {
    /// The arithmetic that this engine declares.
    pub fn arithmetic(&self) -> Arithmetic {
        Arithmetic::engine(self.storage).rounding(&self.roundings)
    }

    /// How its attention is fed.
    pub fn attending(&self) -> Attending {
        self.kernels
            .contract(Op::Attention)
            .map(|contract| contract.attending())
            .unwrap_or_default()
    }

    /// Stages that its attention kernel keeps to itself: the engine recomputes them from its inputs.
    pub fn recomputed(&self) -> Vec<Stage> {
        self.kernels
            .contract(Op::Attention)
            .map(|contract| contract.recomputed())
            .unwrap_or_default()
    }

    /// An engine with room for a task.
    pub fn build(&self, model: &Model, task: Task<'_>) -> Result<Engine, EngineError> {
        self.build_to(model, task, None)
    }

    /// The same, of only so many layers and without logits; with `None` of all of the model.
    pub fn build_to(
        &self,
        model: &Model,
        task: Task<'_>,
        depth: Option<usize>,
    ) -> Result<Engine, EngineError> {
        let options = EngineOptions {
            storage: self.storage,
            attention: self.attention,
            faults: self.faults.clone(),
            positions: task.positions(),
            tokens: task.prompt.len(),
            depth,
        };
        Engine::new(self.device.open()?, model, &self.kernels, options)
    }
}

impl Contract {
    /// How an attention kernel is fed; the default for another operation's kernel.
    pub fn attending(&self) -> Attending {
        match self.op {
            Op::Attention => Attending { calls: self.calls, current: self.current },
            _ => Attending::default(),
        }
    }

    /// Stages that an attention kernel keeps to itself; none of another operation's kernel.
    pub fn recomputed(&self) -> Vec<Stage> {
        if self.op != Op::Attention {
            return Vec::new();
        }
        let taps = [(Role::Scores, Stage::Scores), (Role::Probs, Stage::Probs)];
        let own = taps.into_iter().filter(|(role, _)| !self.has(*role));
        own.map(|(_, stage)| stage).collect()
    }
}
