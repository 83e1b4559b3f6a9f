//! Runs the ids of a plan through candle's quantised qwen2, with the lines in it that record it.
//!
//!     candle_client MODEL.gguf PLAN.txt TRACE

#![allow(dead_code, reason = "not all of the crate's files is used here")]

use std::{error::Error, fs::File, path::Path};

use candle::{Device, Tensor, quantized::gguf_file::Content};
use firstdiff::trace::Plan;

/// Of the crate candle-transformers, the files of this model.
mod models {
    pub mod quantized_qwen2;
    pub mod with_tracing;
}
mod quantized_nn;
mod quantized_var_builder;
mod record;
mod utils;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, model, plan, trace] = arguments.as_slice() else {
        return Err("usage: candle_client MODEL.gguf PLAN.txt TRACE".into());
    };
    let plan = Plan::open(Path::new(plan))?;
    let steps = plan.steps.clone();
    record::begin(Path::new(trace), plan, "candle 0.11.1, quantized_qwen2")?;
    let mut file = File::open(model)?;
    let content = Content::read(&mut file)?;
    let device = Device::Cpu;
    let mut engine = models::quantized_qwen2::ModelWeights::from_gguf(content, &mut file, &device)?;
    let mut first = 0;
    for ids in &steps {
        record::begin_step(ids, first);
        let own: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        let logits = engine.forward(&Tensor::new(own, &device)?.unsqueeze(0)?, first)?;
        record::put("logits", &logits);
        record::end_step();
        first += ids.len();
    }
    record::end();
    Ok(())
}
