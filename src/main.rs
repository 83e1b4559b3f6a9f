//! The command line of firstdiff.

mod cli;

use std::process::ExitCode;

use cli::{cpu, output, supervisor};
use firstdiff::core::{activity, exit::Exit};

fn main() -> ExitCode {
    cpu::become_the_fastest();
    let is_worker = supervisor::spawn::be_worker();
    // A panic is our own mistake: one line, exit 70, no backtrace.
    std::panic::set_hook(Box::new(|info| {
        output::say(&format!("firstdiff: internal error: {info}; please report it"));
    }));
    firstdiff::core::notice::told_by(output::say);
    output::show_progress();
    let cli = cli::parse();
    if !is_worker && supervisor::is_wanted(&cli) {
        return ExitCode::from(supervisor::supervise(&cli));
    }
    let exit = match std::panic::catch_unwind(|| cli::dispatch(cli)) {
        Ok(Ok(exit)) => exit,
        // Whatever it is, it follows from that.
        Ok(Err(_)) if activity::interrupted().is_some() => {
            output::say("firstdiff: ended by a signal before anything was compared; run it again");
            activity::interrupted().map_or(Exit::Internal, Exit::of_signal)
        }
        Ok(Err(error)) => {
            output::fail(&error);
            error.exit()
        }
        Err(_) => Exit::Internal,
    };
    if is_worker {
        supervisor::spawn::finish(exit);
    }
    ExitCode::from(exit as u8)
}
