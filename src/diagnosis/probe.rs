//! A few wrong elements, by which most hypotheses are refuted before they are computed whole.

use std::collections::{BTreeMap, BTreeSet};

use crate::diagnosis::replay::{self, Expected, Piece};

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
    /// Piece and index of each of the elements.
    places: Vec<(usize, usize)>,
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
        Probe { places: chosen, ..probe }
    }

    /// The elements' rows, of each only the heads (`dim` columns) that an element is in; the heads of a
    /// piece one after another.
    pub fn heads(&self, pieces: &[Piece<'_>], dim: usize) -> Vec<Grid> {
        let mut rows = BTreeMap::<(usize, usize), BTreeSet<usize>>::new();
        for &(piece, index) in &self.places {
            let width = pieces[piece].width;
            rows.entry((piece, index % width / dim)).or_default().insert(index / width);
        }
        let grid = |((piece, head), rows): (_, BTreeSet<usize>)| Grid {
            piece,
            rows: rows.into_iter().collect(),
            columns: (head * dim..(head + 1) * dim).collect(),
        };
        rows.into_iter().map(grid).collect()
    }
}

/// How many of the elements in question a hypothesis explains.
#[derive(Clone, Copy, Default)]
pub struct Agreement {
    all: usize,
    explained: usize,
}

impl Agreement {
    /// Whether they are more than agree by luck.
    pub fn is_enough(self) -> bool {
        self.explained > 0 && self.explained * LUCKY >= self.all
    }

    /// Whether it is all of them.
    pub fn is_whole(self) -> bool {
        self.explained == self.all
    }

    /// How many.
    pub fn explained(self) -> usize {
        self.explained
    }

    pub fn add(self, other: Agreement) -> Agreement {
        Agreement { all: self.all + other.all, explained: self.explained + other.explained }
    }
}

impl Grid {
    /// How often what is expected of the grid's elements, row-major, is what was recorded of the wrong
    /// ones.
    pub fn agreement(
        &self,
        piece: &Piece<'_>,
        wrong: &[bool],
        expected: &Expected<'_>,
    ) -> Agreement {
        let at = |&row| self.columns.iter().map(move |column| (row, *column));
        let indices = self.rows.iter().flat_map(at).map(|(row, column)| row * piece.width + column);
        let any_wrong = wrong.contains(&true);
        let in_question = indices.enumerate().filter(|&(_, index)| wrong[index] || !any_wrong);
        let mut agreement = Agreement::default();
        for (nth, index) in in_question {
            let times_bound = expected.times_bound(nth, piece.captured[index]);
            agreement.all += 1;
            agreement.explained += usize::from(times_bound.is_none_or(|times| times <= 1.0));
        }
        agreement
    }
}
