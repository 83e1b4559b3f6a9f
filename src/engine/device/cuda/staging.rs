//! Reads that leave the GPU while it goes on: a copy on the GPU itself, and from there to pinned
//! memory on a second stream. Small reads leave together. What finds no pinned memory free stays on the
//! GPU, which has more of it, until it does.

use std::{
    cell::RefCell,
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
    },
};

use cudarc::driver::result as driver;

use crate::engine::device::{
    DeviceError, Download, Strided,
    cuda::{
        pool::{Block, Pinned, Pool, size_for},
        stream::{Event, Memory, Stream, failed},
    },
};

/// At most this much waits on the GPU, and half of what is free there, unless a single read is larger: all
/// sites of a prompt of some hundred tokens.
const MOST_ON_DEVICE: usize = 4 << 30;
/// At most this much of it may be on its way through pinned memory, and this much is there in all: it is
/// slow to allocate and to free, and reads come in a few sizes.
const MOST_PINNED: usize = 128 << 20;
const MOST_PINNED_IN_ALL: usize = 512 << 20;
/// A block that holds this much leaves: late enough to make few copies, early enough to overlap.
const LEAVES_AT: usize = 1 << 20;
/// Where a read begins within its block.
const ALIGNMENT: usize = 256;

/// What the device and its reads share.
struct Lanes {
    compute: Arc<Stream>,
    copies: Arc<Stream>,
    /// Made with the first read, when the weights are there: then it is known what is free.
    blocks: Mutex<Option<Pool<Block>>>,
    pinned: Mutex<Pool<Pinned>>,
    /// Batches that are to leave, in that order.
    leaving: Mutex<VecDeque<Weak<Batch>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics while it holds captures' memory")
}

impl Lanes {
    /// A block for at least that many bytes; `None` while too much is under way.
    fn block(&self, bytes: usize) -> Result<Option<Block>, DeviceError> {
        let mut blocks = locked(&self.blocks);
        let blocks = blocks.get_or_insert_with(|| {
            let free = driver::mem_get_info().map_or(0, |(free, _)| free);
            let most = MOST_ON_DEVICE.min(free / 2);
            Pool::new(most, most)
        });
        let (bytes, others) = (size_for(bytes), blocks.in_use > 0);
        let make = || {
            let on_device = Memory::new(&self.compute, bytes, "captures")?;
            Ok(Block { bytes, on_device, passed: Event::new(&self.compute.context)? })
        };
        match blocks.take(bytes, false, make) {
            // There will be memory when some of the others have left.
            Err(DeviceError::OutOfMemory { .. }) if others => Ok(None),
            taken => taken,
        }
    }

    /// Lets batches leave, the oldest first, while there is pinned memory for them.
    fn send(&self) -> Result<(), DeviceError> {
        loop {
            // Dropped with no lock held: it may be the last that holds the batch.
            let Some(batch) = locked(&self.leaving).front().map(Weak::upgrade) else {
                return Ok(());
            };
            let has_left = match &batch {
                Some(batch) => batch.leave(false)?,
                None => true,
            };
            if !has_left {
                return Ok(());
            }
            // Unless another thread was as fast.
            let mut leaving = locked(&self.leaving);
            let is_first = |first: &Weak<Batch>| match &batch {
                Some(batch) => std::ptr::eq(first.as_ptr(), Arc::as_ptr(batch)),
                None => first.strong_count() == 0,
            };
            if leaving.front().is_some_and(is_first) {
                leaving.pop_front();
            }
        }
    }
}

/// Reads that leave together.
struct Batch {
    lanes: Arc<Lanes>,
    /// Taken on drop only.
    block: Option<Block>,
    state: Mutex<State>,
    /// The block's bytes are known to be on the host: to ask the driver takes longer than many a copy.
    has_arrived: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Bytes of its reads.
    filled: usize,
    /// No read joins it any more.
    is_closed: bool,
    /// Where its bytes go, once it has left.
    pinned: Option<Pinned>,
}

impl Batch {
    fn block(&self) -> &Block {
        self.block.as_ref().expect("taken on drop only")
    }

    /// Copies rows on the GPU into the block, if it has room and is still open. Returns where.
    fn add(&self, from: u64, rows: Strided) -> Result<Option<usize>, DeviceError> {
        let mut state = locked(&self.state);
        let (offset, bytes, block) = (state.filled, rows.count * rows.bytes, self.block());
        if state.is_closed || offset + bytes > block.bytes {
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
        state.filled = (offset + bytes).next_multiple_of(ALIGNMENT);
        Ok(Some(offset))
    }

    /// Lets no further read join, and puts it in the queue of those that leave.
    fn close(self: &Arc<Batch>) -> Result<(), DeviceError> {
        {
            let mut state = locked(&self.state);
            if state.is_closed {
                return Ok(());
            }
            self.block().passed.record(&self.lanes.compute)?;
            state.is_closed = true;
            locked(&self.lanes.leaving).push_back(Arc::downgrade(self));
        }
        self.lanes.send()
    }

    /// Sends a closed batch to the host, if there is pinned memory or it `must` leave. Returns whether
    /// it has left.
    fn leave(&self, must: bool) -> Result<bool, DeviceError> {
        let mut state = locked(&self.state);
        if state.pinned.is_some() {
            return Ok(true);
        }
        let (block, lanes) = (self.block(), &*self.lanes);
        let context = &lanes.compute.context;
        context.bind_to_thread().map_err(failed("binding the context"))?;
        let bytes = state.filled.min(block.bytes);
        let size = size_for(bytes);
        let make = || Pinned::new(context, size);
        let taken = locked(&lanes.pinned).take(size, must, make)?;
        let Some(pinned) = taken else { return Ok(false) };
        block.passed.hold(&lanes.copies)?;
        // SAFETY: the pinned memory is as large as what is copied, and read only after `passed`.
        let copied = unsafe {
            let to = std::slice::from_raw_parts_mut(pinned.pointer, bytes);
            driver::memcpy_dtoh_async(to, block.on_device.pointer, lanes.copies.raw)
        };
        let sent = copied.map_err(failed("copying a capture"));
        if let Err(error) = sent.and_then(|()| block.passed.record(&lanes.copies)) {
            locked(&lanes.pinned).give_back(pinned.bytes, pinned);
            return Err(error);
        }
        state.pinned = Some(pinned);
        Ok(true)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let block = self.block.take().expect("taken on drop only");
        if !*self.has_arrived.get_mut() {
            // It was given up, and may be on its way.
            let _ = block.passed.wait("waiting for a capture");
        }
        if let Some(blocks) = &mut *locked(&self.lanes.blocks) {
            blocks.give_back(block.bytes, block);
        }
        let state = self.state.get_mut().expect("no thread panics while it holds a batch");
        if let Some(pinned) = state.pinned.take() {
            locked(&self.lanes.pinned).give_back(pinned.bytes, pinned);
            // An error is met again where that batch is waited for.
            let _ = self.lanes.send();
        }
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
        let lanes = Lanes {
            compute: Arc::clone(compute),
            copies: Stream::new(&compute.context)?,
            blocks: Mutex::default(),
            pinned: Mutex::new(Pool::new(MOST_PINNED, MOST_PINNED_IN_ALL)),
            leaving: Mutex::default(),
        };
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
            batch.close()?;
            self.open.replace(None);
        }
        Ok(Some(Box::new(Staged { batch, offset, bytes, after })))
    }

    /// A batch that begins with a read. The one before it leaves.
    fn new_batch(&self, from: u64, rows: Strided) -> Result<Option<Arc<Batch>>, DeviceError> {
        if let Some(before) = self.open.take() {
            before.close()?;
        }
        let Some(block) = self.lanes.block(rows.count * rows.bytes)? else { return Ok(None) };
        let (lanes, state) = (Arc::clone(&self.lanes), Mutex::default());
        let has_arrived = AtomicBool::new(false);
        let batch = Arc::new(Batch { lanes, block: Some(block), state, has_arrived });
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
        let has_left = locked(&self.batch.state).pinned.is_some();
        has_left && self.batch.block().passed.has_passed()
    }

    fn bytes(&self) -> Result<&[u8], DeviceError> {
        if !self.batch.has_arrived.load(Acquire) {
            self.batch.close()?;
            self.batch.leave(true)?;
            let doing = format!("running {} or a kernel before it", self.after);
            self.batch.block().passed.wait(&doing)?;
            self.batch.has_arrived.store(true, Release);
        }
        let pinned = locked(&self.batch.state).pinned.as_ref().map(|pinned| pinned.pointer);
        let pinned = pinned.expect("it has left");
        // SAFETY: the copy of the block has ended, this part of it is this read's own, and the pinned
        // memory is the batch's until it is dropped.
        Ok(unsafe { std::slice::from_raw_parts(pinned.add(self.offset), self.bytes) })
    }
}
