//! `make faults-archs`: faults planted in llama.cpp for many architectures, and whether the diagnosis by the
//! graph finds, blames and names them; and clean runs, which must raise no alarm.
//!
//! An argument makes it a trial of the architectures whose name contains it; then nothing is written. A
//! second one picks faults in the same way. Each architecture has a process of its own, as llama.cpp may end
//! it.

mod document;
#[path = "plant/mod.rs"]
mod plant;
mod pool;

use std::{path::Path, process::ExitCode, time::Instant};

use document::Row;
use plant::{MODELS, Outcome, Result, Subject, spec};

const DOCUMENT: &str = "docs/faults-archs.md";
/// The environment variable that makes this program the process of one architecture.
const ONE: &str = "FIRSTDIFF_FAULTS_ARCHS_ONE";
/// Seeds of the models and prompts of clean runs.
const SEEDS: u64 = 8;

fn main() -> Result<ExitCode> {
    // Cargo itself passes `--bench`.
    let mut arguments = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
    let (only, fault) = (arguments.next(), arguments.next());
    if let Ok(name) = std::env::var(ONE) {
        one(&name, fault.as_deref())?;
        return Ok(ExitCode::SUCCESS);
    }
    let start = Instant::now();
    let is_wanted = |name: &&str| only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let names: Vec<&str> = MODELS.iter().map(|&(name, _)| name).filter(is_wanted).collect();
    let rows = pool::rows(&names, fault.as_deref())?;
    let text = document::markdown(&rows, start.elapsed());
    print!("{text}");
    if only.is_none() {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(DOCUMENT), &text)?;
    }
    Ok(if document::is_good(&rows) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says what is measured of an architecture, after each fault anew; `fault` is a part of the names of the wanted faults.
fn one(name: &str, fault: Option<&str>) -> Result<()> {
    let start = Instant::now();
    let mut row = Row { name: name.to_string(), ..Row::default() };
    let subject = Subject::new(&spec(name, 1))?;
    row.alarms.extend(plant::clean(&subject)?);
    row.clean = 1;
    for planted in plant::all(&subject) {
        if fault.is_some_and(|part| !planted.name.contains(part)) {
            continue;
        }
        eprintln!("{name}: {}", planted.name);
        match Outcome::of(&subject, &planted) {
            Ok(Some(outcome)) => row.outcomes.push(outcome),
            Ok(None) => row.without_effect.push(planted.name),
            Err(error) => row.refused.push(format!("{name}, {}: {error}", planted.name)),
        }
        println!("{}", serde_json::to_string(&row)?);
    }
    drop(subject);
    if fault.is_none() {
        for seed in 2..=SEEDS {
            row.alarms.extend(plant::clean(&Subject::new(&spec(name, seed))?)?);
            row.clean += 1;
        }
    }
    row.seconds = start.elapsed().as_secs_f64();
    println!("{}", serde_json::to_string(&row)?);
    Ok(())
}
