//! Layers to look at: `3`, `0..4` (0 to 3), `..4` or `8..`.

use std::{fmt, str::FromStr};

/// The layers from `first` to before `end`; to the last where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(into = "String")]
pub struct Layers {
    pub first: u32,
    pub end: Option<u32>,
}

impl From<Layers> for String {
    fn from(layers: Layers) -> String {
        layers.to_string()
    }
}

impl Layers {
    pub fn contains(self, layer: u32) -> bool {
        layer >= self.first && self.end.is_none_or(|end| layer < end)
    }
}

impl FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> Result<Layers, String> {
        let wrong = || format!("`{text}` is no layer or range; write 3, 0..4 (0 to 3), ..4 or 8..");
        let number = |part: &str| part.trim().parse::<u32>().map_err(|_| wrong());
        let Some((first, end)) = text.split_once("..") else {
            let first = number(text)?;
            return Ok(Layers { first, end: Some(first.checked_add(1).ok_or_else(wrong)?) });
        };
        let first = if first.trim().is_empty() { 0 } else { number(first)? };
        let end = if end.trim().is_empty() { None } else { Some(number(end)?) };
        if end.is_some_and(|end| end <= first) {
            return Err(format!("`{text}` has no layer: the end is not included"));
        }
        Ok(Layers { first, end })
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.end {
            Some(end) if end == self.first + 1 => write!(f, "{}", self.first),
            Some(end) => write!(f, "{}..{end}", self.first),
            None => write!(f, "{}..", self.first),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_does_not_include_its_end() {
        for (text, inside, outside) in [
            ("3", 3..4, [2, 4]),
            ("1..4", 1..4, [0, 4]),
            ("..2", 0..2, [2, 3]),
            ("2..", 2..9, [0, 1]),
        ] {
            let layers: Layers = text.parse().unwrap();
            assert!(inside.clone().all(|layer| layers.contains(layer)), "{text}");
            assert!(outside.iter().all(|&layer| !layers.contains(layer)), "{text}");
            assert_eq!(layers.to_string().parse(), Ok(layers));
        }
        for text in ["", "x", "3..3", "4..2", "-1", "1...2", "0..=3"] {
            assert!(text.parse::<Layers>().is_err(), "{text}");
        }
    }
}
