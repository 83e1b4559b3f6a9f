//! The smaller commands: faults, progress, synth, doctor, completions.

use std::path::Path;

use clap::CommandFactory;
use comfy_table::{Table, presets};
use firstdiff::{
    ci::progress::{Progress, Saved},
    core::exit::Exit,
    doctor,
    engine::fault::FAULTS,
    model::synth::{self, Spec},
};

use super::{
    args::{Cli, DoctorArgs, ProgressArgs, SynthArgs},
    error::Error,
    interrupt, output,
};

/// Lists the faults.
pub fn faults() -> Result<Exit, Error> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["--fault", "what is wrong", "differs first", "elements"]);
    for fault in &FAULTS {
        let site = fault.site().tensor_name();
        let first = if fault.step == 0 { site } else { format!("{site}, step {}", fault.step) };
        table.add_row([fault.name, fault.what, &first, fault.pattern]);
    }
    output::print(&format!("{} faults can be planted\n{}\n", FAULTS.len(), table.trim_fmt()))?;
    Ok(Exit::Equal)
}

/// Says what a change of the engine fixed.
pub fn progress(args: &ProgressArgs) -> Result<Exit, Error> {
    let (old, new) = (Saved::open(&args.old)?, Saved::open(&args.new)?);
    let progress = Progress::of(&old, &new)?;
    output::print(&progress.render())?;
    Ok(progress.exit())
}

/// Writes a random model.
pub fn synth(args: &SynthArgs) -> Result<Exit, Error> {
    let mut spec = Spec::preset(&args.shape)?;
    spec.seed = args.seed;
    let sizes = [
        (&mut spec.n_layer, args.layers),
        (&mut spec.n_embd, args.embd),
        (&mut spec.n_head, args.heads),
        (&mut spec.n_head_kv, args.kv_heads),
        (&mut spec.head_dim, args.head_dim),
        (&mut spec.n_ff, args.ffn),
        (&mut spec.n_vocab, args.vocab),
    ];
    for (size, wanted) in sizes {
        *size = wanted.unwrap_or(*size);
    }
    spec.weight_type = args.weight_type.unwrap_or(spec.weight_type);
    interrupt::unfinished(&args.output);
    let bar = output::progress(Some(synth::data_bytes(&spec)?), "writing weights");
    synth::write(&spec, &args.output, &mut |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    let size = std::fs::metadata(&args.output).map_or(0, |metadata| metadata.len());
    let path = args.output.display();
    output::print(&format!("wrote {path}: {} model, {size} bytes\n", spec.arch.name()))?;
    Ok(Exit::Equal)
}

/// Prints a completion script.
pub fn completions(shell: clap_complete::Shell) -> Result<Exit, Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "firstdiff", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Equal)
}

/// Checks this machine.
pub fn doctor(args: &DoctorArgs) -> Result<Exit, Error> {
    let probes = doctor::probes();
    match args.json {
        true => output::write_json(&probes, Path::new("-"))?,
        false => output::print(&doctor::render(&probes))?,
    }
    Ok(if doctor::healthy(&probes) { Exit::Equal } else { Exit::Device })
}
