//! The buffers of a checked device, as the checks of a launch see them: where they are, what of
//! them was ever written, and who touched them in this launch.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    ffi::CString,
    sync::{Arc, Mutex, MutexGuard},
};

use crate::engine::device::DeviceError;

/// Size of the runtime's record of 2 bytes (`Cell` in `cuda_host_check.h`).
const CELL_BYTES: usize = 136;

/// A buffer in the layout of the runtime (`cuda_host_region` in `cuda_host_check.h`).
#[repr(C)]
pub struct RawRegion {
    start: u64,
    bytes: u64,
    written: u64,
    name: u64,
    cells: u64,
    access: u64,
}

/// What a launch may do with a buffer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// It is no argument.
    None = 0,
    /// Its parameters are pointers to const.
    Read = 1,
    Write = 2,
}

/// One live buffer.
struct Region {
    start: u64,
    name: CString,
    /// A byte a byte of the buffer: 1 where something was written.
    written: Vec<u8>,
    /// Made when a launch may write the buffer for the first time: weights never need them.
    cells: Option<Cells>,
}

/// Zeroed memory for the runtime's records.
struct Cells {
    pointer: *mut u8,
    layout: Layout,
}

// SAFETY: the memory is owned, and only the launch that holds the lock reaches it.
unsafe impl Send for Cells {}

impl Drop for Cells {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, freed once.
        unsafe { dealloc(self.pointer, self.layout) }
    }
}

impl Cells {
    /// Pages of it exist only once they are touched.
    fn new(bytes: usize) -> Option<Cells> {
        let layout = Layout::array::<[u8; CELL_BYTES]>(bytes / 2 + 1).ok()?.align_to(8).ok()?;
        // SAFETY: the layout's size is not zero.
        let pointer = unsafe { alloc_zeroed(layout) };
        (!pointer.is_null()).then_some(Cells { pointer, layout })
    }
}

/// All live buffers of a device, in order of address.
#[derive(Clone, Default)]
pub struct Regions(Arc<Mutex<Vec<Region>>>);

impl Regions {
    fn lock(&self) -> MutexGuard<'_, Vec<Region>> {
        self.0.lock().expect("no holder of the lock panics")
    }

    /// Adds a buffer of which nothing is written.
    pub fn add(&self, start: u64, bytes: usize, name: &str) {
        let name = CString::new(name.replace('\0', "")).expect("NUL was removed");
        let mut regions = self.lock();
        let at = regions.partition_point(|region| region.start < start);
        regions.insert(at, Region { start, name, written: vec![0; bytes], cells: None });
    }

    /// Forgets the buffer that starts there.
    pub fn remove(&self, start: u64) {
        self.lock().retain(|region| region.start != start);
    }

    /// Notes that bytes of a buffer were written, other than by a kernel.
    pub fn wrote(&self, start: u64, offset: usize, bytes: usize) {
        let mut regions = self.lock();
        if let Some(region) = regions.iter_mut().find(|region| region.start == start) {
            region.written[offset..offset + bytes].fill(1);
        }
    }

    /// Calls `launch` with all buffers as the runtime takes them. `access` says what the launch may
    /// do with the buffer that starts at an address.
    pub fn with<R>(
        &self,
        access: impl Fn(u64) -> Access,
        launch: impl FnOnce(&mut [RawRegion]) -> Result<R, DeviceError>,
    ) -> Result<R, DeviceError> {
        let mut regions = self.lock();
        let mut rows = Vec::with_capacity(regions.len());
        for region in regions.iter_mut() {
            let (access, bytes) = (access(region.start), region.written.len());
            if access == Access::Write && region.cells.is_none() {
                let what = format!("the checks of {}", region.name.to_string_lossy());
                let error = DeviceError::OutOfMemory { what, bytes: bytes / 2 * CELL_BYTES };
                region.cells = Some(Cells::new(bytes).ok_or(error)?);
            }
            rows.push(RawRegion {
                start: region.start,
                bytes: bytes as u64,
                written: region.written.as_mut_ptr() as u64,
                name: region.name.as_ptr() as u64,
                cells: region.cells.as_ref().map_or(0, |cells| cells.pointer as u64),
                access: access as u64,
            });
        }
        launch(&mut rows)
    }
}
