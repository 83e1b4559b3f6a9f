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
