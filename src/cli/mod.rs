//! The commands.

pub mod args;
mod bisect;
mod bless;
mod capture;
mod check;
pub mod cpu;
mod cut;
mod diff;
mod dump;
pub mod error;
mod explain;
mod harmless;
mod help;
mod inputs;
mod kernels;
mod lengths;
pub mod output;
mod page;
mod paired;
mod plan;
mod replayed;
mod run;
mod same_engine;
pub mod sites;
pub mod supervisor;
mod synth;
mod tools;
mod validate;
mod variants;
mod watch;

use args::{Cli, Command};
use clap::FromArgMatches;
use error::Error;
use firstdiff::core::exit::Exit;

/// Reads the command line; help, and a wrong flag, end the program.
pub fn parse() -> Cli {
    let matches = help::command().get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Runs a command to its exit code.
pub fn dispatch(cli: Cli) -> Result<Exit, Error> {
    match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Capture(args) => capture::capture(&args),
        Command::Plan(args) => plan::plan(&args),
        Command::Diff(args) => diff::diff(&args),
        Command::Explain(args) => explain::explain(&args),
        Command::Sites(args) => sites::sites(&args),
        Command::Validate(args) => validate::validate(&args),
        Command::Align(args) => dump::align(&args),
        Command::Import(args) => dump::import(&args),
        Command::Progress(args) => tools::progress(&args),
        Command::Variants(args) => variants::variants(&args),
        Command::Check(args) => check::check(&args),
        Command::Bless(args) => bless::bless(&args),
        Command::Bisect(args) => bisect::bisect(&args),
        Command::Merge(args) => check::merge(&args),
        Command::Kernels(args) => kernels::kernels(&args),
        Command::Faults => tools::faults(),
        Command::Cut(args) => cut::cut(&args),
        Command::Synth(args) => synth::synth(&args),
        Command::RpcServer(args) => tools::rpc_server(&args),
        Command::SynthChild => synth::child(),
        Command::Doctor(args) => tools::doctor(&args),
        Command::Completions { shell } => tools::completions(shell),
    }
}
