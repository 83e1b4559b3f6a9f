//! A cache as memory that tokens write into one after another, and what each of them finds there.

use std::collections::HashMap;

/// A step that appends.
#[derive(Clone, Copy)]
pub struct Step {
    pub index: u32,
    /// Position of its first token, and positions in the cache after it.
    pub first: usize,
    pub length: usize,
}

/// Where (head, position) of a step is written, as a linear slot; `None` where it is not.
pub type Slot<'f> = &'f dyn Fn(usize, usize, Step) -> Option<usize>;

/// When a query reads a cache.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Before its own row is appended, which it has beside the cache.
    Before,
    /// The same while its row is appended: what is in the slots written just then, nobody knows.
    During,
    /// After that.
    After,
}

/// What was written where, and when.
pub struct Written {
    heads: usize,
    dim: usize,
    /// The row of each position.
    rows: Vec<Vec<f64>>,
    /// The position and head of each write of a slot, in order.
    writes: HashMap<usize, Vec<(usize, usize)>>,
}

impl Written {
    /// The rows of each step, of that many heads and dims, written to these slots.
    pub fn new(
        (heads, dim): (usize, usize),
        rows_of_steps: &[Vec<f64>],
        steps: &[Step],
        slot: Slot<'_>,
    ) -> Written {
        let (mut rows, mut writes) = (Vec::new(), HashMap::<usize, Vec<(usize, usize)>>::new());
        for (&step, own) in steps.iter().zip(rows_of_steps) {
            for (position, row) in (step.first..step.length).zip(own.chunks_exact(heads * dim)) {
                rows.push(row.to_vec());
                for head in 0..heads {
                    if let Some(slot) = slot(head, position, step) {
                        writes.entry(slot).or_default().push((position, head));
                    }
                }
            }
        }
        Written { heads, dim, rows, writes }
    }

    /// A cache of `length` positions (P, Hk, D) as the query of a position finds it at a time: slot (head,
    /// position) of it lies at `at` in the memory. What follows the query it does not see.
    pub fn read(
        &self,
        (position, when): (usize, When),
        length: usize,
        at: &dyn Fn(usize, usize) -> usize,
    ) -> Vec<f64> {
        let (dim, width) = (self.dim, self.heads * self.dim);
        let mut value = vec![0.0; length * width];
        for (slot, row) in value.chunks_exact_mut(width).take(position + 1).enumerate() {
            for (head, to) in row.chunks_exact_mut(dim).enumerate() {
                let Some(writes) = self.writes.get(&at(head, slot)) else { continue };
                let last_of = |end: usize| {
                    let before = writes.partition_point(|(at, _)| *at < end);
                    before.checked_sub(1).map(|last| writes[last])
                };
                let (before, after) = (last_of(position), last_of(position + 1));
                match if when == When::After { after } else { before } {
                    _ if when == When::During && before != after => to.fill(f64::NAN),
                    Some((at, from)) => {
                        to.copy_from_slice(&self.rows[at][from * dim..(from + 1) * dim]);
                    }
                    None => {}
                }
            }
        }
        if when != When::After {
            value[position * width..(position + 1) * width].copy_from_slice(&self.rows[position]);
        }
        value
    }
}
