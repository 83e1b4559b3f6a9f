//! The cuda device: the same `.cu` files on a GPU, through NVRTC, the driver and cuBLAS.
//!
//! The CUDA libraries are loaded when the device is opened, so the program starts without them. All
//! work goes to one stream, in order; captures leave through a second one.

mod compile;
mod gemm;
mod graph;
mod own;
mod pool;
mod staging;
mod stream;
mod toolkit;

use std::{cell::RefCell, collections::HashMap, ffi::c_void, sync::Arc};

use cudarc::{
    cublas::sys as blas_sys,
    driver::{CudaContext, CudaFunction, CudaModule, result as driver, sys},
    nvrtc::{Ptx, sys as nvrtc_sys},
};
use half::f16;
use rayon::prelude::*;

use crate::engine::device::{
    Arg, Buffer, Device, DeviceError, Download, Gemm, KernelSource, Launch, Recorded, Strided,
    cuda::{
        gemm::Blas,
        graph::Graph,
        staging::Staging,
        stream::{Memory, Stream, failed},
    },
};

pub use toolkit::{cuda_folders, include_folder};

/// Weights that are widened by one launch, and its shape.
const WIDENED: usize = 1 << 24;
const WIDEN_BLOCK: usize = 256;
const WIDEN_PACK: usize = 8;

/// Dynamic shared memory that a kernel gets without asking for more.
const DEFAULT_SHARED: u32 = 48 << 10;
/// A compiler may read the last floats of shared memory as one vector, past what the kernel asked for:
/// compute-sanitizer takes the launch at its word.
const SHARED_UNIT: u32 = 16;

/// Runs kernels on the first GPU.
pub struct CudaDevice {
    context: Arc<CudaContext>,
    architecture: String,
    // Before the streams: what is dropped first.
    staging: Staging,
    blas: Blas,
    stream: Arc<Stream>,
    /// The loaded files, the last one of a name.
    modules: HashMap<String, Arc<CudaModule>>,
    functions: RefCell<HashMap<String, CudaFunction>>,
    entries: HashMap<String, String>,
    /// The kernel launched last: an error that comes later is said to be its, or one before.
    last: RefCell<String>,
}

impl CudaDevice {
    /// Opens the first GPU and cuBLAS.
    pub fn new() -> Result<CudaDevice, DeviceError> {
        let missing = |what: &str| DeviceError::NoCuda { detail: what.to_string() };
        // SAFETY: each opens and closes a library, which has no requirements.
        unsafe {
            if !sys::is_culib_present() {
                return Err(missing("no CUDA driver is installed"));
            }
            if !nvrtc_sys::is_culib_present() {
                return Err(missing("libnvrtc.so is not found"));
            }
            if !blas_sys::is_culib_present() {
                return Err(missing("libcublas.so is not found"));
            }
        }
        let context = CudaContext::new(0).map_err(|error| DeviceError::NoCuda {
            detail: format!("the driver does not start: {:?}", error.0),
        })?;
        let (major, minor) = context.compute_capability().map_err(failed("asking for the GPU"))?;
        let stream = Stream::new(&context)?;
        keep_freed_memory(&context)?;
        let mut device = CudaDevice {
            context,
            architecture: format!("sm_{major}{minor}"),
            staging: Staging::new(&stream)?,
            blas: Blas::new(&stream)?,
            stream,
            modules: HashMap::new(),
            functions: RefCell::default(),
            entries: HashMap::new(),
            last: RefCell::default(),
        };
        device.load_own()?;
        Ok(device)
    }

    /// Loads the kernels that are the device's, not the engine's.
    fn load_own(&mut self) -> Result<(), DeviceError> {
        self.load_all(&own::sources())
    }

    fn bind(&self) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(failed("binding the context"))
    }

    /// Loads machine code in place of what its file had before.
    fn keep(&mut self, source: &KernelSource, code: Vec<u8>) -> Result<Vec<String>, DeviceError> {
        let doing = format!("loading {}", source.file);
        let module = self.context.load_module(Ptx::from_binary(code)).map_err(failed(doing))?;
        let entries = source.entries();
        self.functions.borrow_mut().retain(|entry, _| !entries.contains(entry));
        self.entries.retain(|_, file| *file != source.file);
        self.entries.extend(entries.iter().map(|entry| (entry.clone(), source.file.clone())));
        self.modules.insert(source.file.clone(), module);
        Ok(entries)
    }

    fn function(&self, entry: &str) -> Result<CudaFunction, DeviceError> {
        if let Some(function) = self.functions.borrow().get(entry) {
            return Ok(function.clone());
        }
        let module = self.entries.get(entry).and_then(|file| self.modules.get(file));
        let module = module.ok_or_else(|| {
            let mut known: Vec<&str> = self.entries.keys().map(String::as_str).collect();
            known.sort_unstable();
            DeviceError::NoEntry { entry: entry.to_string(), known: known.join(", ") }
        })?;
        let function = module.load_function(entry).map_err(failed(format!("finding {entry}")))?;
        self.functions.borrow_mut().insert(entry.to_string(), function.clone());
        Ok(function)
    }

    fn checked(&self, buffer: &Buffer, offset: usize, bytes: usize) -> Result<u64, DeviceError> {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= buffer.bytes);
        if inside {
            Ok(buffer.address + offset as u64)
        } else {
            Err(DeviceError::Bounds { offset, bytes, length: buffer.bytes })
        }
    }
}

impl Device for CudaDevice {
    fn name(&self) -> String {
        let name = self.context.name().unwrap_or_else(|_| "GPU".to_string());
        format!("cuda ({name}, {}, NVRTC {})", self.architecture, compile::version())
    }

    fn load(&mut self, source: &KernelSource) -> Result<Vec<String>, DeviceError> {
        self.bind()?;
        let code = compile::cubin(source, &self.architecture)?;
        self.keep(source, code)
    }

    fn load_all(&mut self, sources: &[KernelSource]) -> Result<(), DeviceError> {
        self.bind()?;
        let architecture = self.architecture.as_str();
        let codes = sources.par_iter().map(|source| compile::cubin(source, architecture));
        let codes: Vec<Vec<u8>> = codes.collect::<Result<_, _>>()?;
        sources.iter().zip(codes).try_for_each(|(source, code)| self.keep(source, code).map(drop))
    }

    fn alloc(&self, bytes: usize, what: &str) -> Result<Buffer, DeviceError> {
        self.bind()?;
        let memory = Memory::new(&self.stream, bytes, what)?;
        Ok(Buffer { address: memory.pointer, bytes, _memory: Arc::new(memory) })
    }

    fn upload(&self, buffer: &Buffer, offset: usize, data: &[u8]) -> Result<(), DeviceError> {
        self.bind()?;
        let to = self.checked(buffer, offset, data.len())?;
        // SAFETY: the range lies in a live buffer; the driver has read pageable memory when the call
        // returns.
        unsafe { driver::memcpy_htod_async(to, data, self.stream.raw) }
            .map_err(failed("copying to the GPU"))
    }

    fn upload_widened(&self, buffer: &Buffer, values: &[f16]) -> Result<(), DeviceError> {
        self.checked(buffer, 0, 4 * values.len())?;
        let narrow = self.alloc(2 * values.len().min(WIDENED), "weights on their way")?;
        for (chunk, values) in values.chunks(WIDENED).enumerate() {
            self.upload(&narrow, 0, bytemuck::cast_slice(values))?;
            let to = Arg::Buffer(buffer, 4 * chunk * WIDENED);
            let args = [to, Arg::Buffer(&narrow, 0), Arg::I32(values.len() as i32)];
            let blocks = values.len().div_ceil(WIDEN_BLOCK * WIDEN_PACK) as u32;
            let (grid, block) = ([blocks, 1, 1], [WIDEN_BLOCK as u32, 1, 1]);
            self.launch("widen_f16", Launch { grid, block, shared_bytes: 0 }, &args)?;
        }
        Ok(())
    }

    fn download(&self, buffer: &Buffer, offset: usize, data: &mut [u8]) -> Result<(), DeviceError> {
        self.bind()?;
        let from = self.checked(buffer, offset, data.len())?;
        // SAFETY: as above; the copy waits for the kernels before it, and this for the copy.
        unsafe { driver::memcpy_dtoh_async(data, from, self.stream.raw) }
            .map_err(failed("copying from the GPU"))?;
        self.stream.wait(&format!("running {} or a kernel before it", self.last.borrow()))
    }

    fn read(
        &self,
        buffer: &Buffer,
        rows: Strided,
    ) -> Result<Option<Box<dyn Download>>, DeviceError> {
        self.bind()?;
        let from = self.checked(buffer, rows.offset, rows.span())?;
        self.staging.read(from, rows, self.last.borrow().clone())
    }

    fn copy(&self, from: &Buffer, to: &Buffer) -> Result<(), DeviceError> {
        self.bind()?;
        let (bytes, to) = (from.bytes, self.checked(to, 0, from.bytes)?);
        // SAFETY: both buffers are live, and not the same.
        unsafe { driver::memcpy_dtod_async(to, from.address, bytes, self.stream.raw) }
            .map_err(failed("copying a capture"))
    }

    fn record(
        &self,
        work: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<Option<Recorded>, DeviceError> {
        self.bind()?;
        Ok(Some(Recorded(Box::new(Graph::record(&self.stream, work)?))))
    }

    fn repeat(&self, recorded: &Recorded) -> Result<(), DeviceError> {
        self.bind()?;
        let graph = recorded.0.downcast_ref::<Graph>();
        graph.expect("recorded by this device").launch(&self.stream)
    }

    fn launch(&self, entry: &str, launch: Launch, args: &[Arg<'_>]) -> Result<(), DeviceError> {
        self.bind()?;
        let function = self.function(entry)?;
        let shared_bytes = launch.shared_bytes.next_multiple_of(SHARED_UNIT);
        if shared_bytes > DEFAULT_SHARED {
            let attribute =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = shared_bytes;
            function.set_attribute(attribute, bytes as i32).map_err(|_| DeviceError::Launch {
                entry: entry.to_string(),
                detail: format!(
                    "{bytes} bytes of dynamic shared memory are more than this GPU has; shorten \
                     the prompt or use softmax=online"
                ),
            })?;
        }
        let slots: Vec<u64> = args.iter().map(Arg::bits).collect();
        let mut pointers: Vec<*mut c_void> =
            slots.iter().map(|slot| std::ptr::from_ref(slot).cast_mut().cast()).collect();
        let [x, y, z] = launch.grid;
        let [bx, by, bz] = launch.block;
        // SAFETY: the arguments are those of the entry, which the host device's tests check against
        // its signature; buffers outlive the launch, for freeing one waits for it.
        let launched = unsafe {
            driver::launch_kernel(
                function.cu_function(),
                (x, y, z),
                (bx, by, bz),
                shared_bytes,
                self.stream.raw,
                &mut pointers,
            )
        };
        launched.map_err(failed(format!("launching {entry}")))?;
        if *self.last.borrow() != entry {
            *self.last.borrow_mut() = entry.to_string();
        }
        Ok(())
    }

    fn gemms(&self, gemms: &[Gemm<'_>]) -> Result<(), DeviceError> {
        self.multiply_all(gemms)
    }
}

/// Memory freed in a stream's order stays with the program, to be allocated again at once.
fn keep_freed_memory(context: &CudaContext) -> Result<(), DeviceError> {
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let mut all = u64::MAX;
    // SAFETY: the attribute is a 64-bit integer, read before this returns.
    unsafe {
        let pool = driver::device::get_default_mem_pool(context.cu_device());
        pool.and_then(|pool| {
            driver::mem_pool::set_attribute(pool, attribute, (&raw mut all).cast())
        })
    }
    .map_err(failed("setting up the memory pool"))
}
