//! Engines that firstdiff does not run: their traces, and what is said of them.

mod dump;
mod engines;
mod header;
mod python;
mod schema;
mod support;
mod survey;
mod transformers;
mod validate;
