//! f32 arithmetic from the file as it is: weights are widened a few rows at a time, while llama.cpp's graph is at
//! them.
//!
//! On an f16 or quantised file ggml rounds activations to match the weights, which moves the tensors a thousand
//! times further than f32 rounding does. So llama.cpp is told to skip its products with such weights, and they are
//! computed here: a block of rows is widened, which is exact, and ggml multiplies it in f32. A block stays in the
//! cache of a core, and each core has blocks of its own, so that nothing waits. Sessions that run side by side share
//! the blocks.

mod block;
mod together;

use std::{collections::BTreeMap, sync::Arc};

use llama_cpp_sys_2 as sys;

use self::{
    block::{Dense, Matrix, Task},
    together::Together,
};
use super::node::{COMPUTE, Node};
use crate::graph::Op;

/// Computes what a session's graph makes of weights that are not f32.
pub struct Widening {
    together: Arc<Together>,
    changed: Option<Changed>,
}

// SAFETY: the nodes that it has changed are of a context that moves with it.
unsafe impl Send for Widening {}

impl Drop for Widening {
    fn drop(&mut self) {
        self.together.leave();
    }
}

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

impl Widening {
    /// One for each of some sessions that run the same steps at the same time, on threads that they share. Each must be
    /// dropped where its session ends: the others wait for it.
    pub fn of_each(sessions: usize, threads: usize) -> Option<Vec<Widening>> {
        let together = Arc::new(Together::new(sessions, threads)?);
        let one = |_| Widening { together: Arc::clone(&together), changed: None };
        Some((0..sessions).map(one).collect())
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
        let is_skipped = self.skips(node);
        self.put_back();
        match op {
            Op::MulMat if is_skipped => self.product(node),
            Op::MulMatId if is_skipped => self.product_of_experts(node),
            _ => Ok(()),
        }
    }

    /// Whether llama.cpp was told to skip a node.
    fn skips(&self, node: Node) -> bool {
        matches!(self.changed, Some(Changed::Product(tensor)) if tensor == node.0)
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
        let (threads, mut tasks) = (self.together.threads(), Vec::new());
        for plane in 0..inner * outer {
            let at = [plane % inner, plane / inner];
            let matrix = Matrix::of(weight, at[0] * w.nb[2] + at[1] * w.nb[3]);
            matrix.multiplies(x.part(at, share), y.part(at, share), threads, &mut tasks);
        }
        self.together.product(tasks)
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
        let threads = self.together.threads().div_ceil(chosen.len().max(1));
        let (mut tasks, mut first) = (Vec::new(), 0);
        for (&expert, own) in &chosen {
            let of = |values: &mut [f32], width: usize| {
                Dense::rows(&mut values[first * width..][..own.len() * width], width)
            };
            let matrix = Matrix::of(weight, expert * weight.tensor().nb[2]);
            matrix.multiplies(of(&mut from, inputs), of(&mut to, rows), threads, &mut tasks);
            first += own.len();
        }
        self.together.product(tasks)?;
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
        let (to, matrix) = (values.as_mut_ptr(), Matrix::of(root, 0).with_rows(rows));
        let blocks = matrix.blocks(self.together.threads());
        let task = |(first, rows)| Task::widens(rows, to.wrapping_add(first * inputs));
        self.together.run(&blocks.map(task).collect::<Vec<_>>())?;
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
}

/// The first sources of a product.
fn sources<const N: usize>(node: Node) -> Result<[Node; N], String> {
    let sources: Option<Vec<Node>> = (0..N).map(|place| node.source(place)).collect();
    let sources = sources.and_then(|sources| sources.try_into().ok());
    sources.ok_or_else(|| format!("{} lacks a source", node.name()))
}
