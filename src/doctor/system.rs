//! llama.cpp, the cache folder, and the size of the machine.

use std::{
    ffi::{CStr, c_char},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::probes::Finding;
use crate::core::cache;

/// The lock file names the exact version of llama.cpp's bindings that was built.
const LOCK_FILE: &str = include_str!("../../Cargo.lock");

/// llama.cpp's version and what of this processor its arithmetic was built for.
pub(super) fn llama_cpp() -> Finding {
    /// `llama_print_system_info` fills one string of the process.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let (version, commit, system);
    {
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: all three return strings of the library that end in a zero byte; the third
        // stays as it is until the next call, for which this thread holds the lock.
        unsafe {
            version = text(llama_cpp_sys_2::ggml_version());
            commit = text(llama_cpp_sys_2::ggml_commit());
            system = text(llama_cpp_sys_2::llama_print_system_info());
        }
    }
    let bindings = llama_cpp_version();
    let commit = match commit.as_str() {
        "" | "unknown" => String::new(),
        commit => format!(", commit {commit}"),
    };
    let features = features(&system).join(" ");
    let features = if features.is_empty() { "no special instructions" } else { &features };
    Finding::ok(format!("{bindings}, ggml {version}{commit}; CPU: {features}"))
}

/// # Safety
/// The pointer is null or to a string that ends in a zero byte.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: not null, and by the caller's word a string.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// The names that are on in `CPU : SSE3 = 1 | AVX512 = 0 | ...`.
fn features(system: &str) -> Vec<&str> {
    let if_on = |entry| {
        let (name, value): (&str, &str) = str::split_once(entry, '=')?;
        // The first of a backend's comes with its name before it.
        let name = name.rsplit(':').next()?.trim();
        (value.trim() == "1").then_some(name)
    };
    system.split('|').filter_map(if_on).collect()
}

/// Which llama.cpp this program is built with.
pub fn llama_cpp_version() -> String {
    let bindings = locked_version(LOCK_FILE, "llama-cpp-sys-2").unwrap_or("of unknown version");
    format!("llama-cpp-sys-2 {bindings}")
}

/// The version of a package in the text of a lock file.
fn locked_version<'a>(lock_file: &'a str, package: &str) -> Option<&'a str> {
    let name = format!("name = \"{package}\"");
    let mut lines = lock_file.lines().skip_while(|line| *line != name);
    lines.nth(1)?.strip_prefix("version = \"")?.strip_suffix('"')
}

/// Where compiled kernels, graphs and floors are kept, and how much of them.
pub(super) fn cache_folder() -> Finding {
    let root = cache::root();
    if let Err(error) = cache::own_folder(&root) {
        let why = format!("{} cannot be used: {error}", root.display());
        return match cache::folder("") {
            Ok(other) => Finding::ok(format!("{why}; using {}", other.display())),
            Err(_) => Finding::failed(why),
        }
        .next("set FIRSTDIFF_CACHE to a folder of your own");
    }
    let mut parts = Vec::new();
    let mut total = 0;
    for entry in sorted_entries(&root) {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue; // a temporary file or folder of a run under way
        }
        let bytes = size_of(&entry);
        total += bytes;
        parts.push(format!("{name} {}", in_words(bytes)));
    }
    let parts = if parts.is_empty() { "empty".to_owned() } else { parts.join(", ") };
    let (total, limit) = (in_words(total), in_words(cache::limit()));
    Finding::ok(format!("{}, {total} of at most {limit}: {parts}", root.display()))
}

fn sorted_entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The bytes of a file, or of all files below a folder. Links are not followed: they may lead
/// out of it, or round in it.
fn size_of(path: &Path) -> u64 {
    match path.symlink_metadata() {
        Ok(data) if data.is_dir() => sorted_entries(path).iter().map(|path| size_of(path)).sum(),
        Ok(data) if data.is_file() => data.len(),
        _ => 0,
    }
}

/// Bytes in the unit that fits: `0 B`, `4.5 MB`.
pub fn in_words(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1e3;
    let mut units = UNITS.iter();
    let mut unit = units.next().expect("there are four units");
    while value >= 999.95 {
        let Some(larger) = units.next() else { break };
        value /= 1e3;
        unit = larger;
    }
    format!("{value:.1} {unit}")
}

/// The cores and the memory that this process may use.
pub(super) fn machine() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = kibibytes(&meminfo, "MemTotal:");
    let available = kibibytes(&meminfo, "MemAvailable:");
    // A container's limit; its file says `max` where there is none.
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
    let plural = if cores == 1 { "" } else { "s" };
    let mut detail = format!("{cores} core{plural}");
    if let Some(total) = total {
        let total = limit.map_or(total, |limit| limit.min(total));
        detail += &format!(", {} of memory", in_words(total));
        if let Some(available) = available {
            detail += &format!(", {} of it free", in_words(available.min(total)));
        }
    }
    Finding::ok(detail)
}

/// The bytes that a line of `/proc/meminfo` gives in units of 1024.
fn kibibytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_are_off_are_left_out() {
        let system = "CPU : SSE3 = 1 | AVX512 = 0 | AVX2 = 1 | CUDA : F16 = 1 | ";
        assert_eq!(features(system), ["SSE3", "AVX2", "F16"]);
    }

    #[test]
    fn the_lock_file_knows_the_version_of_llama_cpps_bindings() {
        let version = locked_version(LOCK_FILE, "llama-cpp-sys-2").unwrap();
        assert!(version.starts_with(char::is_numeric), "{version}");
        assert_eq!(locked_version(LOCK_FILE, "no-such-package"), None);
    }

    #[test]
    fn sizes_are_in_the_unit_that_fits() {
        let cases = [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_999, "1.0 MB")];
        for (bytes, words) in cases {
            assert_eq!(in_words(bytes), words);
        }
        assert_eq!(in_words(u64::MAX), "18446744.1 TB");
    }

    #[test]
    fn a_folder_is_as_large_as_the_files_below_it_and_links_count_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        std::fs::write(folder.path().join("a/b/file"), [0; 70]).unwrap();
        std::fs::write(folder.path().join("file"), [0; 7]).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(folder.path(), folder.path().join("a/loop")).unwrap();
        assert_eq!(size_of(folder.path()), 77);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let meminfo = "MemTotal:       24000 kB\nMemAvailable:    100 kB\n";
        assert_eq!(kibibytes(meminfo, "MemTotal:"), Some(24_576_000));
        assert_eq!(kibibytes(meminfo, "SwapTotal:"), None);
    }
}
