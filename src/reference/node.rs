//! A node of llama.cpp's graph while it is computed: its values read and written.

use std::{borrow::Cow, ffi::CStr};

use llama_cpp_sys_2 as sys;

use crate::{
    core::{activity, pool, tensor::Tensor},
    graph::{
        NodeId, Op, SiteAxis, SiteSpec, Size,
        site::{Axis, Stage},
    },
};

/// ggml computes only the nodes that have this flag.
pub const COMPUTE: i32 = sys::GGML_TENSOR_FLAG_COMPUTE as i32;

/// A node of llama.cpp's graph, alive for one callback.
#[derive(Clone, Copy)]
pub struct Node(pub *mut sys::ggml_tensor);

/// Which elements of a node are read: those of a site, in the site's order.
pub struct Elements<'a> {
    pub site: &'a SiteSpec,
    pub shape: Vec<usize>,
    /// The tokens whose rows are read; `None` means all.
    pub tokens: Option<&'a [usize]>,
}

impl Elements<'_> {
    fn is_chosen(&self, token: usize) -> bool {
        self.tokens.is_none_or(|tokens| tokens.contains(&token))
    }

    /// The shape of what is read.
    pub fn read_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if let (Some(tokens), Some(rows)) = (self.tokens, shape.first_mut()) {
            *rows = tokens.len();
        }
        shape
    }
}

impl Node {
    pub fn tensor(&self) -> &sys::ggml_tensor {
        // SAFETY: llama.cpp passes a live tensor to the callback, and nodes do not outlive it.
        unsafe { &*self.0 }
    }

    pub fn name(&self) -> &str {
        let name = &self.tensor().name;
        // SAFETY: ggml NUL-terminates names within their 64 bytes.
        unsafe { CStr::from_ptr(name.as_ptr()) }.to_str().unwrap_or("")
    }

    fn op_name(&self) -> &CStr {
        // SAFETY: the tensor is live; ggml returns a static string.
        unsafe { CStr::from_ptr(sys::ggml_op_desc(self.0)) }
    }

    /// What it computes.
    pub fn op(&self) -> Op {
        Op::from(self.op_name().to_string_lossy().into_owned())
    }

    /// Whether it computes what the graph says.
    pub fn is(&self, op: &Op) -> bool {
        self.op_name().to_str() == Ok(op.name())
    }

    /// How many places for sources it has.
    pub fn sources(&self) -> usize {
        self.tensor().src.len()
    }

    /// The tensor whose memory it shows: itself, or the one that it is a view of.
    pub fn root(&self) -> Node {
        let of = self.tensor().view_src;
        if of.is_null() { *self } else { Node(of) }
    }

    /// Whether it is a weight of the model's file, or a view of one.
    pub fn is_weight(&self) -> bool {
        let buffer = self.root().tensor().buffer;
        // SAFETY: a buffer, where there is one, is live as the tensor is.
        !buffer.is_null()
            && unsafe { sys::ggml_backend_buffer_get_usage(buffer) }
                == sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS
    }

    /// The strides and the offset in its root, in bytes, that it has where its numbers are f32.
    pub fn wide_layout(&self) -> ([usize; 4], usize) {
        let tensor = self.tensor();
        // SAFETY: the tensor is live.
        let (size, block) = unsafe {
            (sys::ggml_type_size(tensor.type_), sys::ggml_blck_size(tensor.type_) as usize)
        };
        let wide = |bytes: usize| bytes / size * block * 4;
        let mut nb = tensor.nb.map(wide);
        // ggml strides along the numbers of a block by whole blocks.
        if tensor.nb[0] == size {
            nb[0] = 4;
        }
        (nb, wide(tensor.view_offs))
    }

    /// Whether it is a weight in a coarser format than f32.
    pub fn is_narrow_weight(self) -> bool {
        self.is_weight() && !self.is_integer() && !self.is_f32()
    }

    pub fn is_f32(&self) -> bool {
        self.tensor().type_ == sys::GGML_TYPE_F32
    }

    /// A source of the node.
    pub fn source(&self, index: usize) -> Option<Node> {
        let source = self.tensor().src[index];
        (!source.is_null()).then_some(Node(source))
    }

    /// Elements per axis, ggml's order.
    pub fn ne(&self) -> [usize; 4] {
        self.tensor().ne.map(|n| n as usize)
    }

    /// All of it as one site, the slowest axis first.
    pub fn whole(&self, id: NodeId) -> SiteSpec {
        let axis = |along: usize| {
            let size = Size::fixed(self.ne()[along] as i64);
            SiteAxis { axis: Axis::Element, size, along, step: 1 }
        };
        SiteSpec {
            layer: None,
            stage: Stage::Embd,
            node: id,
            reader: id,
            factor: 1.0,
            op: Op::Leaf,
            weight: None,
            inputs: Vec::new(),
            axes: (0..4).rev().map(axis).collect(),
        }
    }

    /// Whether it has the elements of a site, and they are numbers.
    pub fn has(&self, elements: &Elements<'_>) -> bool {
        let mut last = [0; 4];
        for (axis, &n) in elements.site.axes.iter().zip(&elements.shape) {
            last[axis.along] += n.saturating_sub(1) * axis.step;
        }
        let is_number = matches!(
            self.tensor().type_,
            sys::GGML_TYPE_F32
                | sys::GGML_TYPE_F16
                | sys::GGML_TYPE_BF16
                | sys::GGML_TYPE_I32
                | sys::GGML_TYPE_I64
        );
        is_number && last.iter().zip(self.ne()).all(|(&last, n)| last < n)
    }

    /// Whether its numbers are ids, not results of arithmetic.
    pub fn is_integer(&self) -> bool {
        matches!(self.tensor().type_, sys::GGML_TYPE_I32 | sys::GGML_TYPE_I64)
    }

    /// The elements of a site, times its factor. [`Node::has`] holds for them.
    pub fn read(&self, elements: &Elements<'_>) -> Tensor {
        let tensor = self.tensor();
        let raw = self.bytes();
        let shape = elements.read_shape();
        let mut values = pool::memory(shape.iter().product());
        let mut at = 0;
        self.each_run(elements, |from, length, stride| {
            let to = &mut values[at..at + length];
            at += length;
            if tensor.type_ == sys::GGML_TYPE_F32 && stride == size_of::<f32>() {
                bytemuck::cast_slice_mut(to).copy_from_slice(&raw[from..from + 4 * length]);
            } else {
                for (i, to) in to.iter_mut().enumerate() {
                    *to = number(&raw[from + i * stride..], tensor.type_);
                }
            }
        });
        if elements.site.factor != 1.0 {
            values.iter_mut().for_each(|value| *value *= elements.site.factor);
        }
        Tensor::new(shape, values)
    }

    /// Replaces the elements of a site; `values` are in its order, times its factor.
    pub fn write(&self, elements: &Elements<'_>, values: &[f32]) {
        let ggml_type = self.tensor().type_;
        let mut fetched = if self.is_here() { None } else { Some(self.bytes().into_owned()) };
        let data = fetched.as_mut().map_or(self.tensor().data.cast(), Vec::as_mut_ptr);
        let mut at = 0;
        self.each_run(elements, |from, length, stride| {
            for (i, &value) in values[at..at + length].iter().enumerate() {
                let value = value / elements.site.factor;
                // SAFETY: `has` holds for the elements, so the place lies in the tensor or its copy, which is
                // the reference's own: nothing else reads or writes it during the callback.
                unsafe { store(data.add(from + i * stride), value, ggml_type) };
            }
            at += length;
        });
        if let Some(bytes) = fetched {
            // SAFETY: the tensor is live, and has as many bytes.
            activity::their_turn(|| unsafe {
                sys::ggml_backend_tensor_set(self.0, bytes.as_ptr().cast(), 0, bytes.len());
            });
        }
    }

    /// Whether it lies in this process's memory, and not in a server's.
    fn is_here(&self) -> bool {
        let buffer = self.root().tensor().buffer;
        // SAFETY: a buffer, where there is one, is live as the tensor is.
        buffer.is_null() || unsafe { sys::ggml_backend_buffer_is_host(buffer) }
    }

    /// The bytes from its first element to its last, fetched where a server has them.
    fn bytes(&self) -> Cow<'_, [u8]> {
        // SAFETY: the tensor is live.
        let length = unsafe { sys::ggml_nbytes(self.0) };
        if self.is_here() {
            // SAFETY: the computed tensor's span of bytes lies at `data` until the next node is computed, which is
            // after the callback.
            return unsafe { std::slice::from_raw_parts(self.tensor().data.cast(), length) }.into();
        }
        let mut bytes = vec![0; length];
        // SAFETY: the tensor is live, and has as many bytes.
        activity::their_turn(|| unsafe {
            sys::ggml_backend_tensor_get(self.0, bytes.as_mut_ptr().cast(), 0, length);
        });
        bytes.into()
    }

    /// Calls `of` with the first byte, the elements and the stride of each run along the last axis.
    fn each_run(&self, elements: &Elements<'_>, mut of: impl FnMut(usize, usize, usize)) {
        let nb = self.tensor().nb;
        let strides: Vec<usize> =
            elements.site.axes.iter().map(|axis| axis.step * nb[axis.along]).collect();
        let Some((&length, outer)) = elements.shape.split_last() else { return };
        let last = strides[outer.len()];
        let mut index = vec![0; outer.len()];
        for _ in 0..outer.iter().product::<usize>() {
            let chosen = index.first().is_none_or(|&token| elements.is_chosen(token));
            if chosen && length > 0 {
                of(index.iter().zip(&strides).map(|(i, stride)| i * stride).sum(), length, last);
            }
            for (i, &n) in index.iter_mut().zip(outer).rev() {
                *i += 1;
                if *i < n {
                    break;
                }
                *i = 0;
            }
        }
    }
}

/// The number that begins there.
fn number(bytes: &[u8], ggml_type: sys::ggml_type) -> f32 {
    fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
        *bytes.first_chunk().expect("an element lies within its tensor")
    }
    match ggml_type {
        sys::GGML_TYPE_F16 => half::f16::from_le_bytes(first(bytes)).to_f32(),
        sys::GGML_TYPE_BF16 => half::bf16::from_le_bytes(first(bytes)).to_f32(),
        sys::GGML_TYPE_I32 => i32::from_le_bytes(first(bytes)) as f32,
        sys::GGML_TYPE_I64 => i64::from_le_bytes(first(bytes)) as f32,
        _ => f32::from_le_bytes(first(bytes)),
    }
}

/// Stores a number.
///
/// # Safety
/// An element of that type may be written there.
unsafe fn store(to: *mut u8, value: f32, ggml_type: sys::ggml_type) {
    // SAFETY: as the caller promises; no alignment is asked for.
    unsafe {
        match ggml_type {
            sys::GGML_TYPE_F16 => {
                to.cast::<[u8; 2]>().write_unaligned(half::f16::from_f32(value).to_le_bytes());
            }
            sys::GGML_TYPE_BF16 => {
                to.cast::<[u8; 2]>().write_unaligned(half::bf16::from_f32(value).to_le_bytes());
            }
            sys::GGML_TYPE_I32 => {
                to.cast::<[u8; 4]>().write_unaligned((value as i32).to_le_bytes());
            }
            sys::GGML_TYPE_I64 => {
                to.cast::<[u8; 8]>().write_unaligned((value as i64).to_le_bytes());
            }
            _ => to.cast::<[u8; 4]>().write_unaligned(value.to_le_bytes()),
        }
    }
}
