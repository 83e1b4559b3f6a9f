//! Ctrl-C: unfinished files go, then the program ends as the signal would have ended it.

use std::{path::PathBuf, sync::Mutex};

static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// The exit code of a program that a signal 2 ended.
const INTERRUPTED: i32 = 130;

/// Removes what was announced as unfinished when Ctrl-C comes.
pub fn clean_up_on_signal() {
    // Without a handler Ctrl-C ends the program all the same.
    let _ = ctrlc::set_handler(|| {
        if let Ok(paths) = UNFINISHED.lock() {
            for path in paths.iter() {
                remove_siblings(path);
            }
        }
        std::process::exit(INTERRUPTED);
    });
}

/// Announces a file or folder that is written through a hidden temporary sibling.
pub fn unfinished(path: &std::path::Path) {
    if let Ok(mut paths) = UNFINISHED.lock() {
        paths.push(path.to_path_buf());
    }
}

/// Removes the temporary siblings that this program makes beside a path it writes.
fn remove_siblings(path: &std::path::Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(std::path::Path::new("."));
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(".firstdiff-trace-") {
            let _ = std::fs::remove_dir_all(entry.path());
        } else if name.starts_with(".gguf-") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
