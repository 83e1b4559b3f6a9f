//! The trace format.

mod compare;
mod corrupt;
mod python;
mod refuse;
mod support;
mod write;
