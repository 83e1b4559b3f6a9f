//! Reads that leave the GPU while it goes on: a copy on the GPU itself, and from there to pinned
//! memory on a second stream. Small reads leave together.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
    },
};

use cudarc::driver::{CudaContext, result as driver};

use crate::device::{
    DeviceError, Download, Strided,
    cuda::stream::{Event, Memory, Stream, failed},
};

/// At most this much may be under way, unless a single read is larger.
const MOST_BYTES: usize = 256 << 20;
/// Blocks are at least this large, and powers of two, so that they are used again.
const LEAST_BLOCK: usize = 4 << 20;
/// A block that holds this much leaves: late enough to make few copies, early enough to overlap.
const LEAVES_AT: usize = 1 << 20;
/// Where a read begins within its block.
const ALIGNMENT: usize = 256;

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
// SAFETY: as above; what is read was written before, and nothing writes meanwhile.
unsafe impl Sync for Block {}

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

/// What the device and its reads share.
struct Lanes {
    compute: Arc<Stream>,
    copies: Arc<Stream>,
    pool: Mutex<Pool>,
}

impl Lanes {
    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().expect("no thread panics while it holds the pool")
    }

    /// A block for at least that many bytes; `None` while too much is under way.
    fn block(&self, bytes: usize) -> Result<Option<Block>, DeviceError> {
        let size = bytes.max(LEAST_BLOCK).next_power_of_two();
        let mut pool = self.pool();
        if pool.in_use > 0 && pool.in_use + size > MOST_BYTES {
            return Ok(None);
        }
        let block = match pool.free.get_mut(&size).and_then(Vec::pop) {
            Some(block) => block,
            None => self.new_block(size)?,
        };
        // A read that was given up may not have ended.
        block.arrived.hold(&self.compute)?;
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

/// Reads that leave together.
struct Batch {
    lanes: Arc<Lanes>,
    /// Taken on drop only.
    block: Option<Block>,
    filled: Mutex<Filled>,
    /// The block's bytes are known to be on the host: to ask the driver takes longer than many a copy.
    has_arrived: AtomicBool,
}

#[derive(Default)]
struct Filled {
    bytes: usize,
    has_left: bool,
}

impl Batch {
    fn block(&self) -> &Block {
        self.block.as_ref().expect("taken on drop only")
    }

    fn filled(&self) -> MutexGuard<'_, Filled> {
        self.filled.lock().expect("no thread panics while it holds a batch")
    }

    /// Copies rows on the GPU into the block, if it has room and is still here. Returns where.
    fn add(&self, from: u64, rows: Strided) -> Result<Option<usize>, DeviceError> {
        let mut filled = self.filled();
        let (offset, bytes, block) = (filled.bytes, rows.count * rows.bytes, self.block());
        if filled.has_left || offset + bytes > block.bytes {
            return Ok(None);
        }
        for row in 0..rows.count {
            let to = block.on_device.pointer + (offset + row * rows.bytes) as u64;
            let from = from + (row * rows.pitch) as u64;
            // SAFETY: the caller checked the range; the block has room, and nothing else uses that part.
            // The stream's order keeps the source as it is until it is copied.
            unsafe { driver::memcpy_dtod_async(to, from, rows.bytes, self.lanes.compute.raw) }
                .map_err(failed("copying a capture"))?;
        }
        filled.bytes = (offset + bytes).next_multiple_of(ALIGNMENT);
        Ok(Some(offset))
    }

    /// Sends the block to the host, if it has not left.
    fn leave(&self) -> Result<(), DeviceError> {
        let mut filled = self.filled();
        if filled.has_left {
            return Ok(());
        }
        let (block, lanes) = (self.block(), &*self.lanes);
        block.arrived.record(&lanes.compute)?;
        block.arrived.hold(&lanes.copies)?;
        // SAFETY: the pinned memory is as large as the block, and read only after `arrived`.
        let copied = unsafe {
            let pinned =
                std::slice::from_raw_parts_mut(block.pinned, filled.bytes.min(block.bytes));
            driver::memcpy_dtoh_async(pinned, block.on_device.pointer, lanes.copies.raw)
        };
        copied.map_err(failed("copying a capture"))?;
        block.arrived.record(&lanes.copies)?;
        filled.has_left = true;
        Ok(())
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let block = self.block.take().expect("taken on drop only");
        let mut pool = self.lanes.pool();
        pool.in_use -= block.bytes;
        pool.free.entry(block.bytes).or_default().push(block);
    }
}

/// The second stream, and the memory that captures pass through.
pub struct Staging {
    lanes: Arc<Lanes>,
    /// The batch that the next read may join.
    open: RefCell<Option<Arc<Batch>>>,
}

impl Staging {
    pub fn new(compute: &Arc<Stream>) -> Result<Staging, DeviceError> {
        let copies = Stream::new(&compute.context)?;
        let lanes = Lanes { compute: Arc::clone(compute), copies, pool: Mutex::default() };
        Ok(Staging { lanes: Arc::new(lanes), open: RefCell::default() })
    }

    /// Starts a read; `None` while too much is under way. `after` names what ran last.
    pub fn read(
        &self,
        from: u64,
        rows: Strided,
        after: String,
    ) -> Result<Option<Box<dyn Download>>, DeviceError> {
        let bytes = rows.count * rows.bytes;
        let joined = match &*self.open.borrow() {
            Some(batch) => batch.add(from, rows)?.map(|offset| (Arc::clone(batch), offset)),
            None => None,
        };
        let (batch, offset) = match joined {
            Some(joined) => joined,
            None => match self.new_batch(from, rows)? {
                Some(batch) => (batch, 0),
                None => return Ok(None),
            },
        };
        if offset + bytes >= LEAVES_AT {
            batch.leave()?;
            self.open.replace(None);
        }
        Ok(Some(Box::new(Staged { batch, offset, bytes, after })))
    }

    /// A batch that begins with a read. The one before it leaves.
    fn new_batch(&self, from: u64, rows: Strided) -> Result<Option<Arc<Batch>>, DeviceError> {
        if let Some(before) = self.open.take() {
            before.leave()?;
        }
        let Some(block) = self.lanes.block(rows.count * rows.bytes)? else { return Ok(None) };
        let (lanes, filled) = (Arc::clone(&self.lanes), Mutex::default());
        let has_arrived = AtomicBool::new(false);
        let batch = Arc::new(Batch { lanes, block: Some(block), filled, has_arrived });
        batch.add(from, rows)?;
        self.open.replace(Some(Arc::clone(&batch)));
        Ok(Some(batch))
    }
}

/// A read under way.
struct Staged {
    batch: Arc<Batch>,
    offset: usize,
    bytes: usize,
    after: String,
}

impl Download for Staged {
    fn is_ready(&self) -> bool {
        if self.batch.has_arrived.load(Acquire) {
            return true;
        }
        let has_left = self.batch.filled().has_left;
        has_left && self.batch.block().arrived.has_passed()
    }

    fn bytes(&self) -> Result<&[u8], DeviceError> {
        let block = self.batch.block();
        if !self.batch.has_arrived.load(Acquire) {
            self.batch.leave()?;
            block.arrived.wait(&format!("running {} or a kernel before it", self.after))?;
            self.batch.has_arrived.store(true, Release);
        }
        // SAFETY: the copy of the block has ended, and this part of it is this read's own.
        Ok(unsafe { std::slice::from_raw_parts(block.pinned.add(self.offset), self.bytes) })
    }
}
