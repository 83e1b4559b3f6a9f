//! What a device does: allocate, copy, launch a kernel, multiply matrices.

pub mod cuda;
pub mod host;
mod matrix;
mod source;

use std::{any::Any, ops::Range, sync::Arc};

use half::{f16, slice::HalfFloatSliceExt};

pub use self::matrix::{FileMatrix, Matrix};
use crate::core::tensor::DType;

/// Device memory of a fixed length, freed with the last that holds it. Never read before it is written:
/// its bytes are what the device left there.
#[derive(Clone)]
pub struct Buffer {
    /// Address on the device.
    pub(crate) address: u64,
    /// Length in bytes.
    pub bytes: usize,
    /// Owns the memory.
    pub(crate) _memory: Arc<dyn Any + Send + Sync>,
}

impl Buffer {
    /// Some of its bytes, which are inside it.
    pub fn part(&self, bytes: Range<usize>) -> Buffer {
        assert!(bytes.start <= bytes.end && bytes.end <= self.bytes);
        Buffer {
            address: self.address + bytes.start as u64,
            bytes: bytes.len(),
            _memory: Arc::clone(&self._memory),
        }
    }
}

/// Rows of bytes in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strided {
    /// Where the first begins.
    pub offset: usize,
    pub count: usize,
    /// Of one row.
    pub bytes: usize,
    /// From one row's begin to the next one's.
    pub pitch: usize,
}

impl Strided {
    /// Bytes that follow one another.
    pub fn whole(offset: usize, bytes: usize) -> Strided {
        Strided { offset, count: 1, bytes, pitch: bytes }
    }

    /// From the begin of the first to the end of the last.
    pub(crate) fn span(&self) -> usize {
        self.count.saturating_sub(1) * self.pitch + self.bytes
    }
}

/// One kernel argument.
#[derive(Clone, Copy)]
pub enum Arg<'a> {
    /// A buffer, from a byte offset on.
    Buffer(&'a Buffer, usize),
    /// An address on the device that its buffer's owner has checked.
    Address(u64),
    /// A null pointer: an optional output that is not wanted.
    Null,
    I32(i32),
    I64(i64),
    F32(f32),
}

impl Arg<'_> {
    /// The argument's bits, in the first bytes of an 8-byte slot.
    pub(crate) fn bits(&self) -> u64 {
        match *self {
            Arg::Buffer(buffer, offset) => buffer.address + offset as u64,
            Arg::Address(address) => address,
            Arg::Null => 0,
            Arg::I32(value) => u64::from(value as u32),
            Arg::I64(value) => value as u64,
            Arg::F32(value) => u64::from(value.to_bits()),
        }
    }
}

/// How a kernel is launched: sizes in blocks and threads, dynamic shared memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared_bytes: u32,
}

/// `y = x W^T + bias`: x (rows, inner) and W (cols, inner) of `input`, bias (cols) f32, y (rows, cols)
/// of `output`, f32 sums.
#[derive(Clone, Copy)]
pub struct Gemm<'a> {
    pub x: &'a Buffer,
    pub w: &'a Matrix,
    pub bias: Option<&'a Buffer>,
    pub y: &'a Buffer,
    pub rows: usize,
    pub cols: usize,
    pub inner: usize,
    pub input: DType,
    pub output: DType,
}

/// One kernel source file: a name for messages (`rope.cu`), its text, and `-D` definitions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KernelSource {
    pub file: String,
    pub text: String,
    pub defines: Vec<String>,
}

impl KernelSource {
    /// The names of the kernels in the text that are no templates.
    pub fn entries(&self) -> Vec<String> {
        source::kernels(&self.text).into_iter().map(|kernel| kernel.name).collect()
    }
}

/// A read that may be under way.
pub trait Download: Send + Sync {
    /// Whether the bytes are there.
    fn is_ready(&self) -> bool;

    /// The bytes, once they are there, aligned to 4. An error of any work before them shows up here.
    fn bytes(&self) -> Result<&[u8], DeviceError>;
}

/// A read that has ended.
struct Arrived {
    words: Vec<u32>,
    bytes: usize,
}

impl Download for Arrived {
    fn is_ready(&self) -> bool {
        true
    }

    fn bytes(&self) -> Result<&[u8], DeviceError> {
        Ok(&bytemuck::cast_slice(&self.words)[..self.bytes])
    }
}

/// Reads rows, one after another, and waits for them.
pub fn read_now<D: Device + ?Sized>(
    device: &D,
    buffer: &Buffer,
    rows: Strided,
) -> Result<Box<dyn Download>, DeviceError> {
    let bytes = rows.count * rows.bytes;
    let mut words = vec![0u32; bytes.div_ceil(4)];
    let packed = &mut bytemuck::cast_slice_mut(&mut words)[..bytes];
    for (row, to) in packed.chunks_exact_mut(rows.bytes.max(1)).enumerate() {
        device.download(buffer, rows.offset + row * rows.pitch, to)?;
    }
    Ok(Box::new(Arrived { words, bytes }))
}

/// Elements widened at a time: what loading needs beyond the weights.
pub(crate) const WIDENED: usize = 1 << 18;

/// Work recorded by a device, which alone can repeat it.
pub struct Recorded(pub(crate) Box<dyn Any + Send>);

/// A device that runs `.cu` kernels. All work of one device happens in order.
pub trait Device: Send {
    /// A name for the report, such as `host (g++ 12.2.0, 2 workers)`.
    fn name(&self) -> String;

    /// Compiles a source file, or finds it compiled, and keeps it loaded.
    /// Returns the names of its entries.
    fn load(&mut self, source: &KernelSource) -> Result<Vec<String>, DeviceError>;

    /// Loads several source files; a device may compile them in parallel.
    fn load_all(&mut self, sources: &[KernelSource]) -> Result<(), DeviceError> {
        sources.iter().try_for_each(|source| self.load(source).map(drop))
    }

    /// Whether products take matrices from the model's file; else they must be in the device's memory.
    fn reads_files(&self) -> bool {
        false
    }

    /// Whether a launch has ended when it returns.
    fn waits_for_launches(&self) -> bool {
        false
    }

    /// Memory of that many bytes, contents unspecified. `what` names it in an out-of-memory message.
    fn alloc(&self, bytes: usize, what: &str) -> Result<Buffer, DeviceError>;

    /// Writes `data` at a byte offset.
    fn upload(&self, buffer: &Buffer, offset: usize, data: &[u8]) -> Result<(), DeviceError>;

    /// Writes f16 values as f32, from the buffer's begin on.
    fn upload_widened(&self, buffer: &Buffer, values: &[f16]) -> Result<(), DeviceError> {
        let mut wide = Vec::new();
        for (chunk, values) in values.chunks(WIDENED).enumerate() {
            wide.resize(values.len(), 0.0);
            values.convert_to_f32_slice(&mut wide);
            self.upload(buffer, 4 * chunk * WIDENED, bytemuck::cast_slice(&wide))?;
        }
        Ok(())
    }

    /// Starts to read rows, one after another, as they are after all work before; work after it may
    /// overwrite them. `None` while too much is under way: take what was read earlier first.
    fn read(
        &self,
        buffer: &Buffer,
        rows: Strided,
    ) -> Result<Option<Box<dyn Download>>, DeviceError> {
        Ok(Some(read_now(self, buffer, rows)?))
    }

    /// Copies a whole buffer into another, which is not smaller; may be recorded.
    fn copy(&self, _from: &Buffer, _to: &Buffer) -> Result<(), DeviceError> {
        unreachable!("this device records nothing")
    }

    /// Records launches, products and copies, to be repeated as a whole; `None` where a device
    /// cannot.
    fn record(
        &self,
        _work: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<Option<Recorded>, DeviceError> {
        Ok(None)
    }

    /// Runs what was recorded.
    fn repeat(&self, _recorded: &Recorded) -> Result<(), DeviceError> {
        unreachable!("this device records nothing")
    }

    /// Reads `data.len()` bytes from a byte offset, after all work before.
    fn download(&self, buffer: &Buffer, offset: usize, data: &mut [u8]) -> Result<(), DeviceError>;

    /// Launches an entry of a loaded source file.
    fn launch(&self, entry: &str, launch: Launch, args: &[Arg<'_>]) -> Result<(), DeviceError>;

    /// Multiplies matrices, one product after another; a device may share the work of those with one x.
    fn gemms(&self, gemms: &[Gemm<'_>]) -> Result<(), DeviceError>;
}

/// Why a device could not do its work. Every message ends with what to do next.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("no CUDA device: {detail}; use --device host, or see `firstdiff doctor`")]
    NoCuda { detail: String },
    #[error("CUDA failed {doing}: {detail}; `firstdiff doctor` checks this machine")]
    Cuda { doing: String, detail: String },
    #[error("no C++ compiler found (tried {tried}); install g++ or set CXX")]
    NoCompiler { tried: String },
    #[error(
        "the program does not contain this build of {file}, and no C++ compiler was found (tried {tried}); install g++ or set CXX"
    )]
    NotBuiltIn { file: String, tried: String },
    #[error("{file} does not compile; fix it and run again\n{message}")]
    Compile { file: String, message: String },
    #[error(
        "{file}:{line}: the host device has no <{header}>; put what the kernel needs of it into the file, or use \
         --device cuda (docs/kernels.md lists the headers)"
    )]
    NoHeader { file: String, line: usize, header: String },
    #[error("{tool} failed: {detail}; `firstdiff doctor` checks this machine")]
    Tool { tool: String, detail: String },
    #[error("cannot write compiled kernels: {detail}; set FIRSTDIFF_CACHE to a writable folder")]
    Cache { detail: String },
    #[error("no kernel entry {entry}; the loaded files have: {known}")]
    NoEntry { entry: String, known: String },
    #[error("{file}: {entry} takes ({takes}), but is given ({given}); keep the entry's parameters")]
    Arguments { file: String, entry: String, takes: String, given: String },
    #[error("cannot launch {entry}: {detail}")]
    Launch { entry: String, detail: String },
    #[error("{file}: {message}; fix the kernel")]
    Kernel { file: String, message: String },
    #[error("out of memory for {what} ({bytes} bytes); use a smaller model or a shorter prompt")]
    OutOfMemory { what: String, bytes: usize },
    #[error("{bytes} bytes at {offset} are outside a buffer of {length}; please report this")]
    Bounds { offset: usize, bytes: usize, length: usize },
    #[error("{0}")]
    Failed(String),
}
