//! Finds programs and files in the places where systems keep them.

use std::path::{Path, PathBuf};

/// A file of that name in a folder of `PATH`; a name with a slash is taken as it is.
pub fn program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return is_program(Path::new(name)).then(|| name.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| is_program(file))
}

#[cfg(unix)]
fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_program(file: &Path) -> bool {
    file.is_file()
}

/// The existing paths of a pattern in which `*` stands for any part of one name, in the order of
/// their names. Folders that cannot be read have no entries.
pub fn expand(pattern: &Path) -> Vec<PathBuf> {
    let mut paths = vec![PathBuf::new()];
    for part in pattern.components() {
        let name = part.as_os_str().to_string_lossy();
        paths = match name.split_once('*') {
            None => paths.into_iter().map(|path| path.join(part)).collect(),
            Some((start, end)) => {
                paths.iter().flat_map(|path| entries_between(path, start, end)).collect()
            }
        };
    }
    paths.retain(|path| path.exists());
    paths
}

/// The entries of a folder whose names begin with `start` and end with `end`, sorted.
fn entries_between(folder: &Path, start: &str, end: &str) -> Vec<PathBuf> {
    let fits = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).filter(fits).collect();
    paths.sort();
    paths
}

/// The value of a variable that is set to a path.
pub fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_part_of_one_name() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["llvm-9/lib", "llvm-14/lib", "llvm-15", "other/lib"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let found = expand(&folder.path().join("llvm-*/lib"));
        let expected = ["llvm-14/lib", "llvm-9/lib"].map(|name| folder.path().join(name));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_name_shorter_than_its_pattern_does_not_fit() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("aba")).unwrap();
        assert!(expand(&folder.path().join("ab*ba")).is_empty());
    }
}
