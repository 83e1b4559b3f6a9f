//! What keeps the files of two runs apart: hashes, or a run's name where there is no blake3.

#[cfg(feature = "full")]
pub(super) use hashed::*;
#[cfg(not(feature = "full"))]
pub(super) use named::*;

#[cfg(feature = "full")]
mod hashed {
    use std::{fs::File, io};

    use crate::trace::MANIFEST_FILE;

    /// No name: the hashes say it.
    pub fn run_name() -> Option<String> {
        None
    }

    /// The hash of a file, from where it stands.
    pub fn of_file(file: &File) -> io::Result<Option<String>> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file)?;
        Ok(Some(hasher.finalize().to_string()))
    }

    /// The text of the file with the manifest's hash.
    pub fn of_manifest(json: &[u8]) -> Option<String> {
        Some(format!("{}  {MANIFEST_FILE}\n", blake3::hash(json)))
    }
}

#[cfg(not(feature = "full"))]
mod named {
    use std::{
        fs::File,
        hash::{BuildHasher, RandomState},
        io,
    };

    /// A name that no other run has: of 128 random bits.
    pub fn run_name() -> Option<String> {
        let random = || RandomState::new().hash_one(std::process::id());
        Some(format!("{:016x}{:016x}", random(), random()))
    }

    /// None: the file has the run's name.
    pub fn of_file(_file: &File) -> io::Result<Option<String>> {
        Ok(None)
    }

    /// None, as the manifest has the run's name.
    pub fn of_manifest(_json: &[u8]) -> Option<String> {
        None
    }
}
