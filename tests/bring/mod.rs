//! Engines that firstdiff does not run: their traces, and what is said of them.

mod batch;
mod dump;
pub mod engines;
pub mod header;
mod parallel;
mod plans;
mod pt;
mod python;
mod quantised;
mod ranks;
mod schema;
mod shards;
mod slices;
pub mod support;
mod survey;
mod transformers;
mod validate;
mod weights;
mod writer;
