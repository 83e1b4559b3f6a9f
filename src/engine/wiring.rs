//! Which buffer goes where: the right one, unless a seeded fault takes another.

use crate::{
    device::{Buffer, Device, DeviceError},
    engine::buffers::Scratch,
    fault::{Faults, Wiring},
    site::Stage,
};

impl Scratch {
    /// The keys that are appended to the cache.
    pub fn appended_keys(&self, faults: &Faults) -> &Buffer {
        if faults.has(Wiring::KStoredBeforeRope) { &self.k } else { &self.k_rope }
    }

    /// What the output of a block is added to.
    pub fn residual(
        &self,
        device: &dyn Device,
        faults: &Faults,
        stage: Stage,
    ) -> Result<&Buffer, DeviceError> {
        let of_attention = stage == Stage::AttnResidual;
        let missing = match of_attention {
            true => Wiring::AttnResidualMissing,
            false => Wiring::FfnResidualMissing,
        };
        if faults.has(missing) {
            device.upload(&self.hidden, 0, &vec![0; self.hidden.bytes])?;
        }
        let of_normed = of_attention && faults.has(Wiring::AttnResidualOfNormed);
        Ok(if of_normed { &self.normed } else { &self.hidden })
    }
}
