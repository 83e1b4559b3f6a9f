//! `make gpu-bench`: the engine on a GPU, beside the limits of that GPU measured in the same run.
//! Prints the tables of docs/performance.md; with names as arguments (steps, attention, edit, run), only
//! those.

mod attention;
mod edit;
mod limits;
mod steps;
mod together;

use std::{path::PathBuf, time::Instant};

use firstdiff::{
    model::synth::{self, Spec, WeightType},
    run,
};

use crate::limits::Limits;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let limits = Limits::measure()?;
    limits.print();
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("qwen2.5-0.5b.gguf");
    let spec = Spec { weight_type: WeightType::F16, ..Spec::preset("qwen2.5-0.5b")? };
    synth::write(&spec, &path, &mut |_| {})?;
    let model = run::open(&path)?;
    let names: Vec<String> = std::env::args().skip(1).filter(|name| name != "--bench").collect();
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    if wanted("steps") {
        steps::all(&model, &limits)?;
    }
    if wanted("attention") {
        attention::all(&model, &limits)?;
    }
    if wanted("edit") {
        edit::kernel_edit_to_verdict()?;
    }
    if wanted("run") {
        together::whole_run(&model)?;
    }
    Ok(())
}

/// The median time of several runs, in milliseconds, after one that does not count.
fn median(repeats: usize, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let mut times = Vec::new();
    for _ in 0..repeats {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[repeats / 2])
}

/// The folder of the project, or of a bundle of it.
fn project() -> PathBuf {
    let given = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    given.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")))
}
