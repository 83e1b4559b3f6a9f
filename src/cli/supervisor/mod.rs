//! The program's two processes: a worker that does what is asked, and this, which watches it.
//!
//! llama.cpp, kernels and compilers run in the worker. Where they crash, leave the process or never come
//! back, one line says so, and with it the exit code. `spawn` starts the worker, `watched` waits for it,
//! `told` finds the words, `cleaned` removes what it leaves, `signals` hears Ctrl-C, and `relay` passes on what
//! foreign code prints. With `FIRSTDIFF_IN_PROCESS=1` there is no worker: a debugger then sees everything.

mod cleaned;
mod relay;
mod signals;
pub mod spawn;
mod told;
mod watched;

use std::time::Duration;

use firstdiff::core::{
    activity::{Death, IN_PROCESS, Journal, Page, now},
    exit::Exit,
};

use super::{
    args::{Cli, Command},
    output,
};
use spawn::Shared;
use watched::Ended;

/// How long one piece of foreign work may take, where the user does not say: a launch, a node of llama.cpp's
/// graph, a compilation. A choice: under `--device checked` a launch over a long prompt takes minutes.
const LIMIT: Duration = Duration::from_secs(300);
/// A slow disk's bytes a second: models get the time to read them.
const BYTES_A_SECOND: f64 = 50e6;

/// Whether a command runs anything that needs watching.
pub fn is_wanted(cli: &Cli) -> bool {
    // A server waits for others as long as it likes.
    let is_trivial = matches!(
        cli.command,
        Command::Faults | Command::Completions { .. } | Command::SynthChild | Command::RpcServer(_)
    );
    !is_trivial && std::env::var_os(IN_PROCESS).is_none_or(|value| value.is_empty() || value == "0")
}

/// Runs the command in a worker, to the exit code of the program.
pub fn supervise(cli: &Cli) -> u8 {
    match supervised(cli) {
        Ok(code) => code,
        Err(error) => {
            output::say(&format!(
                "firstdiff: cannot start its worker: {error}; {IN_PROCESS}=1 runs without one"
            ));
            Exit::Device as u8
        }
    }
}

fn supervised(cli: &Cli) -> std::io::Result<u8> {
    cleaned::adopt_orphans();
    let signals = signals::Signals::new()?;
    let shared = Shared::new()?;
    // Where there is no room for it, temporary files go where they go without.
    let scratch = cleaned::scratch_folder();
    loop {
        let mut worker = spawn::spawn(
            &shared,
            scratch.as_ref().map(|folder| folder.path()),
            cli.command.asks_the_user(),
        )?;
        let ended = watched::wait(&mut worker, shared.page(), &signals, cli.timeout)?;
        cleaned::end_all(&mut worker);
        let said = worker.relay.finish(shared.page().exit_code().is_none());
        cleaned::remove_leftovers(&worker, shared.page());
        if shared.page().forks() > 0 {
            output::say("firstdiff: note: a kernel called fork; the child process was killed");
        }
        if let Some(code) = shared.page().exit_code() {
            match &shared.page().unsaid()[..] {
                "" => {}
                line => output::say(line),
            }
            return Ok(code);
        }
        let story = match ended {
            Ended::Interrupted(signal) => return Ok(128 + signal as u8),
            Ended::Died(cause) => told::story(&cause, shared.page(), &said),
        };
        if !goes_on(&shared.journal()?, &story, shared.page())? {
            output::say(&format!("firstdiff: {}", story.text));
            return Ok(story.code);
        }
        shared.clear()?;
    }
}

/// Whether another worker can go on behind the piece of work that the last one died of.
fn goes_on(journal: &Journal, story: &told::Story, page: &Page) -> std::io::Result<bool> {
    let Some(exit) = story.exit else { return Ok(false) };
    match &story.units[..] {
        [] => Ok(false),
        [unit] if !journal.has(unit) => {
            let seconds = page.unit_since(unit).map_or(0.0, |since| (now() - since) as f64 / 1e3);
            journal.write_death(unit, &Death { text: story.text.clone(), exit, seconds })?;
            Ok(true)
        }
        // The next worker does one after another.
        [_, _, ..] if !journal.is_unclear() => journal.write_unclear().map(|()| true),
        _ => Ok(false),
    }
}
