//! Numbers of a graph that depend on how many tokens a step has, and how many cells its caches.

use serde::{Deserialize, Serialize};

/// What the numbers of one step's graph depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// T, tokens of the step.
    pub tokens: usize,
    /// N, cells of a cache that the step reads.
    pub cells: usize,
    /// Whether no step came before: recurrent states are cleared.
    pub is_first: bool,
}

/// A length, stride, offset or parameter: fixed + per_token T + per_cell N + per_both T N + per_square T T,
/// and `first` more in a run's first step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Terms", into = "Terms")]
pub struct Size {
    pub fixed: i64,
    pub per_token: i64,
    pub per_cell: i64,
    pub per_both: i64,
    pub per_square: i64,
    pub first: i64,
}

/// As a graph's file has it: one number where it is fixed, else all six terms.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Terms {
    Fixed(i64),
    All([i64; 6]),
}

impl From<Terms> for Size {
    fn from(terms: Terms) -> Size {
        match terms {
            Terms::Fixed(fixed) => Size::fixed(fixed),
            Terms::All([fixed, per_token, per_cell, per_both, per_square, first]) => {
                Size { fixed, per_token, per_cell, per_both, per_square, first }
            }
        }
    }
}

impl From<Size> for Terms {
    fn from(size: Size) -> Terms {
        if size.is_fixed() {
            return Terms::Fixed(size.fixed);
        }
        let Size { fixed, per_token, per_cell, per_both, per_square, first } = size;
        Terms::All([fixed, per_token, per_cell, per_both, per_square, first])
    }
}

/// A number as graphs of different extents have it.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub extent: Extent,
    pub value: i64,
}

impl Size {
    /// The same number in every step.
    pub const fn fixed(fixed: i64) -> Size {
        Size { fixed, per_token: 0, per_cell: 0, per_both: 0, per_square: 0, first: 0 }
    }

    /// Whether no term is larger than any memory.
    pub fn is_sane(self) -> bool {
        let Size { fixed, per_token, per_cell, per_both, per_square, first } = self;
        let terms = [fixed, per_token, per_cell, per_both, per_square, first];
        terms.iter().all(|term| term.unsigned_abs() <= 1 << 44)
    }

    /// Whether it is the same number in every step.
    pub fn is_fixed(self) -> bool {
        self == Size::fixed(self.fixed)
    }

    /// Whether it grows with the tokens.
    pub fn has_tokens(self) -> bool {
        self.per_token != 0 || self.per_both != 0 || self.per_square != 0
    }

    /// Whether it grows with the cells of a cache.
    pub fn has_cells(self) -> bool {
        self.per_cell != 0 || self.per_both != 0
    }

    /// The number in a step.
    pub fn at(self, extent: Extent) -> i64 {
        let (tokens, cells) = (extent.tokens as i64, extent.cells as i64);
        let first = if extent.is_first { self.first } else { 0 };
        let of = |factor: i64, by: i64| factor.saturating_mul(by);
        let terms = [
            of(self.per_token, tokens),
            of(self.per_cell, cells),
            of(self.per_both, tokens.saturating_mul(cells)),
            of(self.per_square, tokens.saturating_mul(tokens)),
            first,
        ];
        // A file may state any factors.
        terms.into_iter().fold(self.fixed, i64::saturating_add)
    }

    /// The size that gives all samples: of steps that are not a run's first, 1, 2 and 3 tokens with few cells
    /// and two numbers of tokens with many; and any others to hold it to, the first of a run's first step
    /// among them. `None` where it depends on them in another way.
    pub fn fit(samples: &[Sample]) -> Option<Size> {
        let first_value = samples[0].value;
        if samples.iter().all(|sample| sample.value == first_value) {
            return Some(Size::fixed(first_value));
        }
        let later: Vec<&Sample> = samples.iter().filter(|s| !s.extent.is_first).collect();
        let few = later.iter().map(|s| s.extent.cells).min()?;
        let of = |tokens: usize| {
            let sample = later.iter().find(|s| s.extent.tokens == tokens && s.extent.cells == few);
            sample.map(|sample| sample.value)
        };
        let bend = of(3)? - 2 * of(2)? + of(1)?;
        let whole = |a: i64, b: i64| (a % b == 0).then_some(a / b);
        let per_square = whole(bend, 2)?;
        let straight = |s: &Sample| s.value - per_square * (s.extent.tokens as i64).pow(2);
        let slope = |of_few: bool| {
            let mut of = later.iter().filter(|s| (s.extent.cells == few) == of_few);
            let (a, b) = (of.next()?, of.next()?);
            let tokens = b.extent.tokens as i64 - a.extent.tokens as i64;
            Some((a, whole(straight(b) - straight(a), tokens)?))
        };
        let ((low, low_slope), (high, high_slope)) = (slope(true)?, slope(false)?);
        let cells = high.extent.cells as i64 - low.extent.cells as i64;
        let per_both = whole(high_slope - low_slope, cells)?;
        let per_token = low_slope - per_both * low.extent.cells as i64;
        let rest = |s: &Sample| {
            let (tokens, cells) = (s.extent.tokens as i64, s.extent.cells as i64);
            straight(s) - per_token * tokens - per_both * tokens * cells
        };
        let per_cell = whole(rest(high) - rest(low), cells)?;
        let fixed = rest(low) - per_cell * low.extent.cells as i64;
        let mut size = Size { fixed, per_token, per_cell, per_both, per_square, first: 0 };
        if let Some(sample) = samples.iter().find(|s| s.extent.is_first) {
            size.first = sample.value - size.at(sample.extent);
        }
        samples.iter().all(|s| size.at(s.extent) == s.value).then_some(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENTS: [(usize, usize, bool); 7] = [
        (1, 256, false),
        (2, 256, false),
        (3, 256, false),
        (258, 512, false),
        (259, 512, false),
        (3, 256, true),
        (300, 512, true),
    ];

    fn samples(of: impl Fn(Extent) -> i64) -> Vec<Sample> {
        let extents = EXTENTS.map(|(tokens, cells, is_first)| Extent { tokens, cells, is_first });
        extents.into_iter().map(|extent| Sample { extent, value: of(extent) }).collect()
    }

    #[test]
    fn a_size_is_found_from_its_values() {
        for size in [
            Size::fixed(64),
            Size { per_token: 1, ..Size::default() },
            Size { fixed: 3, per_token: 4, ..Size::default() },
            Size { per_cell: 4, ..Size::default() },
            Size { per_both: 16, fixed: -8, ..Size::default() },
            Size { fixed: 0, first: 4096, ..Size::default() },
            Size { per_square: 12, ..Size::default() },
            Size { fixed: 7, per_token: -3, per_cell: 5, per_both: 2, per_square: 1, first: 9 },
        ] {
            assert_eq!(Size::fit(&samples(|extent| size.at(extent))), Some(size));
        }
    }

    #[test]
    fn what_no_size_gives_is_not_fitted() {
        assert_eq!(Size::fit(&samples(|extent| (extent.tokens as i64).pow(3))), None);
        assert_eq!(Size::fit(&samples(|extent| extent.tokens as i64 / 64)), None);
    }
}
