//! A process for each architecture, as many at a time as there are cores.

use std::{
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use crate::{ONE, document::Row, plant::Result};

/// The rows of architectures, in their order.
pub fn rows(names: &[&str], fault: Option<&str>) -> Result<Vec<Row>> {
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    let (next, start) = (AtomicUsize::new(0), Instant::now());
    let found = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..cores.min(names.len()) {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let row = in_child(name, fault);
                    eprintln!("{:.0} s: {}", start.elapsed().as_secs_f64(), row.line());
                    found.lock().expect("no thread panics with it").push(row);
                }
            });
        }
    });
    let mut rows = found.into_inner().expect("no thread panics with it");
    rows.sort_by_key(|row: &Row| names.iter().position(|name| *name == row.name));
    Ok(rows)
}

/// The row of an architecture, from a process and a cache of its own.
fn in_child(name: &str, fault: Option<&str>) -> Row {
    let failed =
        |detail: String| Row { name: name.to_string(), failure: Some(detail), ..Row::default() };
    let output = tempfile::tempdir().and_then(|cache| {
        Command::new(std::env::current_exe()?)
            .args(fault.map(|fault| [name, fault]).iter().flatten())
            .env(ONE, name)
            .env("FIRSTDIFF_CACHE", cache.path())
            .env("RAYON_NUM_THREADS", "1")
            .env("GGML_NO_BACKTRACE", "1")
            .output()
    });
    let output = match output {
        Ok(output) => output,
        Err(error) => return failed(error.to_string()),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let row = serde_json::from_str::<Row>(text.lines().last().unwrap_or_default());
    if let (true, Ok(row)) = (output.status.success(), row.as_ref()) {
        return row.clone();
    }
    // What was measured before the end counts.
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<&str> = errors.lines().rev().take(3).collect();
    let detail = lines.into_iter().rev().collect::<Vec<_>>().join(" / ");
    Row { failure: Some(detail.clone()), ..row.unwrap_or_else(|_| failed(detail)) }
}
