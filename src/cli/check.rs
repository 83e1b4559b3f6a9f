//! `firstdiff check` and `firstdiff merge`: a matrix of runs as one answer, for CI.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use clap::Args;
use firstdiff::{
    ci::check::{self, Asked, Config, Lock, Opened, Partition, Pinned},
    core::{
        activity::{self, Journal},
        exit::Exit,
    },
    report::{
        ci::{self, Results},
        html::check_page,
    },
};

use super::{error::Error, inputs, output, page};

#[derive(Args)]
pub struct CheckArgs {
    /// What to check: models, prompts, dtypes, variants, tolerances (see docs/ci.md)
    #[arg(short, long, value_name = "FILE", default_value = "firstdiff.toml")]
    config: PathBuf,
    /// Folder whose .cu files replace the embedded ones of the same name; overrides the file's `kernels`
    #[arg(long, value_name = "DIR")]
    kernels: Option<PathBuf>,
    /// Run a part of the cases: hash:M/N or slice:M/N, the M-th of N parts
    #[arg(long, value_name = "PART")]
    partition: Option<Partition>,
    /// Check each operation's accuracy against this baseline of `firstdiff bless`
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Compare with this snapshot of `firstdiff bless --reference`; llama.cpp does not run
    #[arg(long, value_name = "FILE")]
    reference: Option<PathBuf>,
    #[command(flatten)]
    write: WriteArgs,
}

#[derive(Args)]
pub struct MergeArgs {
    /// Results of `firstdiff check --partition ... --json FILE`, all parts of one check
    #[arg(required = true, value_name = "PART.json")]
    parts: Vec<PathBuf>,
    #[command(flatten)]
    write: WriteArgs,
}

/// Where the results go, besides standard output and the job summary (`GITHUB_STEP_SUMMARY`).
#[derive(Args)]
struct WriteArgs {
    /// Write the results as JSON; `-` prints them instead of the text
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the results as JUnit XML, one test case per case
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write the results as one page for a browser: the matrix, failures and lost accuracy (docs/page.md)
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print GitHub annotations for failures; on by default in GitHub Actions
    #[arg(long)]
    annotations: bool,
}

/// Runs the matrix of a file, or a part of it.
pub fn check(args: &CheckArgs) -> Result<Exit, Error> {
    args.write.check()?;
    let config = Config::read(&args.config, args.kernels.as_deref())?;
    let baseline = args.baseline.as_deref().map(Lock::read).transpose()?;
    let reference = args.reference.as_deref().map(Pinned::read).transpose()?;
    let opened = Opened::open(&config, &inputs::fixture_file)?;
    let total = match args.partition {
        Some(partition) => partition.choose(config.cases()).len(),
        None => config.cases().len(),
    };
    let bar = output::progress(Some(total as u64), "checking");
    let mut done = activity::journal().map_or(0, Journal::n_done);
    bar.inc(done as u64);
    let (baseline, reference) = (baseline.as_ref(), reference.as_ref());
    let asked = Asked { partition: args.partition, baseline, reference };
    let results = check::run(&config, &opened, asked, &mut |case, n| {
        done += 1;
        bar.inc(1);
        // Where there is no bar, a log should show that something happens.
        if !output::is_seen() {
            output::say(&format!("{done}/{n} {:.1} s {}", case.seconds, case.line()));
        }
    })?;
    bar.finish_and_clear();
    finish(&results, &args.write)
}

/// Joins parts.
pub fn merge(args: &MergeArgs) -> Result<Exit, Error> {
    args.write.check()?;
    let read = |path: &PathBuf| Ok((path.clone(), check::read(path)?));
    let parts = args.parts.iter().map(read).collect::<Result<_, Error>>()?;
    finish(&check::merge(parts)?, &args.write)
}

/// Writes the results everywhere they are wanted, and gives their exit code.
fn finish(results: &Results, write: &WriteArgs) -> Result<Exit, Error> {
    if let Some(path) = &write.json {
        output::write_json(results, path)?;
    }
    if let Some(path) = &write.junit {
        output::write_file(path, &ci::junit(results))?;
    }
    if let Some(path) = &write.html {
        output::write_file(path, &check_page(results, &page::commands(false)))?;
    }
    if let Some(path) = variable("GITHUB_STEP_SUMMARY") {
        append(Path::new(&path), &ci::summary(results))?;
    }
    let json_is_printed = write.json.as_deref().is_some_and(output::is_stdout);
    if !json_is_printed {
        output::print(&results.lines())?;
    }
    if write.annotations || variable("GITHUB_ACTIONS").is_some_and(|value| value == "true") {
        let annotations = ci::annotations(results);
        // The runner reads both streams.
        if json_is_printed { output::tell(&annotations) } else { output::print_raw(&annotations)? }
    }
    Ok(results.headline.exit)
}

fn variable(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

fn append(path: &Path, text: &str) -> Result<(), Error> {
    let write = |source| Error::Write { path: path.to_path_buf(), source };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(write)
}

impl WriteArgs {
    /// Refuses files that cannot be written, before hours of work.
    fn check(&self) -> Result<(), Error> {
        output::check_json(self.json.as_deref())?;
        output::check_file("--junit", self.junit.as_deref())?;
        output::check_file("--html", self.html.as_deref())
    }
}
