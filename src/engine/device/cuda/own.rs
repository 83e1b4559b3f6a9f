//! The device's own kernels: products and biases, and weights that are widened.

use crate::engine::device::KernelSource;

const COMMON: &str = include_str!("../../../../kernels/common.cuh");
const FILES: [(&str, &str); 2] = [
    ("cuda/gemv.cu", include_str!("../../../../kernels/cuda/gemv.cu")),
    ("cuda/widen.cu", include_str!("../../../../kernels/cuda/widen.cu")),
];

/// The files, ready to compile: what they include is in place.
pub(super) fn sources() -> [KernelSource; 2] {
    FILES.map(|(file, text)| {
        let (before, after) =
            text.split_once("#include \"common.cuh\"\n").expect("each includes it");
        let common = COMMON.replace("#pragma once", "");
        let next = before.lines().count() + 2;
        KernelSource {
            file: file.to_string(),
            text: format!(
                "{before}#line 1 \"common.cuh\"\n{common}#line {next} \"{file}\"\n{after}"
            ),
            defines: Vec::new(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kernels::KernelSet;

    #[test]
    fn the_devices_own_kernels_are_those_that_a_check_compiles() {
        for source in sources() {
            assert_eq!(source, KernelSet::embedded().source(&source.file, Vec::new()).unwrap());
        }
    }
}
