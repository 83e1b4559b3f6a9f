//! The baseline of a check as a file that is committed: how accurate each operation is, and how much
//! worse it may get by chance.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{ci::check::lines, core::files, graph::site::Site};

/// Raised when the meaning of the file changes.
const LOCK_VERSION: u32 = 1;
/// Larger files are no baselines: a case of 80 layers has 100 kB.
const MAX_BYTES: u64 = 256 << 20;

/// Why a baseline cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("cannot read {path}: {source}; `firstdiff bless --all` writes a baseline")]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "{path} is not a baseline of `firstdiff bless`: {detail}; `firstdiff bless --all` writes one"
    )]
    Foreign { path: PathBuf, detail: String },
}

/// A baseline.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    lock_version: u32,
    /// By the ids of the cases.
    pub cases: BTreeMap<String, LockedCase>,
}

/// What is known of one case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedCase {
    /// The blake3 of the model.
    pub model: String,
    /// Tells the token ids and the engine of the case from others.
    pub inputs: String,
    /// By the name of the result, such as `blk.3.q_rope`.
    pub operations: BTreeMap<String, Locked>,
}

/// The accuracy of an operation, in units of its rounding bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locked {
    pub rms: Level,
    pub peak: Level,
}

/// An error that was measured, and the most that it may be by chance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "(f64, f64)", into = "(f64, f64)")]
pub struct Level {
    pub value: f64,
    pub most: f64,
}

impl From<(f64, f64)> for Level {
    fn from((value, most): (f64, f64)) -> Level {
        Level { value, most }
    }
}

impl From<Level> for (f64, f64) {
    fn from(level: Level) -> (f64, f64) {
        (level.value, level.most)
    }
}

impl Lock {
    /// An empty baseline of this version.
    pub fn new() -> Lock {
        Lock { lock_version: LOCK_VERSION, ..Lock::default() }
    }

    /// Reads a file, and refuses values that no run has.
    pub fn read(path: &Path) -> Result<Lock, LockError> {
        let read = |source| LockError::Read { path: path.to_path_buf(), source };
        let foreign = |detail: String| LockError::Foreign { path: path.to_path_buf(), detail };
        let json = files::read(path, MAX_BYTES).map_err(read)?;
        let lock: Lock =
            serde_json::from_slice(&json).map_err(|error| foreign(error.to_string()))?;
        if lock.lock_version != LOCK_VERSION {
            let found = lock.lock_version;
            return Err(foreign(format!("version {found}, and this reads {LOCK_VERSION}")));
        }
        for (id, case) in &lock.cases {
            for (name, locked) in &case.operations {
                let levels = [locked.rms, locked.peak];
                let sound = |level: &Level| {
                    0.0 <= level.value && level.value <= level.most && level.most <= 1.0
                };
                if !levels.iter().all(sound) || Site::from_tensor_name(0, name).is_none() {
                    return Err(foreign(format!(
                        "{id}: {name} is not an operation with its errors"
                    )));
                }
            }
        }
        Ok(lock)
    }

    /// The file's text: an operation a line.
    pub fn text(&self) -> String {
        lines::text(self, &[(1, ""), (2, ""), (4, "  ")])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock() -> Lock {
        let locked = Locked { rms: (0.0145, 0.0236).into(), peak: (0.0, 0.052).into() };
        let operations = BTreeMap::from([("blk.0.q".to_string(), locked)]);
        let case = LockedCase { model: "cd".into(), inputs: "ab".into(), operations };
        let cases = BTreeMap::from([("m/\"p\"/f32".to_string(), case)]);
        Lock { cases, ..Lock::new() }
    }

    fn read(text: &str) -> Result<Lock, String> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("it can be written");
        Lock::read(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_baseline_is_read_as_it_was_written() {
        assert_eq!(read(&lock().text()), Ok(lock()));
        assert_eq!(read(&Lock::new().text()), Ok(Lock::new()));
    }

    #[test]
    fn a_committed_baseline_is_written_as_it_stands() {
        let text = include_str!("../../../fixtures/check/quick.lock.json");
        assert_eq!(read(text).map(|lock| lock.text()).as_deref(), Ok(text));
    }

    #[test]
    fn a_file_that_is_no_baseline_is_refused_with_the_reason() {
        let text = lock().text();
        let refused = |text: String, says: &str| {
            let error = read(&text).expect_err(&text);
            assert!(error.contains("is not a baseline of `firstdiff bless`: "), "{error}");
            assert!(error.contains(says), "{error}");
        };
        refused(text[..text.len() / 2].to_string(), "EOF");
        refused(text.replace("_version\": 1", "_version\": 2"), "version 2, and this reads 1");
        refused(text.replace("blk.0.q", "blk.0.embd"), "blk.0.embd is not an operation");
        refused(text.replace("1.45e-2, 2.36e-2", "3e-2, 2.36e-2"), "is not an operation with its");
        refused(text.replace("1.45e-2", "-1.45e-2"), "is not an operation with its errors");
        refused(text.replace("1.45e-2", "1e999"), "number out of range");
        refused(text.replace("2.36e-2", "1.01"), "is not an operation with its errors");
        refused(text.replace("[1.45e-2, ", "["), "invalid length 1");
        refused(text.replace("\"peak\"", "\"peek\""), "unknown field `peek`");
        refused("[]".repeat(9000), "");
        refused("[".repeat(9000), "");
    }
}
