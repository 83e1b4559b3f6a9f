//! Work recorded once and launched again as a whole: a CUDA graph.

use std::sync::{Arc, PoisonError, RwLock};

use cudarc::driver::{CudaContext, result as driver, sys};

use crate::engine::device::{
    DeviceError,
    cuda::stream::{Stream, failed},
};

/// Shared by the threads that record.
static RECORDING: RwLock<()> = RwLock::new(());

/// Does what waits for all work of the GPU, as cuBLAS does when a handle is made or destroyed, while no
/// thread records: the driver would spoil the recording, or crash.
pub fn while_none_is_recorded<T>(work: impl FnOnce() -> T) -> T {
    let _alone = RECORDING.write().unwrap_or_else(PoisonError::into_inner);
    work()
}

/// A graph that can be launched.
pub struct Graph {
    context: Arc<CudaContext>,
    graph: sys::CUgraph,
    exec: sys::CUgraphExec,
}

// SAFETY: the driver's graphs may be used from any thread, one at a time.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `work` puts on the stream, without running it.
    pub fn record(
        stream: &Stream,
        work: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<Graph, DeviceError> {
        let _with_others = RECORDING.read().unwrap_or_else(PoisonError::into_inner);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives; what is recorded uses buffers that outlive the graph, as the
        // engine owns both.
        unsafe { driver::stream::begin_capture(stream.raw, mode) }
            .map_err(failed("recording a graph"))?;
        let worked = work();
        // SAFETY: begun above. It must be ended whatever happened between.
        let ended = unsafe { driver::stream::end_capture(stream.raw) };
        worked?;
        let graph = ended.map_err(failed("ending the recording of a graph"))?;
        let none = sys::CUgraphInstantiate_flags(0);
        // SAFETY: the graph was just made.
        let exec = unsafe { driver::graph::instantiate(graph, none) };
        let exec = exec.map_err(failed("instantiating a graph"))?;
        Ok(Graph { context: Arc::clone(&stream.context), graph, exec })
    }

    pub fn launch(&self, stream: &Stream) -> Result<(), DeviceError> {
        // SAFETY: both live.
        unsafe { driver::graph::launch(self.exec, stream.raw) }.map_err(failed("launching a graph"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let destroy = || {
            // SAFETY: made by `record`, each destroyed once.
            unsafe {
                driver::graph::exec_destroy(self.exec)?;
                driver::graph::destroy(self.graph)
            }
        };
        let _ = self.context.bind_to_thread().and_then(|()| destroy());
    }
}
