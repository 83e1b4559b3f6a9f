//! Memory that captures pass through on their way to the host, kept to be used again.

use std::{collections::HashMap, sync::Arc};

use cudarc::driver::{CudaContext, result as driver};

use crate::engine::device::{
    DeviceError,
    cuda::stream::{Event, Memory, failed},
};

/// Sizes are multiples of this, so that they are used again.
const UNIT: usize = 4 << 20;

/// The size of a piece of memory for at least so many bytes.
pub fn size_for(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of(UNIT)
}

/// A piece of device memory that reads are gathered in.
pub struct Block {
    pub bytes: usize,
    pub on_device: Memory,
    /// Its reads are in it; once it has left, its bytes are on the host.
    pub passed: Event,
}

/// Host memory that the GPU writes to.
pub struct Pinned {
    context: Arc<CudaContext>,
    pub bytes: usize,
    pub pointer: *mut u8,
}

// SAFETY: the driver's pinned memory may be used from any thread.
unsafe impl Send for Pinned {}

impl Pinned {
    pub fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Pinned, DeviceError> {
        // SAFETY: freed by the drop; written before it is read.
        let pointer = unsafe { driver::malloc_host(bytes, 0) }
            .map_err(failed(format!("allocating {bytes} bytes of pinned memory")))?;
        Ok(Pinned { context: Arc::clone(context), bytes, pointer: pointer.cast() })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` and freed once; whoever copies into it waits before it gives it back.
        let free = || unsafe { driver::free_host(self.pointer.cast()) };
        let _ = self.context.bind_to_thread().and_then(|()| free());
    }
}

/// Memory by size: what is not in use, and the bytes of what is.
pub struct Pool<T> {
    free: HashMap<usize, Vec<T>>,
    pub in_use: usize,
    kept: usize,
    most_in_use: usize,
    most: usize,
}

impl<T> Pool<T> {
    /// Of so many bytes at most that may be in use, and in all.
    pub fn new(most_in_use: usize, most: usize) -> Pool<T> {
        Pool { free: HashMap::new(), in_use: 0, kept: 0, most_in_use, most }
    }

    /// Memory of a size; `None` while too much is in use, unless it `must` be.
    pub fn take(
        &mut self,
        bytes: usize,
        must: bool,
        make: impl FnOnce() -> Result<T, DeviceError>,
    ) -> Result<Option<T>, DeviceError> {
        if !must && self.in_use > 0 && self.in_use + bytes > self.most_in_use {
            return Ok(None);
        }
        let memory = match self.free.get_mut(&bytes).and_then(Vec::pop) {
            Some(memory) => {
                self.kept -= bytes;
                memory
            }
            None => {
                self.make_room(bytes);
                make()?
            }
        };
        self.in_use += bytes;
        Ok(Some(memory))
    }

    /// Frees memory of other sizes, where it would be too much with what comes.
    fn make_room(&mut self, bytes: usize) {
        for (size, free) in &mut self.free {
            while self.in_use + self.kept + bytes > self.most && free.pop().is_some() {
                self.kept -= size;
            }
        }
    }

    pub fn give_back(&mut self, bytes: usize, memory: T) {
        self.in_use -= bytes;
        self.kept += bytes;
        self.free.entry(bytes).or_default().push(memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_keeps_no_more_than_its_limit_whatever_the_sizes_are() {
        let mut pool = Pool::new(60, 100);
        let made = std::cell::Cell::new(0);
        let make = || Ok(made.replace(made.get() + 1));
        for round in 0..20 {
            let size = 10 + round % 4;
            let take = || pool.take(size, false, make).ok().flatten();
            let taken: Vec<_> = std::iter::from_fn(take).collect();
            assert_eq!(taken.len(), 60 / size, "of {size}");
            assert!(pool.in_use + pool.kept <= 100, "{} and {}", pool.in_use, pool.kept);
            taken.into_iter().for_each(|memory| pool.give_back(size, memory));
            assert_eq!(pool.in_use, 0);
        }
        let before = made.get();
        assert!(pool.take(13, false, make).ok().flatten().is_some());
        assert_eq!(made.get(), before, "kept memory is used again");
    }

    #[test]
    fn what_must_be_is_given_beyond_the_limit() {
        let mut pool = Pool::new(100, 100);
        let mut take = |bytes, must| pool.take(bytes, must, || Ok(())).ok().flatten().is_some();
        // A single piece may be larger than all.
        assert!(take(300, false));
        assert!(!take(1, false));
        assert!(take(1, true));
    }
}
