//! f32 arithmetic from the file as it is: weights are widened a few rows at a time, while llama.cpp's graph is at
//! them.
//!
//! On an f16 or quantised file ggml rounds activations to match the weights, which moves the tensors a thousand
//! times further than f32 rounding does. So llama.cpp is told to skip its products with such weights, and they are
//! computed here: a block of rows is widened, which is exact, and ggml multiplies it in f32. A block stays in the
//! cache of a core, and each core has blocks of its own, so that nothing waits.

use std::{
    collections::BTreeMap,
    ffi::c_void,
    ptr::NonNull,
    sync::{Mutex, PoisonError},
};

use llama_cpp_sys_2 as sys;
use rayon::prelude::*;

use super::{
    node::{COMPUTE, Node},
    threads::Threads,
};
use crate::graph::Op;

/// Elements of a block at most: 1 MB of f32.
const BLOCK: usize = 1 << 18;
/// Rows of a block come in multiples of this, so that ggml's tiles are as they are in the whole.
const ROWS: usize = 16;
/// Bytes for the description of a block's small graph.
const DESCRIPTIONS: usize = 1 << 16;

/// Computes what a graph makes of weights that are not f32.
pub struct Widening {
    pool: rayon::ThreadPool,
    /// One for each thread of the pool.
    workers: Vec<Mutex<Worker>>,
    changed: Option<Changed>,
}

// SAFETY: the nodes that it has changed are of a context that moves with it.
unsafe impl Send for Widening {}

/// A node that is computed otherwise than llama.cpp would: as it was before.
enum Changed {
    /// Skipped by llama.cpp.
    Product(*mut sys::ggml_tensor),
    /// Reads widened weights: the source's place, the source, and what stands for it.
    Reads(*mut sys::ggml_tensor, Vec<(usize, *mut sys::ggml_tensor, Box<Whole>)>),
}

/// A whole weight in f32.
struct Whole {
    tensor: sys::ggml_tensor,
    _values: Vec<f32>,
}

/// A weight, (rows, inputs) of any type; rows are dense, and lie `stride` bytes apart.
#[derive(Clone, Copy)]
struct Matrix {
    ggml_type: sys::ggml_type,
    data: *mut c_void,
    inputs: usize,
    rows: usize,
    stride: usize,
}

/// f32 numbers, ggml's order of axes; the strides are in bytes, and the first is 4.
#[derive(Clone, Copy)]
struct Dense {
    data: *mut c_void,
    ne: [usize; 4],
    nb: [usize; 4],
}

/// A block of a weight, and what is wanted of it.
struct Task {
    rows: Matrix,
    wanted: Wanted,
}

enum Wanted {
    /// The block itself.
    Wide(*mut c_void),
    /// What it gives of these inputs, and where.
    Product(Dense, Dense),
}

// SAFETY: tasks read memory that nobody writes meanwhile, and write to places of their own.
unsafe impl Send for Task {}
// SAFETY: as above.
unsafe impl Sync for Task {}

impl Widening {
    /// With so many threads; `None` where there is no memory for that.
    pub fn new(threads: usize) -> Option<Widening> {
        let workers = (0..threads).map(|_| Worker::new().map(Mutex::new)).collect::<Option<_>>()?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().ok()?;
        Some(Widening { pool, workers, changed: None })
    }

    /// Prepares a node that llama.cpp is about to compute; whether it is one that reads a weight which is not f32.
    /// What it was before it is again after [`Widening::compute`] or [`Widening::put_back`].
    ///
    /// # Errors
    /// In words, where a weight cannot be widened.
    pub fn prepare(&mut self, node: Node, op: &Op) -> Result<bool, String> {
        self.put_back();
        let is_narrow = |place: &usize| node.source(*place).is_some_and(Node::is_narrow_weight);
        let tensor = node.0;
        let is_product =
            matches!(op, Op::MulMat | Op::MulMatId) && node.source(1).is_some_and(|x| x.is_f32());
        if is_product && is_narrow(&0) {
            // SAFETY: llama.cpp passes a live node, which nobody reads meanwhile.
            unsafe { (*tensor).flags &= !COMPUTE };
            self.changed = Some(Changed::Product(tensor));
            return Ok(true);
        }
        // Nothing is computed, or rows are widened as they are looked up.
        let is_exact =
            matches!(op, Op::View | Op::Reshape | Op::Permute | Op::Transpose | Op::GetRows);
        let narrow = (0..node.sources()).filter(is_narrow).filter(|_| !is_exact);
        let mut sources = Vec::new();
        for place in narrow {
            let source = node.source(place).expect("it was there above");
            sources.push((place, source.0, Box::new(self.whole(source)?)));
        }
        if sources.is_empty() {
            return Ok(false);
        }
        // SAFETY: as above; what stands for the sources lives until they are put back.
        unsafe {
            for (place, _, whole) in &mut sources {
                (*tensor).src[*place] = &raw mut whole.tensor;
            }
        }
        self.changed = Some(Changed::Reads(tensor, sources));
        Ok(true)
    }

    /// Computes a node that was prepared, once llama.cpp has computed what it reads.
    ///
    /// # Errors
    /// In words, where ggml fails.
    pub fn compute(&mut self, node: Node, op: &Op) -> Result<(), String> {
        let is_skipped = matches!(self.changed, Some(Changed::Product(tensor)) if tensor == node.0);
        self.put_back();
        match op {
            Op::MulMat if is_skipped => self.product(node),
            Op::MulMatId if is_skipped => self.product_of_experts(node),
            _ => Ok(()),
        }
    }

    /// Makes the prepared node what it was.
    pub fn put_back(&mut self) {
        // SAFETY: the node belongs to the context's graph, which lives as long as the context.
        unsafe {
            match self.changed.take() {
                None => {}
                Some(Changed::Product(tensor)) => (*tensor).flags |= COMPUTE,
                Some(Changed::Reads(tensor, sources)) => {
                    for (place, source, _) in sources {
                        (*tensor).src[place] = source;
                    }
                }
            }
        }
    }

    /// A product with a weight, each of whose planes may multiply several of the inputs'.
    fn product(&self, node: Node) -> Result<(), String> {
        let [weight, x] = sources(node)?;
        let (w, x, y) = (weight.tensor(), Dense::of(x), Dense::of(node));
        let [inner, outer] = [2, 3].map(|axis| w.ne[axis] as usize);
        let share = [x.ne[2] / inner, x.ne[3] / outer];
        let (threads, mut tasks) = (self.workers.len(), Vec::new());
        for plane in 0..inner * outer {
            let at = [plane % inner, plane / inner];
            let matrix = Matrix::of(weight, at[0] * w.nb[2] + at[1] * w.nb[3]);
            matrix.multiplies(x.part(at, share), y.part(at, share), threads, &mut tasks);
        }
        self.run(&tasks)
    }

    /// A product of each token with the experts that it chose, expert by expert.
    fn product_of_experts(&self, node: Node) -> Result<(), String> {
        let [weight, x, ids] = sources(node)?;
        let (x, y) = (Dense::of(x), Dense::of(node));
        let mut chosen: BTreeMap<usize, Vec<[usize; 2]>> = BTreeMap::new();
        for token in 0..ids.ne()[1] {
            for slot in 0..ids.ne()[0] {
                let (nb, data) = (ids.tensor().nb, ids.tensor().data);
                let place = data.wrapping_byte_add(slot * nb[0] + token * nb[1]);
                // SAFETY: the place is one of the live tensor's, which holds 32-bit integers.
                let id = unsafe { place.cast::<i32>().read() };
                let expert = usize::try_from(id).ok().filter(|&id| id < weight.ne()[2]);
                let expert =
                    expert.ok_or_else(|| format!("{} chooses expert {id}", node.name()))?;
                chosen.entry(expert).or_default().push([slot, token]);
            }
        }
        let [inputs, rows, ..] = weight.ne();
        // One row of inputs may be every expert's.
        let from = chosen.values().flatten().map(|&[slot, token]| x.row(slot % x.ne[1], token));
        let mut from: Vec<f32> = from.flatten().copied().collect();
        let mut to = vec![0f32; from.len() / inputs * rows];
        // Experts are many: each is one block, as far as that fits.
        let threads = self.workers.len().div_ceil(chosen.len().max(1));
        let (mut tasks, mut first) = (Vec::new(), 0);
        for (&expert, own) in &chosen {
            let of = |values: &mut [f32], width: usize| {
                Dense::rows(&mut values[first * width..][..own.len() * width], width)
            };
            let matrix = Matrix::of(weight, expert * weight.tensor().nb[2]);
            matrix.multiplies(of(&mut from, inputs), of(&mut to, rows), threads, &mut tasks);
            first += own.len();
        }
        self.run(&tasks)?;
        for (&[slot, token], row) in chosen.values().flatten().zip(to.chunks_exact(rows)) {
            y.set_row(slot, token, row);
        }
        Ok(())
    }

    /// All of a weight in f32, as a source of a node.
    fn whole(&self, source: Node) -> Result<Whole, String> {
        let root = source.root();
        let mut values = vec![0f32; root.ne().iter().product()];
        let (inputs, rows) = (root.ne()[0], root.ne()[1..].iter().product());
        let (to, matrix) = (values.as_mut_ptr(), Matrix { rows, ..Matrix::of(root, 0) });
        let task = |(first, rows): (usize, Matrix)| Task {
            rows,
            wanted: Wanted::Wide(to.wrapping_add(first * inputs).cast()),
        };
        self.run(&matrix.blocks(self.workers.len()).map(task).collect::<Vec<_>>())?;
        let (nb, offset) = source.wide_layout();
        let tensor = sys::ggml_tensor {
            type_: sys::GGML_TYPE_F32,
            nb,
            data: to.wrapping_byte_add(offset).cast(),
            view_src: std::ptr::null_mut(),
            buffer: std::ptr::null_mut(),
            ..*source.tensor()
        };
        Ok(Whole { tensor, _values: values })
    }

    fn run(&self, tasks: &[Task]) -> Result<(), String> {
        let one = |worker: &Mutex<Worker>, task: &Task| {
            worker.lock().unwrap_or_else(PoisonError::into_inner).run(task)
        };
        let workers = &self.workers[..];
        if let [worker] = workers {
            return tasks.iter().try_for_each(|task| one(worker, task));
        }
        let worker = || &workers[rayon::current_thread_index().expect("a thread of the pool")];
        self.pool.install(|| tasks.par_iter().try_for_each(|task| one(worker(), task)))
    }
}

/// The first sources of a product.
fn sources<const N: usize>(node: Node) -> Result<[Node; N], String> {
    let sources: Option<Vec<Node>> = (0..N).map(|place| node.source(place)).collect();
    let sources = sources.and_then(|sources| sources.try_into().ok());
    sources.ok_or_else(|| format!("{} lacks a source", node.name()))
}

/// What one thread computes with.
struct Worker {
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
    fn new() -> Option<Worker> {
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

    /// Widens a block, and multiplies something by it.
    fn run(&mut self, task: &Task) -> Result<(), String> {
        let Task { rows: w, wanted } = task;
        let known = self.places.len();
        self.places.extend(known as i32..w.rows as i32);
        let block = match wanted {
            Wanted::Wide(to) => *to,
            Wanted::Product(..) => {
                self.block.resize(self.block.len().max(w.rows * w.inputs), 0.0);
                self.block.as_mut_ptr().cast()
            }
        };
        let params = sys::ggml_init_params {
            mem_size: DESCRIPTIONS,
            mem_buffer: self.descriptions.as_mut_ptr().cast(),
            no_alloc: true,
        };
        // SAFETY: the descriptions have room for a graph of two nodes; all data lies in live memory of the sizes
        // that are given, and nothing keeps a pointer to it when the graph is computed.
        let status = unsafe {
            let context = sys::ggml_init(params);
            let [inputs, rows] = [w.inputs, w.rows].map(|n| n as i64);
            let weight = sys::ggml_new_tensor_2d(context, w.ggml_type, inputs, rows);
            let plane = w.stride * w.rows;
            (*weight).data = w.data;
            (*weight).nb = [(*weight).nb[0], w.stride, plane, plane];
            let places = sys::ggml_new_tensor_1d(context, sys::GGML_TYPE_I32, rows);
            (*places).data = self.places.as_mut_ptr().cast();
            let wide = sys::ggml_get_rows(context, weight, places);
            (*wide).data = block;
            let last = match wanted {
                Wanted::Wide(_) => wide,
                Wanted::Product(x, y) => {
                    let [n0, n1, n2, n3] = x.ne.map(|n| n as i64);
                    let from = sys::ggml_new_tensor_4d(context, sys::GGML_TYPE_F32, n0, n1, n2, n3);
                    ((*from).data, (*from).nb) = (x.data, x.nb);
                    let to = sys::ggml_mul_mat(context, wide, from);
                    ((*to).data, (*to).nb) = (y.data, y.nb);
                    to
                }
            };
            let graph = sys::ggml_new_graph_custom(context, 16, false);
            sys::ggml_build_forward_expand(graph, last);
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
    fn of(weight: Node, offset: usize) -> Matrix {
        let tensor = weight.tensor();
        let [inputs, rows, ..] = weight.ne();
        let data = tensor.data.wrapping_byte_add(offset);
        Matrix { ggml_type: tensor.type_, data, inputs, rows, stride: tensor.nb[1] }
    }

    /// Its blocks of rows, each with its first row: one for each thread at least, where there are enough.
    fn blocks(self, threads: usize) -> impl Iterator<Item = (usize, Matrix)> {
        let fits = BLOCK / self.inputs.max(1) / ROWS * ROWS;
        let share = self.rows.div_ceil(threads).next_multiple_of(ROWS);
        let most = fits.min(share).max(ROWS);
        (0..self.rows).step_by(most).map(move |first| {
            let data = self.data.wrapping_byte_add(first * self.stride);
            (first, Matrix { data, rows: most.min(self.rows - first), ..self })
        })
    }

    /// Adds the tasks of y = x wT.
    fn multiplies(self, x: Dense, y: Dense, threads: usize, tasks: &mut Vec<Task>) {
        tasks.extend(self.blocks(threads).map(|(first, rows)| {
            let data = y.data.wrapping_byte_add(4 * first);
            let to = Dense { data, ne: [rows.rows, y.ne[1], y.ne[2], y.ne[3]], ..y };
            Task { rows, wanted: Wanted::Product(x, to) }
        }));
    }
}

impl Dense {
    fn of(node: Node) -> Dense {
        let tensor = node.tensor();
        Dense { data: tensor.data, ne: node.ne(), nb: tensor.nb }
    }

    /// Rows of numbers.
    fn rows(values: &mut [f32], width: usize) -> Dense {
        let (n, size) = (values.len() / width.max(1), 4 * values.len());
        let nb = [4, 4 * width, size, size];
        Dense { data: values.as_mut_ptr().cast(), ne: [width, n, 1, 1], nb }
    }

    /// So many planes along the last two axes, from these multiples of them on.
    fn part(self, at: [usize; 2], share: [usize; 2]) -> Dense {
        let offset = at[0] * share[0] * self.nb[2] + at[1] * share[1] * self.nb[3];
        let ne = [self.ne[0], self.ne[1], share[0], share[1]];
        Dense { data: self.data.wrapping_byte_add(offset), ne, ..self }
    }

    fn start(&self, i: usize, plane: usize) -> *mut f32 {
        self.data.wrapping_byte_add(i * self.nb[1] + plane * self.nb[2]).cast()
    }

    fn row(&self, i: usize, plane: usize) -> &[f32] {
        // SAFETY: the row is one of a live tensor's, dense along its first axis.
        unsafe { std::slice::from_raw_parts(self.start(i, plane), self.ne[0]) }
    }

    fn set_row(&self, i: usize, plane: usize, values: &[f32]) {
        // SAFETY: as above; nothing else writes to the tensor.
        unsafe { self.start(i, plane).copy_from_nonoverlapping(values.as_ptr(), self.ne[0]) }
    }
}
