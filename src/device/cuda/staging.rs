//! Reads that leave the GPU while it goes on: a copy on the GPU itself, and from there to pinned
//! memory on a second stream.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use cudarc::driver::{CudaContext, result as driver};

use crate::device::{
    DeviceError, Download,
    cuda::stream::{Event, Memory, Stream, failed},
};

/// At most this much may be under way, unless a single read is larger.
const MOST_BYTES: usize = 256 << 20;
/// Blocks are at least this large, and powers of two, so that they are used again.
const LEAST_BLOCK: usize = 64 << 10;

/// A piece of device memory with the pinned memory that it is copied to.
struct Block {
    context: Arc<CudaContext>,
    bytes: usize,
    on_device: Memory,
    pinned: *mut u8,
    /// The pinned bytes are there.
    arrived: Event,
}

// SAFETY: the block owns its memory; the driver's pinned memory may be used from any thread.
unsafe impl Send for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with the block, freed once, after the copy into it has ended.
        let free = || unsafe { driver::free_host(self.pinned.cast()) };
        let _ = self.arrived.wait("waiting for a capture");
        let _ = self.context.bind_to_thread().and_then(|()| free());
    }
}

/// The blocks that are not in use, by size, and the bytes of those that are.
#[derive(Default)]
struct Pool {
    free: HashMap<usize, Vec<Block>>,
    in_use: usize,
}

/// The second stream, and the memory that captures pass through.
pub struct Staging {
    stream: Arc<Stream>,
    compute: Arc<Stream>,
    pool: Arc<Mutex<Pool>>,
}

impl Staging {
    pub fn new(compute: &Arc<Stream>) -> Result<Staging, DeviceError> {
        let stream = Stream::new(&compute.context)?;
        Ok(Staging { stream, compute: Arc::clone(compute), pool: Arc::default() })
    }

    /// Starts a read; `None` while too much is under way. `after` names what ran last.
    pub fn read(
        &self,
        from: u64,
        bytes: usize,
        after: String,
    ) -> Result<Option<Box<dyn Download>>, DeviceError> {
        let Some(block) = self.block(bytes)? else { return Ok(None) };
        let (to, doing) = (block.on_device.pointer, "copying a capture");
        // SAFETY: the caller checked the range; the block is as large, and nothing else uses it. The
        // stream's order keeps the source as it is until it is copied.
        unsafe { driver::memcpy_dtod_async(to, from, bytes, self.compute.raw) }
            .map_err(failed(doing))?;
        block.arrived.record(&self.compute)?;
        block.arrived.hold(&self.stream)?;
        // SAFETY: as above; the pinned memory is read only after `arrived`.
        let copied = unsafe {
            let pinned = std::slice::from_raw_parts_mut(block.pinned, bytes);
            driver::memcpy_dtoh_async(pinned, to, self.stream.raw)
        };
        copied.map_err(failed(doing))?;
        block.arrived.record(&self.stream)?;
        let pool = Arc::clone(&self.pool);
        Ok(Some(Box::new(Staged { block: Some(block), bytes, after, pool })))
    }

    fn block(&self, bytes: usize) -> Result<Option<Block>, DeviceError> {
        let size = bytes.max(LEAST_BLOCK).next_power_of_two();
        let mut pool = self.pool.lock().expect("no thread panics while it holds the pool");
        if pool.in_use > 0 && pool.in_use + size > MOST_BYTES {
            return Ok(None);
        }
        let block = match pool.free.get_mut(&size).and_then(Vec::pop) {
            Some(block) => block,
            None => self.new_block(size)?,
        };
        pool.in_use += size;
        Ok(Some(block))
    }

    fn new_block(&self, size: usize) -> Result<Block, DeviceError> {
        let on_device = Memory::new(&self.compute, size, "captures")?;
        // SAFETY: freed by the block's drop; written before it is read.
        let pinned = unsafe { driver::malloc_host(size, 0) }
            .map_err(failed(format!("allocating {size} bytes of pinned memory")))?;
        let context = Arc::clone(&self.compute.context);
        let arrived = Event::new(&context)?;
        Ok(Block { context, bytes: size, on_device, pinned: pinned.cast(), arrived })
    }
}

/// A read under way.
struct Staged {
    /// Taken on drop only.
    block: Option<Block>,
    bytes: usize,
    after: String,
    pool: Arc<Mutex<Pool>>,
}

impl Download for Staged {
    fn is_ready(&self) -> bool {
        self.block.as_ref().is_some_and(|block| block.arrived.has_passed())
    }

    fn bytes(&self) -> Result<&[u8], DeviceError> {
        let block = self.block.as_ref().expect("taken on drop only");
        block.arrived.wait(&format!("running {} or a kernel before it", self.after))?;
        // SAFETY: the copy of that many bytes has ended, and the block is this read's own.
        Ok(unsafe { std::slice::from_raw_parts(block.pinned, self.bytes) })
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let block = self.block.take().expect("taken on drop only");
        if let Ok(mut pool) = self.pool.lock() {
            pool.in_use -= block.bytes;
            pool.free.entry(block.bytes).or_default().push(block);
        }
    }
}
