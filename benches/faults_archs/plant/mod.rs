//! Faults planted in llama.cpp, and what the diagnosis says of them.

mod changes;
mod difference;
mod fault;
mod file;
mod keys;
mod models;
mod outcome;
mod results;
mod results_attention;
mod subject;
mod tamper;
mod tensors;

pub use fault::{Fault, all};
pub use models::{MODELS, spec};
pub use outcome::{Outcome, clean};
pub use subject::Subject;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
