//! Streams, memory and events of one GPU, each freed when it is dropped.

use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, result as driver, sys};

use crate::engine::device::DeviceError;

/// A driver error with what was being done.
pub fn failed(doing: impl std::fmt::Display) -> impl FnOnce(DriverError) -> DeviceError {
    let doing = doing.to_string();
    move |error| DeviceError::Cuda { doing, detail: format!("{:?}", error.0) }
}

/// Work that happens in order, one piece after another.
pub struct Stream {
    pub context: Arc<CudaContext>,
    pub raw: sys::CUstream,
}

// SAFETY: the driver's streams may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    pub fn new(context: &Arc<CudaContext>) -> Result<Arc<Stream>, DeviceError> {
        let kind = driver::stream::StreamKind::NonBlocking;
        let raw = driver::stream::create(kind).map_err(failed("making a stream"))?;
        Ok(Arc::new(Stream { context: Arc::clone(context), raw }))
    }

    /// Waits for all work so far.
    pub fn wait(&self, doing: &str) -> Result<(), DeviceError> {
        // SAFETY: the stream lives as long as self.
        unsafe { driver::stream::synchronize(self.raw) }.map_err(failed(doing))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once; the driver lets its work end first.
        let destroy = || unsafe { driver::stream::destroy(self.raw) };
        let _ = self.context.bind_to_thread().and_then(|()| destroy());
    }
}

/// Device memory, allocated and freed in the order of a stream's work.
pub struct Memory {
    stream: Arc<Stream>,
    pub pointer: sys::CUdeviceptr,
}

impl Memory {
    /// Memory of that many bytes, all of them 0xff: NaN in every float format.
    pub fn new(stream: &Arc<Stream>, bytes: usize, what: &str) -> Result<Memory, DeviceError> {
        let size = bytes.max(1);
        // SAFETY: the memory is filled before anything can read it, on the same stream.
        let allocated = unsafe {
            driver::malloc_async(stream.raw, size).and_then(|pointer| {
                let memory = Memory { stream: Arc::clone(stream), pointer };
                driver::memset_d8_async(pointer, 0xff, size, stream.raw)?;
                Ok(memory)
            })
        };
        allocated.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let free = driver::mem_get_info().map_or(0, |(free, _)| free);
                let what = format!("{what} on the GPU, where {free} bytes are free,");
                DeviceError::OutOfMemory { what, bytes }
            }
            _ => failed(format!("allocating {what}"))(error),
        })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated on this stream and freed once, after the work that uses it.
        let free = || unsafe { driver::free_async(self.pointer, self.stream.raw) };
        let _ = self.stream.context.bind_to_thread().and_then(|()| free());
    }
}

/// A point in a stream's work.
pub struct Event {
    context: Arc<CudaContext>,
    raw: sys::CUevent,
}

// SAFETY: the driver's events may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub fn new(context: &Arc<CudaContext>) -> Result<Event, DeviceError> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let raw = driver::event::create(flags).map_err(failed("making an event"))?;
        Ok(Event { context: Arc::clone(context), raw })
    }

    /// Marks the end of the stream's work so far.
    pub fn record(&self, stream: &Stream) -> Result<(), DeviceError> {
        // SAFETY: both live.
        unsafe { driver::event::record(self.raw, stream.raw) }.map_err(failed("recording an event"))
    }

    /// Lets a stream's further work wait for the event.
    pub fn hold(&self, stream: &Stream) -> Result<(), DeviceError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both live.
        let held = unsafe { driver::stream::wait_event(stream.raw, self.raw, flags) };
        held.map_err(failed("ordering two streams"))
    }

    /// Whether it has passed; a failed stream's has, so that its error is met.
    pub fn has_passed(&self) -> bool {
        // SAFETY: it lives.
        let state = unsafe { driver::event::query(self.raw) };
        !state.is_err_and(|error| error.0 == sys::CUresult::CUDA_ERROR_NOT_READY)
    }

    /// Waits for the event, in any thread.
    pub fn wait(&self, doing: &str) -> Result<(), DeviceError> {
        // SAFETY: it lives.
        let wait = || unsafe { driver::event::synchronize(self.raw) };
        self.context.bind_to_thread().and_then(|()| wait()).map_err(failed(doing))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        let destroy = || unsafe { driver::event::destroy(self.raw) };
        let _ = self.context.bind_to_thread().and_then(|()| destroy());
    }
}
