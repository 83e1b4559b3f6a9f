//! `firstdiff kernels check`: every kernel on the checked host device, over odd shapes.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use comfy_table::{Cell, CellAlignment, Table, presets};
use firstdiff::{
    ci::kernels::{self, Finding, Kind, Outcome, Pass, Target},
    core::exit::Exit,
    engine::{contract::Contract, device::host::ThreadOrder},
};

use super::{error::Error, inputs, output};

#[derive(Args)]
pub struct KernelsArgs {
    #[command(subcommand)]
    command: KernelsCommand,
}

#[derive(Subcommand)]
enum KernelsCommand {
    /// Run kernels on odd shapes with every access of shared and global memory checked
    Check(CheckArgs),
}

#[derive(Args)]
struct CheckArgs {
    /// Kernel files to check, such as rope.cu [default: all]
    #[arg(value_name = "FILE")]
    files: Vec<String>,
    /// Folder whose .cu files replace the embedded ones of the same name
    #[arg(long, value_name = "DIR")]
    kernels: Option<PathBuf>,
    /// Check a kernel with a contract: OP=FILE.toml; may be repeated
    #[arg(long, value_name = "OP=FILE.toml")]
    kernel: Vec<String>,
    /// Use g++'s AddressSanitizer and UBSan instead of our own checks, each kernel in its own process
    #[arg(long)]
    asan: bool,
    /// In this process, which was started for it: the target of that number
    #[arg(long, hide = true, value_name = "N")]
    alone: Option<usize>,
    /// Number of random thread orders, besides forward and reverse
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=1000))]
    shuffle_threads: u64,
}

/// Runs a command on kernels.
pub fn kernels(args: &KernelsArgs) -> Result<Exit, Error> {
    let KernelsCommand::Check(args) = &args.command;
    let kernels = inputs::kernels(args.kernels.as_deref())?;
    let targets = targets(args)?;
    let orders = kernels::thread_orders(args.shuffle_threads);
    if let Some(target) = args.alone.and_then(|index| targets.get(index)) {
        let announce = |shape: &str, order| {
            // Before the sanitizer ends the process. Without a reader there is no one to tell.
            let _ = output::print(&kernels::announcement(shape, order));
        };
        let pass = Pass { orders: &orders, sanitized: true, announce: &announce };
        let outcome = kernels::check_target(&kernels, target, &pass)?;
        output::print(&kernels::text(&outcome))?;
        return Ok(if outcome.finding.is_none() { Exit::Equal } else { Exit::Diverged });
    }
    let bar = output::progress(Some(targets.len() as u64), "checking");
    let outcomes = if args.asan {
        sanitized(&targets, &|| bar.inc(1))?
    } else {
        kernels::check(&kernels, &targets, &orders, &|| bar.inc(1))?
    };
    bar.finish_and_clear();
    output::print(&text(&outcomes, &orders))?;
    let clean = outcomes.iter().all(|outcome| outcome.finding.is_none());
    Ok(if clean { Exit::Equal } else { Exit::Diverged })
}

/// Each target by this program again, with the same arguments.
fn sanitized(targets: &[Target], done: &(dyn Fn() + Sync)) -> Result<Vec<Outcome>, Error> {
    let program = std::env::current_exe()
        .map_err(|source| Error::Read { path: PathBuf::from("/proc/self/exe"), source })?;
    let names: Vec<String> = targets.iter().map(Target::name).collect();
    let arguments = |index: usize| {
        let own = std::env::args_os().skip(1);
        own.chain(["--alone".into(), index.to_string().into()]).collect::<Vec<OsString>>()
    };
    Ok(kernels::sanitize(&program, &names, &arguments, done)?)
}

/// What the flags name: kernel files of ours, kernels with a contract, or all of ours.
fn targets(args: &CheckArgs) -> Result<Vec<Target>, Error> {
    let files = &args.files;
    let all = kernels::subjects();
    if let Some(unknown) = files.iter().find(|file| all.iter().all(|s| s.file != file.as_str())) {
        let mut known: Vec<&str> = all.iter().map(|subject| subject.file).collect();
        known.dedup();
        let known = known.join(", ");
        return Err(Error::Usage(format!("no kernel file {unknown}; choose from {known}")));
    }
    let given = args.kernel.iter().map(|given| {
        let (op, file) = inputs::contract(given)?;
        Ok(Target::Contract(Box::new(Contract::read(op, Path::new(file))?)))
    });
    let given = given.collect::<Result<Vec<_>, Error>>()?;
    let none = files.is_empty() && given.is_empty();
    let own = all.into_iter().filter(|own| none || files.iter().any(|file| file == own.file));
    Ok(own.map(Target::Own).chain(given).collect())
}

fn text(outcomes: &[Outcome], orders: &[ThreadOrder]) -> String {
    let launches: usize = outcomes.iter().map(|outcome| outcome.launches).sum();
    let (n, orders) = (outcomes.len(), orders.len());
    let found: Vec<&Finding> = outcomes.iter().filter_map(|o| o.finding.as_ref()).collect();
    let mut text = String::new();
    for finding in &found {
        text += &format!("{}\n", finding.text);
    }
    text += &match found.len() {
        0 => format!("clean: {n} of {n} kernels, {launches} launches in {orders} thread orders\n"),
        found => format!("\n  found in {found} of {n} kernels\n"),
    };
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["kernel", "launches", "verdict"]);
    for outcome in outcomes {
        let verdict = match &outcome.finding {
            None => "clean".to_string(),
            Some(Finding { kind: kind @ Kind::Crash, .. }) => kind.to_string(),
            Some(Finding { kind, shape, order, .. }) => {
                format!("{kind} ({shape}; threads {})", order_name(*order))
            }
        };
        let launches = Cell::new(outcome.launches).set_alignment(CellAlignment::Right);
        table.add_row([Cell::new(&outcome.name), launches, Cell::new(verdict)]);
    }
    format!("{text}{}\n", table.trim_fmt())
}

fn order_name(order: ThreadOrder) -> String {
    match order {
        ThreadOrder::Forward => "forward".to_string(),
        ThreadOrder::Reverse => "in reverse".to_string(),
        ThreadOrder::Random(seed) => format!("in random order {seed}"),
    }
}
