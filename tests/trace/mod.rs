//! The trace format.

mod compare;
mod corrupt;
mod fuzz;
pub mod python;
mod refuse;
pub mod support;
mod write;
