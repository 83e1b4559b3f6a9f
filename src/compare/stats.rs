//! How far two tensors of one site are apart, and which elements are beyond the tolerance.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    compare::{Pattern, SiteFloor, queries::RowTokens},
    site::{Site, Stage},
    tensor::Tensor,
};

/// Rows of one parallel piece; sums are added in the order of the pieces.
const ROWS_PER_PIECE: usize = 8;

/// One element of a site, with what each side has there.
///
/// JSON has no NaN or infinity: such a value is written as null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Element {
    /// Index on each axis of the stage; a token's index is within its step.
    pub index: Vec<usize>,
    pub engine: f32,
    pub reference: f32,
    /// |engine - reference| in units of this element's floor; infinite where the floor is zero or
    /// a value is not finite.
    pub times_floor: f64,
}

/// Elements that are NaN or infinite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NonFinite {
    pub engine: u64,
    pub reference: u64,
    /// Elements where one side is finite and the other is not, or the two differ in kind.
    pub mismatched: u64,
}

/// The difference of an engine's tensor from the reference's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Elements that count; a score of a key after the query's position does not.
    pub elements: u64,
    pub max_abs: f64,
    /// ||e - r|| / ||r|| over elements that are finite on both sides.
    pub relative_l2: f64,
    pub cosine: f64,
    /// ||e|| / ||r||.
    pub norm_ratio: f64,
    /// Largest distance in units in the last place of f32.
    pub max_ulp: u64,
    pub non_finite: NonFinite,
    /// Elements beyond tolerance.
    pub beyond: u64,
    /// The first of them in row-major order.
    pub first: Option<Element>,
    /// The one furthest beyond.
    pub worst: Option<Element>,
    /// relative_l2 in units of its floor.
    pub l2_times_floor: f64,
    /// Which elements are beyond tolerance.
    pub pattern: Option<Pattern>,
}

impl Difference {
    /// Whether the site diverges: an element, or the relative L2, beyond factor x floor.
    pub fn diverged(&self, factor: f64) -> bool {
        self.beyond > 0 || self.l2_times_floor > factor
    }

    /// Whether no element is finite on either side, so that there is nothing to compare.
    pub fn has_no_number(&self) -> bool {
        self.elements > 0 && self.non_finite.reference == self.elements
    }

    /// How many floors the site is off: by its worst element or its relative L2.
    pub fn times_floor(&self) -> f64 {
        let worst = self.worst.as_ref().map_or(0.0, |element| element.times_floor);
        worst.max(self.l2_times_floor)
    }
}

/// Sums and extremes over some rows.
#[derive(Clone, Default)]
struct Piece {
    elements: u64,
    max_abs: f64,
    squared_distance: f64,
    squared_engine: f64,
    squared_reference: f64,
    product: f64,
    max_ulp: u64,
    non_finite: NonFinite,
    beyond: u64,
    first: Option<(usize, f64)>,
    worst: Option<(usize, f64)>,
}

impl Piece {
    /// Adds the piece that follows in row-major order.
    fn then(mut self, next: Piece) -> Piece {
        self.elements += next.elements;
        self.max_abs = self.max_abs.max(next.max_abs);
        self.squared_distance += next.squared_distance;
        self.squared_engine += next.squared_engine;
        self.squared_reference += next.squared_reference;
        self.product += next.product;
        self.max_ulp = self.max_ulp.max(next.max_ulp);
        self.non_finite.engine += next.non_finite.engine;
        self.non_finite.reference += next.non_finite.reference;
        self.non_finite.mismatched += next.non_finite.mismatched;
        self.beyond += next.beyond;
        self.first = self.first.or(next.first);
        self.worst = match (self.worst, next.worst) {
            (Some(a), Some(b)) => Some(if b.1 > a.1 { b } else { a }),
            (a, b) => a.or(b),
        };
        self
    }
}

/// Compares the tensors of a site, which have the same shape.
pub fn compare(
    site: Site,
    engine: &Tensor,
    reference: &Tensor,
    tokens: RowTokens<'_>,
    floor: SiteFloor,
    factor: f64,
) -> Difference {
    assert_eq!(engine.shape, reference.shape, "{site}");
    let rows = Rows::new(site.stage, &engine.shape, tokens);
    let row = |row: usize| -> Piece {
        let range = row * rows.length..(row + 1) * rows.length;
        let (e, r) = (&engine.data[range.clone()], &reference.data[range]);
        compare_row(&rows, row, e, r, floor.elementwise, factor)
    };
    let starts: Vec<usize> = (0..rows.count).step_by(ROWS_PER_PIECE).collect();
    let pieces: Vec<Piece> = starts
        .par_iter()
        .map(|&start| {
            let end = (start + ROWS_PER_PIECE).min(rows.count);
            (start..end).map(row).fold(Piece::default(), Piece::then)
        })
        .collect();
    let total = pieces.into_iter().fold(Piece::default(), Piece::then);
    finish(site, engine, reference, &rows, total, floor, factor)
}

fn finish(
    site: Site,
    engine: &Tensor,
    reference: &Tensor,
    rows: &Rows<'_>,
    total: Piece,
    floor: SiteFloor,
    factor: f64,
) -> Difference {
    let element = |(flat, times_floor): (usize, f64)| Element {
        index: rows.index(flat, &engine.shape),
        engine: engine.data[flat],
        reference: reference.data[flat],
        times_floor,
    };
    let ratio = |a: f64, b: f64| if a == b { 1.0 } else { a / b };
    let norm_product = (total.squared_engine * total.squared_reference).sqrt();
    let distance = total.squared_distance.sqrt();
    let relative_l2 = match total.squared_reference {
        0.0 if distance == 0.0 => 0.0,
        squared => distance / squared.sqrt(),
    };
    let pattern = (total.beyond > 0).then(|| {
        Pattern::of(
            site.stage,
            &rows.whole_shape(&engine.shape),
            rows.tokens.first_position,
            |mark| {
                for row in 0..rows.count {
                    let range = row * rows.length..(row + 1) * rows.length;
                    let (e, r) = (&engine.data[range.clone()], &reference.data[range]);
                    for (flat, _) in beyond(rows, row, e, r, floor.elementwise, factor) {
                        mark(&rows.index(flat, &engine.shape));
                    }
                }
            },
        )
    });
    Difference {
        elements: total.elements,
        max_abs: total.max_abs,
        relative_l2,
        cosine: ratio(total.product, norm_product),
        norm_ratio: ratio(total.squared_engine.sqrt(), total.squared_reference.sqrt()),
        max_ulp: total.max_ulp,
        non_finite: total.non_finite,
        beyond: total.beyond,
        first: total.first.map(element),
        worst: total.worst.map(element),
        l2_times_floor: times(relative_l2, floor.relative_l2),
        pattern,
    }
}

/// The rows of a tensor: one for each index of its first axis, a token or a position.
pub(super) struct Rows<'a> {
    pub count: usize,
    pub length: usize,
    tokens: RowTokens<'a>,
    /// Keys of one head's row, where only those up to the query's position count.
    keys: Option<usize>,
}

impl<'a> Rows<'a> {
    pub fn new(stage: Stage, shape: &[usize], tokens: RowTokens<'a>) -> Rows<'a> {
        let count = shape[0];
        let length = shape[1..].iter().product();
        let masked = matches!(stage, Stage::Scores | Stage::Probs);
        let keys = masked.then(|| shape[shape.len() - 1]);
        Rows { count, length, tokens, keys }
    }

    /// The index of an element in the tensor of all the step's tokens.
    fn index(&self, flat: usize, shape: &[usize]) -> Vec<usize> {
        let mut index = Tensor::unravel(flat, shape);
        index[0] = self.tokens.token(index[0]);
        index
    }

    /// The shape up to the last of the tokens.
    fn whole_shape(&self, shape: &[usize]) -> Vec<usize> {
        let mut whole = shape.to_vec();
        whole[0] = self.tokens.token(self.count - 1) + 1;
        whole
    }

    /// Whether the element at `column` of a row counts.
    pub fn counts(&self, row: usize, column: usize) -> bool {
        self.keys.is_none_or(|keys| column % keys <= self.tokens.position(row))
    }

    /// The element at a place in row-major order, or where it does not count another key of its row.
    pub fn counted(&self, flat: usize) -> usize {
        let (row, column) = (flat / self.length, flat % self.length);
        match self.keys {
            Some(keys) if !self.counts(row, column) => {
                flat - column % keys + column % keys % (self.tokens.position(row) + 1)
            }
            _ => flat,
        }
    }

    /// The largest finite |r| of a row: what its tolerance is relative to.
    pub fn scale(&self, row: usize, reference: &[f32]) -> f64 {
        let counted = reference.iter().enumerate().filter(|&(column, _)| self.counts(row, column));
        let finite = counted.map(|(_, r)| r.abs()).filter(|r| r.is_finite());
        f64::from(finite.fold(0.0, f32::max))
    }
}

fn compare_row(
    rows: &Rows<'_>,
    row: usize,
    engine: &[f32],
    reference: &[f32],
    floor: f64,
    factor: f64,
) -> Piece {
    let mut piece = Piece::default();
    let unit = floor * rows.scale(row, reference);
    for (column, (&e, &r)) in engine.iter().zip(reference).enumerate() {
        if !rows.counts(row, column) {
            continue;
        }
        piece.elements += 1;
        if !(e.is_finite() && r.is_finite()) {
            piece.non_finite.engine += u64::from(!e.is_finite());
            piece.non_finite.reference += u64::from(!r.is_finite());
            piece.non_finite.mismatched += u64::from(!same_non_finite(e, r));
        } else {
            let (e, r) = (f64::from(e), f64::from(r));
            piece.max_abs = piece.max_abs.max((e - r).abs());
            piece.squared_distance += (e - r) * (e - r);
            piece.squared_engine += e * e;
            piece.squared_reference += r * r;
            piece.product += e * r;
            piece.max_ulp = piece.max_ulp.max(ulp_distance(e as f32, r as f32));
        }
        let times_floor = element_times_floor(e, r, unit);
        let flat = row * rows.length + column;
        if times_floor > factor {
            piece.beyond += 1;
            piece.first.get_or_insert((flat, times_floor));
        }
        if piece.worst.is_none_or(|(_, worst)| times_floor > worst) {
            piece.worst = Some((flat, times_floor));
        }
    }
    piece
}

/// The elements of a row that are beyond tolerance, with their distance in floors.
fn beyond(
    rows: &Rows<'_>,
    row: usize,
    engine: &[f32],
    reference: &[f32],
    floor: f64,
    factor: f64,
) -> impl Iterator<Item = (usize, f64)> {
    let unit = floor * rows.scale(row, reference);
    let pairs = engine.iter().zip(reference).enumerate();
    pairs.filter_map(move |(column, (&e, &r))| {
        let times_floor = element_times_floor(e, r, unit);
        let is_beyond = rows.counts(row, column) && times_floor > factor;
        is_beyond.then_some((row * rows.length + column, times_floor))
    })
}

pub(super) fn element_times_floor(engine: f32, reference: f32, unit: f64) -> f64 {
    if engine.is_finite() && reference.is_finite() {
        return times((f64::from(engine) - f64::from(reference)).abs(), unit);
    }
    if same_non_finite(engine, reference) { 0.0 } else { f64::INFINITY }
}

/// A distance in units of the floor. Below the smallest normal f32 nothing is measured.
pub(super) fn times(distance: f64, unit: f64) -> f64 {
    if distance <= f64::from(f32::MIN_POSITIVE) { 0.0 } else { distance / unit }
}

fn same_non_finite(a: f32, b: f32) -> bool {
    (a.is_nan() && b.is_nan()) || a == b
}

/// f32 numbers between the two, NaN and infinities excluded.
pub(super) fn ulp_distance(a: f32, b: f32) -> u64 {
    let ordered = |x: f32| {
        let bits = x.to_bits() as i32;
        i64::from(if bits < 0 { i32::MIN.wrapping_sub(bits) } else { bits })
    };
    ordered(a).abs_diff(ordered(b))
}
