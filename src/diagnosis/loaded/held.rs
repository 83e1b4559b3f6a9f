//! What is there of a weight as a matrix, and when an element of it is the file's.

use crate::core::{format::Format, loaded::LoadedWeight};

/// The recorded rows of a weight. A vector is a matrix of one column.
pub struct Held<'w> {
    pub rows: usize,
    pub cols: usize,
    /// The rows that are there, ascending.
    pub at: Vec<usize>,
    values: &'w [f32],
    /// Of all rows, or none.
    pub sums: &'w [f64],
}

/// The formats of single numbers that a loader may round to, the finest first; but f16 before tf32, which has nearly all
/// of its numbers: weights are kept in f16, not in tf32.
const FORMATS: [Format; 5] = [Format::F16, Format::Tf32, Format::Bf16, Format::E4m3, Format::E5m2];

impl<'w> Held<'w> {
    /// A weight beside a matrix of so many rows and columns: what is one row of it, or all of them in one axis, is
    /// no vector.
    pub fn of(weight: &'w LoadedWeight, file: (usize, usize)) -> Held<'w> {
        let (mut rows, mut cols) = as_matrix(&weight.shape);
        if cols == 1 && file.1 > 1 && rows != file.0 && rows.is_multiple_of(file.1) {
            (rows, cols) = (rows / file.1, file.1);
        }
        let at = weight.rows.clone().unwrap_or_else(|| (0..rows).collect());
        Held { rows, cols, at, values: &weight.values, sums: &weight.sums }
    }

    pub fn values(&self) -> &'w [f32] {
        self.values
    }

    /// The recorded rows, each with its place in the whole.
    pub fn each(&self) -> impl Iterator<Item = (usize, &'w [f32])> {
        self.at.iter().copied().zip(self.values.chunks_exact(self.cols))
    }

    /// No rounding, and the formats that every value has: what it may have been rounded to.
    pub fn formats(&self) -> Vec<Option<Format>> {
        let has_all =
            |format: &Format| self.values.iter().all(|&x| !x.is_finite() || format.number(x) == x);
        // Few values of 8 bits are near everything.
        let is_constant = self.is_constant();
        let may_be =
            |format: &Format| !is_constant || !matches!(format, Format::E4m3 | Format::E5m2);
        let own = FORMATS.into_iter().filter(|format| may_be(format) && has_all(format));
        std::iter::once(None).chain(own.map(Some)).collect()
    }

    /// Whether all values are the same number.
    pub fn is_constant(&self) -> bool {
        self.values.iter().all(|x| *x == self.values[0])
    }
}

/// Rows and columns of a shape; one column of what has one axis only.
pub fn as_matrix(shape: &[usize]) -> (usize, usize) {
    let long = shape.iter().filter(|&&n| n != 1).count();
    let all: usize = shape.iter().product();
    match shape.last() {
        Some(&cols) if long > 1 => (all / cols, cols),
        _ => (all, 1),
    }
}

/// Half of the least number in f16.
const TINY: f32 = 1.0 / (1u32 << 25) as f32;

/// How far a held value may be from the file's, beside its rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slack {
    pub absolute: f32,
    /// Of the largest of the row: dequantisers add and multiply in their own ways.
    pub of_row: f32,
}

/// When a held row is one of the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Closeness {
    pub format: Option<Format>,
    /// What the file's values may have been rounded to when it was made, from those that the engine has.
    pub file: Option<Format>,
    pub slack: Slack,
}

impl Closeness {
    /// Whether a row is the file's, rounded or cut off.
    pub fn is_row(&self, held: &[f32], file: &[f32]) -> bool {
        let slack = self.of_row(file);
        held.len() == file.len() && held.iter().zip(file).all(|(&e, &t)| self.is(e, t, slack))
    }

    /// What a row's elements may be off.
    pub fn of_row(&self, file: &[f32]) -> f32 {
        let Slack { absolute, of_row } = self.slack;
        if of_row == 0.0 {
            return absolute;
        }
        absolute + of_row * file.iter().fold(0f32, |most, t| most.max(t.abs()))
    }

    /// Whether an element is the file's.
    pub fn is(&self, e: f32, t: f32, slack: f32) -> bool {
        if e == t || (e.is_nan() && t.is_nan()) {
            return true;
        }
        let off = (e - t).abs();
        if off <= slack || self.file.is_some_and(|file| file.number(e) == t) {
            return true;
        }
        let Some(format) = self.format else { return false };
        if let Some(file) = self.file
            && off <= 1.01 * self.both(format, file) * t.abs() + TINY
        {
            return true;
        }
        let ulp = 2.0 * format.unit_roundoff() as f32 * t.abs();
        let is_cut = e.is_sign_negative() == t.is_sign_negative()
            && e.abs() <= t.abs()
            && t.abs() - e.abs() <= ulp
            && e != 0.0;
        let tiny = if format == Format::F16 { TINY } else { 0.0 };
        e == format.number(t) || is_cut || (slack > 0.0 && off <= slack + 0.51 * ulp + tiny)
    }

    /// The error of two roundings of one number.
    fn both(&self, format: Format, file: Format) -> f32 {
        (format.unit_roundoff() + file.unit_roundoff()) as f32
    }

    /// Whether a row is exactly the file's as it is rounded to nearest.
    pub fn is_nearest(&self, held: &[f32], file: &[f32]) -> bool {
        let number = |t: f32| self.format.map_or(t, |format| format.number(t));
        held.iter().zip(file).all(|(&e, &t)| e == number(t) || (e.is_nan() && t.is_nan()))
    }

    /// `rounded to f16`, or nothing.
    pub fn text(&self) -> String {
        self.format.map_or(String::new(), |format| format!("rounded to {format}"))
    }
}
