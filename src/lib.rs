//! firstdiff finds the first tensor where an LLM inference engine and llama.cpp part.
//!
//! Modules in the order of the data flow:

pub mod arithmetic;
pub mod cache;
pub mod capture;
pub mod device;
pub mod doctor;
pub mod model;
pub mod site;
pub mod tensor;
