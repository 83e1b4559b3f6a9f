//! Engines that firstdiff does not run: their traces, and what is said of them.

mod header;
mod schema;
mod support;
mod validate;
