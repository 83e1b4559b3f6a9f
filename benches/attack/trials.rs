//! The attacks.

use std::{
    fs,
    io::Result,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{
    damaged::{Random, absurd_number, damage},
    document::{Overhead, Row},
    kernels::{self, Fate},
    program,
};

/// The cache is shared by all, so that a kernel is compiled once.
pub fn firstdiff(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_firstdiff"));
    command.args(arguments);
    command
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-qwen2/tiny-qwen2-f16.gguf")
}

pub fn kernels() -> Result<Row> {
    let mut row = Row::of("hostile kernels");
    let folder = tempfile::tempdir()?;
    fs::create_dir(folder.path().join("hostile"))?;
    fs::write(folder.path().join("hostile").join(kernels::FILE), kernels::source())?;
    for (place, hostile) in kernels::ALL.iter().enumerate() {
        let arguments = ["run", "--kernels", "hostile", "-p", "Once upon a time", "-n", "1"];
        let mut command = firstdiff(&[&arguments[..], &["--timeout", "5", "--json", "-"]].concat());
        command.env(kernels::CHOICE, place.to_string());
        let outcome = program::run(command, folder.path());
        let expected = match hostile.fate {
            Fate::Blamed => outcome.code == Some(5) && outcome.is_told(kernels::FILE),
            Fate::Ended => outcome.code.is_some_and(|code| code > 0) && outcome.is_told(""),
            Fate::Harmless => outcome.code == Some(0) && outcome.out.starts_with('{'),
        };
        let wrong = format!("{:?} expected", hostile.fate);
        row.add(hostile.name, &outcome, (!expected).then_some(wrong));
    }
    Ok(row)
}

/// Runs a damaged model.
fn model(row: &mut Row, folder: &Path, bytes: &[u8], name: &str) -> Result<()> {
    fs::write(folder.join("model.gguf"), bytes)?;
    let arguments = ["run", "-m", "model.gguf", "-p", "Once", "-n", "0", "--timeout", "10"];
    let outcome = program::run(firstdiff(&arguments), folder);
    let is_told =
        outcome.code == Some(0) || !outcome.out.is_empty() || outcome.is_told("model.gguf");
    row.add(
        name,
        &outcome,
        (!is_told).then(|| "does not name the file and a next step".to_string()),
    );
    Ok(())
}

pub fn models(n: usize) -> Result<Row> {
    let mut row = Row::of("models (GGUF), damaged in the header or cut");
    let (folder, whole) = (tempfile::tempdir()?, fs::read(fixture())?);
    for seed in 0..n as u64 {
        let (mut bytes, mut random) = (whole.clone(), Random(seed));
        let header = [600, 2_000, 20_000, 80_000][random.below(4)];
        let what = damage(&mut bytes, header, &mut random);
        model(&mut row, folder.path(), &bytes, &format!("seed {seed}, {what}"))?;
    }
    Ok(row)
}

pub fn numbers(n: usize) -> Result<Row> {
    let mut row = Row::of("models (GGUF) with absurd hyperparameters");
    let (folder, whole) = (tempfile::tempdir()?, fs::read(fixture())?);
    for seed in 0..n as u64 {
        let (mut bytes, mut random) = (whole.clone(), Random(seed));
        let what = absurd_number(&mut bytes, &mut random);
        model(&mut row, folder.path(), &bytes, &format!("seed {seed}, {what}"))?;
    }
    Ok(row)
}

pub fn signals(n: usize) -> Result<Row> {
    let mut row = Row::of("SIGINT, SIGTERM and SIGHUP at random moments");
    let folder = tempfile::tempdir()?;
    let mut random = Random(1);
    let ends = [("INT", 130), ("TERM", 143), ("HUP", 129)];
    for (signal, code) in ends.into_iter().cycle().take(n) {
        let capture = ["capture", "engine", "-o", "trace", "-p", "Once", "-n", "4", "--overwrite"];
        let run = ["run", "--fault", "scale-missing", "--json", "report.json"];
        let arguments = [&capture[..], &run][random.below(2)];
        let mut started = program::start(firstdiff(arguments), folder.path());
        // Before it listens, a signal ends it as it ends any program.
        thread::sleep(Duration::from_millis(20 + random.below(600) as u64));
        if started.child.try_wait()?.is_none() {
            Command::new("kill")
                .args([format!("-{signal}"), started.child.id().to_string()])
                .status()?;
        }
        let outcome = started.finish();
        let is_right = [Some(code), Some(0), Some(1)].contains(&outcome.code);
        row.add(signal, &outcome, (!is_right).then(|| format!("{code} expected")));
    }
    Ok(row)
}

/// A disk of 3 MB, in a name space of its own.
pub fn full_disk() -> Result<Row> {
    let mut row = Row::of("a full disk");
    let folder = tempfile::tempdir()?;
    fs::create_dir(folder.path().join("disk"))?;
    let program = env!("CARGO_BIN_EXE_firstdiff");
    let inside = |command: &str| {
        let mount = "mount -t tmpfs -o size=3m tmpfs disk && cd disk";
        let script = format!("{mount} && {command}; code=$?; ls -a; exit $code");
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
        unshare
    };
    let possible = inside("true").current_dir(folder.path()).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        row.skipped = Some("this machine allows no name space with a small disk".to_string());
        return Ok(row);
    }
    // Each needs more than there is.
    let synth = "synth --layers 40 -o model.gguf";
    for command in ["capture engine -o trace", "capture reference -o trace", synth] {
        let outcome = program::run(inside(&format!("{program} {command}")), folder.path());
        let left = outcome.out.lines().any(|line| ![".", ".."].contains(&line));
        let wrong = outcome.code != Some(2) || left;
        row.add(
            command,
            &outcome,
            wrong.then(|| format!("exit 2 and nothing left expected: {}", outcome.out)),
        );
    }
    let cached = format!("FIRSTDIFF_CACHE=$PWD/cache TMPDIR=$PWD {program} run");
    let outcome = program::run(inside(&cached), folder.path());
    row.add(
        "the cache's disk",
        &outcome,
        (!outcome.is_told("")).then(|| "is not told".to_string()),
    );
    Ok(row)
}

pub fn read_only_home() -> Result<Row> {
    let mut row = Row::of("a home that cannot be written");
    let folder = tempfile::tempdir()?;
    for arguments in [&["run"][..], &["variants"], &["kernels", "check", "rope.cu"], &["doctor"]] {
        let mut command = firstdiff(arguments);
        command
            .env_remove("FIRSTDIFF_CACHE")
            .env_remove("XDG_CACHE_HOME")
            .env("HOME", "/proc/self");
        let outcome = program::run(command, folder.path());
        row.add(
            arguments[0],
            &outcome,
            (outcome.code != Some(0)).then(|| "exit 0 expected".to_string()),
        );
    }
    Ok(row)
}

/// Runs of each kind, taking turns.
const TURNS: usize = 15;

pub fn overhead() -> Result<Overhead> {
    let mut times: [Vec<Duration>; 2] = [Vec::new(), Vec::new()];
    for turn in 0..2 * TURNS {
        let mut command = firstdiff(&["run"]);
        if turn % 2 == 1 {
            command.env("FIRSTDIFF_IN_PROCESS", "1");
        }
        let start = Instant::now();
        command.output()?;
        times[turn % 2].push(start.elapsed());
    }
    times.iter_mut().for_each(|times| times.sort());
    Ok(Overhead { watched: times[0][TURNS / 2], alone: times[1][TURNS / 2] })
}
