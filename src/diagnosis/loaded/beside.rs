//! The weights of two traces beside one another, where no file says which is right.

use super::{
    Found, LoadedName, Standing, WeightVerdict,
    held::{Closeness, Held, Slack, as_matrix},
};
use crate::core::{loaded::LoadedWeight, tensor::DType};

/// A weight beside that of another trace, which has the same name and rank; `others` are all that the other has.
pub fn compare(
    own: &LoadedWeight,
    rank: Option<usize>,
    others: &[(Option<usize>, LoadedWeight)],
) -> WeightVerdict {
    let twin = others.iter().find(|(of, other)| *of == rank && other.of == own.of);
    let found = match twin {
        None => Found { standing: Standing::Absent, text: "not in the other trace".into() },
        Some((_, other)) => found(own, other).unwrap_or_else(|| {
            let same = others.iter().find(|(of, other)| {
                *of == rank
                    && other.of != own.of
                    && is_varied(own)
                    && found_right(own, other) == Some(String::new())
            });
            Found::wrong(match same {
                Some((_, other)) => format!("the other trace's {}", other.of.join(" + ")),
                None => wrong(own, other),
            })
        }),
    };
    let weight = LoadedName { name: own.name.clone(), of: own.of.clone(), rank };
    WeightVerdict { weight, standing: found.standing, text: found.text }
}

fn is_varied(weight: &LoadedWeight) -> bool {
    weight.values.iter().any(|x| *x != weight.values[0])
}

/// What a weight is beside its twin, where that is no mistake.
fn found(own: &LoadedWeight, other: &LoadedWeight) -> Option<Found> {
    if own.shape != other.shape {
        let is_turned = own.rows.is_none() && other.rows.is_none() && is_transposed(own, other);
        let shapes = [&own.shape, &other.shape];
        let other_shape =
            || format!("has the shape {:?}, the other trace's {:?}", shapes[0], shapes[1]);
        return Some(Found::otherwise(if is_turned { "transposed".into() } else { other_shape() }));
    }
    found_right(own, other).map(Found::right)
}

/// How a weight of the same shape is the other's: as it is where the text is empty, or either one rounded.
fn found_right(own: &LoadedWeight, other: &LoadedWeight) -> Option<String> {
    if own.shape != other.shape {
        return None;
    }
    let of_file = as_matrix(&other.shape);
    let (held, twin) = (Held::of(own, of_file), Held::of(other, of_file));
    let pairs: Vec<(&[f32], &[f32])> = held
        .each()
        .filter_map(|(at, row)| {
            let place = twin.at.binary_search(&at).ok()?;
            Some((row, &twin.values()[place * twin.cols..(place + 1) * twin.cols]))
        })
        .collect();
    let fits = |closeness: Closeness| {
        !pairs.is_empty() && pairs.iter().all(|(own, other)| closeness.is_row(own, other))
    };
    let exact = Closeness { format: None, file: None, slack: Slack::default() };
    // Dequantisers add and multiply in their own ways.
    let of_row = 8.0 * DType::F32.unit_roundoff() as f32;
    let near = |format| Closeness { format, slack: Slack { absolute: 0.0, of_row }, ..exact };
    if fits(exact) {
        let is_all = own.rows.is_none() && other.rows.is_none();
        let differing = sums(own, other).filter(|_| !is_all);
        return differing.is_none_or(|rows| rows == 0).then(String::new);
    }
    let sampled = if own.rows.is_some() { ", in the rows that were recorded" } else { "" };
    if fits(near(None)) {
        return Some(format!("except for the last bits of f32{sampled}"));
    }
    for format in held.formats().into_iter().flatten() {
        if fits(near(Some(format))) {
            return Some(format!("rounded to {format}{sampled}"));
        }
    }
    for file in twin.formats().into_iter().flatten() {
        let is_rounded = |(own, other): &(&[f32], &[f32])| near(Some(file)).is_row(other, own);
        if !pairs.is_empty() && pairs.iter().all(is_rounded) {
            return Some(format!("rounded to {file} in the other trace{sampled}"));
        }
    }
    None
}

/// Rows whose sums differ; `None` where not both are known.
fn sums(own: &LoadedWeight, other: &LoadedWeight) -> Option<usize> {
    /// Of the largest sum: writers add in their own order.
    const SLACK: f64 = 1e-9;
    if own.sums.is_empty() || own.sums.len() != other.sums.len() {
        return None;
    }
    let largest = other.sums.iter().fold(0f64, |most, sum| most.max(sum.abs()));
    let differs = |(a, b): &(&f64, &f64)| (*a - *b).abs() > SLACK * largest;
    Some(own.sums.iter().zip(&other.sums).filter(differs).count())
}

fn is_transposed(own: &LoadedWeight, other: &LoadedWeight) -> bool {
    let [(rows, cols), of] = [&own.shape, &other.shape].map(|shape| as_matrix(shape));
    let turned = |i: usize| own.values[i % rows * cols + i / rows];
    of == (cols, rows) && other.values.iter().enumerate().all(|(i, x)| turned(i) == *x)
}

/// What is wrong with a weight that is not its twin.
fn wrong(own: &LoadedWeight, other: &LoadedWeight) -> String {
    let is_zero = |weight: &LoadedWeight| weight.values.iter().all(|&x| x == 0.0);
    let broken = |weight: &LoadedWeight| weight.values.iter().any(|x| !x.is_finite());
    match [own, other].map(|one| (is_zero(one), broken(one))) {
        [(true, _), (false, _)] => "all zero, but not in the other trace".into(),
        [(false, _), (true, _)] => "not zero, but zero in the other trace".into(),
        [(_, true), (_, false)] => "has NaN or infinite elements; the other trace has none".into(),
        [(_, false), (_, true)] => "all finite, but not in the other trace".into(),
        _ => {
            let pairs = own.values.iter().zip(&other.values).filter(|_| own.rows == other.rows);
            let differing = pairs.filter(|(a, b)| a != b).count();
            let all = own.values.len();
            match sums(own, other) {
                Some(rows) if differing == 0 && rows > 0 => {
                    format!("{rows} rows of {} differ from the other trace's", own.sums.len())
                }
                _ if differing == all || differing == 0 => {
                    "values differ from the other trace's".into()
                }
                _ => format!("{differing} of {all} elements differ from the other trace's"),
            }
        }
    }
}
