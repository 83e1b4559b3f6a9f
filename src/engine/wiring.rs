//! Which buffer goes where: the right one, unless a seeded fault takes another.

use crate::{
    engine::{
        buffers::Activations,
        device::{Buffer, Device, DeviceError},
        fault::{Faults, Wiring},
    },
    graph::site::Stage,
};

impl Activations {
    /// What the rotation of queries takes, and that of keys.
    pub fn unrotated(&self) -> [&Buffer; 2] {
        let last = |norm, plain| self.get(norm).unwrap_or(&self[plain]);
        [last(Stage::QNorm, Stage::Q), last(Stage::KNorm, Stage::K)]
    }

    /// The keys that are appended to the cache.
    pub fn appended_keys(&self, faults: &Faults) -> &Buffer {
        let [_, unrotated] = self.unrotated();
        if faults.has(Wiring::KStoredBeforeRope) { unrotated } else { &self[Stage::KRope] }
    }

    /// What the output of the block that ends in `stage` is added to: its input.
    pub fn residual<'a>(
        &'a self,
        device: &dyn Device,
        faults: &Faults,
        stage: Stage,
        input: &'a Buffer,
    ) -> Result<&'a Buffer, DeviceError> {
        let of_attention = stage == Stage::AttnResidual;
        let missing =
            if of_attention { Wiring::AttnResidualMissing } else { Wiring::FfnResidualMissing };
        if faults.has(missing) {
            device.upload(input, 0, &vec![0; input.bytes])?;
        }
        let of_normed = of_attention && faults.has(Wiring::AttnResidualOfNormed);
        Ok(if of_normed { &self[Stage::AttnNorm] } else { input })
    }
}
