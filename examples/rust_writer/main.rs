//! Records what an engine in Rust would: the lines marked with //+ are all that it takes.
//!
//!     cargo run --release -- PLAN.txt TRACE
//!
//! The values are made up: element i of a tensor is i mod 61, and one more in each layer and step.

use std::{error::Error, path::Path};

use firstdiff::{
    core::{
        arithmetic::Arithmetic,
        tensor::{DType, Tensor},
    },
    graph::site::{Site, Stage},
    trace::{Manifest, Plan, Side, TraceWriter},
}; //+

fn values(shape: &[usize], more: usize) -> Vec<f32> {
    (0..shape.iter().product()).map(|i: usize| (i % 61 + more) as f32).collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, plan, trace] = arguments.as_slice() else {
        return Err("usage: rust_writer PLAN.txt TRACE".into());
    };
    let plan = Plan::open(Path::new(plan))?; //+
    let arithmetic = Arithmetic::engine(DType::F32); //+
    let manifest = Manifest::new(Side::Engine, plan.model, arithmetic, "rust_writer".into()); //+
    let shapes = manifest.model.shapes;
    let mut trace = TraceWriter::create(Path::new(trace), manifest, true)?; //+
    let mut first = 0;
    for (step, ids) in plan.steps.iter().enumerate() {
        trace.begin_step(ids, first)?; //+
        for layer in 0..shapes.n_layer {
            let shape = [ids.len(), shapes.n_head, shapes.head_dim];
            let q = values(&shape, step + layer);
            let site = Site::in_layer(step as u32, layer as u32, Stage::Q); //+
            trace.put(site, &Tensor::new(shape, q))?; //+
        }
        let shape = [ids.len(), shapes.n_vocab];
        let logits = values(&shape, step);
        trace.put(Site::global(step as u32, Stage::Logits), &Tensor::new(shape, logits))?; //+
        trace.end_step()?; //+
        first += ids.len();
    }
    trace.finish()?; //+
    Ok(())
}
