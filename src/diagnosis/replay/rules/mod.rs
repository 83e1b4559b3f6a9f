//! One rule an operation: what it must give in f64, and how far rounding may take each element.
//!
//! A rule knows no architecture. Arrays are dense, in ggml's order: the first axis is the fastest.

use std::borrow::Cow;

use crate::{
    diagnosis::replay::{Expected, Matrix, Rounding},
    graph::{Op, Params},
    model::gguf::GgufError,
};

/// A node that is about to be computed.
pub struct Call<'c, 'a> {
    pub op: Op,
    pub params: Params,
    /// Elements of the result along each axis.
    pub ne: [usize; 4],
    /// The sources by their places.
    pub arguments: Vec<Option<Argument<'c, 'a>>>,
    /// The roundings that the side declares.
    pub rounding: Rounding,
    /// Whether GELU and its kin are read from a table of f16 values, as ggml's CPU backend does.
    pub has_tables: bool,
}

/// A source of a node.
pub struct Argument<'c, 'a> {
    pub ne: [usize; 4],
    pub values: Values<'c, 'a>,
}

/// The elements of a source.
pub enum Values<'c, 'a> {
    /// As recorded or as computed, dense; with the standard deviation of each element's error where it
    /// is uncertain.
    Dense { value: Cow<'c, [f64]>, spread: Option<Cow<'c, [f64]>> },
    /// A weight of the model's file: ne[1] ne[2] ne[3] rows of ne[0] elements.
    Weight(Matrix<'a>),
}

impl Argument<'_, '_> {
    pub fn elements(&self) -> usize {
        self.ne.iter().product()
    }

    /// Rows of ne[0] elements.
    pub fn rows(&self) -> usize {
        self.ne[1..].iter().product()
    }

    /// All elements.
    pub fn value(&self) -> Result<Cow<'_, [f64]>, GgufError> {
        Ok(match &self.values {
            Values::Dense { value, .. } => Cow::Borrowed(value),
            Values::Weight(matrix) => {
                Cow::Owned(matrix.flat()?.into_iter().map(f64::from).collect())
            }
        })
    }

    /// The standard deviations of the elements' errors; `None` where all are known.
    pub fn spread(&self) -> Option<&[f64]> {
        match &self.values {
            Values::Dense { spread, .. } => spread.as_deref(),
            Values::Weight(_) => None,
        }
    }
}

impl<'c, 'a> Call<'c, 'a> {
    /// A source that the operation always has.
    pub fn argument(&self, index: usize) -> &Argument<'c, 'a> {
        let argument = self.arguments.get(index).and_then(Option::as_ref);
        argument.expect("ggml gives an operation all of its sources")
    }

    /// A source that the operation may have.
    pub fn optional(&self, index: usize) -> Option<&Argument<'c, 'a>> {
        self.arguments.get(index).and_then(Option::as_ref)
    }

    pub fn elements(&self) -> usize {
        self.ne.iter().product()
    }
}

/// What a node must give; `None` where no rule is known for its operation.
pub fn compute<'a>(call: &Call<'_, 'a>) -> Result<Option<Expected<'a>>, GgufError> {
    let _ = call;
    Ok(None)
}

/// How ids were chosen among values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// Rows whose ids the values do not give, whatever their rounding.
    pub wrong: usize,
    /// Rows in which another id was as good, within the values' uncertainty.
    pub near_ties: usize,
}

impl Choice {
    pub fn is_right(&self) -> bool {
        self.wrong == 0
    }
}

/// Judges recorded ids by the values that they choose among.
pub fn choice(
    op: &Op,
    params: Params,
    from: &Argument<'_, '_>,
    ids: &[f64],
) -> Result<Choice, GgufError> {
    let _ = (op, params, from, ids);
    Ok(Choice::default())
}
