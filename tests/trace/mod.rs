//! The trace format.

pub mod any;
mod arrays;
mod batch;
mod compare;
mod corrupt;
pub mod fuzz;
mod old;
pub mod python;
mod quantised;
mod refuse;
pub mod support;
mod weights;
mod write;
