//! How large the cache may grow: the entries that were not used for longest go first.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use super::{entry::SEAL, usable_root};

/// The size of the cache where `FIRSTDIFF_CACHE_GB` says nothing.
const DEFAULT_GB: u64 = 64;
/// The size is looked at again after so many bytes.
const LOOKED_AT_AFTER: u64 = 64 << 20;
/// An entry of a run that may still be under way.
const RECENT: Duration = Duration::from_secs(3600);

/// Bytes written since the size was looked at; at the first write it is.
static WRITTEN: AtomicU64 = AtomicU64::new(LOOKED_AT_AFTER);

/// The most that the cache may take, in bytes.
pub fn limit() -> u64 {
    let set = std::env::var("FIRSTDIFF_CACHE_GB").ok();
    let gb = set.and_then(|text| text.parse::<u64>().ok()).unwrap_or(DEFAULT_GB);
    gb.saturating_mul(1_000_000_000)
}

/// Counts what was written, and takes the oldest entries away where it is too much.
pub(super) fn written(bytes: u64) {
    if WRITTEN.fetch_add(bytes, Ordering::Relaxed) + bytes < LOOKED_AT_AFTER {
        return;
    }
    WRITTEN.store(0, Ordering::Relaxed);
    if let Ok(root) = usable_root() {
        // What cannot be removed now is tried again the next time.
        let _ = keep_to(&root, limit(), SystemTime::now() - RECENT);
    }
}

/// What [`prune`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub files: usize,
    pub bytes: u64,
}

/// Removes every entry.
///
/// # Errors
/// The cache is not to be used, or a file cannot be removed.
pub fn prune() -> io::Result<(PathBuf, Removed)> {
    let root = usable_root()?;
    let removed = keep_to(&root, 0, SystemTime::now())?;
    Ok((root, removed))
}

/// A file, or an entry with its seal.
struct Kept {
    used: SystemTime,
    bytes: u64,
    paths: Vec<PathBuf>,
}

/// Removes what was used before `until`, the oldest first, until the rest is at most `most` bytes.
fn keep_to(root: &Path, most: u64, until: SystemTime) -> io::Result<Removed> {
    let mut kept: Vec<Kept> = entries(root)?.into_values().collect();
    kept.sort_by_key(|one| one.used);
    let mut total: u64 = kept.iter().map(|one| one.bytes).sum();
    let mut removed = Removed::default();
    for one in kept.into_iter().filter(|one| one.used <= until) {
        if total <= most {
            break;
        }
        for path in &one.paths {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => removed.files += 1,
            }
        }
        total -= one.bytes;
        removed.bytes += one.bytes;
    }
    Ok(removed)
}

/// The files of the subfolders, seals with what they are of. Hidden ones are of a run under way.
fn entries(root: &Path) -> io::Result<BTreeMap<PathBuf, Kept>> {
    let mut found: BTreeMap<PathBuf, Kept> = BTreeMap::new();
    for subfolder in fs::read_dir(root)?.flatten() {
        let Ok(files) = fs::read_dir(subfolder.path()) else { continue };
        for file in files.flatten() {
            let path = file.path();
            let is_hidden = file.file_name().to_string_lossy().starts_with('.');
            let Some(metadata) = file.metadata().ok().filter(|one| one.is_file() && !is_hidden)
            else {
                continue;
            };
            let is_seal = path.extension().is_some_and(|ending| ending == SEAL);
            let own = if is_seal { path.with_extension("") } else { path.clone() };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let kept = found.entry(own).or_insert(Kept { used, bytes: 0, paths: Vec::new() });
            kept.used = kept.used.max(used);
            kept.bytes += metadata.len();
            kept.paths.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entries_that_were_not_used_for_longest_go_first() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let folder = root.path().join("floors");
        fs::create_dir(&folder).expect("it can be made");
        let now = SystemTime::now();
        let age = |name: &str, hours: u64| {
            let file = fs::File::create(folder.join(name)).expect("it can be made");
            file.set_len(100).expect("it can be longer");
            file.set_modified(now - Duration::from_secs(3600 * hours))
                .expect("its time can be set");
        };
        // An old file that was used of late: its seal says so.
        for (name, hours) in
            [("a", 90), ("a.blake3", 2), ("b", 50), ("c", 70), (".d", 99), ("e", 0)]
        {
            age(name, hours);
        }
        let until = now - Duration::from_secs(1800);
        let removed = keep_to(root.path(), 350, until).expect("it can be read");
        assert_eq!(removed, Removed { files: 2, bytes: 200 });
        let left = |name: &str| folder.join(name).exists();
        assert_eq!(
            ["a", "a.blake3", "b", "c", ".d", "e"].map(left),
            [true, true, false, false, true, true]
        );
        // What may be in use stays, whatever the limit.
        assert_eq!(keep_to(root.path(), 0, until).expect("it can be read").files, 2);
        assert!(left("e"));
    }
}
