//! What a wrong result looks like, for any operation: zeros, a multiple, another tensor, a
//! permutation of the right values.

use std::{collections::HashMap, ops::Range};

use half::{bf16, f16};

use crate::{
    core::{cause_key::CauseKey, tensor::DType},
    diagnosis::{
        hypotheses::projection::candidates_of_width,
        replay::{Piece, ReplayError, Rounding, ops},
        scene::{Candidate, Rank, Scene, Visit},
    },
    graph::site::Stage,
};

/// Nothing but zeros, or nothing but one number.
pub fn constants<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let mut with = |key, text: String, value: f64| {
        let parts = scene.changed(|_, _| value);
        visit(Candidate::likeness(key, text, parts))
    };
    with(CauseKey::Zero, "the result is zero".to_string(), 0.0)?;
    let recorded: Vec<f32> = scene.recorded().filter(|x| x.is_finite()).collect();
    match recorded.first() {
        Some(&first) if first != 0.0 && recorded.iter().all(|&x| x == first) => {
            with(CauseKey::Constant, format!("every element is {first}"), f64::from(first))
        }
        _ => Ok(()),
    }
}

/// The number that recorded values are times the right ones, if any: least squares.
pub fn factor(pairs: &[(f64, f32)]) -> Option<f64> {
    let along: f64 = pairs.iter().map(|(right, recorded)| right * f64::from(*recorded)).sum();
    let squares: f64 = pairs.iter().map(|(right, _)| right * right).sum();
    let fitted = along / squares;
    (fitted.is_finite() && fitted != 1.0 && fitted.abs() >= 1e-6).then_some(fitted)
}

/// c times the right values: as all of them tell, and as the wrong ones do.
pub fn multiples<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let mut fitted: Vec<(f64, String)> = Vec::new();
    for factor in [false, true].iter().filter_map(|&wrong| factor(&scene.pairs(wrong))) {
        let named = named_factor(scene, factor);
        if fitted.iter().all(|(_, text)| *text != named.1) {
            fitted.push(named);
        }
    }
    for (factor, text) in fitted {
        let parts = scene.changed(|piece, index| factor * piece.expected.value[index]);
        visit(Candidate::likeness(CauseKey::Scaled, text, parts))?;
    }
    Ok(())
}

/// A factor in words, and exactly where it is a known one.
fn named_factor(scene: &Scene<'_, '_>, fitted: f64) -> (f64, String) {
    let c = scene.config();
    let root = |n: usize| (n as f64).sqrt();
    let named = [
        (-1.0, "negated".to_string()),
        (2.0, "doubled".to_string()),
        (0.5, "halved".to_string()),
        (root(c.n_embd), format!("multiplied by sqrt(hidden size) = {:.3}", root(c.n_embd))),
        (root(c.head_dim), format!("multiplied by sqrt(head dim) = {:.3}", root(c.head_dim))),
        (1.0 / root(c.head_dim), "multiplied by 1/sqrt(head dim)".to_string()),
    ];
    let name = named.into_iter().find(|(factor, _)| (fitted / factor - 1.0).abs() < 1e-4);
    name.unwrap_or_else(|| (fitted, format!("{} times the right values", significant(fitted))))
}

/// A factor to as many digits as tell it from 1: 1.00100, 0.5, 3.741.
fn significant(factor: f64) -> String {
    let digits = (-(factor - 1.0).abs().log10()).ceil().clamp(0.0, 8.0) as usize + 2;
    format!("{factor:.digits$}")
}

/// One other recorded tensor, or one of the same tensor at another time.
pub fn other_tensors<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    if is_ragged(scene.stage()) {
        return Ok(());
    }
    for (operation, operand) in candidates_of_width(scene, scene.width())? {
        let text = format!("equals {}", scene.named(operation));
        let parts = scene.whole(ops::copy(&operand, scene.rounding()));
        visit(Candidate::likeness(CauseKey::OtherTensor, text, parts))?;
    }
    let mut rows = |key, text: &str, from: &dyn Fn(usize) -> usize| {
        let parts = scene.rearranged(|row, column| (from(row), column));
        visit(Candidate::likeness(key, text, parts))
    };
    let steps = steps_of_rows(scene);
    let last = steps.len() - 1;
    rows(CauseKey::TokenBefore, "each row is the right one of the token before", &|r| {
        r.saturating_sub(1)
    })?;
    rows(CauseKey::TokenAfter, "each row is the right one of the token after", &|r| {
        (r + 1).min(last)
    })?;
    rows(CauseKey::RowsEqual, "every row is the first one", &|_| 0)?;
    let first = &steps[0];
    rows(CauseKey::RowsEqual, "every row of a step is its first one", &|r| steps[r].start)?;
    rows(CauseKey::PreviousStep, "decode steps have the right result of the step before", &|r| {
        if r < first.end { r } else { steps[r].start - 1 }
    })?;
    rows(CauseKey::PreviousStep, "every decode step has the prompt's last result", &|r| {
        r.min(first.end - 1)
    })
}

/// The rows of the step that each row belongs to.
fn steps_of_rows(scene: &Scene<'_, '_>) -> Vec<Range<usize>> {
    let (mut list, mut start) = (Vec::new(), 0);
    for &step in &scene.steps {
        let tokens = scene.replay.recording.steps[step as usize].len();
        list.extend(std::iter::repeat_n(start..start + tokens, tokens));
        start += tokens;
    }
    list
}

/// Stages whose rows differ in length from step to step.
fn is_ragged(stage: Stage) -> bool {
    matches!(stage, Stage::KCache | Stage::VCache | Stage::Scores | Stage::Probs)
}

/// The right values in another order: heads and dims exchanged, reversed, or any fixed order of a
/// row, found by value.
pub fn permutations<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    if is_ragged(scene.stage()) {
        return Ok(());
    }
    let (width, dim) = (scene.width(), scene.heads().dim.min(scene.width()));
    let heads = width / dim;
    let mut with = |text: &str, from: &dyn Fn(usize, usize) -> (usize, usize)| {
        let parts = scene.rearranged(from);
        visit(Candidate::mistake(CauseKey::HeadsPermuted, text, parts))
    };
    if scene.stage().axes().len() == 3 {
        with("heads in reverse order", &|r, c| (r, (heads - 1 - c / dim) * dim + c % dim))?;
        with("[dim][head] read as [head][dim]", &|r, c| (r, c % heads * dim + c / heads))?;
        with("[head][dim] read as [dim][head]", &|r, c| (r, c % dim * heads + c / dim))?;
        let half = (dim / 2).max(1);
        with("dims (i, i+d/2) stored as (2i, 2i+1)", &|r, c| {
            (r, c / dim * dim + c % dim % 2 * half + c % dim / 2)
        })?;
        with("dims (2i, 2i+1) stored as (i, i+d/2)", &|r, c| {
            (r, c / dim * dim + c % dim % half * 2 + c % dim / half)
        })?;
        // Of a prompt only: [pos][head] and [head][pos] are the same for one token.
        let steps = steps_of_rows(scene);
        with("[pos][head] read as [head][pos]", &|r, c| {
            let place = c / dim * steps[r].len() + r - steps[r].start;
            (steps[r].start + place / heads, place % heads * dim + c % dim)
        })?;
        with("[head][pos] read as [pos][head]", &|r, c| {
            let (place, tokens) = ((r - steps[r].start) * heads + c / dim, steps[r].len());
            (steps[r].start + place % tokens, place / tokens * dim + c % dim)
        })?;
    }
    if let Some(order) = order_of_row(scene, width) {
        let moved = order.iter().enumerate().filter(|(to, from)| to != *from).count();
        let text = format!(
            "the right values in another order: {moved} of {width} columns moved, column {} holds {}",
            order.iter().enumerate().position(|(to, &from)| to != from).unwrap_or(0),
            order.iter().enumerate().find(|(to, from)| to != *from).map_or(0, |(_, &from)| from)
        );
        let parts = scene.rearranged(|row, column| (row, order[column]));
        visit(Candidate::likeness(CauseKey::RowsPermuted, text, parts))?;
    }
    Ok(())
}

/// The column whose right values each recorded column holds, if every one holds one: by the values
/// of the last row, where they are all different.
fn order_of_row(scene: &Scene<'_, '_>, width: usize) -> Option<Vec<usize>> {
    let piece = scene.pieces.last()?;
    let last = piece.captured.len().checked_sub(width)?;
    let mut sorted: Vec<(f64, usize)> =
        piece.expected.value[last..].iter().copied().enumerate().map(|(i, x)| (x, i)).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut recorded: Vec<(f64, usize)> =
        piece.captured[last..].iter().enumerate().map(|(i, &x)| (f64::from(x), i)).collect();
    recorded.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut order = HashMap::new();
    for ((right, from), (held, to)) in sorted.iter().zip(&recorded) {
        if (right - held).abs() > piece.expected.bound(last + from) {
            return None;
        }
        order.insert(*to, *from);
    }
    let order: Vec<usize> = (0..width).map(|to| order[&to]).collect();
    order.iter().enumerate().any(|(to, &from)| to != from).then_some(order)
}

/// Right, but with a number added to all: the median, which a few odd elements leave as it is.
pub fn offsets<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let pairs = scene.pairs(true);
    let mut differences: Vec<f64> =
        pairs.iter().map(|(right, recorded)| f64::from(*recorded) - right).collect();
    if differences.is_empty() {
        return Ok(());
    }
    let middle = differences.len() / 2;
    let (_, &mut median, _) = differences.select_nth_unstable_by(middle, f64::total_cmp);
    let text = format!("{median:.2e} is added to every element");
    // It is told by elements that are rounded themselves.
    let size: f64 = pairs.iter().map(|(_, recorded)| f64::from(recorded.abs())).sum();
    let uncertain = scene.rounding().storage * size / pairs.len() as f64;
    visit(Candidate::likeness(CauseKey::Offset, text, scene.shifted(median, uncertain)))
}

/// The right values stored, or summed, in a coarser format than declared.
pub fn arithmetic<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let declared = scene.replay.recording.arithmetic.of(scene.stage());
    let stored_as =
        |test: &dyn Fn(f32) -> f32| scene.recorded().all(|x| !x.is_finite() || test(x) == x);
    // Of two that explain the errors the sharper one is the cause: a coarse result before coarse
    // sums, and the finer format first.
    let between = scene.rounding().between;
    let mut with = |key, text: String, rounding: Rounding, order: usize| {
        let rounding = Rounding { between, ..rounding };
        let parts = scene.with_rounding(rounding)?;
        let candidate = Candidate::mistake(key, text, parts).of_mistakes(order);
        visit(Candidate { rank: Rank::Arithmetic, ..candidate })
    };
    let rounds: [(DType, &dyn Fn(f32) -> f32); 2] = [
        (DType::F16, &|x| f16::from_f32(x).to_f32()),
        (DType::Bf16, &|x| bf16::from_f32(x).to_f32()),
    ];
    for (order, (dtype, round)) in (1..).zip(rounds) {
        let coarser = dtype.unit_roundoff() > declared.storage.unit_roundoff();
        if coarser && stored_as(round) {
            let text = format!("stored as {dtype}, but declared {}", declared.storage);
            with(CauseKey::StoredCoarser, text, Rounding::new(declared.accumulator, dtype), order)?;
        }
    }
    for (order, dtype) in (3..).zip([DType::F16, DType::Bf16]) {
        if dtype.unit_roundoff() > declared.accumulator.unit_roundoff() {
            let text = format!("summed in {dtype}, but declared {}", declared.accumulator);
            with(CauseKey::F16Accumulation, text, Rounding::new(dtype, declared.storage), order)?;
        }
    }
    Ok(())
}

/// Infinities where the right value is beyond f16's largest.
pub fn overflows<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let largest = f64::from(f16::MAX.to_f32());
    let of = |piece: &Piece<'a>| {
        let pairs = piece.expected.value.iter().zip(&piece.captured);
        pairs.into_iter().any(|(right, x)| right.abs() > largest && x.is_infinite())
    };
    if !scene.pieces.iter().any(of) {
        return Ok(());
    }
    let parts = scene.changed(|piece, index| {
        let right = piece.expected.value[index];
        // An expectation that is no number is met by anything.
        let overflows = right.abs() > largest && !piece.captured[index].is_finite();
        if overflows { f64::NAN } else { right }
    });
    let text = format!("overflows f16, whose largest number is {largest}");
    visit(Candidate::mistake(CauseKey::Overflow, text, parts))
}
