//! A size as text in T and P: `64`, `T`, `2*T + 3`, `T*P`.
//!
//! A sum of products of whole numbers and letters: T tokens of the step, P positions in the cache after it
//! (of a graph: cells), F 1 in a run's first step and else 0.

use std::{fmt, str::FromStr};

use super::Size;

/// The largest number in a text.
const MOST: i64 = 1 << 40;

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = [
            (self.per_both, "T*P"),
            (self.per_square, "T*T"),
            (self.per_token, "T"),
            (self.per_cell, "P"),
            (self.first, "F"),
            (self.fixed, ""),
        ];
        let mut is_empty = true;
        for (factor, letters) in terms.into_iter().filter(|&(factor, _)| factor != 0) {
            let sign = match (is_empty, factor < 0) {
                (true, true) => "-",
                (true, false) => "",
                (false, true) => " - ",
                (false, false) => " + ",
            };
            f.write_str(sign)?;
            match (factor.unsigned_abs(), letters) {
                (number, "") => write!(f, "{number}")?,
                (1, letters) => f.write_str(letters)?,
                (number, letters) => write!(f, "{number}*{letters}")?,
            }
            is_empty = false;
        }
        if is_empty { f.write_str("0") } else { Ok(()) }
    }
}

/// A text that is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size; write a sum such as 64, T, P or 2*T + 3")]
pub struct SizeError(String);

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Size, SizeError> {
        let packed: String = text.chars().filter(|&c| c != ' ').collect();
        let mut size = Size::default();
        let (mut rest, mut is_first) = (packed.as_str(), true);
        while is_first || !rest.is_empty() {
            let (sign, unsigned) = match rest.split_at_checked(1) {
                Some(("-", after)) => (-1, after),
                Some(("+", after)) if !is_first => (1, after),
                _ if is_first => (1, rest),
                _ => return Err(SizeError(text.to_string())),
            };
            let end = unsigned.find(['+', '-']).unwrap_or(unsigned.len());
            let added = add_term(&mut size, sign, &unsigned[..end]);
            added.ok_or_else(|| SizeError(text.to_string()))?;
            (rest, is_first) = (&unsigned[end..], false);
        }
        Ok(size)
    }
}

/// Adds a product of numbers and letters; `None` where it is none that a size may have.
fn add_term(size: &mut Size, sign: i64, term: &str) -> Option<()> {
    let (mut number, mut letters) = (1i64, String::new());
    for factor in term.split('*') {
        match factor {
            "T" | "P" | "F" => letters.push_str(factor),
            digits if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                let factor: i64 = digits.parse().ok()?;
                number = number.checked_mul(factor).filter(|&number| number <= MOST)?;
            }
            _ => return None,
        }
    }
    let place = match letters.as_str() {
        "" => &mut size.fixed,
        "T" => &mut size.per_token,
        "P" => &mut size.per_cell,
        "F" => &mut size.first,
        "TP" | "PT" => &mut size.per_both,
        "TT" => &mut size.per_square,
        _ => return None,
    };
    *place += sign * number;
    (place.abs() <= MOST).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_as_it_is_written() {
        let all =
            ["0", "64", "T", "P", "2*T + 3", "T*P", "3*T*P + T*T - 2*T + P + 4*F - 7", "-T + 1"];
        for text in all {
            let size: Size = text.parse().unwrap();
            assert_eq!(size.to_string(), text);
            assert_eq!(text.replace(' ', "").parse(), Ok(size));
        }
        assert_eq!("3+T*2".parse(), Ok(Size { fixed: 3, per_token: 2, ..Size::default() }));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            " ",
            "+",
            "-",
            "T+",
            "T++T",
            "x",
            "2T",
            "T*",
            "*T",
            "P*P",
            "T*T*T",
            "1.5",
            "é",
            "99999999999999999999",
            "1099511627777",
            "1099511627776 + 1",
            "T T",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
