//! How far two tensors of one site are apart, and which elements are beyond the tolerance.

use std::{sync::LazyLock, thread};

use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};
use serde::{Deserialize, Serialize};

use crate::{
    compare::{Pattern, lanes::ulp_distance, queries::RowTokens, rows::Rows},
    core::{floor::SiteFloor, tensor::Tensor},
    graph::site::Site,
};

/// Rows of one parallel piece; sums are added in the order of the pieces.
const ROWS_PER_PIECE: usize = 8;
/// Elements of a tensor that several threads compare: they take longer to wake than to compare fewer.
const SHARED: usize = 1 << 16;

/// The threads of the comparison. Both sides run beside it, and llama.cpp's threads wait busily: a core
/// that it takes from one of them stops all.
static COMPARING: LazyLock<ThreadPool> = LazyLock::new(|| {
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    let threads = ThreadPoolBuilder::new().num_threads((cores / 4).max(1));
    threads.build().expect("the operating system gives a few threads")
});

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
    /// Elements that are NaN, or positive infinity, on both sides: nothing is compared there. Negative
    /// infinity is what a mask writes.
    #[serde(default)]
    pub in_both: u64,
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

    /// Whether elements are no numbers on either side, so that they cannot be compared.
    pub fn lacks_numbers(&self) -> bool {
        self.non_finite.in_both > 0
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
    /// The row that has it, and its distance in floors.
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
        self.non_finite.in_both += next.non_finite.in_both;
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
    let piece = |&start: &usize| {
        let end = (start + ROWS_PER_PIECE).min(rows.count);
        (start..end).map(row).fold(Piece::default(), Piece::then)
    };
    let pieces: Vec<Piece> = if engine.data.len() >= SHARED {
        COMPARING.install(|| starts.par_iter().map(piece).collect())
    } else {
        starts.iter().map(piece).collect()
    };
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
            rows.tokens.axes.unwrap_or(site.stage.axes()),
            &rows.whole_shape(&engine.shape),
            rows.tokens.first_position,
            |mark| {
                for row in 0..rows.count {
                    let range = row * rows.length..(row + 1) * rows.length;
                    let (e, r) = (&engine.data[range.clone()], &reference.data[range]);
                    for (flat, times_floor) in distances(rows, row, e, r, floor.elementwise) {
                        if times_floor > factor {
                            mark(&rows.index(flat, &engine.shape));
                        }
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
        worst: total.worst.and_then(|(row, worst)| {
            let range = row * rows.length..(row + 1) * rows.length;
            let (e, r) = (&engine.data[range.clone()], &reference.data[range]);
            let mut elements = distances(rows, row, e, r, floor.elementwise);
            elements.find(|&(_, times_floor)| times_floor == worst).map(element)
        }),
        l2_times_floor: times(relative_l2, floor.relative_l2),
        pattern,
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
    let Some(totals) = rows.totals(row, engine, reference) else {
        return compare_elements(rows, row, engine, reference, floor, factor);
    };
    let worst = times(totals.max_abs, floor * f64::from(totals.scale));
    if worst > factor {
        return compare_elements(rows, row, engine, reference, floor, factor);
    }
    let elements = rows.runs(row).map(|run| run.len() as u64).sum();
    Piece {
        elements,
        max_abs: totals.max_abs,
        squared_distance: totals.squared_distance,
        squared_engine: totals.squared_engine,
        squared_reference: totals.squared_reference,
        product: totals.product,
        max_ulp: u64::from(totals.max_ulp),
        worst: (elements > 0).then_some((row, worst)),
        ..Piece::default()
    }
}

/// The same, element by element: where some are beyond tolerance, or no numbers.
fn compare_elements(
    rows: &Rows<'_>,
    row: usize,
    engine: &[f32],
    reference: &[f32],
    floor: f64,
    factor: f64,
) -> Piece {
    let mut piece = Piece::default();
    for (flat, times_floor) in distances(rows, row, engine, reference, floor) {
        let column = flat - row * rows.length;
        let (e, r) = (engine[column], reference[column]);
        piece.elements += 1;
        if !(e.is_finite() && r.is_finite()) {
            piece.non_finite.engine += u64::from(!e.is_finite());
            piece.non_finite.reference += u64::from(!r.is_finite());
            let is_same = same_non_finite(e, r);
            piece.non_finite.mismatched += u64::from(!is_same);
            piece.non_finite.in_both += u64::from(is_same && e != f32::NEG_INFINITY);
        } else {
            piece.max_ulp = piece.max_ulp.max(u64::from(ulp_distance(e, r)));
            let (e, r) = (f64::from(e), f64::from(r));
            piece.max_abs = piece.max_abs.max((e - r).abs());
            piece.squared_distance += (e - r) * (e - r);
            piece.squared_engine += e * e;
            piece.squared_reference += r * r;
            piece.product += e * r;
        }
        if times_floor > factor {
            piece.beyond += 1;
            piece.first.get_or_insert((flat, times_floor));
        }
        if piece.worst.is_none_or(|(_, worst)| times_floor > worst) {
            piece.worst = Some((row, times_floor));
        }
    }
    piece
}

/// The elements of a row that count: each one's place in row-major order, and its distance in floors.
fn distances(
    rows: &Rows<'_>,
    row: usize,
    engine: &[f32],
    reference: &[f32],
    floor: f64,
) -> impl Iterator<Item = (usize, f64)> {
    let unit = floor * rows.scale(row, reference);
    let before = row * rows.length;
    rows.runs(row).flatten().map(move |column| {
        (before + column, element_times_floor(engine[column], reference[column], unit))
    })
}

/// The distance of every element in floors, row-major; `None` where it does not count. The tensors have the same
/// shape.
pub fn in_floors(
    site: Site,
    engine: &Tensor,
    reference: &Tensor,
    tokens: RowTokens<'_>,
    floor: SiteFloor,
) -> Vec<Option<f64>> {
    let rows = Rows::new(site.stage, &engine.shape, tokens);
    let mut all = vec![None; engine.data.len()];
    for row in 0..rows.count {
        let range = row * rows.length..(row + 1) * rows.length;
        let (e, r) = (&engine.data[range.clone()], &reference.data[range]);
        for (flat, times_floor) in distances(&rows, row, e, r, floor.elementwise) {
            all[flat] = Some(times_floor);
        }
    }
    all
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::site::Stage;

    #[test]
    fn a_row_taken_at_once_is_what_its_elements_say() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        for (stage, shape) in [(Stage::Q, [3, 5, 7]), (Stage::Scores, [3, 5, 13])] {
            let n = shape.iter().product();
            let reference: Vec<f32> = (0..n).map(|_| random()).collect();
            let engine: Vec<f32> = reference.iter().map(|r| r * (1.0 + 1e-6 * random())).collect();
            let rows = Rows::new(stage, &shape, 4.into());
            for row in 0..rows.count {
                let range = row * rows.length..(row + 1) * rows.length;
                let (e, r) = (&engine[range.clone()], &reference[range]);
                let at_once = compare_row(&rows, row, e, r, 1e-7, f64::INFINITY);
                let one_by_one = compare_elements(&rows, row, e, r, 1e-7, f64::INFINITY);
                assert_eq!(at_once.elements, one_by_one.elements);
                assert_eq!(at_once.max_abs, one_by_one.max_abs);
                assert_eq!(at_once.max_ulp, one_by_one.max_ulp);
                assert_eq!(at_once.worst, one_by_one.worst);
                let close =
                    |a: f64, b: f64| approx::assert_relative_eq!(a, b, max_relative = 1e-12);
                close(at_once.squared_distance, one_by_one.squared_distance);
                close(at_once.squared_engine, one_by_one.squared_engine);
                close(at_once.squared_reference, one_by_one.squared_reference);
                close(at_once.product, one_by_one.product);
            }
        }
    }
}
