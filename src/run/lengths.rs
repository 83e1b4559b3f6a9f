//! Lengths at which kernels break, and the rule that tells those that do from those that do not.

use std::collections::BTreeSet;

/// The longest prompt that is tried by itself.
pub const MOST: usize = 257;
/// Lengths next to which tiles, warps and blocks end.
const EDGES: [usize; 6] = [8, 16, 32, 64, 128, 256];
/// A modulus that a rule may have.
const MODULI: std::ops::RangeInclusive<usize> = 2..=256;
/// Lengths that are listed where no rule is known.
const LISTED: usize = 8;

/// Lengths from 1 to `most`: powers of two and the constants of the kernels' sources, with their neighbours.
pub fn edges<'s>(sources: impl Iterator<Item = &'s str>, most: usize) -> Vec<usize> {
    let constants = sources.flat_map(numbers);
    let edges = EDGES.into_iter().chain(constants.filter(|&n| n > 3));
    let near = edges.flat_map(|edge| [edge - 1, edge, edge + 1]);
    let all: BTreeSet<usize> = [1, 2, 3].into_iter().chain(near).collect();
    all.into_iter().filter(|&length| length <= most.min(MOST)).collect()
}

/// Whole numbers that a source defines: `#define TILE 48`, `constexpr int TILE = 48`.
fn numbers(source: &str) -> Vec<usize> {
    let is_definition = |line: &&str| line.contains("#define") || line.contains("const");
    let words = source.lines().filter(is_definition).flat_map(|line| {
        line.split(|c: char| !c.is_ascii_alphanumeric()).filter_map(|word| word.parse().ok())
    });
    words.filter(|&n: &usize| n <= MOST).collect()
}

/// Which lengths are wrong, in the shortest words that are true of all that were tried.
pub fn rule(wrong: &BTreeSet<usize>, right: &BTreeSet<usize>) -> String {
    let (Some(&first), Some(&last)) = (wrong.first(), wrong.last()) else {
        return "at no length".to_string();
    };
    if right.is_empty() {
        return "at every length".to_string();
    }
    if right.last().is_some_and(|&most| most < first) {
        return format!("from {first} on");
    }
    if right.first().is_some_and(|&least| last < least) {
        return format!("up to {last}");
    }
    // The largest modulus that all wrong lengths have in common.
    let modulus = wrong.iter().fold(0, |divisor, length| common(divisor, length - first));
    let is_rule = |length: &usize| length % modulus == first % modulus;
    if MODULI.contains(&modulus) && !right.iter().any(is_rule) {
        return format!("where the length mod {modulus} = {}", first % modulus);
    }
    let named: Vec<String> = wrong.iter().take(LISTED).map(usize::to_string).collect();
    let more = wrong.len().saturating_sub(LISTED);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("at {}{rest}", named.join(", "))
}

/// The greatest common divisor.
fn common(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(wrong: impl Fn(usize) -> bool) -> String {
        let all = edges(std::iter::empty(), MOST);
        let (wrong, right) = all.into_iter().partition(|&length| wrong(length));
        rule(&wrong, &right)
    }

    #[test]
    fn a_rule_is_true_of_every_length_that_was_tried() {
        assert_eq!(said(|n| n % 32 == 1), "where the length mod 32 = 1");
        assert_eq!(said(|n| n % 16 == 0), "where the length mod 16 = 0");
        assert_eq!(said(|n| n >= 64), "from 64 on");
        assert_eq!(said(|n| n <= 2), "up to 2");
        assert_eq!(said(|n| n == 63), "at 63");
        assert_eq!(said(|_| false), "at no length");
        assert_eq!(said(|_| true), "at every length");
    }

    #[test]
    fn the_constants_of_a_kernel_are_edges_too() {
        let source = "#define TILE 48\nconstexpr int WARPS = 5;\nint other = 100;\n";
        let found = edges(std::iter::once(source), 60);
        assert!([4, 5, 6, 47, 48, 49].iter().all(|n| found.contains(n)) && !found.contains(&99));
        assert!(found.iter().all(|&n| n <= 60));
    }
}
