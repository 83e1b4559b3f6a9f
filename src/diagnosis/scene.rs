//! A guilty operation, and what a hypothesis needs to recompute it.

use std::sync::Arc;

use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        probe::{Agreement, Grid, Probe},
        replay::{
            Expected, Matrix, Operand, Operation, Parts, Piece, Replay, ReplayError, Rounding,
            Spread, Width, ops::Heads, wrong_elements,
        },
    },
    graph::site::Stage,
    model::Config,
};

/// A guilty operation with its inputs and its wrong result.
pub struct Scene<'s, 'a> {
    pub replay: &'s Replay<'a>,
    pub operation: Operation,
    /// The steps in which its result was recorded.
    pub steps: Vec<u32>,
    /// What it must give, beside what it gave.
    pub pieces: Vec<Piece<'a>>,
    /// Which elements of each piece are beyond their bounds.
    pub wrong: Vec<Vec<bool>>,
    pub probe: Probe,
}

/// An explanation: what the operation would have given.
pub struct Candidate<'a> {
    /// The kind of cause, as in `docs/diagnosis.md`.
    pub key: CauseKey,
    pub text: String,
    pub rank: Rank,
    /// How many mistakes it takes; of two proofs the simpler one is the cause.
    pub mistakes: u8,
    /// `None` where the elements of the probe refute it already.
    pub parts: Option<Parts<'a>>,
}

impl<'a> Candidate<'a> {
    /// One mistake.
    pub fn mistake(key: CauseKey, text: impl Into<String>, parts: Parts<'a>) -> Candidate<'a> {
        Candidate { parts: Some(parts), ..Candidate::refuted(key, text) }
    }

    /// One mistake that explains none of the elements probed.
    pub fn refuted(key: CauseKey, text: impl Into<String>) -> Candidate<'a> {
        Candidate { key, text: text.into(), rank: Rank::Mistake, mistakes: 1, parts: None }
    }

    /// What the result looks like.
    pub fn likeness(key: CauseKey, text: impl Into<String>, parts: Parts<'a>) -> Candidate<'a> {
        Candidate { rank: Rank::Likeness, ..Candidate::mistake(key, text, parts) }
    }

    /// The same, made of that many mistakes.
    pub fn of_mistakes(self, mistakes: usize) -> Candidate<'a> {
        Candidate { mistakes: mistakes as u8, ..self }
    }
}

/// How much a cause says. A proven one hides those of lower rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// A mistake that someone made.
    Mistake,
    /// What the result looks like, whatever made it so.
    Likeness,
    /// Coarser arithmetic than declared, which explains any small error.
    Arithmetic,
}

/// Takes candidates one by one.
pub type Visit<'v, 'a> = &'v mut dyn FnMut(Candidate<'a>) -> Result<(), ReplayError>;

impl<'s, 'a> Scene<'s, 'a> {
    /// The scene of an operation; `None` where its result was not recorded.
    pub fn new(
        replay: &'s Replay<'a>,
        operation: Operation,
    ) -> Result<Option<Scene<'s, 'a>>, ReplayError> {
        let pieces = replay.pieces(operation)?;
        let steps = replay.steps_of(operation);
        let wrong: Vec<Vec<bool>> = pieces.iter().map(wrong_elements).collect();
        let probe = Probe::of(&pieces, &wrong);
        let scene = Scene { replay, operation, steps, pieces, wrong, probe };
        Ok((!scene.steps.is_empty()).then_some(scene))
    }

    /// A mistake whose result `of` gives for a piece, whole or in some of its rows. It is computed
    /// whole only if it explains any element of the probe.
    pub fn candidate(
        &self,
        key: CauseKey,
        text: impl Into<String>,
        of: impl Fn(usize, Option<&[usize]>) -> Result<Expected<'a>, ReplayError>,
    ) -> Result<Candidate<'a>, ReplayError> {
        let of = |piece, grid: Option<&Grid>| of(piece, grid.map(|grid| &*grid.rows));
        self.candidate_of(key, text, &self.probe.rows, of)
    }

    /// The same for a mistake whose result `of` gives for a piece or for a grid of it.
    pub fn candidate_of(
        &self,
        key: CauseKey,
        text: impl Into<String>,
        grids: &[Grid],
        of: impl Fn(usize, Option<&Grid>) -> Result<Expected<'a>, ReplayError>,
    ) -> Result<Candidate<'a>, ReplayError> {
        let mut explains = grids.is_empty();
        for grids in grids.chunk_by(|a, b| a.piece == b.piece) {
            if explains {
                break;
            }
            let mut agreement = Agreement::default();
            for grid in grids {
                let expected = of(grid.piece, Some(grid))?;
                agreement = agreement.add(self.agreement(grid, &expected));
            }
            explains = agreement.is_enough();
        }
        if !explains {
            return Ok(Candidate::refuted(key, text));
        }
        let of = |(at, piece): (usize, &Piece<'a>)| Ok((piece.steps.clone(), of(at, None)?));
        let parts = self.pieces.iter().enumerate().map(of).collect::<Result<_, ReplayError>>()?;
        Ok(Candidate::mistake(key, text, (self.row_width(), parts)))
    }

    /// Whether a result gives enough wrong elements of a grid.
    pub fn explains(&self, grid: &Grid, expected: &Expected<'_>) -> bool {
        self.agreement(grid, expected).is_enough()
    }

    /// How many wrong elements of a grid a result gives.
    pub fn agreement(&self, grid: &Grid, expected: &Expected<'_>) -> Agreement {
        grid.agreement(&self.pieces[grid.piece], &self.wrong[grid.piece], expected)
    }

    fn row_width(&self) -> Width {
        match self.stage() {
            Stage::Scores | Stage::Probs => Width::Keys(self.heads().query),
            _ => Width::Fixed(self.width()),
        }
    }

    pub fn stage(&self) -> Stage {
        self.operation.stage
    }

    /// Another operation's result in words that hold in every layer alike.
    pub fn named(&self, operation: Operation) -> String {
        match operation.layer {
            _ if operation == self.operation.hidden(self.config()) => "the hidden vector".into(),
            layer if layer == self.operation.layer => operation.stage.name().to_string(),
            Some(layer) => format!("{} of {}", operation.stage.name(), self.layer_name(layer)),
            None => operation.stage.name().to_string(),
        }
    }

    /// Another layer in words that hold in every layer alike.
    pub fn layer_name(&self, layer: u32) -> String {
        match self.operation.layer.map(|own| i64::from(layer) - i64::from(own)) {
            Some(1) => "the next layer".to_string(),
            Some(-1) if layer > 0 => "the layer before".to_string(),
            _ => format!("layer {layer}"),
        }
    }

    pub fn config(&self) -> &'a Config {
        &self.replay.model.config
    }

    /// Positions that the model was trained for; without end where its file does not say.
    pub fn trained_positions(&self) -> usize {
        self.replay.model.trained_positions().unwrap_or(usize::MAX)
    }

    pub fn heads(&self) -> Heads {
        self.replay.heads()
    }

    pub fn rounding(&self) -> Rounding {
        self.replay.rounding(self.operation)
    }

    /// The main input of a norm, a projection or a rotation, rows of all steps.
    pub fn input(&self) -> Result<Arc<Operand>, ReplayError> {
        self.replay.operand(self.replay.input(self.operation), &self.steps)
    }

    /// The result of another operation of the layer, rows of all steps.
    pub fn operand(&self, stage: Stage) -> Result<Arc<Operand>, ReplayError> {
        self.replay.operand(self.operation.at(stage), &self.steps)
    }

    /// The position of each row, all steps one after another.
    pub fn positions(&self) -> Vec<usize> {
        self.replay.recording.rows(&self.steps)
    }

    /// Elements of a row, for a stage whose rows are all as long.
    pub fn width(&self) -> usize {
        self.pieces[0].width
    }

    /// What the side recorded, all steps one after another.
    pub fn recorded(&self) -> impl Iterator<Item = f32> + '_ {
        self.pieces.iter().flat_map(|piece| piece.captured.iter().copied())
    }

    /// The right value beside the recorded one: of every element that counts, or of the wrong ones.
    pub fn pairs(&self, only_wrong: bool) -> Vec<(f64, f32)> {
        let of = |(piece, wrong): (&Piece<'a>, &Vec<bool>)| {
            let take = |&index: &usize| if only_wrong { wrong[index] } else { piece.counts(index) };
            let taken = (0..piece.captured.len()).filter(take);
            let pair = |index| (piece.expected.value[index], piece.captured[index]);
            taken
                .map(pair)
                .filter(|(right, x)| right.is_finite() && x.is_finite())
                .collect::<Vec<_>>()
        };
        self.pieces.iter().zip(&self.wrong).flat_map(of).collect()
    }

    /// A result over all steps at once.
    pub fn whole(&self, expected: Expected<'a>) -> Parts<'a> {
        (Width::Fixed(self.width()), vec![(self.steps.clone(), expected)])
    }

    /// A result made step by step.
    pub fn by_step(
        &self,
        mut of_step: impl FnMut(u32) -> Result<Expected<'a>, ReplayError>,
    ) -> Result<Parts<'a>, ReplayError> {
        let parts = self.steps.iter().map(|&step| Ok((vec![step], of_step(step)?)));
        Ok((self.row_width(), parts.collect::<Result<_, ReplayError>>()?))
    }

    /// The right result, each value changed. `change` is given the index within a piece and the
    /// piece.
    pub fn changed(&self, change: impl Fn(&Piece<'a>, usize) -> f64) -> Parts<'a> {
        let of = |piece: &Piece<'a>| {
            (0..piece.captured.len()).map(|index| change(piece, index)).collect()
        };
        self.replaced(self.pieces.iter().map(of).collect())
    }

    /// The right result with a number added that is only known to so much.
    pub fn shifted(&self, by: f64, uncertain: f64) -> Parts<'a> {
        let parts = self.pieces.iter().map(|piece| {
            let (right, n) = (&piece.expected, piece.captured.len());
            let rounding = right.rounding;
            let value = right.value.iter().map(|right| right + by).collect();
            let stored = |i: usize| rounding.storage * right.value[i].abs();
            let added = |i: usize| rounding.sum * (right.value[i] + by).abs();
            let single = |i: usize| right.single_of(i) + stored(i) + added(i) + uncertain;
            let single = (0..n).map(single).collect();
            let spread = Spread::Each((0..n).map(|i| right.most_spread(i)).collect());
            (piece.steps.clone(), Expected { value, spread, single, rounding })
        });
        (self.row_width(), parts.collect())
    }

    /// Other values for each piece.
    pub fn replaced(&self, values: Vec<Vec<f64>>) -> Parts<'a> {
        let parts = self.pieces.iter().zip(values);
        let parts =
            parts.map(|(piece, value)| (piece.steps.clone(), piece.expected.replaced(value)));
        (self.row_width(), parts.collect())
    }

    /// The right values in another order: each row of a step is the right one, its columns changed,
    /// at `from(row, column)`, rows counted over all steps.
    pub fn rearranged(&self, from: impl Fn(usize, usize) -> (usize, usize)) -> Parts<'a> {
        let width = self.width();
        // Piece and row within it of each row.
        let rows = |(at, piece): (usize, &Piece<'a>)| {
            (0..piece.captured.len() / width).map(move |row| (at, row))
        };
        let rows: Vec<(usize, usize)> = self.pieces.iter().enumerate().flat_map(rows).collect();
        let mut first = 0;
        let parts = self.pieces.iter().map(|piece| {
            let n = piece.captured.len();
            let (mut value, mut single) = (Vec::with_capacity(n), Vec::with_capacity(n));
            let mut spread = Vec::with_capacity(n);
            for index in 0..n {
                let (row, column) = from(first + index / width, index % width);
                let (at, row) = rows[row];
                let (right, from) = (&self.pieces[at].expected, row * width + column);
                value.push(right.value[from]);
                spread.push(right.most_spread(from));
                single.push(right.single_of(from));
            }
            first += n / width;
            let rounding = piece.expected.rounding;
            let spread = Spread::Each(spread);
            (piece.steps.clone(), Expected { value, spread, single, rounding })
        });
        (Width::Fixed(width), parts.collect())
    }

    /// The right result, rounded in another way than declared.
    pub fn with_rounding(&self, rounding: Rounding) -> Result<Parts<'a>, ReplayError> {
        self.replay.parts_rounded(self.operation, &self.steps, rounding)
    }

    /// A matrix of another layer or projection, where it has the shape of this projection's.
    pub fn matrix_like(
        &self,
        tensor: &str,
        own: &Matrix<'a>,
    ) -> Result<Option<Matrix<'a>>, ReplayError> {
        if !self.replay.model.has(tensor) {
            return Ok(None);
        }
        let matrix = self.replay.matrix(tensor)?;
        let same = (matrix.outputs, matrix.inputs) == (own.outputs, own.inputs);
        Ok(same.then_some(matrix))
    }
}
