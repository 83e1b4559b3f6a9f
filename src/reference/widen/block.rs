//! Blocks of a weight's rows, and the thread that widens one and multiplies by it.

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::c_void,
    ptr::NonNull,
};

use llama_cpp_sys_2 as sys;

use crate::reference::{node::Node, threads::Threads};

/// Elements of a block at most: 1 MB of f32.
const BLOCK: usize = 1 << 18;
/// Rows of a block come in multiples of this, so that ggml's tiles are as they are in the whole.
const ROWS: usize = 16;
/// Bytes for the description of a block's small graphs.
const DESCRIPTIONS: usize = 1 << 16;

/// A weight, (rows, inputs) of any type; rows are dense, and lie `stride` bytes apart.
#[derive(Clone, Copy)]
pub struct Matrix {
    ggml_type: sys::ggml_type,
    data: *mut c_void,
    inputs: usize,
    rows: usize,
    stride: usize,
}

/// f32 numbers, ggml's order of axes; the strides are in bytes, and the first is 4.
#[derive(Clone, Copy)]
pub struct Dense {
    data: *mut c_void,
    pub ne: [usize; 4],
    nb: [usize; 4],
}

/// A block of a weight, and what is wanted of it.
pub struct Task {
    rows: Matrix,
    wanted: Wanted,
}

enum Wanted {
    /// The block itself.
    Wide(*mut c_void),
    /// What it gives of some inputs, and where.
    Products(Vec<(Dense, Dense)>),
}

// SAFETY: tasks read memory that nobody writes meanwhile, and write to places of their own.
unsafe impl Send for Task {}
// SAFETY: as above.
unsafe impl Sync for Task {}

impl Task {
    /// Widens rows to that place.
    pub fn widens(rows: Matrix, to: *mut f32) -> Task {
        Task { rows, wanted: Wanted::Wide(to.cast()) }
    }

    /// The same tasks with one for each block: its products together.
    pub fn by_block(tasks: Vec<Task>) -> Vec<Task> {
        let mut blocks: Vec<Task> = Vec::with_capacity(tasks.len());
        let mut places = HashMap::new();
        for task in tasks {
            let Wanted::Products(own) = &task.wanted else {
                blocks.push(task);
                continue;
            };
            match places.entry((task.rows.data, task.rows.rows)) {
                Entry::Vacant(place) => {
                    place.insert(blocks.len());
                    blocks.push(task);
                }
                Entry::Occupied(place) => {
                    if let Wanted::Products(products) = &mut blocks[*place.get()].wanted {
                        products.extend(own);
                    }
                }
            }
        }
        blocks
    }
}

/// What one thread computes with.
pub struct Worker {
    /// Dropped before its thread.
    backend: NonNull<sys::ggml_backend>,
    _thread: Threads,
    descriptions: Vec<u64>,
    /// A block of a weight.
    block: Vec<f32>,
    /// The numbers of its rows.
    places: Vec<i32>,
}

// SAFETY: a backend is tied to no thread.
unsafe impl Send for Worker {}

impl Worker {
    pub fn new() -> Option<Worker> {
        let thread = Threads::new(1)?;
        // SAFETY: the backend is ours until it is dropped, before its thread.
        let backend = unsafe {
            let backend = NonNull::new(sys::ggml_backend_cpu_init())?;
            sys::ggml_backend_cpu_set_n_threads(backend.as_ptr(), 1);
            sys::ggml_backend_cpu_set_threadpool(backend.as_ptr(), thread.pool());
            backend
        };
        Some(Worker {
            backend,
            _thread: thread,
            descriptions: vec![0; DESCRIPTIONS / 8],
            block: Vec::new(),
            places: Vec::new(),
        })
    }

    /// Widens a block, and multiplies what is to be multiplied by it.
    pub fn run(&mut self, task: &Task) -> Result<(), String> {
        let Task { rows: w, wanted } = task;
        let known = self.places.len();
        self.places.extend(known as i32..w.rows as i32);
        let block: *mut c_void = match wanted {
            Wanted::Wide(to) => *to,
            Wanted::Products(_) => {
                self.block.resize(self.block.len().max(w.rows * w.inputs), 0.0);
                self.block.as_mut_ptr().cast()
            }
        };
        let places = self.places.as_mut_ptr().cast();
        let [inputs, rows] = [w.inputs, w.rows].map(|n| n as i64);
        // SAFETY: all data lies in live memory of the sizes that are given.
        self.compute(|context| unsafe {
            let weight = sys::ggml_new_tensor_2d(context, w.ggml_type, inputs, rows);
            let plane = w.stride * w.rows;
            (*weight).data = w.data;
            (*weight).nb = [(*weight).nb[0], w.stride, plane, plane];
            let numbers = sys::ggml_new_tensor_1d(context, sys::GGML_TYPE_I32, rows);
            (*numbers).data = places;
            let wide = sys::ggml_get_rows(context, weight, numbers);
            (*wide).data = block;
            wide
        })?;
        let Wanted::Products(products) = wanted else { return Ok(()) };
        products.iter().try_for_each(|(x, y)| {
            // SAFETY: as above; the block is widened.
            self.compute(|context| unsafe {
                let wide = sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_F32, inputs, rows);
                (*wide).data = block;
                let [n0, n1, n2, n3] = x.ne.map(|n| n as i64);
                let from = sys::ggml_new_tensor_4d(context, sys::GGML_TYPE_F32, n0, n1, n2, n3);
                ((*from).data, (*from).nb) = (x.data, x.nb);
                let to = sys::ggml_mul_mat(context, wide, from);
                ((*to).data, (*to).nb) = (y.data, y.nb);
                to
            })
        })
    }

    /// Computes the node that is described.
    fn compute(
        &mut self,
        describe: impl FnOnce(*mut sys::ggml_context) -> *mut sys::ggml_tensor,
    ) -> Result<(), String> {
        let params = sys::ggml_init_params {
            mem_size: DESCRIPTIONS,
            mem_buffer: self.descriptions.as_mut_ptr().cast(),
            no_alloc: true,
        };
        // SAFETY: the descriptions have room for a graph of one node, and nothing keeps a pointer to them when it is
        // computed.
        let status = unsafe {
            let context = sys::ggml_init(params);
            let node = describe(context);
            let graph = sys::ggml_new_graph_custom(context, 16, false);
            sys::ggml_build_forward_expand(graph, node);
            let status = sys::ggml_backend_graph_compute(self.backend.as_ptr(), graph);
            sys::ggml_free(context);
            status
        };
        match status {
            sys::GGML_STATUS_SUCCESS => Ok(()),
            code => Err(format!("ggml cannot widen a weight (code {code})")),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once.
        unsafe { sys::ggml_backend_free(self.backend.as_ptr()) }
    }
}

impl Matrix {
    /// The matrix of a weight that begins so many bytes behind its first.
    pub fn of(weight: Node, offset: usize) -> Matrix {
        let tensor = weight.tensor();
        let [inputs, rows, ..] = weight.ne();
        let data = tensor.data.wrapping_byte_add(offset);
        Matrix { ggml_type: tensor.type_, data, inputs, rows, stride: tensor.nb[1] }
    }

    /// The same with so many rows.
    pub fn with_rows(self, rows: usize) -> Matrix {
        Matrix { rows, ..self }
    }

    /// Its blocks of rows, each with its first row: one for each thread at least, where there are enough.
    pub fn blocks(self, threads: usize) -> impl Iterator<Item = (usize, Matrix)> {
        let fits = BLOCK / self.inputs.max(1) / ROWS * ROWS;
        let share = self.rows.div_ceil(threads).next_multiple_of(ROWS);
        let most = fits.min(share).max(ROWS);
        (0..self.rows).step_by(most).map(move |first| {
            let data = self.data.wrapping_byte_add(first * self.stride);
            (first, Matrix { data, rows: most.min(self.rows - first), ..self })
        })
    }

    /// Adds the tasks of y = x wT.
    pub fn multiplies(self, x: Dense, y: Dense, threads: usize, tasks: &mut Vec<Task>) {
        tasks.extend(self.blocks(threads).map(|(first, rows)| {
            let data = y.data.wrapping_byte_add(4 * first);
            let to = Dense { data, ne: [rows.rows, y.ne[1], y.ne[2], y.ne[3]], ..y };
            Task { rows, wanted: Wanted::Products(vec![(x, to)]) }
        }));
    }
}

impl Dense {
    pub fn of(node: Node) -> Dense {
        let tensor = node.tensor();
        Dense { data: tensor.data, ne: node.ne(), nb: tensor.nb }
    }

    /// Rows of numbers.
    pub fn rows(values: &mut [f32], width: usize) -> Dense {
        let (n, size) = (values.len() / width.max(1), 4 * values.len());
        let nb = [4, 4 * width, size, size];
        Dense { data: values.as_mut_ptr().cast(), ne: [width, n, 1, 1], nb }
    }

    /// So many planes along the last two axes, from these multiples of them on.
    pub fn part(self, at: [usize; 2], share: [usize; 2]) -> Dense {
        let offset = at[0] * share[0] * self.nb[2] + at[1] * share[1] * self.nb[3];
        let ne = [self.ne[0], self.ne[1], share[0], share[1]];
        Dense { data: self.data.wrapping_byte_add(offset), ne, ..self }
    }

    fn start(&self, i: usize, plane: usize) -> *mut f32 {
        self.data.wrapping_byte_add(i * self.nb[1] + plane * self.nb[2]).cast()
    }

    pub fn row(&self, i: usize, plane: usize) -> &[f32] {
        // SAFETY: the row is one of a live tensor's, dense along its first axis.
        unsafe { std::slice::from_raw_parts(self.start(i, plane), self.ne[0]) }
    }

    pub fn set_row(&self, i: usize, plane: usize, values: &[f32]) {
        // SAFETY: as above; nothing else writes to the tensor.
        unsafe { self.start(i, plane).copy_from_nonoverlapping(values.as_ptr(), self.ne[0]) }
    }
}
