//! `make archs`: a random model of every architecture that llama.cpp runs, whose own tensors are replayed
//! through its own graph: every node within its bound, or named as not measured.
//!
//! An argument makes it a trial of the architectures whose name contains it; then nothing is written. Each
//! architecture has a process of its own, as llama.cpp may end it.

mod document;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use firstdiff::{
    core::task::Task,
    model::{
        ModelFile,
        synth::arch::{ArchModel, ArchSpec, Architecture, architectures},
    },
    reference::{Reference, ReferenceOptions},
    run::acceptance::accept,
};

use document::Row;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const DOCUMENT: &str = "docs/architectures.md";
/// Past any window of a synthetic model.
const PROMPT: usize = 40;
const DECODE: u32 = 3;
/// The environment variable that makes this program the process of one architecture.
const ONE: &str = "FIRSTDIFF_ARCHS_ONE";

fn main() -> Result<ExitCode> {
    if let Ok(name) = std::env::var(ONE) {
        println!("{}", serde_json::to_string(&one(&name)?)?);
        return Ok(ExitCode::SUCCESS);
    }
    // Cargo itself passes `--bench`.
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let wanted = |name: &String| only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let names: Vec<String> = architectures().map(Architecture::name).filter(wanted).collect();
    let (start, n) = (Instant::now(), names.len());
    let mut rows = Vec::new();
    for (index, name) in names.into_iter().enumerate() {
        let row = in_child(&name)?;
        eprintln!("{} of {n}, {:.0} s: {}", index + 1, start.elapsed().as_secs_f64(), row.line());
        rows.push(row);
    }
    let text = document::markdown(&rows);
    if only.is_none() {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(DOCUMENT), &text)?;
    } else {
        print!("{text}");
    }
    std::io::stdout().flush()?;
    Ok(if document::is_good(&rows) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The row of an architecture, from a process of its own.
fn in_child(name: &str) -> Result<Row> {
    let output = Command::new(std::env::current_exe()?)
        .env(ONE, name)
        .env("GGML_NO_BACKTRACE", "1")
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(match serde_json::from_str(text.lines().last().unwrap_or_default()) {
        Ok(row) if output.status.success() => row,
        _ => {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            let detail = errors.lines().last().unwrap_or("it ended without a message").to_string();
            Row { name: name.to_string(), failure: Some(detail), ..Row::default() }
        }
    })
}

fn one(name: &str) -> Result<Row> {
    let folder = tempfile::tempdir()?;
    let path: PathBuf = folder.path().join("model.gguf");
    let program = Path::new(env!("CARGO_BIN_EXE_firstdiff"));
    ArchModel::plan(&ArchSpec::new(name), program)?.write(&path, program, &mut |_| {})?;
    let file = ModelFile::open(&path)?;
    let reference = match Reference::load(&file, ReferenceOptions::default()) {
        Ok(reference) => reference,
        Err(error) => {
            return Ok(Row {
                name: name.to_string(),
                failure: Some(error.to_string()),
                ..Row::default()
            });
        }
    };
    let prompt: Vec<i32> = (0..PROMPT as i32).map(|index| (index * 37 + 11) % 256).collect();
    let accepted = accept(&file, &reference, Task { prompt: &prompt, decode: DECODE })?;
    Ok(Row::of(name, &accepted))
}
