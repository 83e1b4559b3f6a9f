//! A tensor as a small picture: of each block of elements the worst one, so that a single bad element stays
//! visible however large the tensor is.

use std::ops::Range;

use rayon::prelude::*;

use crate::graph::site::Axis;

/// Columns that a tensor of one long row is wrapped to.
const WRAPPED: usize = 64;

/// How the elements of a tensor lie in a picture: its rows and columns, and the blocks of them that are one pixel.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// What a row and a column of the picture count, such as `token` and `head x dim`.
    pub names: [String; 2],
    /// Elements down and across.
    pub size: [usize; 2],
    /// Elements of a pixel down and across.
    pub block: [usize; 2],
    /// The index of an axis that all elements share: of scores the head.
    pub fixed: Option<(Axis, usize)>,
    /// Elements of the last axis, where a row of the picture holds several times as many; else 0.
    pub group: usize,
    /// From one row to the next, in row-major order.
    stride: usize,
    first: usize,
    elements: usize,
}

impl Grid {
    /// A grid of at most `most` pixels down and across. Of scores only the head of `worst`, an element, is shown.
    pub fn of(axes: &[Axis], shape: &[usize], worst: usize, most: [usize; 2]) -> Grid {
        let elements: usize = shape.iter().product();
        let name = |axes: &[Axis]| -> String {
            let words: Vec<&str> = axes.iter().map(|axis| axis.word()).collect();
            words.join(" x ")
        };
        let last = shape.last().copied().unwrap_or(1).max(1);
        let rows = shape.first().copied().unwrap_or(1).max(1);
        let is_query_by_key = shape.len() == 3 && axes.last() == Some(&Axis::Key);
        let grid = |names: [String; 2], size: [usize; 2], stride: usize, first: usize| Grid {
            names,
            size,
            block: [1, 1],
            fixed: None,
            group: 0,
            stride,
            first,
            elements,
        };
        let grid = match (shape.len(), rows) {
            (3, 2..) if is_query_by_key => {
                let head = worst / last % shape[1].max(1);
                let names = ["query".to_string(), "key".to_string()];
                let own = grid(names, [rows, last], shape[1] * last, head * last);
                Grid { fixed: Some((axes[1], head)), ..own }
            }
            (3, 1) => grid([name(&axes[1..2]), name(&axes[2..])], [shape[1].max(1), last], last, 0),
            (1, _) | (2, 1) if last > WRAPPED => {
                let own = name(&axes[axes.len().saturating_sub(1)..]);
                let names = [format!("{own}, {WRAPPED} a row"), own];
                grid(names, [last.div_ceil(WRAPPED), WRAPPED], WRAPPED, 0)
            }
            (0 | 1, _) => grid([String::new(), name(axes)], [1, last], last, 0),
            _ => {
                let length = elements / rows;
                let own = grid([name(&axes[..1]), name(&axes[1..])], [rows, length], length, 0);
                Grid { group: if shape.len() > 2 { last } else { 0 }, ..own }
            }
        };
        grid.within(most)
    }

    /// The same of at most so many pixels down and across. Blocks do not cross heads where they need not.
    fn within(self, most: [usize; 2]) -> Grid {
        let [rows, columns] = self.size;
        let across = columns.div_ceil(most[1]);
        let is_whole = |&n: &usize| self.group.is_multiple_of(n);
        let whole = (across..=self.group).find(is_whole).filter(|&n| n < 2 * across);
        Grid { block: [rows.div_ceil(most[0]), whole.unwrap_or(across)], ..self }
    }

    /// Pixels down and across.
    pub fn pixels(&self) -> [usize; 2] {
        [0, 1].map(|i| self.size[i].div_ceil(self.block[i]))
    }

    /// The elements of a pixel, by their places in row-major order.
    fn elements(&self, pixel: usize) -> impl Iterator<Item = usize> + use<'_> {
        let across = self.pixels()[1];
        let range = |i: usize, at: usize| -> Range<usize> {
            at * self.block[i]..((at + 1) * self.block[i]).min(self.size[i])
        };
        let (rows, columns) = (range(0, pixel / across), range(1, pixel % across));
        let row = move |row: usize| {
            columns.clone().map(move |column| self.first + row * self.stride + column)
        };
        rows.flat_map(row).filter(|&flat| flat < self.elements)
    }
}

/// One element of a tensor, on a page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pixel {
    /// Its place in row-major order.
    pub flat: usize,
    pub engine: f32,
    /// What the operation must give, in f64; NaN where that is not known.
    pub exact: f64,
    pub reference: Option<f32>,
    /// |engine - exact| in bounds, and of all elements of the block the largest |engine - reference| in floors.
    pub added: Option<f64>,
    pub inherited: Option<f64>,
}

/// A tensor as pixels, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    pub grid: Grid,
    /// `None` where a block has no element.
    pub pixels: Vec<Option<Pixel>>,
}

impl Picture {
    /// Takes of each block the element with the largest error, as `pixel` tells it. What has no error is
    /// taken where nothing else is there.
    pub fn of(
        grid: Grid,
        error: &(dyn Fn(usize) -> Option<f64> + Sync),
        pixel: &(dyn Fn(usize, Option<f64>) -> Pixel + Sync),
    ) -> Picture {
        let [down, across] = grid.pixels();
        let chosen = |at: usize| {
            let mut worst: Option<(usize, Option<f64>)> = None;
            for flat in grid.elements(at) {
                let own = error(flat);
                let is_worse = worst.is_none_or(|(_, worst)| rank(own) > rank(worst));
                worst = if is_worse { Some((flat, own)) } else { worst };
            }
            worst.map(|(flat, error)| pixel(flat, error))
        };
        let pixels = (0..down * across).into_par_iter().map(chosen).collect();
        Picture { grid, pixels }
    }

    /// Half as many pixels down and across; the worse ones stay.
    pub fn halved(&self) -> Picture {
        let [down, across] = self.grid.pixels();
        let halves = [down, across].map(|n| if n > 1 { 2 } else { 1 });
        let block = [0, 1].map(|i| self.grid.block[i] * halves[i]);
        let grid = Grid { block, ..self.grid.clone() };
        let [new_down, new_across] = grid.pixels();
        let merged = |at: usize| {
            let (row, column) = (at / new_across * halves[0], at % new_across * halves[1]);
            let rows = row..(row + halves[0]).min(down);
            let columns = column..(column + halves[1]).min(across);
            let own = rows.flat_map(|row| columns.clone().map(move |column| row * across + column));
            own.filter_map(|at| self.pixels[at]).reduce(Pixel::worse)
        };
        Picture { pixels: (0..new_down * new_across).map(merged).collect(), grid }
    }

    /// Adds what the reference has, and of each block the largest distance from it.
    pub fn add_reference(
        &mut self,
        reference: &[f32],
        times_floor: &(dyn Fn(usize) -> Option<f64> + Sync),
    ) {
        let grid = &self.grid;
        self.pixels.par_iter_mut().enumerate().for_each(|(at, pixel)| {
            let Some(pixel) = pixel else { return };
            pixel.reference = reference.get(pixel.flat).copied();
            let all = grid.elements(at).filter_map(times_floor);
            pixel.inherited = all.reduce(f64::max);
        });
    }
}

impl Pixel {
    /// The worse of two, with the larger distance from the reference.
    fn worse(self, other: Pixel) -> Pixel {
        let key = |pixel: &Pixel| (rank(pixel.added), rank(pixel.inherited));
        let worse = if key(&other) > key(&self) { other } else { self };
        let inherited = match (self.inherited, other.inherited) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        Pixel { inherited, ..worse }
    }
}

/// What is no number is worst.
fn rank(error: Option<f64>) -> f64 {
    error.map_or(-1.0, |error| if error.is_nan() { f64::INFINITY } else { error })
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY_BY_KEY: [Axis; 3] = [Axis::Token, Axis::Head, Axis::Key];
    const HEADS: [Axis; 3] = [Axis::Token, Axis::Head, Axis::Dim];

    fn picture(grid: Grid, bad: usize) -> Picture {
        let error = |flat: usize| Some(if flat == bad { 9.0 } else { 0.1 });
        let pixel = |flat: usize, added: Option<f64>| Pixel {
            flat,
            engine: flat as f32,
            exact: 0.0,
            reference: None,
            added,
            inherited: None,
        };
        Picture::of(grid, &error, &pixel)
    }

    fn shows(picture: &Picture, bad: usize) -> bool {
        picture.pixels.iter().flatten().filter(|pixel| pixel.added == Some(9.0)).count() == 1
            && picture.pixels.iter().flatten().any(|pixel| pixel.flat == bad)
    }

    #[test]
    fn one_bad_element_of_many_stays_visible_however_small_the_picture() {
        let shape = [301, 14, 64];
        for bad in [0, 12_345, 301 * 14 * 64 - 1] {
            let mut small = picture(Grid::of(&HEADS, &shape, bad, [48, 128]), bad);
            let [down, across] = small.grid.pixels();
            assert!(down <= 48 && across <= 128, "{down} x {across}");
            for _ in 0..8 {
                assert!(shows(&small, bad));
                small = small.halved();
            }
            assert_eq!(small.grid.pixels(), [1, 1]);
            assert!(shows(&small, bad));
        }
    }

    #[test]
    fn scores_show_the_head_of_the_worst_element() {
        let shape = [5, 3, 7];
        let bad = (2 * 3 + 1) * 7 + 4;
        let grid = Grid::of(&QUERY_BY_KEY, &shape, bad, [48, 128]);
        assert_eq!((grid.fixed, grid.size), (Some((Axis::Head, 1)), [5, 7]));
        let all = picture(grid, bad);
        assert!(shows(&all, bad));
        assert_eq!(all.pixels[2 * 7 + 4].unwrap().flat, bad);
    }

    #[test]
    fn every_element_is_in_one_pixel_and_blocks_keep_to_heads() {
        let shapes: [(&[Axis], &[usize]); 5] = [
            (&HEADS, &[86, 14, 64]),
            (&HEADS, &[1, 14, 64]),
            (&[Axis::Token, Axis::Channel], &[1, 897]),
            (&[Axis::Token, Axis::Channel], &[7, 130]),
            (&[Axis::Expert], &[5]),
        ];
        for (axes, shape) in shapes {
            let grid = Grid::of(axes, shape, 0, [10, 20]);
            let [down, across] = grid.pixels();
            let mut all: Vec<usize> =
                (0..down * across).flat_map(|at| grid.elements(at).collect::<Vec<_>>()).collect();
            all.sort_unstable();
            assert_eq!(all, (0..shape.iter().product()).collect::<Vec<_>>(), "{shape:?}");
        }
        let heads = Grid::of(&HEADS, &[86, 14, 64], 0, [48, 128]);
        assert_eq!((heads.block, heads.group), ([2, 8], 64));
    }
}
