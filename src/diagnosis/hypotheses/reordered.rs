//! A right result whose values lie in memory in one order of the axes and are read in another: a copy that took
//! the layout of its source for that of its destination.

use super::{
    Visit,
    cache::{is_cache, own_rows},
};
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{Evidence, Moved, StepEvidence, cause::Rank},
};

/// Wrong elements that are looked at before an order is computed whole.
const PROBED: usize = 64;

/// Axes, slowest first, by their places in the tensor's own order.
type Layout = Vec<usize>;

/// Every order in which the values may lie, and every one in which they may be read.
pub fn layouts(evidence: &Evidence<'_>, visit: Visit<'_>) {
    let axes = &evidence.spec().axes;
    let layouts = permutations(axes.len());
    if layouts.is_empty() || !evidence.may_fit() {
        return;
    }
    // What a cache must hold are the rows that the steps appended, not what lay in it before.
    let appended = if is_cache(evidence) { own_rows(evidence) } else { None };
    let appended = appended.map(|rows| rows.steps.concat());
    let content = |step: &StepEvidence<'_>| match &appended {
        Some(rows) => rows.get(..step.observed.piece.expected.value.len()).map(<[f64]>::to_vec),
        None => Some(step.observed.piece.expected.value.clone()),
    };
    for lies in &layouts {
        for read in layouts.iter().filter(|read| *read != lies) {
            if !is_plausible(evidence, &content, [lies, read]) {
                continue;
            }
            let named = |layout: &Layout| {
                let names = layout.iter().map(|&axis| format!("[{}]", axes[axis].axis.name()));
                names.collect::<String>()
            };
            let text = format!("values are stored as {} and read as {}", named(lies), named(read));
            let order = |step: &StepEvidence<'_>| -> Vec<usize> {
                let shape = &step.observed.shape;
                let elements = shape.iter().product();
                (0..elements).map(|flat| origin(flat, shape, lies, read)).collect()
            };
            let (key, rank) = (CauseKey::Reordered, Rank::Mistake);
            visit(match &appended {
                Some(_) => evidence.copied(key, text, rank, |step| {
                    let content = content(step)?;
                    Some(order(step).into_iter().map(|from| content[from]).collect())
                }),
                None => evidence.moved(key, text, rank, |step| {
                    Some(Moved { step, order: order(&evidence.steps[step]) })
                }),
            });
        }
    }
}

/// The element of the tensor's own order that is found in place of another.
fn origin(flat: usize, shape: &[usize], lies: &Layout, read: &Layout) -> usize {
    let index = unravel(flat, shape, &(0..shape.len()).collect());
    let place = ravel(&index, shape, read);
    ravel(&unravel(place, shape, lies), shape, &(0..shape.len()).collect())
}

fn ravel(index: &[usize], shape: &[usize], layout: &Layout) -> usize {
    layout.iter().fold(0, |place, &axis| place * shape[axis] + index[axis])
}

fn unravel(mut place: usize, shape: &[usize], layout: &Layout) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for &axis in layout.iter().rev() {
        index[axis] = place % shape[axis];
        place /= shape[axis];
    }
    index
}

/// What a step's tensor must hold.
type Content<'c> = &'c dyn Fn(&StepEvidence<'_>) -> Option<Vec<f64>>;

/// Whether wrong elements from all over a step are those that the order finds.
fn is_plausible(evidence: &Evidence<'_>, content: Content<'_>, [lies, read]: [&Layout; 2]) -> bool {
    let wrong_in = |step: &usize| evidence.wrong[*step].iter().filter(|&&wrong| wrong).count();
    let Some(step) = (0..evidence.steps.len()).max_by_key(wrong_in) else { return false };
    let (observed, wrong) = (&evidence.steps[step].observed, &evidence.wrong[step]);
    let right = &observed.piece.expected;
    let Some(content) = content(&evidence.steps[step]) else { return false };
    let stride = (wrong_in(&step) / PROBED).max(1);
    let places = (0..wrong.len()).filter(|&flat| wrong[flat]).step_by(stride);
    let is_found = |flat: usize| {
        let from = origin(flat, &observed.shape, lies, read);
        let off = (f64::from(observed.piece.captured[flat]) - content[from]).abs();
        off <= right.most_bound(from)
    };
    let (mut found, mut all) = (0, 0);
    for flat in places {
        found += usize::from(is_found(flat));
        all += 1;
    }
    2 * found > all
}

fn permutations(n: usize) -> Vec<Layout> {
    match n {
        2 => vec![vec![0, 1], vec![1, 0]],
        3 => [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
            .map(Vec::from)
            .to_vec(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_comes_from_where_it_lies_in_memory() {
        let shape = [2, 3, 4];
        let (lies, read) = (vec![1, 2, 0], vec![0, 1, 2]);
        let mut memory = vec![usize::MAX; 24];
        for flat in 0..24 {
            let [a, b, c] = [flat / 12, flat / 4 % 3, flat % 4];
            memory[(b * 4 + c) * 2 + a] = flat;
        }
        let found: Vec<usize> = (0..24).map(|flat| origin(flat, &shape, &lies, &read)).collect();
        assert_eq!(found, memory);
        let same = (0..24).map(|flat| origin(flat, &shape, &lies, &lies));
        assert!(same.eq(0..24));
    }
}
