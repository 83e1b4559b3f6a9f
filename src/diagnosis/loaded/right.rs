//! The forms in which a right engine may hold a weight.

use super::{
    Found,
    elements::span,
    held::{Closeness, Held, Slack},
    order::{Regrouping, regroupings},
    target::Target,
};
use crate::{
    core::{format::Format, loaded::row_sum},
    model::gguf::GgufError,
};

/// What the file's matrix becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    None,
    Transposed,
    /// As of a norm that multiplies by 1 + w.
    LessOne,
    /// As of a decay that is kept as the logarithm of its negative.
    Logarithm,
}

/// The file's matrix, changed.
pub struct View {
    pub change: Change,
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<f32>,
    pub slack: Slack,
    /// What the file's numbers were rounded to.
    file: Option<Format>,
}

/// Which of a view's rows a held row is.
#[derive(Clone, Debug, PartialEq)]
pub enum Rows {
    Same,
    From(usize),
    Regrouped(Regrouping),
    /// Not one of them alone.
    None,
}

impl Rows {
    /// The view's row of a held one, where it is one of them.
    fn place(&self, row: usize) -> Option<usize> {
        match self {
            Rows::Same => Some(row),
            Rows::From(start) => Some(start + row),
            Rows::Regrouped(one) => Some(one.file(row)),
            Rows::None => None,
        }
    }
}

/// A form that gives every recorded element.
pub struct Fit {
    pub change: Change,
    rows: Rows,
    closeness: Closeness,
    /// What else there is to say.
    text: String,
}

/// What a form must give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Every recorded element.
    Elements,
    /// The sums of all rows too.
    Sums,
}

/// A weight beside its tensors, all of whose values are there.
pub struct Search<'s> {
    pub held: &'s Held<'s>,
    pub target: &'s Target<'s>,
    pub formats: Vec<Option<Format>>,
    /// The file's matrix as it is.
    pub view: View,
}

impl View {
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }

    fn closeness(&self, format: Option<Format>) -> Closeness {
        Closeness { format, file: self.file, slack: self.slack }
    }

    /// The same with another value in each place, that is known to a share of the largest.
    pub fn mapped(&self, change: Change, of: fn(f32) -> f32) -> View {
        let data: Vec<f32> = self.data.iter().map(|&t| of(t)).collect();
        let most = self.data.iter().chain(&data).fold(1f32, |most, x| most.max(x.abs()));
        let slack = Slack { absolute: 4.0 * f32::EPSILON * most, of_row: 0.0 };
        View { change, rows: self.rows, cols: self.cols, data, slack, file: None }
    }

    /// Each matrix of the batch with its axes exchanged.
    pub fn transposed(&self, batch: usize) -> View {
        let (rows, cols) = (self.rows / batch, self.cols);
        let mut data = Vec::with_capacity(self.data.len());
        for matrix in self.data.chunks_exact(rows * cols) {
            for col in 0..cols {
                data.extend((0..rows).map(|row| matrix[row * cols + col]));
            }
        }
        let most = self.data.iter().fold(0f32, |most, t| most.max(t.abs()));
        let slack = Slack { absolute: self.slack.of_row * most, of_row: 0.0 };
        let (rows, cols) = (batch * cols, rows);
        View { change: Change::Transposed, rows, cols, data, slack, file: self.file }
    }
}

/// The file's own rows, rounded or not: the usual case, for which only the recorded rows are read.
pub fn as_in_file(held: &Held<'_>, target: &Target<'_>) -> Result<Option<Fit>, GgufError> {
    if (held.rows, held.cols) != (target.rows, target.cols) {
        return Ok(None);
    }
    let (rows, slack, file) = (target.chosen(&held.at)?, target.slack(), target.format());
    let fits = |closeness: &Closeness| {
        held.each().zip(rows.chunks_exact(held.cols)).all(|((_, e), t)| closeness.is_row(e, t))
    };
    let all = held.formats().into_iter().map(|format| Closeness { format, file, slack });
    let fit =
        |closeness| Fit { change: Change::None, rows: Rows::Same, closeness, text: String::new() };
    Ok(all.into_iter().find(fits).map(fit))
}

impl Fit {
    /// Whether the form is the file's own.
    fn is_own(&self) -> bool {
        self.change == Change::None && self.rows == Rows::Same && self.text.is_empty()
    }

    fn found(&self) -> Found {
        let change = match self.change {
            Change::None => "",
            Change::Transposed => "transposed",
            Change::LessOne => "minus 1, for a norm that multiplies by 1 + w",
            Change::Logarithm => "the logarithm of its negative",
        };
        let rounded = self.closeness.text();
        let parts = [change, &self.text, &rounded];
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let text = parts.join(", ");
        if self.is_own() { Found::right(text) } else { Found::otherwise(text) }
    }

    /// The same after all rows of the file were summed, where the weight has its sums.
    pub fn with_sums(&self, held: &Held<'_>, target: &Target<'_>) -> Result<Found, GgufError> {
        if held.sums.is_empty() {
            return Ok(self.found());
        }
        let rows = target.chosen(&held.at)?;
        let nearest = held
            .each()
            .zip(rows.chunks_exact(held.cols))
            .all(|((_, e), t)| self.closeness.is_nearest(e, t));
        let mut sums = SumCheck::new(nearest, self.closeness);
        target.each_chunk(&mut |first, chunk| {
            for (row, t) in (first..).zip(chunk.chunks_exact(held.cols)) {
                sums.add(row, held.sums[row], t);
            }
        })?;
        Ok(sums.found().unwrap_or_else(|| self.found()))
    }
}

/// Compares the sums of all rows.
struct SumCheck {
    closeness: Closeness,
    tolerance: f64,
    rows: usize,
    /// Rows that differ, and whether they are all zero.
    wrong: Vec<usize>,
    are_zero: bool,
}

impl SumCheck {
    fn new(nearest: bool, closeness: Closeness) -> SumCheck {
        let own = closeness.format.map_or(0.0, |format| 2.0 * format.unit_roundoff());
        let cut = own + closeness.file.map_or(0.0, |format| format.unit_roundoff());
        let is_exact = closeness.slack == Slack::default();
        let least = 2f64.powi(if is_exact { -40 } else { -18 });
        let tolerance = if nearest { 0.0 } else { cut } + least;
        SumCheck { closeness, tolerance, rows: 0, wrong: Vec::new(), are_zero: true }
    }

    fn add(&mut self, row: usize, held: f64, file: &[f32]) {
        self.rows += 1;
        let number = |t: &f32| self.closeness.format.map_or(*t, |format| format.number(*t));
        let rounded: Vec<f32> = file.iter().map(number).collect();
        let absolute: Vec<f32> = file.iter().map(|t| t.abs()).collect();
        let (sum, size) = (row_sum(&rounded), row_sum(&absolute));
        let is_none = !sum.is_finite() && !held.is_finite();
        let off = (held - sum).abs();
        let is_near = off <= self.tolerance * size + f64::MIN_POSITIVE;
        if !is_near && !is_none {
            self.wrong.push(row);
            self.are_zero &= held == 0.0;
        }
    }

    fn found(&self) -> Option<Found> {
        self.wrong.first()?;
        let what =
            if self.are_zero { "are zero, but not in the file" } else { "differ from the file" };
        Some(Found::wrong(format!("{} {what}", span("rows", &self.wrong, self.rows))))
    }
}

impl<'s> Search<'s> {
    pub fn of(held: &'s Held<'s>, target: &'s Target<'s>) -> Result<Search<'s>, GgufError> {
        let (rows, cols, slack) = (target.rows, target.cols, target.slack());
        let (data, file) = (target.all()?, target.format());
        let view = View { change: Change::None, rows, cols, data, slack, file };
        Ok(Search { held, target, formats: held.formats(), view })
    }

    /// Whether the weight has the shape of its tensors.
    pub fn has_shape(&self) -> bool {
        (self.held.rows, self.held.cols) == (self.view.rows, self.view.cols)
    }

    /// How an element is compared, by the coarsest format of single numbers but those of 8 bits.
    pub fn closenesses(&self) -> impl Iterator<Item = Closeness> {
        self.formats.iter().map(|&format| self.view.closeness(format))
    }

    /// The first form that gives every recorded element, and the sums of all rows, or else the first that gives
    /// the elements: of a few rows several forms may give them.
    pub fn right(&self) -> Option<Fit> {
        self.right_of(Proof::Sums).or_else(|| self.right_of(Proof::Elements))
    }

    /// The first form with that proof.
    pub fn right_of(&self, proof: Proof) -> Option<Fit> {
        let file_is_constant = self.view.data.iter().all(|t| *t == self.view.data[0]);
        let is_vector = self.held.cols == 1;
        let less_one = || self.view.mapped(Change::LessOne, |t| t - 1.0);
        // A part may be: zeros that the file has there.
        if self.has_shape() && self.held.is_constant() && !file_is_constant {
            return None;
        }
        let straight = || self.in_view(&self.view, proof);
        let transposed = || self.in_view(&self.view.transposed(self.target.batch), proof);
        let fit = straight().or_else(|| (!is_vector).then(transposed).flatten());
        let fit = fit.or_else(|| is_vector.then(|| self.in_view(&less_one(), proof)).flatten());
        let is_negative = self.view.data.iter().all(|&t| t < 0.0);
        let logarithm = || self.view.mapped(Change::Logarithm, |t| (-t).ln());
        fit.or_else(|| is_negative.then(|| self.in_view(&logarithm(), proof)).flatten())
    }

    /// The forms in which all rows and columns of a view are there, and then those of a part.
    fn in_view(&self, view: &View, proof: Proof) -> Option<Fit> {
        let all = || self.formats.iter().map(|&format| view.closeness(format));
        let (held, change) = (self.held, view.change);
        if (held.rows, held.cols) != (view.rows, view.cols) {
            return all().find_map(|closeness| self.part(view, closeness, proof));
        }
        let fit = |rows, closeness, text| Some(Fit { change, rows, closeness, text });
        let is_proven = |rows: &Rows, closeness| {
            proof == Proof::Elements || self.sums(view, rows, closeness).is_none()
        };
        for closeness in all() {
            if self.is(closeness, |row| Some(view.row(row))) && is_proven(&Rows::Same, closeness) {
                return fit(Rows::Same, closeness, String::new());
            }
        }
        let names = self.target.parts.len();
        let mut of_rows = Vec::new();
        regroupings(view.rows, &mut |one| of_rows.push(one));
        for closeness in all() {
            let is_it = |one: &&Regrouping| {
                self.is(closeness, |row| Some(view.row(one.file(row))))
                    && is_proven(&Rows::Regrouped(**one), closeness)
            };
            if let Some(one) = of_rows.iter().find(is_it) {
                return fit(Rows::Regrouped(*one), closeness, one.text("rows", names));
            }
        }
        // The sums say nothing of columns in another order.
        let has_proof = proof == Proof::Elements || held.sums.is_empty();
        if view.cols == 1 || !has_proof {
            return None;
        }
        let mut of_cols = Vec::new();
        regroupings(view.cols, &mut |one| of_cols.push(one));
        for closeness in all() {
            let is_it = |one: &&Regrouping| self.has_columns(view, closeness, one);
            if let Some(one) = of_cols.iter().find(is_it) {
                return fit(Rows::None, closeness, one.text("columns", 1));
            }
        }
        None
    }

    /// Whether every recorded row is that of a view which `of` says.
    pub fn is<'v>(&self, closeness: Closeness, of: impl Fn(usize) -> Option<&'v [f32]>) -> bool {
        self.held.each().all(|(row, e)| of(row).is_some_and(|t| closeness.is_row(e, t)))
    }

    fn has_columns(&self, view: &View, closeness: Closeness, one: &Regrouping) -> bool {
        self.held.each().all(|(row, e)| {
            let t = view.row(row);
            let slack = closeness.of_row(t);
            e.iter().enumerate().all(|(col, &e)| closeness.is(e, t[one.file(col)], slack))
        })
    }

    /// Some rows or columns that follow one another, or all of them and zeros.
    fn part(&self, view: &View, closeness: Closeness, proof: Proof) -> Option<Fit> {
        let (held, change) = (self.held, view.change);
        let fit = |rows, text| Some(Fit { change, rows, closeness, text });
        let (first_row, first) = held.each().next()?;
        if held.cols == view.cols && held.rows < view.rows {
            let mut starts = 0..=view.rows - held.rows;
            let is_it = |start: &usize| {
                closeness.is_row(first, view.row(start + first_row))
                    && self.is(closeness, |row| Some(view.row(start + row)))
                    && (proof == Proof::Elements
                        || self.sums(view, &Rows::From(*start), closeness).is_none())
            };
            let start = starts.find(is_it)?;
            let end = start + held.rows - 1;
            return fit(Rows::From(start), format!("rows {start}-{end} of {}", view.rows));
        }
        if held.cols == view.cols {
            let is_it = |(row, e): (usize, &[f32])| {
                if row < view.rows {
                    closeness.is_row(e, view.row(row))
                } else {
                    e.iter().all(|&x| x == 0.0)
                }
            };
            let text = format!("{} rows and zeros up to {}", view.rows, held.rows);
            return held.each().all(is_it).then(|| fit(Rows::None, text)).flatten();
        }
        if held.rows != view.rows {
            return None;
        }
        let within = |start: usize, row: usize| view.row(row).get(start..start + held.cols);
        if held.cols < view.cols {
            let mut starts = 0..=view.cols - held.cols;
            let start = starts.find(|&start| self.is(closeness, |row| within(start, row)))?;
            let end = start + held.cols - 1;
            return fit(Rows::None, format!("columns {start}-{end} of {}", view.cols));
        }
        let is_it = |(row, e): (usize, &[f32])| {
            let (own, rest) = e.split_at(view.cols);
            closeness.is_row(own, view.row(row)) && rest.iter().all(|&x| x == 0.0)
        };
        let text = format!("{} columns and zeros up to {}", view.cols, held.cols);
        held.each().all(is_it).then(|| fit(Rows::None, text)).flatten()
    }

    /// A form after the sums of all rows were compared, where it says which row each is.
    pub fn with_sums(&self, fit: Fit) -> Result<Found, GgufError> {
        if self.held.sums.is_empty() {
            return Ok(fit.found());
        }
        let view = match fit.change {
            Change::None => &self.view,
            Change::Transposed => &self.view.transposed(self.target.batch),
            Change::LessOne | Change::Logarithm => return Ok(fit.found()),
        };
        Ok(self.sums(view, &fit.rows, fit.closeness).unwrap_or_else(|| fit.found()))
    }

    /// What the sums of all rows say against a form, where the weight has its sums and the form says which row
    /// each is.
    fn sums(&self, view: &View, rows: &Rows, closeness: Closeness) -> Option<Found> {
        let is_nearest = |(row, e): (usize, &[f32])| {
            rows.place(row).is_some_and(|place| closeness.is_nearest(e, view.row(place)))
        };
        let mut sums = SumCheck::new(self.held.each().all(is_nearest), closeness);
        for (row, &sum) in self.held.sums.iter().enumerate() {
            sums.add(row, sum, view.row(rows.place(row)?));
        }
        sums.found()
    }
}
