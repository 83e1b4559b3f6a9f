//! Where an element of a dense tensor is.

/// The place of an element along each axis.
pub fn place(ne: [usize; 4], index: usize) -> [usize; 4] {
    let (row, i0) = (index / ne[0], index % ne[0]);
    let (plane, i1) = (row / ne[1], row % ne[1]);
    [i0, i1, plane % ne[2], plane / ne[2]]
}

/// The element at a place.
pub fn index(ne: [usize; 4], place: [usize; 4]) -> usize {
    ((place[3] * ne[2] + place[2]) * ne[1] + place[1]) * ne[0] + place[0]
}

/// The element of a tensor of `of` elements along each axis, repeated to fill one of `ne`, that an
/// element of the latter is.
pub fn repeated(ne: [usize; 4], of: [usize; 4], element: usize) -> usize {
    if ne == of {
        return element;
    }
    let at = place(ne, element);
    index(of, std::array::from_fn(|axis| at[axis] % of[axis]))
}

/// An id as a row of `rows`; `None` where no row has it.
pub fn row_of(id: f64, rows: usize) -> Option<usize> {
    (id >= 0.0 && id < rows as f64).then_some(id as usize)
}
