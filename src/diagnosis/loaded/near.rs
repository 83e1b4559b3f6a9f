//! A weight that is near the file's everywhere and nowhere the same: quantised anew, or as it was before the file's
//! quantisation.

use super::{
    Found,
    order::{Regrouping, regroupings},
    right::{Change, Search, View},
};
use crate::core::format::Format;

/// The largest relative L2 of a row: that of 3 bits, and where the file is in blocks that of 2.
const MOST: f64 = 0.25;
const MOST_OF_BLOCKS: f64 = 0.5;
/// How much further off than the others a row may be.
const MOST_OF_ROW: f64 = 4.0;
/// Elements that are not the file's.
const LEAST_SHARE: f64 = 0.5;
/// Shorter rows have no blocks.
const LEAST_COLUMNS: usize = 32;

/// Formats that have a scale for a block or a row.
const BLOCKS: [Format; 5] =
    [Format::Q8_0, Format::Q4_0, Format::Int8Blocks, Format::Int8BlocksF16, Format::Int8Rows];

/// The file's place of a row and column.
type Place<'p> = &'p dyn Fn(usize, usize) -> (usize, usize);

/// What it is near to, and how far off it is; `None` where it is something else.
pub fn near(search: &Search<'_>) -> Option<Found> {
    if search.held.cols < LEAST_COLUMNS {
        return None;
    }
    let transposed = || search.view.transposed(search.target.batch);
    let text = in_view(search, &search.view).or_else(|| in_view(search, &transposed()));
    Some(Found::otherwise(text.or_else(|| in_any_order(search))?))
}

/// The forms that a right engine may hold, near instead of exact.
fn in_view(search: &Search<'_>, view: &View) -> Option<String> {
    let held = search.held;
    let said = |form: String, place: Place<'_>| {
        let change = if view.change == Change::Transposed { "transposed, " } else { "" };
        let form = if form.is_empty() { form } else { format!("{form}, ") };
        Some(format!("{change}{form}{}", quality(search, view, place)?))
    };
    if (held.rows, held.cols) == (view.rows, view.cols) {
        if let Some(said) = said(String::new(), &|row, col| (row, col)) {
            return Some(said);
        }
        let names = search.target.parts.len();
        let of_rows =
            find(view.rows, &|one| said(one.text("rows", names), &|row, col| (one.file(row), col)));
        return of_rows.or_else(|| {
            find(view.cols, &|one| said(one.text("columns", 1), &|row, col| (row, one.file(col))))
        });
    }
    if held.cols == view.cols && held.rows < view.rows {
        let part = |start: usize| {
            let text = format!("rows {start}-{} of {}", start + held.rows - 1, view.rows);
            said(text, &|row, col| (start + row, col))
        };
        return (0..=view.rows - held.rows).find_map(part);
    }
    if held.rows == view.rows && held.cols < view.cols {
        let part = |start: usize| {
            let text = format!("columns {start}-{} of {}", start + held.cols - 1, view.cols);
            said(text, &|row, col| (row, start + col))
        };
        return (0..=view.cols - held.cols).find_map(part);
    }
    None
}

fn find(n: usize, said: &dyn Fn(Regrouping) -> Option<String>) -> Option<String> {
    let mut found = None;
    regroupings(n, &mut |one| {
        if found.is_none() {
            found = said(one);
        }
    });
    found
}

/// Each row near another one of the file's.
fn in_any_order(search: &Search<'_>) -> Option<String> {
    let (held, view) = (search.held, &search.view);
    if held.cols != view.cols {
        return None;
    }
    let mut rows = std::collections::BTreeMap::new();
    let mut is_used = vec![false; view.rows];
    for (at, e) in held.each() {
        let is_near = |row: &usize| !is_used[*row] && off(e, view.row(*row)) <= most(search);
        let row = (0..view.rows).find(is_near)?;
        is_used[row] = true;
        rows.insert(at, row);
    }
    let quality = quality(search, view, &|row, col| (rows[&row], col))?;
    Some(format!("its rows are in another order, {quality}"))
}

/// The relative L2 of a row, or more than any where its begin is another row's.
fn off(e: &[f32], t: &[f32]) -> f64 {
    let some = e.len().min(LEAST_COLUMNS);
    let begin = relative(e[..some].iter().zip(&t[..some]));
    if begin > 2.0 * MOST_OF_BLOCKS { begin } else { relative(e.iter().zip(t)) }
}

fn relative<'a>(pairs: impl Iterator<Item = (&'a f32, &'a f32)>) -> f64 {
    let (mut off, mut size) = (0f64, 0f64);
    for (&e, &t) in pairs {
        let (e, t) = (f64::from(e), f64::from(t));
        (off, size) = (off + (e - t).powi(2), size + t * t);
    }
    match (off, size) {
        (0.0, _) => 0.0,
        (_, 0.0) => f64::INFINITY,
        _ => (off / size).sqrt(),
    }
}

fn most(search: &Search<'_>) -> f64 {
    if search.target.is_in_blocks() { MOST_OF_BLOCKS } else { MOST }
}

/// What it was quantised to, or how far it is off; `None` where it is not near, or only in a part or by a factor.
fn quality(search: &Search<'_>, view: &View, place: Place<'_>) -> Option<String> {
    let (mut rows, mut off_rows, mut other) = (Vec::new(), Vec::new(), 0usize);
    let (mut of_both, mut of_file) = (0f64, 0f64);
    for (row, e) in search.held.each() {
        let value = |col: usize| {
            let (row, col) = place(row, col);
            view.data[row * view.cols + col]
        };
        let t: Vec<f32> = (0..e.len()).map(value).collect();
        let own = off(e, &t);
        // A NaN is near nothing.
        if own.is_nan() || own > most(search) {
            return None;
        }
        off_rows.push(own);
        for (&e, &t) in e.iter().zip(&t) {
            of_both += f64::from(e) * f64::from(t);
            of_file += f64::from(t) * f64::from(t);
            other += usize::from(e != t);
        }
        rows.push((e, t));
    }
    let pairs = || rows.iter().flat_map(|(e, t)| e.iter().zip(t));
    let error = format!("relative L2 {:.0e}", relative(pairs()));
    let is_in = |format: &Format| rows.iter().all(|(e, t)| is_in(*format, e, t));
    if let Some(format) = BLOCKS.into_iter().find(is_in) {
        return Some(format!("requantised to {format}: {error}"));
    }
    off_rows.sort_by(f64::total_cmp);
    let (middle, last) = (*off_rows.get(off_rows.len() / 2)?, *off_rows.last()?);
    let share = other as f64 / search.held.values().len() as f64;
    // Rounding to nearest makes all a little smaller; a factor makes nothing but that.
    let is_scaled = (of_both / of_file - 1.0).abs() > 0.5 * middle;
    if last > MOST_OF_ROW * middle || share < LEAST_SHARE || is_scaled {
        return None;
    }
    Some(match search.target.blocks() {
        Some(name) => format!("not quantised, unlike the file's {name}: {error}"),
        None => format!("requantised: {error}"),
    })
}

/// Whether a row is the file's in blocks of a format.
fn is_in(format: Format, e: &[f32], t: &[f32]) -> bool {
    if !format.divides(e.len()) {
        return false;
    }
    let t: Vec<f64> = t.iter().map(|&t| f64::from(t)).collect();
    let most = t.iter().fold(0f64, |most, t| most.max(t.abs()));
    let rounded = format.rounded(&t, &|_| 0.0);
    let pairs = e.iter().zip(&rounded);
    pairs.into_iter().all(|(&e, r)| (f64::from(e) - r.value).abs() <= r.slack + 1e-6 * most)
}
