//! A few wrong elements, by which most hypotheses are refuted before they are computed whole.

use std::collections::BTreeSet;

use crate::replay::{self, Expected, Piece};

/// At most this many wrong elements are looked at. A hypothesis that explains every wrong element
/// explains these, and one that explains a tenth of them misses these once in 30 times.
const PROBED: usize = 32;

/// What explains fewer than one in so many wrong elements does so by luck: half the share that a cause
/// must have to be named.
const LUCKY: usize = 20;

/// Rows and columns of one piece of a guilty result, some of whose elements are wrong.
pub struct Grid {
    pub piece: usize,
    pub rows: Vec<usize>,
    pub columns: Vec<usize>,
}

/// Elements from all over a guilty result. Empty where the result is right: nothing is refuted then.
#[derive(Default)]
pub struct Probe {
    /// Whole rows.
    pub rows: Vec<Grid>,
    /// The same rows at some columns.
    pub cells: Vec<Grid>,
}

impl Probe {
    /// Chooses among the elements of the pieces that are marked wrong.
    pub fn of(pieces: &[Piece<'_>], wrong: &[Vec<bool>]) -> Probe {
        let places = |take: &dyn Fn(usize, usize) -> bool| -> Vec<(usize, usize)> {
            let of = |(at, piece): (usize, &Piece<'_>)| {
                let taken = (0..piece.captured.len()).filter(move |&index| take(at, index));
                taken.map(move |index| (at, index)).collect::<Vec<_>>()
            };
            let all: Vec<(usize, usize)> = pieces.iter().enumerate().flat_map(of).collect();
            let every = all.len().div_ceil(PROBED).max(1);
            all.into_iter().step_by(every).collect()
        };
        let mut chosen = places(&|piece, index| wrong[piece][index]);
        if chosen.is_empty() && replay::drift(pieces) > 1.0 {
            // Guilty, though no single element is wrong: any of them will do.
            chosen = places(&|_, _| true);
        }
        let mut probe = Probe::default();
        for (at, piece) in pieces.iter().enumerate() {
            let distinct = |of: &dyn Fn(usize) -> usize| -> Vec<usize> {
                let own = chosen.iter().filter(|place| place.0 == at).map(|place| of(place.1));
                own.collect::<BTreeSet<usize>>().into_iter().collect()
            };
            let rows = distinct(&|index| index / piece.width);
            if rows.is_empty() {
                continue;
            }
            let columns = distinct(&|index| index % piece.width);
            let whole = Grid { piece: at, rows: rows.clone(), columns: (0..piece.width).collect() };
            probe.rows.push(whole);
            probe.cells.push(Grid { piece: at, rows, columns });
        }
        probe
    }
}

impl Grid {
    /// Whether what is expected of the grid's elements, row-major, is what was recorded of enough wrong
    /// ones. In whole rows a few agree by luck.
    pub fn is_explained(&self, piece: &Piece<'_>, wrong: &[bool], expected: &Expected<'_>) -> bool {
        let at = |&row| self.columns.iter().map(move |column| (row, *column));
        let indices = self.rows.iter().flat_map(at).map(|(row, column)| row * piece.width + column);
        let any_wrong = wrong.contains(&true);
        let in_question = indices.enumerate().filter(|&(_, index)| wrong[index] || !any_wrong);
        let (mut all, mut explained) = (0, 0);
        for (nth, index) in in_question {
            let times_bound = expected.times_bound(nth, piece.captured[index]);
            all += 1;
            explained += usize::from(times_bound.is_none_or(|times| times <= 1.0));
        }
        explained > 0 && explained * LUCKY >= all
    }
}
