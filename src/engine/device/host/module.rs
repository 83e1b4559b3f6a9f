//! A loaded library: several copies of it, so that blocks of a grid run in parallel.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_void},
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use libloading::os::unix::{Library as Loaded, RTLD_LOCAL, RTLD_NOW};
use serde::{Deserialize, Serialize};

use crate::{
    core::{
        activity::{self, Foreign},
        files,
    },
    engine::device::{
        Arg, DeviceError, Launch,
        host::{
            compile::Library,
            lines::with_lines,
            regions::{Access, RawRegion, Regions},
        },
    },
};

/// The order in which the threads of a block take turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ThreadOrder {
    #[default]
    Forward,
    Reverse,
    /// Warps and lanes in a random order of that seed.
    Random(u64),
}

/// CUDA's limits, which the host device keeps to.
const MAX_THREADS: u64 = 1024;
const MAX_BLOCK_Z: u32 = 64;
const MAX_GRID: [u64; 3] = [0x7fff_ffff, 65535, 65535];
/// Dynamic shared memory of the largest current GPUs; the engine asks for more than 48 KiB.
const MAX_SHARED: u32 = 227 << 10;

/// A launch of fewer threads runs on the caller's thread: waking others would cost more. Of more, so many
/// threads for each copy.
const PARALLEL_THREADS: u64 = 2048;
const COPY_THREADS: u64 = 1024;
/// Shares of a grid per worker: small enough to balance, large enough to cost little.
const SHARES: u64 = 4;

/// Launches so far, from 1: what happened in an earlier one is past, whatever library it ran in.
static LAUNCHES: AtomicU64 = AtomicU64::new(1);

#[repr(C)]
struct RawEntry {
    name: *const c_char,
    invoke: unsafe extern "C" fn(*mut *mut c_void),
    signature: *const c_char,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawLaunch {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    order: u32,
    seed: u64,
    first_block: u64,
    end_block: u64,
    /// In a checked build: a number of its own, and address and number of the device's buffers.
    number: u64,
    regions: u64,
    n_regions: u64,
}

type Run = unsafe extern "C" fn(
    *const c_char,
    unsafe extern "C" fn(*mut *mut c_void),
    *const RawLaunch,
    *mut *mut c_void,
    *mut c_char,
    usize,
) -> i32;

type HasVariables = unsafe extern "C" fn() -> i32;

/// An entry as every copy of the library has it.
struct Entry {
    file: String,
    name: CString,
    /// A letter a parameter: p pointer, c pointer to const, t pointer to pointers, i and l integers,
    /// f and d floats.
    signature: String,
}

/// One copy of the library: one block at a time.
struct Copy {
    run: Run,
    invokes: HashMap<String, unsafe extern "C" fn(*mut *mut c_void)>,
    /// What is loaded, for source lines.
    path: PathBuf,
    /// The kernels' files.
    files: String,
    library: Option<Loaded>,
}

impl Drop for Copy {
    fn drop(&mut self) {
        let doing = "what runs when the kernels are unloaded";
        let _running = activity::running(Foreign::Kernel, &self.files, doing);
        drop(self.library.take());
    }
}

/// A loaded library.
pub struct Module {
    copies: Vec<Mutex<Copy>>,
    entries: HashMap<String, Entry>,
    order: ThreadOrder,
    /// The device's buffers, in a checked build.
    regions: Option<Regions>,
}

impl Module {
    /// Loads `workers` copies of a library, one alone if it has `__device__` variables.
    pub fn load(
        library: &Library,
        workers: usize,
        order: ThreadOrder,
        regions: Option<Regions>,
    ) -> Result<Module, DeviceError> {
        let mut entries = HashMap::new();
        let mut copies = Vec::new();
        let files: Vec<&str> = library.tables.iter().map(|(file, _)| file.as_str()).collect();
        let files = files.join(", ");
        let mut workers = workers.max(1);
        while copies.len() < workers {
            let doing = "what runs when the kernels are loaded";
            let running = activity::running(Foreign::Kernel, &files, doing);
            let loaded = open(library)?;
            drop(running);
            let mut invokes = HashMap::new();
            for (file, table) in &library.tables {
                for (entry, invoke) in read_table(&loaded, file, table)? {
                    let name = entry.name.to_string_lossy().into_owned();
                    invokes.insert(name.clone(), invoke);
                    entries.insert(name, entry);
                }
            }
            // SAFETY: the runtime, built with this crate, exports the function with this type.
            let run = unsafe { loaded.get::<Run>(b"cuda_host_run\0") }.map_err(load_error)?;
            // Each copy has variables of its own: blocks on several copies would share none.
            // SAFETY: as above.
            let has_variables = unsafe { loaded.get::<HasVariables>(b"cuda_host_has_variables\0") };
            // SAFETY: it reads two addresses.
            if unsafe { has_variables.map_err(load_error)?() } != 0 {
                workers = 1;
            }
            let path = library.path.clone();
            let run = *run;
            let (files, library) = (files.clone(), Some(loaded));
            copies.push(Mutex::new(Copy { run, invokes, path, files, library }));
        }
        Ok(Module { copies, entries, order, regions })
    }

    /// The names of all entries, sorted.
    pub fn entry_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.entries.keys().cloned().collect();
        names.sort();
        names
    }

    /// The names of a file's entries.
    pub fn entries_of(&self, file: &str) -> Vec<String> {
        let of_file = self.entries.iter().filter(|(_, entry)| entry.file == file);
        of_file.map(|(name, _)| name.clone()).collect()
    }

    /// Runs a grid. Blocks run in parallel where there is enough to do.
    pub fn launch(&self, name: &str, launch: Launch, args: &[Arg<'_>]) -> Result<(), DeviceError> {
        let entry = self.entries.get(name).ok_or_else(|| DeviceError::NoEntry {
            entry: name.to_string(),
            known: self.entry_names().join(", "),
        })?;
        check_arguments(name, entry, args)?;
        let (blocks, threads) = check_limits(name, launch)?;
        let slots: Vec<u64> = args.iter().map(Arg::bits).collect();
        let (order, seed) = match self.order {
            ThreadOrder::Forward => (0, 0),
            ThreadOrder::Reverse => (1, 0),
            ThreadOrder::Random(seed) => (2, seed),
        };
        let raw = RawLaunch {
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            order,
            seed,
            first_block: 0,
            end_block: blocks,
            number: LAUNCHES.fetch_add(1, Ordering::Relaxed),
            regions: 0,
            n_regions: 0,
        };
        if let Some(regions) = &self.regions {
            return regions.with(
                |start| access(entry, args, start),
                |rows: &mut [RawRegion]| {
                    let (regions, n_regions) = (rows.as_mut_ptr() as u64, rows.len() as u64);
                    let raw = RawLaunch { regions, n_regions, ..raw };
                    self.copies[0].lock().expect("a copy never panics").run(entry, raw, &slots)
                },
            );
        }
        if self.copies.len() == 1 || blocks == 1 || blocks * threads < PARALLEL_THREADS {
            return self.copies[0].lock().expect("a copy never panics").run(entry, raw, &slots);
        }
        let copies = self.copies.len().min((blocks * threads / COPY_THREADS) as usize);
        let share = (blocks / (copies as u64 * SHARES)).max(1);
        let next = AtomicU64::new(0);
        let place = activity::saved_place();
        let run = |copy: &Mutex<Copy>| {
            activity::with_place(place);
            let copy = copy.lock().expect("a copy never panics");
            loop {
                let first_block = next.fetch_add(share, Ordering::Relaxed);
                if first_block >= blocks {
                    return Ok(());
                }
                let end_block = (first_block + share).min(blocks);
                copy.run(entry, RawLaunch { first_block, end_block, ..raw }, &slots)?;
            }
        };
        // The caller's thread has a share too.
        let others = Mutex::new(Ok(()));
        let own = rayon::in_place_scope(|scope| {
            for copy in &self.copies[1..copies] {
                scope.spawn(|_| {
                    if let Err(error) = run(copy) {
                        *others.lock().expect("nothing panics with it") = Err(error);
                    }
                });
            }
            run(&self.copies[0])
        });
        own.and(others.into_inner().expect("nothing panics with it"))
    }
}

impl Copy {
    fn run(&self, entry: &Entry, launch: RawLaunch, slots: &[u64]) -> Result<(), DeviceError> {
        let name = entry.name.to_string_lossy();
        let invoke = self.invokes[name.as_ref()];
        let running = activity::running(Foreign::Kernel, &entry.file, &name);
        let mut pointers: Vec<*mut c_void> =
            slots.iter().map(|slot| std::ptr::from_ref(slot).cast_mut().cast()).collect();
        let mut error = [0u8; 1024];
        // SAFETY: the argument kinds were checked against the entry's signature; buffers outlive
        // the launch, for the caller borrows them. A kernel that writes outside its buffers breaks
        // this, as it would on a GPU.
        let code = unsafe {
            let (message, size) = (error.as_mut_ptr().cast(), error.len());
            let arguments = pointers.as_mut_ptr();
            (self.run)(entry.name.as_ptr(), invoke, &launch, arguments, message, size)
        };
        drop(running);
        activity::after_kernel();
        if code == 0 {
            return Ok(());
        }
        let message = CStr::from_bytes_until_nul(&error).unwrap_or_default();
        let message = with_lines(&self.path, &message.to_string_lossy());
        let file = entry.file.clone();
        Err(DeviceError::Kernel { file, message })
    }
}

fn open(library: &Library) -> Result<Loaded, DeviceError> {
    if library.in_place {
        // SAFETY: as below.
        let loaded = unsafe { Loaded::open(Some(&library.path), RTLD_NOW | RTLD_LOCAL) };
        return loaded.map_err(load_error);
    }
    // The loader gives the same handle for the same file, so every copy is a file of its own.
    let copy = files::temporary_beside(&library.path).map_err(load_error)?;
    std::fs::copy(&library.path, copy.path()).map_err(load_error)?;
    // SAFETY: the library was built by this crate's own recipe; loading it runs no code of ours.
    unsafe { Loaded::open(Some(copy.path()), RTLD_NOW | RTLD_LOCAL) }.map_err(load_error)
}

fn read_table(
    loaded: &Loaded,
    file: &str,
    table: &str,
) -> Result<Vec<(Entry, unsafe extern "C" fn(*mut *mut c_void))>, DeviceError> {
    let symbol = CString::new(table).expect("a table's name has no NUL");
    let mut entries = Vec::new();
    // SAFETY: the wrapper of each kernel file exports its table under this name: entries with
    // static strings, ended by one whose name is null.
    unsafe {
        let first =
            loaded.get::<*const RawEntry>(symbol.as_bytes_with_nul()).map_err(load_error)?;
        let mut entry = first.into_raw().cast::<RawEntry>();
        while !(*entry).name.is_null() {
            let name = CStr::from_ptr((*entry).name).to_owned();
            let signature = CStr::from_ptr((*entry).signature).to_string_lossy().into_owned();
            entries.push((Entry { file: file.to_string(), name, signature }, (*entry).invoke));
            entry = entry.add(1);
        }
    }
    Ok(entries)
}

fn load_error(error: impl std::fmt::Display) -> DeviceError {
    DeviceError::Tool { tool: "the loader".to_string(), detail: error.to_string() }
}

fn letter(arg: &Arg<'_>) -> char {
    match arg {
        Arg::Buffer(..) | Arg::Address(_) | Arg::Null => 'p',
        Arg::I32(_) => 'i',
        Arg::I64(_) => 'l',
        Arg::F32(_) => 'f',
    }
}

fn check_arguments(name: &str, entry: &Entry, args: &[Arg<'_>]) -> Result<(), DeviceError> {
    let given: String = args.iter().map(letter).collect();
    let takes = entry.signature.replace(['c', 't'], "p");
    if given == takes {
        return Ok(());
    }
    let words = |letters: &str| {
        let word = |letter: char| match letter {
            'p' => "pointer",
            'i' => "int",
            'l' => "long",
            'f' => "float",
            'd' => "double",
            _ => "something else",
        };
        letters.chars().map(word).collect::<Vec<_>>().join(", ")
    };
    Err(DeviceError::Arguments {
        file: entry.file.clone(),
        entry: name.to_string(),
        takes: words(&takes),
        given: words(&given),
    })
}

/// What a launch may do with the buffer that starts at an address, by the parameters it is given for.
fn access(entry: &Entry, args: &[Arg<'_>], start: u64) -> Access {
    // A buffer can hold the addresses of any others.
    let least = if entry.signature.contains('t') { Access::Write } else { Access::None };
    let of_letter = |(arg, letter): (&Arg<'_>, char)| match arg {
        Arg::Buffer(buffer, _) if buffer.address != start => None,
        Arg::Buffer(..) if letter == 'c' => Some(Access::Read),
        Arg::Buffer(..) => Some(Access::Write),
        _ => None,
    };
    let given = args.iter().zip(entry.signature.chars()).filter_map(of_letter).max();
    given.map_or(least, |given| given.max(least))
}

/// Blocks of the grid and threads of a block, if CUDA would run them.
fn check_limits(name: &str, launch: Launch) -> Result<(u64, u64), DeviceError> {
    let product = |sizes: [u32; 3]| sizes.iter().map(|&n| u64::from(n)).product::<u64>();
    let (blocks, threads) = (product(launch.grid), product(launch.block));
    let failed = |detail: String| DeviceError::Launch { entry: name.to_string(), detail };
    if threads == 0 || threads > MAX_THREADS || launch.block[2] > MAX_BLOCK_Z {
        return Err(failed(format!("block {:?} is not 1 to 1024 threads", launch.block)));
    }
    let too_large = launch.grid.iter().zip(MAX_GRID).any(|(&n, max)| n == 0 || u64::from(n) > max);
    if too_large {
        return Err(failed(format!("grid {:?} is outside CUDA's limits", launch.grid)));
    }
    if launch.shared_bytes > MAX_SHARED {
        let wanted = launch.shared_bytes;
        return Err(failed(format!(
            "{wanted} bytes of dynamic shared memory, more than {MAX_SHARED}; shorten the prompt \
             or use softmax=online"
        )));
    }
    Ok((blocks, threads))
}
