//! Memory of large tensors that are done with, to be filled again. A side that runs over millions of
//! values makes the same tensors for every layer, and touching fresh pages costs more than the values.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex},
};

use crate::core::tensor::Tensor;

/// Smaller tensors are the allocator's business.
const LEAST_ELEMENTS: usize = 1 << 14;
/// At most this many elements are kept: 1 GiB, most of which nothing has touched.
const MOST_ELEMENTS: usize = 1 << 28;

#[derive(Default)]
struct Kept {
    /// By capacity, a power of two.
    free: HashMap<usize, Vec<Vec<f32>>>,
    elements: usize,
}

static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);

/// `n` values of any content: kept memory, or new.
pub fn memory(n: usize) -> Vec<f32> {
    if n < LEAST_ELEMENTS {
        return vec![0.0; n];
    }
    let capacity = n.next_power_of_two();
    let mut kept = KEPT.lock().expect("no thread panics while it holds kept memory");
    let found = kept.free.get_mut(&capacity).and_then(Vec::pop);
    if found.is_some() {
        kept.elements -= capacity;
    }
    drop(kept);
    // New memory is zero without being touched, so that who fills it touches its pages, on all cores.
    let mut values = found.unwrap_or_else(|| vec![0.0; capacity]);
    values.resize(n, 0.0);
    values
}

/// Keeps the memory of a tensor that is done with.
pub fn done(tensor: Tensor) {
    let (values, capacity) = (tensor.data.len(), tensor.data.capacity());
    if values < LEAST_ELEMENTS || !capacity.is_power_of_two() {
        return;
    }
    let mut kept = KEPT.lock().expect("no thread panics while it holds kept memory");
    if kept.elements + capacity <= MOST_ELEMENTS {
        kept.elements += capacity;
        kept.free.entry(capacity).or_default().push(tensor.data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_tensor_that_is_done_with_is_used_again() {
        // A capacity that no other test of the process uses.
        let n = (1 << 20) - 3;
        let mut values = memory(n);
        assert_eq!(values.len(), n);
        values[n - 1] = 7.0;
        let address = values.as_ptr();
        done(Tensor::new([n], values));
        let longer = memory(n + 2);
        assert_eq!((longer.as_ptr(), longer.len(), longer[n]), (address, n + 2, 0.0));
        let other = memory(n);
        assert_ne!(other.as_ptr(), address, "it is in use");
        let small = Tensor::new([3], memory(3));
        done(small);
    }
}
