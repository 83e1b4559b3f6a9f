//! The rows of a tensor, and which elements of each count.

use std::ops::Range;

use crate::{
    compare::{lanes::Totals, queries::RowTokens},
    core::tensor::Tensor,
    graph::site::{Axis, Stage},
};

/// The rows of a tensor: one for each index of its first axis, a token or a position.
pub struct Rows<'a> {
    pub count: usize,
    pub length: usize,
    pub tokens: RowTokens<'a>,
    /// Keys of one head's row, where only those that the query sees count.
    keys: Option<usize>,
}

impl<'a> Rows<'a> {
    pub fn new(stage: Stage, shape: &[usize], tokens: RowTokens<'a>) -> Rows<'a> {
        let count = shape[0];
        let length = shape[1..].iter().product();
        let axes = tokens.axes.unwrap_or(stage.axes());
        let masked = axes.first() == Some(&Axis::Token) && axes.last() == Some(&Axis::Key);
        let keys = masked.then(|| shape[shape.len() - 1]);
        Rows { count, length, tokens, keys }
    }

    /// The index of an element in the tensor of all the step's tokens.
    pub fn index(&self, flat: usize, shape: &[usize]) -> Vec<usize> {
        let mut index = Tensor::unravel(flat, shape);
        index[0] = self.tokens.token(index[0]);
        index
    }

    /// The shape up to the last of the tokens.
    pub fn whole_shape(&self, shape: &[usize]) -> Vec<usize> {
        let mut whole = shape.to_vec();
        whole[0] = self.tokens.token(self.count - 1) + 1;
        whole
    }

    /// Whether the element at `column` of a row counts.
    pub fn counts(&self, row: usize, column: usize) -> bool {
        self.keys.is_none_or(|keys| self.tokens.seen(row, keys).contains(&(column % keys)))
    }

    /// The element at a place in row-major order, or where it does not count another key of its row.
    pub fn counted(&self, flat: usize) -> usize {
        let (row, column) = (flat / self.length, flat % self.length);
        match self.keys {
            Some(keys) if !self.counts(row, column) => {
                let seen = self.tokens.seen(row, keys);
                flat - column % keys + seen.start + column % keys % seen.len().max(1)
            }
            _ => flat,
        }
    }

    /// The columns of a row that count: all, or of each head's keys those that the query sees.
    pub fn runs(&self, row: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let length = self.keys.unwrap_or(self.length);
        let Range { start, end } = self.keys.map_or(0..length, |keys| self.tokens.seen(row, keys));
        (0..self.length).step_by(length.max(1)).map(move |head| head + start..head + end)
    }

    /// The totals of a row; `None` if an element that counts is NaN or infinite.
    pub fn totals(&self, row: usize, engine: &[f32], reference: &[f32]) -> Option<Totals> {
        Totals::of(self.runs(row).map(|run| (&engine[run.clone()], &reference[run])))
    }

    /// The largest finite |r| of a row: what its tolerance is relative to.
    pub fn scale(&self, row: usize, reference: &[f32]) -> f64 {
        let counted = self.runs(row).flat_map(|run| &reference[run]);
        let finite = counted.map(|r| r.abs()).filter(|r| r.is_finite());
        f64::from(finite.fold(0.0, f32::max))
    }
}
