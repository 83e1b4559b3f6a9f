//! firstdiff finds the first tensor where an LLM inference engine and llama.cpp part.
//!
//! Modules in the order of the data flow:

pub mod arithmetic;
pub mod baseline;
pub mod cache;
pub mod capture;
pub mod compare;
pub mod device;
pub mod engine;
pub mod exit;
pub mod fault;
pub mod gguf;
pub mod kernels;
pub mod llama;
pub mod model;
pub mod reference;
pub mod report;
pub mod run;
pub mod site;
pub mod synth;
pub mod tensor;
pub mod trace;
pub mod verdict;
