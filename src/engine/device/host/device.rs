//! Memory, compilation and launches of the host device.

use std::{
    alloc::{Layout, alloc, dealloc},
    mem::MaybeUninit,
    sync::Arc,
};

use rayon::prelude::*;

use crate::engine::device::{
    Arg, Buffer, Device, DeviceError, Gemm, KernelSource, Launch, Matrix,
    host::{
        Compiler,
        compile::{self, Library, Watch},
        compiler::{chosen, compiler},
        gemm::{self, Factor},
        module::{Module, ThreadOrder},
        prebuilt,
        regions::Regions,
    },
};

/// How the host device runs.
#[derive(Clone, Debug, Default)]
pub struct HostOptions {
    /// Blocks that run at the same time; by default as many as there are cores.
    pub workers: Option<usize>,
    pub order: ThreadOrder,
    /// Every access of shared and global memory is checked: races, bounds, uninitialised reads and
    /// undefined behaviour are errors. One block runs at a time.
    pub checked: bool,
    /// AddressSanitizer and UBSan look at each access, and end the process at the first bad one; it must
    /// have been started with [`Compiler::address_sanitizer`] loaded. One block runs at a time.
    pub sanitized: bool,
    /// The compiler of all kernels. By default the one that [`compiler`] finds, and only for kernels that the
    /// program does not carry as they are.
    pub compiler: Option<Compiler>,
}

impl HostOptions {
    fn watch(&self) -> Watch {
        match (self.checked, self.sanitized) {
            (true, _) => Watch::Hooks,
            (_, true) => Watch::Sanitizers,
            _ => Watch::Nothing,
        }
    }
}

/// Runs kernels on this machine's CPU.
pub struct HostDevice {
    options: HostOptions,
    /// `None` as long as all kernels are those that the program carries.
    compiler: Option<Compiler>,
    workers: usize,
    sources: Vec<KernelSource>,
    module: Option<Module>,
    /// The live buffers, where accesses are checked.
    regions: Option<Regions>,
}

/// cudaMalloc's alignment.
const ALIGNMENT: usize = 256;

/// Bytes of a large page. Buffers from this size on lie in such pages, where the system has them: it takes the system
/// far less time to give a few large pages than many small ones.
const LARGE_PAGE: usize = 2 << 20;

/// Before and after the buffers of a checked device, so that an index past one meets no other.
const GAP: usize = 64 << 10;

/// Memory of one buffer.
struct Memory {
    pointer: *mut u8,
    layout: Layout,
    /// Where the buffer is known, and its address there.
    known: Option<(Regions, u64)>,
}

// SAFETY: the memory is owned, and only reached through a device's methods and launches.
unsafe impl Send for Memory {}
// SAFETY: as above; holding it reads nothing.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some((regions, address)) = &self.known {
            regions.remove(*address);
        }
        // SAFETY: allocated with this layout, freed once.
        unsafe { dealloc(self.pointer, self.layout) }
    }
}

impl HostDevice {
    /// A device that runs the kernels of the program as they were built into it, and compiles all others. A
    /// compiler that is chosen, by `options` or `$CXX`, compiles all of them; so does a watched build.
    pub fn new(options: HostOptions) -> Result<HostDevice, DeviceError> {
        let is_built = options.watch() == Watch::Nothing && prebuilt::HAS_PREBUILT;
        let compiler = match &options.compiler {
            Some(compiler) => Some(compiler.clone()),
            None if is_built && chosen().is_none() => None,
            None => Some(compiler()?),
        };
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let workers = if options.checked || options.sanitized {
            1
        } else {
            options.workers.unwrap_or(cores).max(1)
        };
        let regions = options.checked.then(Regions::default);
        Ok(HostDevice { options, compiler, workers, sources: Vec::new(), module: None, regions })
    }

    /// The sources as a library: the program's own, else a compiler's.
    fn library(&mut self, sources: &[KernelSource]) -> Result<Library, DeviceError> {
        if self.compiler.is_none() {
            if let Some(library) = prebuilt::library(sources)? {
                return Ok(library);
            }
            self.compiler = Some(compiler().map_err(|error| not_built_in(error, sources))?);
        }
        let compiler = self.compiler.as_ref().expect("one was found just now");
        compile::build(compiler, self.options.watch(), sources)
    }

    /// Tells the checks of bytes that no kernel has written.
    fn wrote(&self, buffer: &Buffer, offset: usize, bytes: usize) {
        if let Some(regions) = &self.regions {
            regions.wrote(buffer.address, offset, bytes);
        }
    }

    fn checked(
        &self,
        buffer: &Buffer,
        offset: usize,
        bytes: usize,
    ) -> Result<*mut u8, DeviceError> {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= buffer.bytes);
        if inside {
            Ok((buffer.address as *mut u8).wrapping_add(offset))
        } else {
            Err(DeviceError::Bounds { offset, bytes, length: buffer.bytes })
        }
    }

    fn multiply(&self, gemm: &Gemm<'_>) -> Result<(), DeviceError> {
        let (input, output) = (gemm.input.size(), gemm.output.size());
        let slice = |buffer: &Buffer, bytes: usize| {
            let pointer = self.checked(buffer, 0, bytes)?;
            // SAFETY: the range was checked. Every byte of a buffer was written when it was made.
            Ok::<&[u8], DeviceError>(unsafe { std::slice::from_raw_parts(pointer, bytes) })
        };
        let x = slice(gemm.x, gemm.rows * gemm.inner * input)?;
        let w = match gemm.w {
            Matrix::Held(buffer) => Factor::Bytes(slice(buffer, gemm.cols * gemm.inner * input)?),
            Matrix::InFile(matrix) => Factor::InFile(matrix),
        };
        let bias = gemm.bias.map(|bias| slice(bias, 4 * gemm.cols)).transpose()?;
        let bytes = gemm.rows * gemm.cols * output;
        let y = self.checked(gemm.y, 0, bytes)?;
        // SAFETY: as above; y is a buffer of its own, so it overlaps none of the others.
        let y = unsafe { std::slice::from_raw_parts_mut(y, bytes) };
        let multiplied = gemm::multiply((x, w, bias), y, gemm::Shape::from(gemm));
        multiplied.map_err(|error| DeviceError::Failed(error.to_string()))?;
        self.wrote(gemm.y, 0, bytes);
        Ok(())
    }
}

impl Device for HostDevice {
    fn name(&self) -> String {
        let workers = self.workers;
        let kind = if self.options.checked { "checked" } else { "host" };
        let compiler = self.compiler.as_ref().map_or(prebuilt::BUILT_BY, |own| &own.version);
        format!("{kind} ({compiler}, {workers} worker{})", plural(workers))
    }

    fn load(&mut self, source: &KernelSource) -> Result<Vec<String>, DeviceError> {
        self.load_all(std::slice::from_ref(source))?;
        Ok(self.module.as_ref().map_or_else(Vec::new, |module| module.entries_of(&source.file)))
    }

    fn load_all(&mut self, sources: &[KernelSource]) -> Result<(), DeviceError> {
        let kept = |old: &&KernelSource| sources.iter().all(|new| new.file != old.file);
        let mut all: Vec<KernelSource> = self.sources.iter().filter(kept).cloned().collect();
        all.extend_from_slice(sources);
        // What does not compile is not kept: it would fail whatever is loaded next.
        let library = self.library(&all)?;
        self.sources = all;
        let regions = self.regions.clone();
        self.module = Some(Module::load(&library, self.workers, self.options.order, regions)?);
        Ok(())
    }

    fn reads_files(&self) -> bool {
        true
    }

    fn waits_for_launches(&self) -> bool {
        true
    }

    fn alloc(&self, bytes: usize, what: &str) -> Result<Buffer, DeviceError> {
        let failed = || DeviceError::OutOfMemory { what: what.to_string(), bytes };
        let gap = if self.options.checked { GAP } else { 0 };
        let size = bytes.max(1).checked_add(2 * gap).ok_or_else(failed)?;
        let alignment = if size < LARGE_PAGE { ALIGNMENT } else { LARGE_PAGE };
        let layout = Layout::from_size_align(size, alignment).map_err(|_| failed())?;
        // SAFETY: the layout's size is not zero.
        let pointer = unsafe { alloc(layout) };
        if pointer.is_null() {
            return Err(failed());
        }
        ask_for_large_pages(pointer, layout);
        let start = pointer.wrapping_add(gap);
        // SAFETY: freshly allocated with this size, and nobody else knows it.
        let all: &mut [MaybeUninit<u8>] =
            unsafe { std::slice::from_raw_parts_mut(start.cast(), bytes) };
        // All bits set is NaN in every float format.
        let fill = |part: &mut [MaybeUninit<u8>]| part.fill(MaybeUninit::new(0xff));
        all.par_chunks_mut(LARGE_PAGE).for_each(fill);
        let address = start as u64;
        let known = self.regions.clone().map(|regions| (regions, address));
        if let Some((regions, _)) = &known {
            regions.add(address, bytes, what);
        }
        let memory = Arc::new(Memory { pointer, layout, known });
        Ok(Buffer { address, bytes, _memory: memory })
    }

    fn upload(&self, buffer: &Buffer, offset: usize, data: &[u8]) -> Result<(), DeviceError> {
        let to = self.checked(buffer, offset, data.len())?;
        // SAFETY: inside the buffer; `data` is ordinary memory, so they do not overlap.
        unsafe { to.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        self.wrote(buffer, offset, data.len());
        Ok(())
    }

    fn download(&self, buffer: &Buffer, offset: usize, data: &mut [u8]) -> Result<(), DeviceError> {
        let from = self.checked(buffer, offset, data.len())?;
        // SAFETY: as above.
        unsafe { from.copy_to_nonoverlapping(data.as_mut_ptr(), data.len()) };
        Ok(())
    }

    fn launch(&self, entry: &str, launch: Launch, args: &[Arg<'_>]) -> Result<(), DeviceError> {
        match &self.module {
            Some(module) => module.launch(entry, launch, args),
            None => Err(DeviceError::NoEntry { entry: entry.to_string(), known: String::new() }),
        }
    }

    fn gemms(&self, gemms: &[Gemm<'_>]) -> Result<(), DeviceError> {
        gemms.iter().try_for_each(|gemm| self.multiply(gemm))
    }
}

/// Asks for large pages of memory that is aligned to them. The system may refuse; nothing else changes then.
fn ask_for_large_pages(pointer: *mut u8, layout: Layout) {
    #[cfg(target_os = "linux")]
    if layout.align() >= LARGE_PAGE {
        // SAFETY: the advice leaves what the memory holds, which is allocated with this size, as it is.
        unsafe { libc::madvise(pointer.cast(), layout.size(), libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (pointer, layout);
}

/// The same with the file that a compiler is missing for.
fn not_built_in(error: DeviceError, sources: &[KernelSource]) -> DeviceError {
    match (error, sources.iter().find(|source| !prebuilt::has(source))) {
        (DeviceError::NoCompiler { tried }, Some(source)) => {
            DeviceError::NotBuiltIn { file: source.file.clone(), tried }
        }
        (error, _) => error,
    }
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}
