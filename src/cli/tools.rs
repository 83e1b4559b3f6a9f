//! The smaller commands: faults, progress, doctor, rpc-server, completions.

use std::{path::Path, thread};

use clap::CommandFactory;
use comfy_table::{Table, presets};
use firstdiff::{
    ci::progress::{Progress, Saved},
    core::{
        cache::{self, Removed},
        exit::Exit,
    },
    doctor,
    engine::fault::FAULTS,
    reference,
};

use super::{
    args::{Cli, DoctorArgs, ProgressArgs, RpcServerArgs},
    error::Error,
    output,
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

/// Prints a completion script.
pub fn completions(shell: clap_complete::Shell) -> Result<Exit, Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "firstdiff", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Equal)
}

/// Serves this machine's CPU until it is interrupted.
pub fn rpc_server(args: &RpcServerArgs) -> Result<Exit, Error> {
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    let threads = args.threads.map_or(cores, usize::from);
    reference::serve(args.host, args.port, threads)?;
    Ok(Exit::Equal)
}

/// Checks this machine, or empties the cache.
pub fn doctor(args: &DoctorArgs) -> Result<Exit, Error> {
    if args.prune {
        let unwritten = |source| Error::Write { path: cache::root(), source };
        let (root, Removed { files, bytes }) = cache::prune().map_err(unwritten)?;
        let (root, bytes) = (root.display(), doctor::in_words(bytes));
        output::print(&format!("removed {files} files, {bytes}, from {root}\n"))?;
        return Ok(Exit::Equal);
    }
    let probes = doctor::probes();
    if args.json {
        output::write_json(&probes, Path::new("-"))?
    } else {
        output::print(&doctor::render(&probes))?
    }
    Ok(if doctor::healthy(&probes) { Exit::Equal } else { Exit::Device })
}
