//! `firstdiff kernels check`: every kernel on the checked host device, over odd shapes.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use comfy_table::{Cell, CellAlignment, Table, presets};
use firstdiff::{
    device::host::ThreadOrder,
    exit::{Error, Exit},
    kernels::check::{self, Finding, Outcome, Subject},
};

use super::{inputs, output};

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
    /// Random orders of the threads, besides forward and reverse
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=1000))]
    shuffle_threads: u64,
}

/// Runs a command on kernels.
pub fn kernels(args: &KernelsArgs) -> Result<Exit, Error> {
    let KernelsCommand::Check(args) = &args.command;
    let kernels = inputs::kernels(args.kernels.as_deref())?;
    let subjects = subjects(&args.files)?;
    let orders = check::thread_orders(args.shuffle_threads);
    let bar = output::progress(Some(subjects.len() as u64), "checking");
    let outcomes = check::check(&kernels, &subjects, &orders, &|| bar.inc(1))?;
    bar.finish_and_clear();
    output::print(&text(&outcomes, &orders))?;
    let clean = outcomes.iter().all(|outcome| outcome.finding.is_none());
    Ok(if clean { Exit::Equal } else { Exit::Diverged })
}

fn subjects(files: &[String]) -> Result<Vec<Subject>, Error> {
    let all = check::subjects();
    if let Some(unknown) = files.iter().find(|file| all.iter().all(|s| s.file != file.as_str())) {
        let mut known: Vec<&str> = all.iter().map(|subject| subject.file).collect();
        known.dedup();
        let known = known.join(", ");
        return Err(Error::Usage(format!("no kernel file {unknown}; it takes {known}")));
    }
    let wanted = |subject: &Subject| files.is_empty() || files.iter().any(|f| f == subject.file);
    Ok(all.into_iter().filter(wanted).collect())
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
