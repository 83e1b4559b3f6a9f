//! The forward pass as data.

pub mod site;
