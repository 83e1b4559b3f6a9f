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

/// Removes the temporary siblings that this process has made beside a path it writes.
fn remove_siblings(path: &std::path::Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(std::path::Path::new("."));
    let prefix = firstdiff::core::files::temporary_prefix();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(&prefix) {
            continue;
        }
        let path = entry.path();
        // Nothing more can be done about what cannot be removed.
        let _ =
            if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    }
}
