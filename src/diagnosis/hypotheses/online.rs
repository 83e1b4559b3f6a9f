//! A weighted sum that is put together of tiles of keys, or of parts, without what makes them alike: told by the
//! probabilities, whose largest of the keys so far is what a tile's terms were divided by.

use std::rc::Rc;

use super::Visit;
use crate::{
    core::{arithmetic::Value, cause_key::CauseKey},
    diagnosis::{
        Change, Edits, Evidence, Row,
        replay::{Machine, ReplayError},
    },
    graph::{NodeId, Op},
};

/// The source of a softmax that holds its sinks.
const SINKS: usize = 2;
/// Keys of a tile, or of a part.
const TILES: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];
/// Parts of a row, all of one length.
const PARTS: std::ops::RangeInclusive<usize> = 2..=16;

/// The weights of a row of probabilities, in tiles of so many keys.
type Weights = fn(&[f64], usize) -> Vec<f64>;

/// Sums of values in which tiles or parts are put together wrongly.
pub fn tiles(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let graph = evidence.graph();
    let is_of_probs = |&id: &_| graph.rounded_values(id).contains(&Value::Probs);
    let products: Vec<_> = evidence.cone().iter().copied().filter(is_of_probs).collect();
    let kinds: [(&str, Weights); 3] = [
        ("the output is not rescaled where the maximum grows", not_rescaled),
        ("the sum is not rescaled where the maximum grows", sum_not_rescaled),
        ("neither output nor sum is rescaled where the maximum grows", neither_rescaled),
    ];
    let softmaxes = evidence.nodes(|node| node.op == Op::SoftMax);
    // Sinks are in the sum and have no tile.
    let has_sinks = |&id: &NodeId| graph.node(id).source(SINKS).is_some();
    if softmaxes.iter().any(has_sinks) {
        return Ok(());
    }
    for softmax in softmaxes {
        for tile in TILES {
            let text =
                format!("the sum is not rescaled where the maximum grows, in tiles of {tile}");
            let edit = divided(softmax, move |row| not_rescaled(row, tile));
            visit(evidence.mistake(CauseKey::SoftmaxPartialSum, text, &edit)?);
        }
        for (text, length) in parts() {
            let text = format!("sums of {text} are added without the maximum of each");
            let edit = divided(softmax, move |row| terms_of_parts(row, length(row.len())));
            visit(evidence.mistake(CauseKey::SoftmaxPartialSum, text, &edit)?);
        }
    }
    for product in products {
        for (text, weights) in kinds {
            for tile in TILES {
                let text = format!("{text}, in tiles of {tile}");
                let edit = of_rows(product, move |row| weights(row, tile));
                visit(evidence.mistake(CauseKey::SoftmaxPartialSum, text, &edit)?);
            }
        }
        for (parts, length) in parts() {
            let text = format!("{parts} are added with the same weight");
            let of_parts = Rc::clone(&length);
            let edit = of_rows(product, move |row| alike(row, of_parts(row.len())));
            visit(evidence.mistake(CauseKey::SoftmaxPartialSum, text, &edit)?);
            let text = format!("{parts} are combined without the maximum of each");
            let edit = of_rows(product, move |row| without_maximum(row, length(row.len())));
            visit(evidence.mistake(CauseKey::SoftmaxPartialSum, text, &edit)?);
        }
    }
    Ok(())
}

/// Keys of each part, of the number of keys.
type Length = Rc<dyn Fn(usize) -> usize>;

/// Ways to divide a row of keys into parts, in words.
fn parts() -> Vec<(String, Length)> {
    let mut list: Vec<(String, Length)> = Vec::new();
    for &tile in &TILES[3..] {
        list.push((format!("parts of {tile} keys"), Rc::new(move |_| tile)));
    }
    for parts in PARTS {
        list.push((format!("{parts} parts"), Rc::new(move |keys| keys.div_ceil(parts))));
    }
    list
}

/// A softmax whose rows are divided by what the terms of each say, up to the last key that it sees.
fn divided<'c>(softmax: NodeId, terms: impl Fn(&[f64]) -> Vec<f64> + 'c) -> Edits<'c> {
    let factor = move |row: Row<'_>| {
        let seen = row.result.iter().rposition(|&p| p != 0.0).map_or(0, |last| last + 1);
        1.0 / terms(&row.result[..seen]).iter().sum::<f64>()
    };
    Edits::one(softmax, Change::RowTimes(Rc::new(factor)))
}

/// Each row of probabilities up to the last key that it sees, changed.
fn of_rows<'c>(product: NodeId, of: impl Fn(&[f64]) -> Vec<f64> + 'c) -> Edits<'c> {
    let values = move |_: &Machine<'_>, probs: &[f64], ne: [usize; 4]| {
        let row = |row: &[f64]| {
            let seen = row.iter().rposition(|&p| p != 0.0).map_or(0, |last| last + 1);
            let mut changed = of(&row[..seen]);
            changed.resize(row.len(), 0.0);
            changed
        };
        Some(probs.chunks(ne[0].max(1)).flat_map(row).collect::<Vec<f64>>())
    };
    Edits::one(product, Change::Values(1, Rc::new(values)))
}

/// What each key's term is too large by where it stays as its tile had it: the largest of all over the largest
/// up to its tile.
fn excess(row: &[f64], tile: usize) -> Vec<f64> {
    let most = row.iter().copied().fold(0.0, f64::max);
    let mut so_far = 0.0;
    let of_tile = |keys: &[f64]| {
        so_far = keys.iter().copied().fold(so_far, f64::max);
        let factor = if so_far > 0.0 { most / so_far } else { 1.0 };
        vec![factor; keys.len()]
    };
    row.chunks(tile).flat_map(of_tile).collect()
}

fn not_rescaled(row: &[f64], tile: usize) -> Vec<f64> {
    row.iter().zip(excess(row, tile)).map(|(p, factor)| p * factor).collect()
}

fn sum_not_rescaled(row: &[f64], tile: usize) -> Vec<f64> {
    let sum: f64 = not_rescaled(row, tile).iter().sum();
    row.iter().map(|p| p / sum).collect()
}

fn neither_rescaled(row: &[f64], tile: usize) -> Vec<f64> {
    let terms = not_rescaled(row, tile);
    let sum: f64 = terms.iter().sum();
    terms.iter().map(|term| term / sum).collect()
}

/// Terms of parts that are relative to the maximum of their own part.
fn terms_of_parts(row: &[f64], length: usize) -> Vec<f64> {
    let most = row.iter().copied().fold(0.0, f64::max);
    let of_part = |keys: &[f64]| {
        let own = keys.iter().copied().fold(0.0, f64::max);
        let factor = if own > 0.0 { most / own } else { 0.0 };
        keys.iter().map(move |p| p * factor).collect::<Vec<f64>>()
    };
    row.chunks(length.max(1)).flat_map(of_part).collect()
}

fn without_maximum(row: &[f64], length: usize) -> Vec<f64> {
    let terms = terms_of_parts(row, length);
    let sum: f64 = terms.iter().sum();
    terms.iter().map(|term| term / sum).collect()
}

/// Parts that are normalised on their own, and added alike.
fn alike(row: &[f64], length: usize) -> Vec<f64> {
    let parts = row.len().div_ceil(length.max(1)).max(1) as f64;
    let of_part = |keys: &[f64]| {
        let sum: f64 = keys.iter().sum();
        let own = if sum > 0.0 { 1.0 / (sum * parts) } else { 0.0 };
        keys.iter().map(move |p| p * own).collect::<Vec<f64>>()
    };
    row.chunks(length.max(1)).flat_map(of_part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tile_is_right_and_parts_that_weigh_the_same_are() {
        let row = [0.1, 0.4, 0.2, 0.3];
        for weights in [not_rescaled, sum_not_rescaled, neither_rescaled] {
            let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-12;
            assert!(weights(&row, 4).iter().zip(&row).all(near));
            assert!(!weights(&row, 1).iter().zip(&row).all(near));
        }
        assert_eq!(alike(&row, 2), row);
        assert_eq!(terms_of_parts(&row, 2), [0.1, 0.4, 0.2 * (0.4 / 0.3), 0.3 * (0.4 / 0.3)]);
        assert_eq!(excess(&row, 2), [1.0; 4]);
        assert_eq!(excess(&row, 1), [4.0, 1.0, 1.0, 1.0]);
    }
}
