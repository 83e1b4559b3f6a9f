//! Values that only move: copies, rows taken or set, parts joined, repeated or cut.

use super::{
    Argument, Call, Op, Values,
    place::{index, place, repeated, row_of},
};
use crate::{
    diagnosis::replay::{Expected, Matrix},
    model::gguf::GgufError,
};

/// Where an element of a result comes from.
enum Origin {
    /// An element of a source.
    Of {
        source: usize,
        element: usize,
    },
    Constant(f64),
}

/// The result of an operation that only moves values.
pub fn compute(call: &Call<'_, '_>) -> Result<Expected<'static>, GgufError> {
    let (ne, params) = (call.ne, call.params);
    match call.op {
        Op::GetRows => rows_taken(call),
        Op::SetRows => rows_set(call),
        Op::Set => part_set(call),
        Op::Concat => concatenated(call),
        Op::Repeat => {
            let of = call.argument(0).ne;
            gathered(call, |i| Origin::Of { source: 0, element: repeated(ne, of, i) })
        }
        Op::Pad => padded(call),
        Op::Roll => rolled(call),
        Op::Tri => {
            let kept: fn(usize, usize) -> bool = match params.int(0) {
                0 => |column, row| column >= row,
                1 => |column, row| column > row,
                2 => |column, row| column <= row,
                _ => |column, row| column < row,
            };
            let of = |i| {
                let [column, row, ..] = place(ne, i);
                if kept(column, row) { Some(i) } else { None }
            };
            gathered(call, |i| element_or_zero(of(i)))
        }
        Op::Diag => {
            let of = |i| {
                let [column, row, i2, i3] = place(ne, i);
                (column == row).then(|| index([ne[0], 1, ne[2], ne[3]], [column, 0, i2, i3]))
            };
            gathered(call, |i| element_or_zero(of(i)))
        }
        Op::Fill => gathered(call, |_| Origin::Constant(f64::from(params.float(0)))),
        Op::Arange => Ok(arange(call)),
        _ => gathered(call, |i| Origin::Of { source: 0, element: i }),
    }
}

fn element_or_zero(element: Option<usize>) -> Origin {
    element.map_or(Origin::Constant(0.0), |element| Origin::Of { source: 0, element })
}

/// The result, each element from where `origin` says.
fn gathered(
    call: &Call<'_, '_>,
    origin: impl Fn(usize) -> Origin,
) -> Result<Expected<'static>, GgufError> {
    let sources = [call.optional(0), call.optional(1)];
    let values = sources.map(|source| source.map(Argument::value).transpose());
    let [first, second] = values;
    let values = [first?.unwrap_or_default(), second?.unwrap_or_default()];
    let value = |i| match origin(i) {
        Origin::Of { source, element } => values[source][element],
        Origin::Constant(constant) => constant,
    };
    let spread = |i| match origin(i) {
        Origin::Of { source, element } => {
            sources[source].map_or(0.0, |source| source.spread_of(element))
        }
        Origin::Constant(_) => 0.0,
    };
    let elements = 0..call.elements();
    let uncertain = call.is_uncertain().then(|| elements.clone().map(spread).collect());
    Ok(call.exact(elements.map(value).collect(), uncertain))
}

/// start + step i: a product and a sum are rounded.
fn arange(call: &Call<'_, '_>) -> Expected<'static> {
    let (start, step) = (f64::from(call.params.float(0)), f64::from(call.params.float(2)));
    let terms = |i: usize| (start, step * i as f64);
    let value = (0..call.elements()).map(terms).map(|(start, more)| start + more).collect();
    let single = (0..call.elements()).map(terms);
    let single = single.map(|(start, more)| call.rounding.sum * (start.abs() + 2.0 * more.abs()));
    Expected { single: single.collect(), ..call.exact(value, None) }
}

/// Along one axis, the first source and then the second.
fn concatenated(call: &Call<'_, '_>) -> Result<Expected<'static>, GgufError> {
    let axis = (call.params.int(0).max(0) as usize).min(3);
    let (first, second) = (call.argument(0).ne, call.argument(1).ne);
    gathered(call, |i| {
        let mut at = place(call.ne, i);
        if at[axis] < first[axis] {
            return Origin::Of { source: 0, element: index(first, at) };
        }
        at[axis] -= first[axis];
        Origin::Of { source: 1, element: index(second, at) }
    })
}

/// Zeros, or the other end of the source, before and after it along each axis.
fn padded(call: &Call<'_, '_>) -> Result<Expected<'static>, GgufError> {
    let (of, params) = (call.argument(0).ne, call.params);
    let is_circular = params.int(8) != 0;
    gathered(call, |i| {
        let at = place(call.ne, i);
        let from: [i64; 4] =
            std::array::from_fn(|axis| at[axis] as i64 - i64::from(params.int(2 * axis)));
        let inside = (0..4).all(|axis| (0..of[axis] as i64).contains(&from[axis]));
        let wrapped = |axis: usize| from[axis].rem_euclid(of[axis] as i64) as usize;
        let element = || index(of, std::array::from_fn(wrapped));
        element_or_zero((inside || is_circular).then(element))
    })
}

/// Each axis turned by a number of elements.
fn rolled(call: &Call<'_, '_>) -> Result<Expected<'static>, GgufError> {
    let (ne, params) = (call.ne, call.params);
    gathered(call, |i| {
        let at = place(ne, i);
        let turned = |axis: usize| {
            let from = at[axis] as i64 - i64::from(params.int(axis));
            from.rem_euclid(ne[axis] as i64) as usize
        };
        Origin::Of { source: 0, element: index(ne, std::array::from_fn(turned)) }
    })
}

/// Rows of src0 by the ids of src1 (ids, b1, b2), whose axes b1 and b2 go with src0's last two.
fn rows_taken(call: &Call<'_, '_>) -> Result<Expected<'static>, GgufError> {
    let (table, ids) = (call.argument(0), call.argument(1));
    let (ne, width) = (table.ne, table.ne[0]);
    let row_of_id = |(at, &id): (usize, &f64)| {
        let [_, b1, b2, _] = place(ids.ne, at);
        let row = row_of(id, ne[1])?;
        Some((b2 % ne[3] * ne[2] + b1 % ne[2]) * ne[1] + row)
    };
    let rows: Vec<Option<usize>> = ids.value()?.iter().enumerate().map(row_of_id).collect();
    match &table.values {
        Values::Weight(matrix) => weight_rows(call, matrix, &rows),
        Values::Dense { .. } => gathered_rows(call, width, &rows),
    }
}

fn gathered_rows(
    call: &Call<'_, '_>,
    width: usize,
    rows: &[Option<usize>],
) -> Result<Expected<'static>, GgufError> {
    let table = call.argument(0);
    let values = table.value()?;
    let part = |from: &[f64], unknown: f64| {
        let mut out = Vec::with_capacity(rows.len() * width);
        for row in rows {
            match row {
                Some(row) => out.extend_from_slice(&from[row * width..(row + 1) * width]),
                None => out.resize(out.len() + width, unknown),
            }
        }
        out
    };
    let spread = table.spread().map(|spread| part(spread, 0.0));
    Ok(call.exact(part(&values, f64::NAN), spread))
}

/// Quantised rows are widened in f32, by a few roundings.
fn weight_rows(
    call: &Call<'_, '_>,
    matrix: &Matrix<'_>,
    rows: &[Option<usize>],
) -> Result<Expected<'static>, GgufError> {
    let mut value = Vec::with_capacity(rows.len() * matrix.inputs);
    for row in rows {
        match row {
            Some(row) => value.extend(matrix.row(*row)?.into_iter().map(f64::from)),
            None => value.resize(value.len() + matrix.inputs, f64::NAN),
        }
    }
    let single = value.iter().map(|y: &f64| call.rounding.sum * y.abs()).collect();
    Ok(Expected { single, ..call.exact(value, None) })
}

/// src2 with some of its rows replaced: those that src1's ids name, by the rows of src0.
fn rows_set(call: &Call<'_, '_>) -> Result<Expected<'static>, GgufError> {
    let (rows, ids, target) = (call.argument(0), call.argument(1), call.argument(2));
    let (ne, width) = (call.ne, call.ne[0]);
    let mut value = target.value()?.into_owned();
    let mut spread = call.is_uncertain().then(|| match target.spread() {
        Some(spread) => spread.to_vec(),
        None => vec![0.0; value.len()],
    });
    let (from, names) = (rows.value()?, ids.value()?);
    for row in 0..rows.rows() {
        let [i1, i2, i3, _] = place([rows.ne[1], rows.ne[2], rows.ne[3], 1], row);
        let name = names[index(ids.ne, [i1, i2 % ids.ne[1], i3 % ids.ne[2], 0])];
        let Some(to) = row_of(name, ne[1]) else { continue };
        let to = index(ne, [0, to, i2, i3]);
        value[to..to + width].copy_from_slice(&from[row * width..(row + 1) * width]);
        for (i, spread) in spread.iter_mut().flat_map(|all| &mut all[to..to + width]).enumerate() {
            *spread = rows.spread_of(row * width + i);
        }
    }
    Ok(call.exact(value, spread))
}

/// src0 with a part replaced by src1; the part's strides and offset are in bytes of four an element.
fn part_set(call: &Call<'_, '_>) -> Result<Expected<'static>, GgufError> {
    const ELEMENT: usize = 4;
    let (whole, part) = (call.argument(0), call.argument(1));
    let elements = |param: usize| call.params.int(param).max(0) as usize / ELEMENT;
    let (strides, offset) = ([1, elements(0), elements(1), elements(2)], elements(3));
    let mut value = whole.value()?.into_owned();
    let mut spread = call.is_uncertain().then(|| match whole.spread() {
        Some(spread) => spread.to_vec(),
        None => vec![0.0; value.len()],
    });
    for (i, &element) in part.value()?.iter().enumerate() {
        let at = place(part.ne, i);
        let to = offset + (0..4).map(|axis| at[axis] * strides[axis]).sum::<usize>();
        value[to] = element;
        if let Some(spread) = &mut spread {
            spread[to] = part.spread_of(i);
        }
    }
    Ok(call.exact(value, spread))
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Given, Node},
        *,
    };

    fn counted(ne: [usize; 4]) -> Given {
        Given::of(ne, (1..=ne.iter().product()).map(|i| i as f64).collect())
    }

    #[test]
    fn rows_that_are_set_are_the_rows_that_are_taken() {
        let table = Given::random([3, 7, 2, 5], 1).uncertain(1e-3);
        let rows = Given::random([3, 2, 2, 5], 2);
        let ids = Given::of([2, 1, 5, 1], vec![6.0, 0.0, 1.0, 2.0, 3.0, 1.0, 5.0, 4.0, 2.0, 0.0]);
        let set = Node::new(Op::SetRows, table.ne);
        let set = set.compute(&[rows.clone(), ids.clone(), table.clone()]);
        let filled = Given::of(table.ne, set.value.clone());
        let shared = |i: usize| ids.value[i / 4 * 2 + i % 2];
        let all = Given::of([2, 2, 5, 1], (0..20).map(shared).collect());
        assert_eq!(Node::new(Op::GetRows, rows.ne).value(&[filled, all]), rows.value);
        let changed = set.value.iter().zip(&table.value).filter(|(a, b)| a != b).count();
        assert_eq!(changed, rows.value.len());
        for (i, value) in set.value.iter().enumerate() {
            assert_eq!(set.most_spread(i) > 0.0, *value == table.value[i], "{i}");
        }
    }

    #[test]
    fn rows_of_a_weight_are_those_of_a_tensor_and_unknown_ids_give_nothing() {
        let table = Given::random([5, 4, 1, 1], 3);
        let ids = Given::of([3, 1, 1, 1], vec![3.0, 4.0, 0.0]);
        let node = Node::new(Op::GetRows, [5, 3, 1, 1]);
        let dense = node.value(&[table.clone(), ids.clone()]);
        let of_weight = node.value(&[table.clone().weight(), ids]);
        assert_eq!(dense[..5], table.value[15..]);
        assert!(dense[5..10].iter().all(|x| x.is_nan()));
        assert_eq!(dense[10..], table.value[..5]);
        assert_eq!(format!("{dense:?}"), format!("{of_weight:?}"));
    }

    #[test]
    fn a_part_is_set_where_its_strides_say() {
        let (whole, part) = (counted([4, 3, 1, 1]), Given::of([2, 2, 1, 1], vec![-1.0; 4]));
        let node = Node::new(Op::Set, whole.ne).int(0, 16).int(1, 48).int(2, 48).int(3, 20);
        let expected = [1., 2., 3., 4., 5., -1., -1., 8., 9., -1., -1., 12.];
        assert_eq!(node.value(&[whole, part]), expected);
    }

    #[test]
    fn parts_are_joined_along_any_axis_and_repeated() {
        for axis in 0..4 {
            let (mut first, mut second) = ([2, 3, 1, 2], [2, 3, 1, 2]);
            (first[axis], second[axis]) = (3, 1);
            let mut ne = first;
            ne[axis] = 4;
            let sources = [Given::random(first, 4), Given::random(second, 5)];
            let joined = Node::new(Op::Concat, ne).int(0, axis as i32).value(&sources);
            for (i, value) in joined.iter().enumerate() {
                let mut at = place(ne, i);
                let source = usize::from(at[axis] >= 3);
                at[axis] -= 3 * source;
                assert_eq!(*value, sources[source].value[index(sources[source].ne, at)]);
            }
        }
        let row = Node::new(Op::Repeat, [4, 2, 1, 1]).value(&[counted([2, 1, 1, 1])]);
        assert_eq!(row, [1., 2., 1., 2., 1., 2., 1., 2.]);
    }

    #[test]
    fn rows_are_padded_turned_cut_and_filled() {
        let row = counted([3, 1, 1, 1]);
        let padded = Node::new(Op::Pad, [6, 1, 1, 1]).int(0, 1).int(1, 2);
        assert_eq!(padded.value(std::slice::from_ref(&row)), [0., 1., 2., 3., 0., 0.]);
        assert_eq!(padded.int(8, 1).value(std::slice::from_ref(&row)), [3., 1., 2., 3., 1., 2.]);
        let turned = Node::new(Op::Roll, row.ne).int(0, 1);
        assert_eq!(turned.value(std::slice::from_ref(&row)), [3., 1., 2.]);
        assert_eq!(turned.int(0, -1).value(std::slice::from_ref(&row)), [2., 3., 1.]);
        let diagonal = Node::new(Op::Diag, [3, 3, 1, 1]).value(&[row]);
        assert_eq!(diagonal, [1., 0., 0., 0., 2., 0., 0., 0., 3.]);
        let square = counted([2, 2, 1, 1]);
        let kept = [[1., 2., 0., 4.], [0., 2., 0., 0.], [1., 0., 3., 4.], [0., 0., 3., 0.]];
        for (kind, expected) in kept.into_iter().enumerate() {
            let node = Node::new(Op::Tri, square.ne).int(0, kind as i32);
            assert_eq!(node.value(std::slice::from_ref(&square)), expected);
        }
        let filled = Node::new(Op::Fill, [3, 1, 1, 1]).float(0, 0.5);
        assert_eq!(filled.value(&[]), [0.5; 3]);
        let range = Node::new(Op::Arange, [3, 1, 1, 1]).float(0, 1.0).float(2, 0.5);
        assert_eq!(range.value(&[]), [1.0, 1.5, 2.0]);
    }
}
