//! The command line of firstdiff.

mod cli;

use std::process::ExitCode;

use firstdiff::core::exit::Exit;

fn main() -> ExitCode {
    // A panic is our own mistake: one line, exit 70, no backtrace.
    std::panic::set_hook(Box::new(|info| {
        eprintln!("firstdiff: internal error: {info}; please report it");
    }));
    let exit = std::panic::catch_unwind(|| {
        cli::interrupt::clean_up_on_signal();
        cli::dispatch(cli::parse())
    });
    let exit = match exit {
        Ok(Ok(exit)) => exit,
        Ok(Err(error)) => {
            eprintln!("firstdiff: {error}");
            error.exit()
        }
        Err(_) => Exit::Internal,
    };
    ExitCode::from(exit as u8)
}
