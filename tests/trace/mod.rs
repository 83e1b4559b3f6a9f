//! The trace format.

mod compare;
mod corrupt;
pub mod fuzz;
pub mod python;
mod refuse;
pub mod support;
mod write;
