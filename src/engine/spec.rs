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
        weights::Weights,
    },
    graph::site::Stage,
    model::Model,
};

/// Bytes of memory that Linux can give to this process; `None` where that is not known.
fn free_memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let meminfo = read("/proc/meminfo")?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let of_machine = 1024 * line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?;
    // Where a container has a limit, its own group is all that it sees. Files that the group has read count as free.
    let of_group = |file: &str| read(&format!("/sys/fs/cgroup/{file}"));
    let limit = of_group("memory.max").and_then(|text| text.trim().parse::<u64>().ok());
    let stat = of_group("memory.stat").unwrap_or_default();
    let used = stat.lines().find_map(|line| line.strip_prefix("anon ")?.parse::<u64>().ok());
    let of_group = limit.map_or(u64::MAX, |most| most.saturating_sub(used.unwrap_or(0)));
    Some(of_machine.min(of_group))
}

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

    /// Whether what the engine holds of a model fits the memory of this machine, if it is to lie there. A GPU is asked
    /// for memory when the weights are loaded.
    ///
    /// # Errors
    /// [`EngineError::Memory`] where it does not.
    pub fn check_memory(&self, model: &Model) -> Result<(), EngineError> {
        let is_here = self.device != DeviceKind::Cuda;
        match free_memory().filter(|_| is_here) {
            Some(free) => self.check_free(model, free),
            None => Ok(()),
        }
    }

    /// The same where so many bytes are free.
    ///
    /// # Errors
    /// As [`EngineSpec::check_memory`].
    pub fn check_free(&self, model: &Model, free: u64) -> Result<(), EngineError> {
        let (storage, needed) = (self.storage, Weights::held_bytes(model, self.storage)?);
        if needed > free { Err(EngineError::Memory { storage, needed, free }) } else { Ok(()) }
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
        self.check_memory(model)?;
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
