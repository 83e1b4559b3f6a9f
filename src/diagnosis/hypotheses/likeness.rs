//! What a wrong result looks like, for any operation: zeros, a multiple, another tensor, a permutation of
//! the right values.

use std::{collections::HashMap, rc::Rc};

use half::f16;

use super::{Order, Visit, elementwise::snapped, near::short, product::orders};
use crate::{
    core::{cause_key::CauseKey, format::Format, tensor::DType},
    diagnosis::{
        Change, Edits, Evidence, Moved, StepEvidence,
        cause::Rank,
        cause::Tried,
        replay::{
            ReplayError, Rounding,
            rules::{Call, FUNCTION},
        },
    },
    graph::{
        NodeId, Op,
        site::{Axis, Stage},
    },
};

/// Every likeness.
pub fn likenesses(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    not_numbers(evidence, visit);
    constants(evidence, visit);
    multiples(evidence, visit);
    multiples_of_rows(evidence, visit);
    multiples_within(evidence, visit)?;
    offsets(evidence, visit);
    left_out(evidence, visit)?;
    rows(evidence, visit);
    columns(evidence, visit);
    permutations(evidence, visit);
    others(evidence, visit);
    overflows(evidence, visit);
    arithmetic(evidence, visit)
}

/// NaN or infinity where every input is a number: whatever made it so, it began here.
fn not_numbers(evidence: &Evidence<'_>, visit: Visit<'_>) {
    let recorded = || evidence.steps.iter().flat_map(|step| &step.observed.piece.captured);
    let wrong = || recorded().zip(evidence.wrong.iter().flatten()).filter(|(_, wrong)| **wrong);
    if evidence.count_wrong() == 0 || wrong().any(|(x, _)| x.is_finite()) {
        return;
    }
    let what = match (wrong().any(|(x, _)| x.is_nan()), wrong().any(|(x, _)| x.is_infinite())) {
        (true, false) => "NaN",
        (false, _) => "infinite",
        (true, true) => "NaN or infinite",
    };
    let text = format!("{what}, though every input is a number");
    visit(evidence.predicted(CauseKey::NotANumber, text, Rank::Likeness, |step| {
        let piece = &step.observed.piece;
        let pairs = piece.expected.value.iter().zip(&piece.captured);
        let of = |(&right, &x): (&f64, &f32)| if x.is_finite() { right } else { f64::NAN };
        Some(piece.expected.with_values(pairs.map(of).collect(), 0.0))
    }));
}

fn constants(evidence: &Evidence<'_>, visit: Visit<'_>) {
    let all = |value: f64| {
        move |step: &StepEvidence<'_>| Some(vec![value; step.observed.piece.captured.len()])
    };
    let text = "the result is zero";
    visit(evidence.copied(CauseKey::Zero, text, Rank::Likeness, all(0.0)));
    let mut recorded = evidence.steps.iter().flat_map(|step| &step.observed.piece.captured);
    let Some(&first) = recorded.next() else { return };
    if first != 0.0 && first.is_finite() && evidence.may_fit() && recorded.all(|&x| x == first) {
        let text = format!("every element is {first}");
        visit(evidence.copied(CauseKey::Constant, text, Rank::Likeness, all(f64::from(first))));
    }
}

/// c times the correct values: as all of them tell, and as the wrong ones do.
fn multiples(evidence: &Evidence<'_>, visit: Visit<'_>) {
    if !evidence.may_fit() {
        return;
    }
    let wrong = wrong_pairs(evidence);
    let mut found: Vec<f64> = Vec::new();
    for pairs in [evidence.pairs(), wrong] {
        let along: f64 = pairs.iter().map(|(right, recorded)| right * recorded).sum();
        let squares: f64 = pairs.iter().map(|(right, _)| right * right).sum();
        let factor = snapped(along / squares);
        let is_new = found.iter().all(|known| (known / factor - 1.0).abs() > 1e-6);
        if factor.is_finite() && (factor - 1.0).abs() > 1e-7 && factor.abs() > 1e-6 && is_new {
            found.push(factor);
        }
    }
    for (factor, text) in found.into_iter().map(|factor| named_factor(evidence, factor)) {
        visit(evidence.multiplied(CauseKey::Scaled, text, Rank::Likeness, |step| {
            Some(vec![factor; step.observed.piece.captured.len()])
        }));
    }
}

/// A factor in words, and exactly where it is a known one.
fn named_factor(evidence: &Evidence<'_>, fitted: f64) -> (f64, String) {
    let root = |n: usize| (n as f64).sqrt();
    let mut named = vec![
        (-1.0, "negated".to_string()),
        (2.0, "doubled".to_string()),
        (0.5, "halved".to_string()),
    ];
    let embd = evidence.width_of(Stage::Embd);
    named.extend(
        embd.map(|n| (root(n), format!("multiplied by sqrt(hidden size) = {:.3}", root(n)))),
    );
    if let Some(dim) = evidence.heads().map(|heads| heads.dim) {
        named.push((root(dim), format!("multiplied by sqrt(head dim) = {:.3}", root(dim))));
        named.push((1.0 / root(dim), "multiplied by 1/sqrt(head dim)".to_string()));
    }
    let name = named.into_iter().find(|(factor, _)| (fitted / factor - 1.0).abs() < 1e-6);
    name.unwrap_or_else(|| (fitted, format!("{} times the correct values", significant(fitted))))
}

/// A factor to as many digits as tell it from 1: 1.00100, 0.5, 3.741.
fn significant(factor: f64) -> String {
    let digits = (-(factor - 1.0).abs().log10() - 1e-9).ceil().clamp(0.0, 8.0) as usize + 2;
    format!("{factor:.digits$}")
}

/// A factor of a result within the operation: of a norm or a product before its bias.
fn multiples_within(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    if !evidence.may_fit() {
        return Ok(());
    }
    let graph = evidence.graph();
    let within = evidence.cone().iter().rev().skip(1);
    for &id in within.filter(|&&id| !graph.node(id).op.is_layout()) {
        let doubled = Edits::one(id, Change::Times(2.0));
        let Some(factor) = evidence.factor_of(&doubled)?.map(snapped) else { continue };
        let text = format!("{} times {}", graph.node(id).op, short(factor));
        let edit = Edits::one(id, Change::Times(factor));
        visit(evidence.edited(CauseKey::Scaled, text, Rank::Likeness, &edit)?);
    }
    Ok(())
}

/// Each row times a factor of its own: one number is fitted to each, which must be long.
fn multiples_of_rows(evidence: &Evidence<'_>, visit: Visit<'_>) {
    const LEAST_WIDTH: usize = 32;
    let starts_with_tokens =
        evidence.spec().axes.first().is_some_and(|axis| axis.axis == Axis::Token);
    let is_long = evidence.steps.iter().all(|step| row_width(step) >= LEAST_WIDTH);
    if !evidence.may_fit() || !starts_with_tokens || !is_long {
        return;
    }
    let text = "each token's correct values times a per-token factor";
    let tried = evidence.multiplied(CauseKey::Scaled, text, Rank::Likeness, |step| {
        let piece = &step.observed.piece;
        let width = row_width(step);
        let rows = piece.expected.value.chunks_exact(width).zip(piece.captured.chunks_exact(width));
        let factors = |(right, recorded): (&[f64], &[f32])| {
            let along: f64 = right.iter().zip(recorded).map(|(a, &b)| a * f64::from(b)).sum();
            let squares: f64 = right.iter().map(|a| a * a).sum();
            let factor = if squares > 0.0 { along / squares } else { 1.0 };
            vec![factor; width]
        };
        Some(rows.flat_map(factors).collect())
    });
    // One factor for all is simpler.
    visit(tried.map(|tried| Tried { mistakes: 3, ..tried }));
}

/// The right value beside the recorded one of every wrong element.
fn wrong_pairs(evidence: &Evidence<'_>) -> Vec<(f64, f64)> {
    let of = |(step, wrong): (&StepEvidence<'_>, &Vec<bool>)| {
        let piece = &step.observed.piece;
        let pairs = piece.expected.value.iter().zip(&piece.captured).zip(wrong);
        let pairs =
            pairs.filter(|((right, x), wrong)| **wrong && right.is_finite() && x.is_finite());
        pairs.map(|((&right, &x), _)| (right, f64::from(x))).collect::<Vec<_>>()
    };
    evidence.steps.iter().zip(&evidence.wrong).flat_map(of).collect()
}

/// A number added to all: the median, which a few odd elements leave as it is.
fn offsets(evidence: &Evidence<'_>, visit: Visit<'_>) {
    let mut differences: Vec<f64> = wrong_pairs(evidence).iter().map(|(a, b)| b - a).collect();
    if !evidence.may_fit() || differences.is_empty() {
        return;
    }
    let middle = differences.len() / 2;
    let (_, &mut median, _) = differences.select_nth_unstable_by(middle, f64::total_cmp);
    let text = format!("{median:.2e} is added to every element");
    visit(evidence.predicted(CauseKey::Offset, text, Rank::Likeness, |step| {
        let right = &step.observed.piece.expected;
        Some(right.with_values(right.value.iter().map(|x| x + median).collect(), 0.0))
    }));
}

/// Any operation whose result has the size of a source does nothing.
fn left_out(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let graph = evidence.graph();
    for id in evidence.cone().iter().copied() {
        let node = graph.node(id);
        if node.op.is_layout() {
            continue;
        }
        for (source, of) in node.sources.iter().enumerate() {
            if of.is_some_and(|of| graph.node(of).ne == node.ne) {
                let name = of.map_or(String::new(), |of| evidence.name_of(of));
                let text = format!("{} has no effect: its result is {name}", node.op);
                let edit = Edits::one(id, Change::LeftOut(source));
                let key = CauseKey::OtherTensor;
                visit(evidence.edited(key, text, Rank::Likeness, &edit)?);
            }
        }
        whole_cone(evidence, id, visit)?;
    }
    Ok(())
}

/// The cone's last node does nothing.
fn whole_cone(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let is_sum = evidence.graph().node(id).op == Op::MulMat;
    if !is_sum || evidence.cone().last() == Some(&id) {
        return Ok(());
    }
    // A product alone, without what follows it in the same operation.
    let graph = evidence.graph();
    let own = graph.node(id).ne;
    let after = evidence.cone().iter().copied().filter(|&after| after > id);
    let after: Vec<NodeId> = after.filter(|&after| graph.node(after).ne == own).collect();
    let left_out = |&after: &NodeId| {
        let node = graph.node(after);
        let source = (0..node.sources.len())
            .find(|&s| node.source(s).is_some_and(|s| graph.node(s).ne == own))?;
        Some((after, Change::LeftOut(source)))
    };
    let edit = Edits(after.iter().filter_map(left_out).collect());
    let text = "only the product is computed".to_string();
    visit(evidence.edited(CauseKey::TermMissing, text, Rank::Likeness, &edit)?);
    Ok(())
}

/// The length of a row of a step: of a token, or of a position; else all.
fn row_width(step: &StepEvidence<'_>) -> usize {
    let spec = &step.machine.run.model.sites.specs()[step.observed.place];
    let has_rows =
        spec.axes.first().is_some_and(|axis| matches!(axis.axis, Axis::Token | Axis::Position));
    step.observed.shape.iter().skip(usize::from(has_rows)).product::<usize>().max(1)
}

fn rows(evidence: &Evidence<'_>, visit: Visit<'_>) {
    if evidence.spec().axes.first().is_none_or(|axis| axis.axis != Axis::Token) {
        return;
    }
    let orders: [(CauseKey, &str, Order); 4] = [
        (CauseKey::TokenBefore, "each row is the previous token's correct row", |t, _| {
            t.saturating_sub(1)
        }),
        (CauseKey::TokenAfter, "each row is the next token's correct row", |t, n| {
            (t + 1).min(n - 1)
        }),
        (CauseKey::RowsEqual, "every row of a step equals its first row", |_, _| 0),
        (CauseKey::RowsEqual, "every row of a step equals its last row", |_, n| n - 1),
    ];
    for (key, text, order) in orders {
        visit(evidence.moved(key, text, Rank::Likeness, |at| {
            let step = &evidence.steps[at];
            let (width, n) = (row_width(step), step.observed.piece.captured.len());
            let tokens = n / width;
            let of = |i: usize| order(i / width, tokens) * width + i % width;
            Some(Moved { step: at, order: (0..n).map(of).collect() })
        }));
    }
}

/// Rows in an order that people mistake for another: heads and halves.
fn columns(evidence: &Evidence<'_>, visit: Visit<'_>) {
    let Some(first) = evidence.steps.first() else { return };
    let width = row_width(first);
    if evidence.steps.iter().any(|step| row_width(step) != width) || width < 2 {
        return;
    }
    let mut dims = evidence.heads().map_or_else(|| evidence.head_dims(), |heads| vec![heads.dim]);
    dims.extend([width, width / 2]);
    dims.extend(first.observed.shape.last().copied());
    dims.sort_unstable();
    dims.dedup();
    for (text, place) in orders(width, &dims) {
        let text = text.replace("rows", "elements");
        visit(evidence.moved(CauseKey::HeadsPermuted, text, Rank::Likeness, |at| {
            let n = evidence.steps[at].observed.piece.captured.len();
            let of = |i: usize| i / width * width + place(i % width);
            Some(Moved { step: at, order: (0..n).map(of).collect() })
        }));
    }
}

/// Any fixed order of a row, found by the values of the last one.
fn permutations(evidence: &Evidence<'_>, visit: Visit<'_>) {
    const LEAST_ROWS: usize = 4;
    let Some(last) = evidence.steps.last() else { return };
    let width = row_width(last);
    let rows: usize = evidence.wrong.iter().map(|wrong| wrong.len() / width).sum();
    let is_ragged = evidence.steps.iter().any(|step| row_width(step) != width);
    // As many numbers are fitted as a row has elements.
    if is_ragged || rows < LEAST_ROWS || width < 2 {
        return;
    }
    let Some(order) = order_of_row(last, width) else { return };
    let moved = order.iter().enumerate().filter(|(to, from)| to != *from).count();
    let text = format!("the correct values in another order: {moved} of {width} elements moved");
    visit(evidence.moved(CauseKey::RowsPermuted, text, Rank::Likeness, |at| {
        let n = evidence.steps[at].observed.piece.captured.len();
        let of = |i: usize| i / width * width + order[i % width];
        Some(Moved { step: at, order: (0..n).map(of).collect() })
    }));
}

/// The place whose right value each recorded element of the last row has, if every one has one.
fn order_of_row(step: &StepEvidence<'_>, width: usize) -> Option<Vec<usize>> {
    let piece = &step.observed.piece;
    let last = piece.captured.len().checked_sub(width)?;
    let mut right: Vec<(f64, usize)> =
        piece.expected.value[last..].iter().copied().enumerate().map(|(i, x)| (x, i)).collect();
    right.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut recorded: Vec<(f64, usize)> =
        piece.captured[last..].iter().enumerate().map(|(i, &x)| (f64::from(x), i)).collect();
    recorded.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut order = HashMap::new();
    for ((value, from), (held, to)) in right.iter().zip(&recorded) {
        if (value - held).abs() > piece.expected.bound(last + from) {
            return None;
        }
        order.insert(*to, *from);
    }
    let order: Vec<usize> = (0..width).map(|to| order[&to]).collect();
    order.iter().enumerate().any(|(to, &from)| to != from).then_some(order)
}

/// One other recorded tensor of the same shape.
fn others(evidence: &Evidence<'_>, visit: Visit<'_>) {
    for place in evidence.other_sites(evidence.spec().node) {
        let text = format!("equals {}", evidence.site_name(place));
        visit(evidence.copied(CauseKey::OtherTensor, text, Rank::Likeness, |step| {
            evidence.recorded(step, place)
        }));
    }
    let text = "decode steps have the previous step's correct result";
    visit(evidence.moved(CauseKey::PreviousStep, text, Rank::Likeness, |at| {
        let step = &evidence.steps[at];
        let n = step.observed.piece.captured.len();
        let width = row_width(step);
        let before = step.observed.step.checked_sub(1);
        let before = evidence.steps.iter().position(|other| Some(other.observed.step) == before);
        let last = |before: usize| evidence.steps[before].observed.piece.captured.len();
        Some(match before.filter(|&before| n == width && last(before) >= n) {
            Some(before) => {
                Moved { step: before, order: (last(before) - n..last(before)).collect() }
            }
            None => Moved { step: at, order: (0..n).collect() },
        })
    }));
}

/// Infinities where the right value is beyond f16's largest.
fn overflows(evidence: &Evidence<'_>, visit: Visit<'_>) {
    let largest = f64::from(f16::MAX.to_f32());
    let overflows = |right: f64, x: f32| right.abs() > largest && !x.is_finite();
    let any = |step: &StepEvidence<'_>| {
        let piece = &step.observed.piece;
        piece.expected.value.iter().zip(&piece.captured).any(|(&right, &x)| overflows(right, x))
    };
    if !evidence.steps.iter().any(any) {
        return;
    }
    let text = format!("overflows f16, whose largest value is {largest}");
    visit(evidence.predicted(CauseKey::Overflow, text, Rank::Mistake, |step| {
        let piece = &step.observed.piece;
        let pairs = piece.expected.value.iter().zip(&piece.captured);
        // An expectation that is no number is met by anything.
        let of = |(&right, &x): (&f64, &f32)| if overflows(right, x) { f64::NAN } else { right };
        Some(piece.expected.with_values(pairs.map(of).collect(), 0.0))
    }));
}

/// Whether errors are where those of coarse sums are: in most elements, and in every row.
fn is_spread(evidence: &Evidence<'_>) -> bool {
    const LEAST_WIDTH: usize = 16;
    let mut elements = (0, 0);
    for (step, wrong) in evidence.steps.iter().zip(&evidence.wrong) {
        let right = &step.observed.piece.expected.value;
        let width = row_width(step);
        for (row, right) in wrong.chunks(width).zip(right.chunks(width)) {
            let counts = || row.iter().zip(right).filter(|(_, x)| x.is_finite() && **x != 0.0);
            let (all, off) = (counts().count(), counts().filter(|(wrong, _)| **wrong).count());
            if all >= LEAST_WIDTH && off == 0 {
                return false;
            }
            elements = (elements.0 + all, elements.1 + off);
        }
    }
    elements.1 * 2 >= elements.0
}

/// The right values stored, or summed, in a coarser format than declared.
fn arithmetic(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let graph = evidence.graph();
    // A sum of n terms is a walk of n partial sums, each rounded: u sqrt(n / 6) of the result, and twice that.
    let sources = evidence.cone().iter().flat_map(|&id| graph.node(id).sources.iter().flatten());
    let longest = sources.map(|&id| graph.node(id).ne[0].fixed.max(1)).max().unwrap_or(1) as f64;
    let declared = evidence.run.recording.arithmetic.of(evidence.spec().stage);
    let recorded = || evidence.steps.iter().flat_map(|step| &step.observed.piece.captured);
    let stored_as = |format: Format| recorded().all(|&x| !x.is_finite() || format.number(x) == x);
    // Of two that explain the errors the sharper one is the cause: a coarse result before coarse sums, and
    // the finer format first.
    for (order, (dtype, format)) in
        (1..).zip([(DType::F16, Format::F16), (DType::Bf16, Format::Bf16)])
    {
        let is_coarser = dtype.unit_roundoff() > declared.storage.unit_roundoff();
        // What a cache keeps is a convention of its own.
        if is_coarser && !super::cache::is_cache(evidence) && stored_as(format) {
            let text = format!("stored as {dtype}, but declared {}", declared.storage);
            let rounding = Rounding::new(declared.accumulator, dtype);
            let tried = evidence.stored_coarser(text, rounding, format);
            visit(Some(Tried { mistakes: order, ..tried }));
        }
    }
    // A lookup sums nothing.
    let sums = |op: Op| op.is_product() || op.is_norm() || op == Op::SoftMax;
    if !evidence.cone().iter().any(|&id| sums(graph.node(id).op)) {
        return Ok(());
    }
    for (order, dtype) in (3..).zip([DType::F16, DType::Bf16]) {
        let u = dtype.unit_roundoff();
        let is_coarser = u > declared.accumulator.unit_roundoff();
        let most = u * (FUNCTION + 1.2 * longest.sqrt());
        // A twentieth of what such sums lose, at least.
        let least = u * longest.sqrt() / 50.0;
        if !is_coarser
            || !(least..=most).contains(&evidence.relative_error())
            || !is_spread(evidence)
        {
            continue;
        }
        let coarse = |&id: &NodeId| {
            let coarse = move |call: &mut Call<'_, '_>| call.rounding.sum = u;
            (id, Change::Call(Rc::new(coarse)))
        };
        let edit = Edits(evidence.cone().iter().map(coarse).collect());
        let text = format!("summed in {dtype}, but declared {}", declared.accumulator);
        let key = CauseKey::F16Accumulation;
        let tried = evidence.edited(key, text, Rank::Consistent, &edit)?;
        visit(tried.map(|tried| Tried { mistakes: order, ..tried }));
    }
    Ok(())
}
