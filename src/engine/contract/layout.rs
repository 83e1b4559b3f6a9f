//! Tensors in another order of their axes.

use crate::engine::contract::op::Axis;

/// Where the elements of a tensor lie: each axis with its extent and stride, in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout(pub Vec<(Axis, usize, usize)>);

impl Layout {
    /// Elements one after another, the last axis fastest.
    pub fn packed(axes: &[Axis], extent: &dyn Fn(Axis) -> usize) -> Layout {
        let mut stride = 1;
        let mut all = Vec::with_capacity(axes.len());
        for &axis in axes.iter().rev() {
            all.push((axis, extent(axis), stride));
            stride *= extent(axis);
        }
        all.reverse();
        Layout(all)
    }

    /// Elements from the first to the last.
    pub fn elements(&self) -> usize {
        self.0.iter().map(|(_, extent, _)| extent).product()
    }

    /// The layout without axes of a single element, which order nothing.
    fn essence(&self) -> Vec<(Axis, usize, usize)> {
        self.0.iter().copied().filter(|&(_, extent, _)| extent > 1).collect()
    }

    /// Whether every element lies in the same place.
    pub fn is_same_as(&self, other: &Layout) -> bool {
        let (mut own, mut other) = (self.essence(), other.essence());
        own.sort_by_key(|&(_, _, stride)| stride);
        other.sort_by_key(|&(_, _, stride)| stride);
        own == other
    }

    fn stride(&self, axis: Axis) -> usize {
        self.0.iter().find(|(own, ..)| *own == axis).map_or(0, |&(_, _, stride)| stride)
    }
}

/// One tensor's memory.
pub struct From<'a>(pub &'a [u8], pub &'a Layout);
pub struct To<'a>(pub &'a mut [u8], pub &'a Layout);

/// Copies every element that both layouts have, `size` bytes each, from one to the other. Head h of
/// `to` is head `heads[h]` of `from`, where heads are given.
pub fn rearrange(from: &From<'_>, to: &mut To<'_>, size: usize, heads: Option<&[usize]>) {
    let axes: Vec<(Axis, usize)> =
        to.1.0
            .iter()
            .map(|&(axis, extent, _)| {
                let other = from.1.0.iter().find(|(own, ..)| *own == axis);
                (axis, other.map_or(1, |&(_, other, _)| extent.min(other)))
            })
            .collect();
    let Some(&(last, run)) = axes.last() else { return };
    let outer = &axes[..axes.len() - 1];
    let rows: usize = outer.iter().map(|(_, extent)| extent).product();
    let (from_step, to_step) = (from.1.stride(last), to.1.stride(last));
    for row in 0..rows {
        let (mut rest, mut from_at, mut to_at) = (row, 0, 0);
        for &(axis, extent) in outer.iter().rev() {
            let index = rest % extent;
            rest /= extent;
            let source = match heads {
                Some(heads) if axis == Axis::Head => heads[index],
                _ => index,
            };
            from_at += source * from.1.stride(axis);
            to_at += index * to.1.stride(axis);
        }
        if from_step == 1 && to_step == 1 {
            let bytes = &from.0[from_at * size..(from_at + run) * size];
            to.0[to_at * size..(to_at + run) * size].copy_from_slice(bytes);
            continue;
        }
        for index in 0..run {
            let source = match heads {
                Some(heads) if last == Axis::Head => heads[index],
                _ => index,
            };
            let (a, b) = ((from_at + source * from_step) * size, (to_at + index * to_step) * size);
            to.0[b..b + size].copy_from_slice(&from.0[a..a + size]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2 heads of 3 positions of 2 dims, of which a cache has room for `positions`.
    fn layout(axes: [Axis; 3], positions: usize) -> Layout {
        Layout::packed(&axes, &|axis| match axis {
            Axis::Position => positions,
            _ => 2,
        })
    }

    const OWN: [Axis; 3] = [Axis::Head, Axis::Position, Axis::Dim];
    const OTHER: [Axis; 3] = [Axis::Position, Axis::Head, Axis::Dim];
    const DIM_FIRST: [Axis; 3] = [Axis::Dim, Axis::Head, Axis::Position];

    #[test]
    fn an_element_keeps_its_indices_in_any_order_of_the_axes() {
        // Each element says its own head, position and dim.
        let own = layout(OWN, 4);
        let bytes: Vec<u8> = (0..16).map(|i| (i / 8) * 100 + (i / 2 % 4) * 10 + i % 2).collect();
        for (axes, wanted) in [
            (OTHER, [0, 1, 100, 101, 10, 11, 110, 111, 20, 21, 120, 121]),
            (DIM_FIRST, [0, 10, 20, 100, 110, 120, 1, 11, 21, 101, 111, 121]),
        ] {
            let other = layout(axes, 3);
            let mut there = vec![0xff; other.elements()];
            rearrange(&From(&bytes, &own), &mut To(&mut there, &other), 1, None);
            assert_eq!(there, wanted);
            let mut back = bytes.clone();
            back[2] = 99;
            rearrange(&From(&there, &other), &mut To(&mut back, &own), 1, None);
            assert_eq!(back, bytes, "and back, position 3 as it was");
        }
    }

    #[test]
    fn heads_move_as_they_are_told_to() {
        let own = layout(OWN, 1);
        let mut to = vec![0; 4];
        rearrange(&From(&[1, 2, 3, 4], &own), &mut To(&mut to, &own), 1, Some(&[1, 0]));
        assert_eq!(to, [3, 4, 1, 2]);
    }

    #[test]
    fn axes_of_one_element_do_not_make_another_layout() {
        let one = |axes: [Axis; 3]| layout(axes, 1);
        assert!(one(OWN).is_same_as(&one(OTHER)));
        assert!(!layout(OWN, 4).is_same_as(&layout(OTHER, 4)));
        assert!(!layout(OWN, 4).is_same_as(&layout(OWN, 3)), "another stride");
    }
}
