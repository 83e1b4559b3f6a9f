//! Kernels of the kind that people write, as they stand: they compile for the host device and its checked build,
//! and their numbers are those of a plain loop.

mod elements;
mod intrinsics;
mod products;
mod refused;
mod rows;
mod support;
mod warps;
