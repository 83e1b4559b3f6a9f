//! `firstdiff bless`: what is committed to hold later runs to: the accuracy of every operation of a matrix,
//! or llama.cpp's tensors.

use std::{
    io::BufRead,
    path::{Path, PathBuf},
};

use clap::Args;
use firstdiff::{
    ci::check::{self, Config, Lock, Opened, Pinned, PinnedError, Proposal, Review},
    core::{exit::Exit, files},
};

use super::{error::Error, inputs, output};

#[derive(Args)]
pub struct BlessArgs {
    /// The matrix file, as for `firstdiff check`
    #[arg(short, long, value_name = "FILE", default_value = "firstdiff.toml")]
    config: PathBuf,
    /// Folder whose .cu files replace the embedded ones of the same name; overrides the file's `kernels`
    #[arg(long, value_name = "DIR")]
    kernels: Option<PathBuf>,
    /// The baseline file, written if a change is accepted
    #[arg(long, value_name = "FILE", default_value = "firstdiff.lock.json")]
    baseline: PathBuf,
    /// Accept every change
    #[arg(long, conflicts_with_all = ["improved", "ask"])]
    all: bool,
    /// Accept new cases, and changed ones where no operation got worse
    #[arg(long, conflicts_with = "ask")]
    improved: bool,
    /// Ask for each change: yes, no, all of the rest, or quit without writing
    #[arg(long)]
    pub ask: bool,
    /// Write a snapshot of llama.cpp to this file instead, for `check --reference`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["improved", "ask", "baseline", "kernels"])]
    reference: Option<PathBuf>,
}

/// Reviews the matrix against the baseline, and writes what is accepted. Without a flag that accepts
/// it only says what changed.
pub fn bless(args: &BlessArgs) -> Result<Exit, Error> {
    if let Some(ci) = std::env::var_os("CI").filter(|ci| !ci.is_empty() && ci != "false") {
        let ci = ci.to_string_lossy();
        return Err(Error::Refused(format!(
            "bless writes nothing in CI (CI is {ci:?}): a baseline that CI updates protects nothing; run it \
             on your machine and commit {}",
            args.reference.as_ref().unwrap_or(&args.baseline).display()
        )));
    }
    let config = Config::read(&args.config, args.kernels.as_deref())?;
    if let Some(path) = &args.reference {
        return reference(&config, path, args.all);
    }
    let old = if args.baseline.exists() { Lock::read(&args.baseline)? } else { Lock::new() };
    output::check_json(Some(&args.baseline))?;
    let opened = Opened::open(&config, &inputs::fixture_file)?;
    let bar = output::progress(Some(config.cases().len() as u64), "checking");
    let mut done = 0;
    let review = Review::of(&config, &opened, &old, &mut |case, n| {
        done += 1;
        bar.inc(1);
        if !output::is_seen() {
            output::say(&format!("{done}/{n} {:.1} s {}", case.seconds, case.line()));
        }
    })?;
    bar.finish_and_clear();
    output::print(&text(&review))?;
    let accepted = accepted(args, &review)?;
    let mut new = old.clone();
    accepted.iter().for_each(|proposal| new.accept(proposal));
    finish(args, &review, accepted.len(), &new)
}

/// Runs llama.cpp, says what it gives otherwise than the snapshot, and writes it anew if told.
fn reference(config: &Config, path: &Path, all: bool) -> Result<Exit, Error> {
    let old = match Pinned::read(path) {
        Ok(old) => Some(old),
        Err(PinnedError::Edited { .. }) => None,
        Err(_) if !path.exists() => None,
        Err(error) => return Err(error.into()),
    };
    output::check_json(Some(path))?;
    let opened = Opened::open(config, &inputs::fixture_file)?;
    let total = config.models.len() * config.prompts.len();
    let bar = output::progress(Some(total as u64), "running llama.cpp");
    let new = check::pin(config, &opened, &mut |name| {
        bar.inc(1);
        if !output::is_seen() {
            output::say(name);
        }
    })?;
    bar.finish_and_clear();
    let moved = check::moved(old.as_ref(), &new);
    let mut text = format!("{} of {total} changed\n", moved.len());
    moved.iter().for_each(|moved| text += &format!("  {moved}\n"));
    let name = path.display();
    let (exit, said) = match (moved.is_empty() && old.is_some(), all) {
        (true, _) => (Exit::Equal, format!("{name} is left unchanged\n")),
        (false, false) => {
            (Exit::Diverged, format!("{name} is left unchanged; --all rewrites it\n"))
        }
        (false, true) => {
            let new = new.text();
            files::write_atomic(path, new.as_bytes())
                .map_err(|source| Error::Write { path: path.to_path_buf(), source })?;
            let kilobytes = new.len().div_ceil(1000);
            (Exit::Equal, format!("{kilobytes} kB written; commit {name}\n"))
        }
    };
    output::print(&(text + &said))?;
    Ok(exit)
}

/// What the review found: the answer, then a line for each change and each case that failed.
fn text(review: &Review) -> String {
    let Review { proposals, same, failed } = review;
    let mut text = format!(
        "{} changed, {same} as in the baseline, {} not equal\n",
        proposals.len(),
        failed.len()
    );
    proposals.iter().for_each(|proposal| text += &format!("  {proposal}\n"));
    failed.iter().for_each(|case| text += &format!("  {}\n", case.line()));
    text
}

/// The proposals that the flags, or the answers on standard input, accept.
fn accepted<'a>(args: &BlessArgs, review: &'a Review) -> Result<Vec<&'a Proposal>, Error> {
    let proposals = review.proposals.iter();
    if args.ask {
        return ask(&review.proposals);
    }
    Ok(match (args.all, args.improved) {
        (true, _) => proposals.collect(),
        (false, true) => proposals.filter(|proposal| proposal.is_improvement()).collect(),
        (false, false) => Vec::new(),
    })
}

fn ask(proposals: &[Proposal]) -> Result<Vec<&Proposal>, Error> {
    let mut answers = std::io::stdin().lock().lines();
    let mut accepted = Vec::new();
    let mut rest = proposals.iter();
    while let Some(proposal) = rest.next() {
        output::ask(&format!("{proposal}\naccept? [y]es, [n]o, [a]ll of the rest, [q]uit: "));
        let answer = answers.next().transpose();
        let answer =
            answer.map_err(|source| Error::Read { path: "standard input".into(), source })?;
        match answer.as_deref().map(str::trim) {
            Some("y" | "yes") => accepted.push(proposal),
            Some("n" | "no") => {}
            Some("a" | "all") => {
                accepted.push(proposal);
                accepted.extend(rest.by_ref());
            }
            Some("q" | "quit") => return Ok(Vec::new()),
            None => {
                let text =
                    "standard input ended before every change had an answer; nothing is written";
                return Err(Error::Usage(text.to_string()));
            }
            Some(other) => {
                let text = format!("{other:?} is not an answer (y, n, a or q); nothing is written");
                return Err(Error::Usage(text));
            }
        }
    }
    Ok(accepted)
}

/// Writes the baseline and says so. What is left open, or failed, is exit 1.
fn finish(args: &BlessArgs, review: &Review, accepted: usize, new: &Lock) -> Result<Exit, Error> {
    let path = &args.baseline;
    let open = review.proposals.len() - accepted;
    let name = path.display();
    let said = match (accepted, open) {
        (0, 0) => format!("{name} is left unchanged\n"),
        (0, _) => format!(
            "{name} is left unchanged; --all accepts every change, --improved those that got no worse, --ask \
             one by one\n"
        ),
        _ => {
            let write = |source| Error::Write { path: path.clone(), source };
            files::write_atomic(path, new.text().as_bytes()).map_err(write)?;
            let open = if open > 0 { format!(", {open} not accepted") } else { String::new() };
            format!("{accepted} accepted{open}; commit {name}\n")
        }
    };
    output::print(&said)?;
    if open == 0 && review.failed.is_empty() { Ok(Exit::Equal) } else { Ok(Exit::Diverged) }
}
