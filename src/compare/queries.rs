//! Which queries of a prompt have their scores and probs looked at: those grow with its square.

use std::{ops::Range, str::FromStr, sync::Arc};

use crate::graph::site::Axis;

/// Rows of scores and probs to be chosen: `last`, `every:16`, or a list such as `0,5,100-120`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Queries {
    /// The prompt's last token.
    Last,
    /// Every n-th from the first on, and the last.
    Every(usize),
    /// Positions, first and last of each range.
    Listed(Vec<(usize, usize)>),
}

/// A choice of queries that is none.
#[derive(Debug, thiserror::Error)]
pub enum QueriesError {
    #[error("{0} is not a position, range or keyword; write last, every:16 or 0,5,100-120")]
    Syntax(String),
    #[error(
        "--rows: position {position} is past the prompt's last token, {last}; choose lower ones"
    )]
    Outside { position: usize, last: usize },
}

impl FromStr for Queries {
    type Err = QueriesError;

    fn from_str(text: &str) -> Result<Queries, QueriesError> {
        let wrong = |part: &str| QueriesError::Syntax(format!("`{part}`"));
        if text == "last" {
            return Ok(Queries::Last);
        }
        if let Some(step) = text.strip_prefix("every:") {
            let step = step.parse().ok().filter(|&step| step > 0);
            return Ok(Queries::Every(step.ok_or_else(|| wrong(text))?));
        }
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let pair = first.trim().parse().ok().zip(last.trim().parse().ok());
            pair.filter(|(first, last)| first <= last).ok_or_else(|| wrong(part))
        };
        Ok(Queries::Listed(text.split(',').map(range).collect::<Result<_, _>>()?))
    }
}

impl Queries {
    /// The chosen tokens of a prompt of that many, ascending, each once.
    pub fn of(&self, tokens: usize) -> Result<Arc<[usize]>, QueriesError> {
        let last = tokens - 1;
        let mut chosen: Vec<usize> = match self {
            Queries::Last => vec![last],
            Queries::Every(step) => (0..last).step_by(*step).chain([last]).collect(),
            Queries::Listed(ranges) => {
                let furthest = ranges.iter().map(|&(_, end)| end).max().unwrap_or(0);
                if furthest > last {
                    return Err(QueriesError::Outside { position: furthest, last });
                }
                ranges.iter().flat_map(|&(first, end)| first..=end).collect()
            }
        };
        chosen.sort_unstable();
        chosen.dedup();
        Ok(chosen.into())
    }
}

/// Which tokens of its step the rows of a tensor are, where the step begins, and what of a row counts.
#[derive(Clone, Copy, Debug)]
pub struct RowTokens<'a> {
    /// The position of the step's first token.
    pub first_position: usize,
    /// The token of each row; `None` where every token has one.
    pub chosen: Option<&'a [usize]>,
    /// What the tensor's axes count; `None` where they are those of the role.
    pub axes: Option<&'a [Axis]>,
    /// The keys that each token of the step sees; `None` where those up to its own position.
    pub seen: Option<&'a [Range<usize>]>,
}

impl RowTokens<'_> {
    /// The token that a row belongs to.
    pub fn token(&self, row: usize) -> usize {
        self.chosen.map_or(row, |chosen| chosen[row])
    }

    /// The position of a row's token.
    pub fn position(&self, row: usize) -> usize {
        self.first_position + self.token(row)
    }

    /// The keys that a row's token sees, of so many.
    pub fn seen(&self, row: usize, keys: usize) -> Range<usize> {
        let listed = self.seen.and_then(|seen| seen.get(self.token(row)));
        let Range { start, end } = listed.cloned().unwrap_or(0..self.position(row) + 1);
        start.min(keys)..end.min(keys)
    }
}

impl From<usize> for RowTokens<'static> {
    fn from(first_position: usize) -> RowTokens<'static> {
        RowTokens { first_position, chosen: None, axes: None, seen: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(text: &str, tokens: usize) -> Result<Vec<usize>, QueriesError> {
        Ok(text.parse::<Queries>()?.of(tokens)?.to_vec())
    }

    #[test]
    fn queries_are_the_last_every_nth_or_a_list() {
        assert_eq!(chosen("last", 9).unwrap(), [8]);
        assert_eq!(chosen("last", 1).unwrap(), [0]);
        assert_eq!(chosen("every:4", 9).unwrap(), [0, 4, 8]);
        assert_eq!(chosen("every:4", 11).unwrap(), [0, 4, 8, 10]);
        assert_eq!(chosen("7, 2-4,3", 9).unwrap(), [2, 3, 4, 7]);
    }

    #[test]
    fn what_chooses_no_query_is_refused() {
        for text in ["", "first", "every:0", "every:x", "3-1", "1,,2", "-1"] {
            let error = chosen(text, 9).unwrap_err().to_string();
            assert!(error.ends_with("write last, every:16 or 0,5,100-120"), "{text}: {error}");
        }
        let error = chosen("2,5-9", 9).unwrap_err().to_string();
        assert!(error.contains("position 9 is past the prompt's last token, 8"), "{error}");
    }
}
