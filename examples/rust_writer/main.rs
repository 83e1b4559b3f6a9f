//! Records what an engine in Rust would. Recording takes only the lines marked with //+.
//!
//!     cargo run --release -- PLAN.txt TRACE
//!
//! The values are made up: element i of a tensor is i mod 61, plus one for each layer and step.

use std::{error::Error, path::Path};

use firstdiff::{
    core::{
        arithmetic::Arithmetic,
        tensor::{DType, Tensor},
    },
    graph::{ListedSite, site::Stage},
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
    let mut trace = TraceWriter::create(Path::new(trace), manifest, true)?; //+
    let mut first = 0;
    for (step, ids) in plan.steps.iter().enumerate() {
        trace.begin_step(ids, first)?; //+
        // What this engine has: of all sites of the plan, q of each layer and the logits.
        let all = trace.list().sites().iter();
        let has = |site: &&ListedSite| matches!(site.stage, Stage::Q | Stage::Logits);
        let own: Vec<ListedSite> = all.filter(has).cloned().collect();
        for site in own {
            let shape = site.shape(ids.len(), first + ids.len());
            let values = values(&shape, step + site.layer.unwrap_or(0) as usize);
            trace.put(site.site(step as u32), &Tensor::new(shape, values))?; //+
        }
        trace.end_step()?; //+
        first += ids.len();
    }
    trace.finish()?; //+
    Ok(())
}
