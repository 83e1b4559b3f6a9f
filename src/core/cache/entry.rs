//! What is kept in the cache: files that are read only as they were written.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use memmap2::Mmap;

use super::{folder, limit};
use crate::core::files::{self, temporary_beside};

/// The ending of the file beside an entry that has its length and its blake3. Its time is that of the last use.
pub(super) const SEAL: &str = "blake3";
/// No seal is longer.
const MAX_SEAL_BYTES: u64 = 128;

/// A file of the cache. Its name has the hash of all that its content follows from.
#[derive(Clone, Debug)]
pub struct Entry {
    path: PathBuf,
}

impl Entry {
    /// The entry of that name in a subfolder of the cache, which is made if need be.
    ///
    /// # Errors
    /// As [`folder`].
    pub fn new(subfolder: &str, name: impl AsRef<Path>) -> io::Result<Entry> {
        Ok(Entry { path: folder(subfolder)?.join(name) })
    }

    /// Where the entry is, or is to be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, if it is there as it was written. What is not is removed, to be made again.
    pub fn file(&self) -> Option<&Path> {
        self.map().map(|_| &*self.path)
    }

    /// What is in the file, under the same condition.
    pub fn read(&self) -> Option<Vec<u8>> {
        self.map().map(|map| map.to_vec())
    }

    /// The file in memory, under the same condition.
    pub fn map(&self) -> Option<Mmap> {
        let map = self.opened().ok();
        let is_whole = map.as_ref().is_some_and(|map| self.is_sealed(map));
        if self.used(is_whole) { map } else { None }
    }

    /// Writes the file. What cannot be kept is made again the next time, which is no error.
    pub fn write(&self, bytes: &[u8]) {
        if put(&self.path, bytes).is_ok() {
            self.sealed(bytes);
        }
    }

    /// Seals the file that another writer has put there.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn seal(&self) -> io::Result<()> {
        let map = self.opened()?;
        self.sealed(&map);
        Ok(())
    }

    fn sealed(&self, bytes: &[u8]) {
        let _ = put(&self.seal_path(), seal(bytes).as_bytes());
        limit::written(bytes.len() as u64);
    }

    /// Marks the time of use, or removes a broken entry, whatever lies there in its place.
    fn used(&self, is_whole: bool) -> bool {
        let seal = self.seal_path();
        if is_whole {
            let _ = File::open(seal).and_then(|file| file.set_modified(SystemTime::now()));
        } else {
            for path in [&self.path, &seal] {
                let _ = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
            }
        }
        is_whole
    }

    fn is_sealed(&self, bytes: &[u8]) -> bool {
        let sealed = files::read(&self.seal_path(), MAX_SEAL_BYTES);
        // The length first: what is longer than it was is not read.
        sealed.is_ok_and(|sealed| {
            sealed.starts_with(length(bytes).as_bytes()) && sealed == seal(bytes).as_bytes()
        })
    }

    fn opened(&self) -> io::Result<Mmap> {
        // SAFETY: the cache is ours alone, and an entry is replaced by a rename, never written to.
        unsafe { Mmap::map(&files::open(&self.path)?) }
    }

    fn seal_path(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(".");
        path.push(SEAL);
        path.into()
    }
}

/// Puts a file in the place of what is there, which is not followed or written to.
fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = temporary_beside(path)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

fn length(bytes: &[u8]) -> String {
    format!("{} ", bytes.len())
}

fn seal(bytes: &[u8]) -> String {
    format!("{}{}", length(bytes), hash(bytes).to_hex())
}

/// Several threads hash what is larger than this, in bytes.
const SHARED: usize = 1 << 20;

fn hash(bytes: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    match bytes.len() {
        0..SHARED => hasher.update(bytes),
        _ => hasher.update_rayon(bytes),
    };
    hasher.finalize()
}
