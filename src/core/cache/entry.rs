//! What is kept in the cache: files that are read only as they were written.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use memmap2::Mmap;

use super::{folder, limit};
use crate::core::files::write_atomic;

/// The ending of the file beside an entry that has its blake3. Its time is that of the last use.
pub(super) const SEAL: &str = "blake3";

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
        let bytes = fs::read(&self.path).ok();
        let is_whole = bytes.as_ref().is_some_and(|bytes| self.is_sealed(bytes));
        self.used(is_whole).then_some(bytes?)
    }

    /// The file in memory, under the same condition.
    pub fn map(&self) -> Option<Mmap> {
        let map = self.opened().ok();
        let is_whole = map.as_ref().is_some_and(|map| self.is_sealed(map));
        map.filter(|_| self.used(is_whole))
    }

    /// Writes the file. What cannot be kept is made again the next time, which is no error.
    pub fn write(&self, bytes: &[u8]) {
        if write_atomic(&self.path, bytes).is_ok() {
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
        let hash = hash(bytes).to_hex();
        let _ = write_atomic(&self.seal_path(), hash.as_bytes());
        limit::written(bytes.len() as u64);
    }

    /// Marks the time of use, or removes a broken entry.
    fn used(&self, is_whole: bool) -> bool {
        let seal = self.seal_path();
        if is_whole {
            let _ = File::open(seal).and_then(|file| file.set_modified(SystemTime::now()));
        } else {
            [&self.path, &seal].into_iter().for_each(|path| _ = fs::remove_file(path));
        }
        is_whole
    }

    fn is_sealed(&self, bytes: &[u8]) -> bool {
        let sealed = fs::read_to_string(self.seal_path());
        sealed.is_ok_and(|sealed| sealed == hash(bytes).to_hex().as_str())
    }

    fn opened(&self) -> io::Result<Mmap> {
        // SAFETY: the cache is ours alone, and an entry is replaced by a rename, never written to.
        unsafe { Mmap::map(&File::open(&self.path)?) }
    }

    fn seal_path(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(".");
        path.push(SEAL);
        path.into()
    }
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
