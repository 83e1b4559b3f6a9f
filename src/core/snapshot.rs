//! A tensor as a short text for snapshot tests, such as those of `insta`, and what counts as the same.
//!
//! The text has the shape, statistics, four sums of all elements with random signs, and some elements,
//! with as many digits as a bound supports. Rounding moves the last of them, so two texts are compared
//! by [`agree`] and not letter by letter:
//!
//! ```
//! use firstdiff::core::{snapshot, tensor::Tensor};
//!
//! struct WithinBound;
//! impl insta::Comparator for WithinBound {
//!     fn matches(&self, old: &insta::Snapshot, new: &insta::Snapshot) -> bool {
//!         let text = |snapshot: &insta::Snapshot| {
//!             snapshot.as_text().map(|text| text.to_string()).unwrap_or_default()
//!         };
//!         snapshot::agree(&text(old), &text(new)).inspect_err(|why| eprintln!("{why}")).is_ok()
//!     }
//!     fn dyn_clone(&self) -> Box<dyn insta::Comparator> {
//!         Box::new(WithinBound)
//!     }
//! }
//!
//! // (T, Hq, D), from your engine; its elements are right within 1e-5 of the largest.
//! let attention = Tensor::new([1, 2, 2], vec![0.125_001, -0.5, 0.75, 1.0]);
//! let text = snapshot::text("attn_out", &attention, 1e-5);
//! let mut settings = insta::Settings::new();
//! settings.set_comparator(Box::new(WithinBound));
//! settings.bind(|| insta::assert_snapshot!(text, @r"
//! attn_out 1 x 2 x 2, within 1e-5 of the largest
//! not finite 0
//! largest 1.00000
//! rms 0.67604
//! signs -0.18750 -0.18750 -0.18750 -0.68750
//! [0, 0, 0] 0.12500
//! [0, 0, 1] -0.50000
//! [0, 1, 0] 0.75000
//! [0, 1, 1] 1.00000
//! "));
//! ```

use std::fmt::Write;

use crate::core::{random::splitmix64, tensor::Tensor};

/// Elements that are shown.
const SHOWN: usize = 12;
/// Sums with random signs: an element that moves, moves them all.
const SIGNS: u64 = 4;

/// Why two texts are not of the same tensor.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Disagreement {
    #[error("line {line}: {old:?} became {new:?}; look at the tensor, or accept the new snapshot")]
    Words { line: usize, old: String, new: String },
    #[error(
        "line {line}: {old} became {new}, {times:.1} x the bound; look at the tensor, or accept the \
         new snapshot"
    )]
    Number { line: usize, old: f64, new: f64, times: f64 },
}

/// The text of a tensor whose elements are right within `bound` x the largest |element|.
///
/// # Panics
///
/// Where `bound` is not between 0 and 1.
pub fn text(name: &str, tensor: &Tensor, bound: f64) -> String {
    assert!(bound > 0.0 && bound < 1.0, "{name}: a bound of {bound} is not between 0 and 1");
    let data = &tensor.data;
    let finite = || data.iter().map(|&x| f64::from(x)).filter(|x| x.is_finite());
    let largest = finite().fold(0.0, |largest: f64, x| largest.max(x.abs()));
    let n = finite().count();
    let root = (n.max(1) as f64).sqrt();
    let norm = finite().map(|x| x * x).sum::<f64>().sqrt();
    let digits = if largest > 0.0 {
        (-(bound * largest).log10()).ceil().clamp(0.0, 60.0) as usize
    } else {
        1
    };
    let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
    let shape = shape.join(" x ");
    let mut text = format!("{name} {shape}, within {bound:e} of the largest\n");
    let _ = writeln!(text, "not finite {}", data.len() - n);
    let _ = writeln!(text, "largest {largest:.digits$}\nrms {:.digits$}", norm / root);
    text += "signs";
    for seed in 0..SIGNS {
        let signed = data.iter().zip(0u64..).filter(|(x, _)| x.is_finite()).map(|(&x, index)| {
            let sign = if splitmix64(0, seed << 48 ^ index) & 1 == 0 { 1.0 } else { -1.0 };
            sign * f64::from(x)
        });
        let _ = write!(text, " {:.digits$}", signed.sum::<f64>() / root);
    }
    text.push('\n');
    for flat in shown(data.len()) {
        let index = Tensor::unravel(flat, &tensor.shape);
        let _ = writeln!(text, "{index:?} {:.digits$}", data[flat]);
    }
    text
}

/// Whether two texts are of tensors that are the same within the bound of the old one.
///
/// Where each element moved by at most the bound, so did the largest one and the root of the mean
/// square. A sum of n moves that are independent and spread evenly, divided by sqrt(n), does too, but
/// for one in some hundreds.
pub fn agree(old: &str, new: &str) -> Result<(), Disagreement> {
    let (old, new): (Vec<&str>, Vec<&str>) =
        (old.trim().lines().collect(), new.trim().lines().collect());
    let words = |line: usize| Disagreement::Words {
        line: line + 1,
        old: old.get(line).copied().unwrap_or_default().to_string(),
        new: new.get(line).copied().unwrap_or_default().to_string(),
    };
    let number = |line: usize, text: &str| {
        old.get(line)?.split(text).nth(1)?.split(' ').next()?.parse::<f64>().ok()
    };
    let (Some(bound), Some(largest)) = (number(0, ", within "), number(2, "largest ")) else {
        return Err(words(0));
    };
    // What is printed is up to half a unit of its last digit off, which is at most the bound.
    let allowed = 2.0 * bound * largest.abs();
    for line in 0..old.len().max(new.len()) {
        let (Some(a), Some(b)) = (old.get(line), new.get(line)) else { return Err(words(line)) };
        let ((a_words, a), (b_words, b)) = (numbers(line, a), numbers(line, b));
        if a_words != b_words || a.len() != b.len() {
            return Err(words(line));
        }
        for (&old, &new) in a.iter().zip(&b) {
            let same = (old - new).abs() <= allowed || old == new || (old.is_nan() && new.is_nan());
            if !same {
                let times = (old - new).abs() / (bound * largest.abs());
                return Err(Disagreement::Number { line: line + 1, old, new, times });
            }
        }
    }
    Ok(())
}

/// What must be equal in a line, and the numbers that may move.
fn numbers(line: usize, text: &str) -> (String, Vec<f64>) {
    if line < 2 {
        return (text.to_string(), Vec::new());
    }
    let (index, rest) = text.rsplit_once(']').unwrap_or(("", text));
    let parts = rest.split_whitespace().map(|part| (part, part.parse::<f64>().ok()));
    let (mut words, mut numbers) = (index.to_string(), Vec::new());
    for (part, number) in parts {
        match number {
            Some(number) => numbers.push(number),
            None => words += part,
        }
    }
    (words, numbers)
}

/// Places in row-major order: all of a small tensor, else one at random in each of equal parts.
fn shown(n: usize) -> Vec<usize> {
    if n <= SHOWN {
        return (0..n).collect();
    }
    let part = |index: usize| {
        let (start, end) = (index * n / SHOWN, (index + 1) * n / SHOWN);
        start + (splitmix64(0, index as u64) % (end - start) as u64) as usize
    };
    (0..SHOWN).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: f64 = 1e-5;

    fn tensor(change: impl Fn(usize, f32) -> f32) -> Tensor {
        let value = |i: usize| (splitmix64(0, i as u64 + 99) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        Tensor::new([5, 3, 40], (0..600).map(|i| change(i, value(i))).collect())
    }

    fn against(change: impl Fn(usize, f32) -> f32) -> Result<(), Disagreement> {
        agree(&text("t", &tensor(|_, x| x), BOUND), &text("t", &tensor(change), BOUND))
    }

    #[test]
    fn moves_within_the_bound_agree() {
        assert_eq!(against(|_, x| x), Ok(()));
        let moved =
            |i: usize, x: f32| if splitmix64(0, i as u64) & 2 == 0 { x + 9e-6 } else { x - 9e-6 };
        assert_eq!(against(moved), Ok(()));
    }

    #[test]
    fn one_wrong_element_anywhere_and_every_other_change_disagree() {
        for wrong in 0..600 {
            assert!(against(|i, x| if i == wrong { x + 0.01 } else { x }).is_err(), "{wrong}");
        }
        assert!(against(|_, x| x * 1.0001).is_err());
        assert!(against(|i, x| if i == 7 { f32::NAN } else { x }).is_err());
        let own = text("t", &tensor(|_, x| x), BOUND);
        assert!(agree(&own, &own.replace("5 x 3 x 40", "3 x 5 x 40")).is_err());
        assert!(agree(&own, own.rsplit_once('[').unwrap_or_default().0).is_err());
        for garbage in ["", "t", "a\nb\nc", "t 1, within x\nn\nlargest 1"] {
            assert!(agree(garbage, &own).is_err() && agree(&own, garbage).is_err(), "{garbage}");
        }
    }
}
