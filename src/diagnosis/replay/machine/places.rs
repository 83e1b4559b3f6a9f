//! Where a window's elements lie.

use crate::graph::Sizes;

/// Where the elements of a window lie in its root.
pub struct Places {
    ne: [usize; 4],
    /// In elements.
    strides: [usize; 4],
    first: usize,
}

impl Places {
    /// `None` of blocks of elements.
    pub fn of(element: Option<usize>, sizes: &Sizes) -> Option<Places> {
        let element = element?;
        let strides = sizes.nb.map(|bytes| bytes / element);
        Some(Places { ne: sizes.ne, strides, first: sizes.offset / element })
    }

    pub fn place(&self, index: [usize; 4]) -> usize {
        self.first + index.iter().zip(&self.strides).map(|(i, stride)| i * stride).sum::<usize>()
    }

    /// Calls `of` with the place of each element, in ggml's order.
    pub fn each(&self, mut of: impl FnMut(usize)) {
        let [n0, n1, n2, n3] = self.ne;
        for i3 in 0..n3 {
            for i2 in 0..n2 {
                for i1 in 0..n1 {
                    let row = self.place([0, i1, i2, i3]);
                    (0..n0).for_each(|i0| of(row + i0 * self.strides[0]));
                }
            }
        }
    }

    /// The elements, dense; zero where the root has none.
    pub fn gathered(&self, values: &[f64]) -> Vec<f64> {
        let mut dense = Vec::with_capacity(self.ne.iter().product());
        let [n0, n1, n2, n3] = self.ne;
        for i3 in 0..n3 {
            for i2 in 0..n2 {
                for i1 in 0..n1 {
                    let row = self.place([0, i1, i2, i3]);
                    match values.get(row..row + n0).filter(|_| self.strides[0] == 1) {
                        Some(run) => dense.extend_from_slice(run),
                        None => dense.extend((0..n0).map(|i0| {
                            values.get(row + i0 * self.strides[0]).copied().unwrap_or(0.0)
                        })),
                    }
                }
            }
        }
        dense
    }
}
