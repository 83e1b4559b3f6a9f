//! Which part of an array a site is: `..., 0:224` of its last axis, or `..., 0:2/4` of every four of it.

use std::fmt;

use serde::Deserialize;

/// A range for each axis of an array.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Slice {
    /// Whether any number of whole axes comes before.
    is_open: bool,
    ranges: Vec<Option<Blocks>>,
}

/// From `first` to before `end`, of the axis or of every `period` of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    pub first: usize,
    pub end: usize,
    pub period: Option<usize>,
}

impl Slice {
    /// That of the last axis, whatever is before it.
    pub(super) fn of_last(blocks: Blocks) -> Slice {
        Slice { is_open: true, ranges: vec![Some(blocks)] }
    }

    /// The shape of that part of an array.
    ///
    /// # Errors
    /// The array has not these axes.
    pub fn shape(&self, array: &[usize]) -> Result<Vec<usize>, String> {
        let wrong = || format!("has shape {array:?}, which has no slice {self}");
        let before = array.len().checked_sub(self.ranges.len()).ok_or_else(wrong)?;
        if before > 0 && !self.is_open {
            return Err(wrong());
        }
        let mut shape = array.to_vec();
        for (n, blocks) in shape[before..].iter_mut().zip(&self.ranges) {
            let Some(Blocks { first, end, period }) = *blocks else { continue };
            let period = period.unwrap_or(*n);
            if end > period || period == 0 || !n.is_multiple_of(period) {
                return Err(wrong());
            }
            *n = *n / period * (end - first);
        }
        Ok(shape)
    }

    /// The values of that part of an array of that shape, row-major.
    ///
    /// # Errors
    /// The array has not these axes.
    pub fn apply(&self, mut values: Vec<f32>, array: &[usize]) -> Result<Vec<f32>, String> {
        self.shape(array)?;
        let before = array.len() - self.ranges.len();
        // From the last axis on, so that those before it are still whole.
        let mut inner = 1;
        for (&n, blocks) in array[before..].iter().zip(&self.ranges).rev() {
            let Some(Blocks { first, end, period }) = *blocks else {
                inner *= n;
                continue;
            };
            let period = period.unwrap_or(n) * inner;
            let range = first * inner..end * inner;
            values = values.chunks(period).flat_map(|one| &one[range.clone()]).copied().collect();
            inner *= n / (period / inner) * (end - first);
        }
        Ok(values)
    }
}

impl TryFrom<String> for Slice {
    type Error = String;

    fn try_from(text: String) -> Result<Slice, String> {
        let wrong = || format!("{text:?} is not a slice such as \"..., 0:64\" or \"..., 0:2/4\"");
        let mut words: Vec<&str> = text.split(',').map(str::trim).collect();
        let is_open = words[0] == "...";
        words.drain(..usize::from(is_open));
        let range = |word: &&str| match *word {
            ":" => Some(None),
            word => Blocks::parse(word).map(Some),
        };
        let ranges: Vec<_> = words.iter().map(range).collect::<Option<_>>().ok_or_else(wrong)?;
        if ranges.iter().all(Option::is_none) {
            return Err(wrong());
        }
        Ok(Slice { is_open, ranges })
    }
}

impl Blocks {
    fn parse(word: &str) -> Option<Blocks> {
        let (range, period) = match word.split_once('/') {
            Some((range, period)) => (range, Some(period.parse().ok()?)),
            None => (word, None),
        };
        let (first, end) = range.split_once(':')?;
        let (first, end) = (first.parse().ok()?, end.parse().ok()?);
        let is_within = first < end && period.is_none_or(|period| end <= period);
        is_within.then_some(Blocks { first, end, period })
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |blocks: &Option<Blocks>| match blocks {
            None => ":".to_string(),
            Some(Blocks { first, end, period: None }) => format!("{first}:{end}"),
            Some(Blocks { first, end, period: Some(period) }) => format!("{first}:{end}/{period}"),
        };
        let open = self.is_open.then(|| "...".to_string());
        let words: Vec<String> = open.into_iter().chain(self.ranges.iter().map(range)).collect();
        f.write_str(&words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn sliced(text: &str, shape: &[usize]) -> Result<(Vec<usize>, Vec<f32>), String> {
        let slice = Slice::try_from(text.to_string())?;
        assert_eq!(slice.to_string(), text);
        let values = (0..shape.iter().product::<usize>()).map(|i| i as f32).collect();
        Ok((slice.shape(shape)?, slice.apply(values, shape)?))
    }

    #[test]
    fn a_slice_takes_ranges_and_ranges_of_every_block() {
        let right = |text, shape: &[usize], own: &[usize], values: &[f32]| {
            assert_eq!(sliced(text, shape), Ok((own.to_vec(), values.to_vec())), "{text}");
        };
        right("..., 1:3", &[2, 4], &[2, 2], &[1.0, 2.0, 5.0, 6.0]);
        right("1:2, :", &[2, 3], &[1, 3], &[3.0, 4.0, 5.0]);
        right("..., 0:1/2", &[1, 6], &[1, 3], &[0.0, 2.0, 4.0]);
        right("..., 2:3/3, :", &[6, 2], &[2, 2], &[4.0, 5.0, 10.0, 11.0]);
        right("1:2, 0:2", &[2, 3], &[1, 2], &[3.0, 4.0]);
        for (text, says) in [
            ("", "is not a slice"),
            (":, :", "is not a slice"),
            ("...", "is not a slice"),
            ("3:3", "is not a slice"),
            ("2:1", "is not a slice"),
            ("-1:2", "is not a slice"),
            ("0:3/2", "is not a slice"),
            ("0:0/0", "is not a slice"),
            ("0:99999999999999999999", "is not a slice"),
            ("0:2", "has shape [2, 6], which has no slice 0:2"),
            ("..., 0:7", "has shape [2, 6], which has no slice ..., 0:7"),
            ("..., 0:1/4", "no slice ..., 0:1/4"),
            (":, :, 0:1", "no slice :, :, 0:1"),
        ] {
            let error = sliced(text, &[2, 6]).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
