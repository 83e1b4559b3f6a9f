//! What was read off a wrong result, as data: a cause says the same in words.

/// What is read off one step of a result.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    pub title: &'static str,
    pub step: u32,
    pub shown: Shown,
}

/// As it is drawn.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    /// What each position was taken for.
    Positions(Vec<(usize, f64)>),
    Cells(Cells),
}

/// Kinds of things by two axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Cells {
    /// What a row and a column count.
    pub names: [&'static str; 2],
    /// The first row's number.
    pub first: usize,
    /// How many columns a row has.
    pub columns: usize,
    /// What a number stands for; the first is as it must be.
    pub kinds: Vec<String>,
    /// Row by row.
    pub of: Vec<u8>,
}

/// Rows and columns that are kept; what comes after them is left out.
const MOST: [usize; 2] = [128, 256];

impl Cells {
    /// Cells of so many columns each row, cut to what can be seen.
    pub fn new(
        names: [&'static str; 2],
        first: usize,
        columns: usize,
        kinds: Vec<String>,
        of: &[u8],
    ) -> Cells {
        let kept = columns.min(MOST[1]);
        let rows = of.chunks(columns.max(1)).take(MOST[0]);
        let of = rows.flat_map(|row| &row[..kept.min(row.len())]).copied().collect();
        Cells { names, first, columns: kept, kinds, of }
    }
}
