//! Mistakes in a norm.

use std::rc::Rc;

use super::{
    Scalar, Visit,
    least_squares::{solve, whole},
    near::WeightSource,
};
use crate::{
    compare::axis_phrase,
    core::cause_key::CauseKey,
    diagnosis::{
        Change, Edits, Evidence, Row, StepEvidence,
        cause::Tried,
        replay::{ReplayError, rules::Call},
    },
    graph::{Extent, NodeId, Op, site::Axis},
};

/// Epsilons in use.
const EPSILONS: [f64; 9] = [0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2];

/// Norms with another epsilon, centre, groups, input or weight, or without them.
pub fn norms(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let norms = evidence.nodes(|node| node.op.is_norm());
    for &norm in &norms {
        epsilons(evidence, norm, visit)?;
        other_kinds(evidence, norm, visit)?;
        scales(evidence, norm, visit)?;
        counted(evidence, norm, visit)?;
        groups(evidence, norm, visit)?;
        evidence.other_inputs(norm, 0, &|_| CauseKey::InputOfOther, visit)?;
    }
    if norms.is_empty() {
        return Ok(());
    }
    for factor in evidence.nodes(|node| node.op == Op::Mul) {
        weights(evidence, factor, visit)?;
    }
    for bias in evidence.nodes(|node| node.op == Op::Add) {
        super::product::biases(evidence, bias, visit)?;
    }
    Ok(())
}

fn eps_index(op: Op) -> usize {
    usize::from(op == Op::GroupNorm)
}

fn epsilons(evidence: &Evidence<'_>, norm: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let node = evidence.graph().node(norm);
    let index = eps_index(node.op);
    let own = f64::from(node.params(Extent { tokens: 1, cells: 1, is_first: true }).float(index));
    let mut list = EPSILONS.to_vec();
    list.extend([own * 10.0, own / 10.0]);
    list.extend(solved(evidence, norm, index)?);
    let differs = |eps: &f64| (*eps as f32) != own as f32;
    for eps in list.into_iter().filter(differs) {
        let edit = Edits::one(norm, Change::float(index, eps));
        let text = format!("eps {eps:e} instead of {:e}", own as f32);
        visit(evidence.mistake(CauseKey::Eps, text, &edit)?);
    }
    Ok(())
}

/// The epsilon that gives results of the recorded size, to three digits: more of it makes them smaller.
fn solved(evidence: &Evidence<'_>, norm: NodeId, index: usize) -> Result<Option<f64>, ReplayError> {
    const HALVINGS: usize = 48;
    if !evidence.may_fit() {
        return Ok(None);
    }
    let ratio = |log: f64| evidence.ratio(&Edits::one(norm, Change::float(index, log.exp())));
    let (mut low, mut high) = (1e-13f64.ln(), 1e3f64.ln());
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        let Some(ratio) = ratio(middle)? else { return Ok(None) };
        if ratio < 1.0 {
            low = middle;
        } else {
            high = middle;
        }
    }
    let eps = (0.5 * (low + high)).exp();
    Ok(format!("{eps:.2e}").parse().ok())
}

fn other_kinds(evidence: &Evidence<'_>, norm: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let op = evidence.graph().node(norm).op;
    let others: &[(CauseKey, &str, Op)] = match op {
        Op::RmsNorm => &[
            (CauseKey::MeanSubtracted, "the mean is subtracted, as LayerNorm does", Op::Norm),
            (CauseKey::NotAveraged, "divided by the root of the sum of squares", Op::L2Norm),
        ],
        Op::Norm => &[
            (CauseKey::MeanSubtracted, "the mean is not subtracted, as in RMSNorm", Op::RmsNorm),
            (CauseKey::NotAveraged, "divided by the root of the sum of squares", Op::L2Norm),
        ],
        Op::L2Norm => {
            &[(CauseKey::NotAveraged, "divided by the root of the mean of squares", Op::RmsNorm)]
        }
        _ => &[],
    };
    for &(key, text, op) in others {
        visit(evidence.mistake(key, text, &Edits::one(norm, Change::Op(op)))?);
    }
    let left_out = Edits::one(norm, Change::LeftOut(0));
    visit(evidence.mistake(CauseKey::NormMissing, "not normalised", &left_out)?);
    // The norm with its factor and its bias.
    let mut all = vec![(norm, Change::LeftOut(0))];
    let weighted = |id: &NodeId| *id > norm && evidence.weight_source(*id).is_some();
    let after = evidence.nodes(|node| matches!(node.op, Op::Mul | Op::Add));
    for id in after.into_iter().filter(weighted) {
        let source = 1 - evidence.weight_source(id).map_or(1, |weight| weight.source.min(1));
        all.push((id, Change::LeftOut(source)));
    }
    if all.len() > 1 {
        let text = "the norm is left out, with its weight";
        visit(evidence.mistake(CauseKey::NormMissing, text, &Edits(all))?);
    }
    Ok(())
}

/// How often an element counts.
type Counts = Box<dyn Fn(usize) -> i64>;

/// What a row is multiplied by, given epsilon.
type Scale = Rc<dyn Fn(&Row<'_>, f64) -> f64>;

/// An RMS norm with another scale: of other elements, without its root, with epsilon elsewhere.
fn scales(evidence: &Evidence<'_>, norm: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let node = evidence.graph().node(norm);
    if node.op != Op::RmsNorm || !node.ne[0].is_fixed() {
        return Ok(());
    }
    let (width, any) = (node.ne[0].fixed as usize, Extent { tokens: 1, cells: 1, is_first: true });
    let eps = f64::from(node.params(any).float(eps_index(node.op)));
    let mut is_proven = false;
    for (key, text, mistakes, scale) in other_scales(width) {
        if mistakes > 1 && is_proven {
            continue;
        }
        let of = move |row: Row<'_>| {
            let right = 1.0 / (squares(row.source) / row.source.len() as f64 + eps).sqrt();
            scale(&row, eps) / right
        };
        let edit = Edits::one(norm, Change::RowTimes(Rc::new(of)));
        let tried = evidence.mistake(key, text, &edit)?;
        is_proven |= tried.as_ref().is_some_and(|tried| tried.explained.is_proof());
        visit(tried.map(|tried| Tried { mistakes, ..tried }));
    }
    Ok(())
}

fn squares(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum()
}

/// Elements that are left out of a norm's sum, or counted more than once, in groups as warps have them: what each
/// row was divided by tells.
fn counted(evidence: &Evidence<'_>, norm: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    const GROUP: usize = 32;
    const NEAR: f64 = 0.1;
    let node = evidence.graph().node(norm);
    let Some(source) = node.source(0).filter(|_| node.op == Op::RmsNorm && node.ne[0].is_fixed())
    else {
        return Ok(());
    };
    let (width, any) = (node.ne[0].fixed as usize, Extent { tokens: 1, cells: 1, is_first: true });
    let eps = f64::from(node.params(any).float(eps_index(node.op)));
    let (mut rows, mut errors) = (Vec::new(), Vec::new());
    // A kernel may take other blocks for the one row of a decode step.
    let is_alone = |step: &&StepEvidence<'_>| step.machine.extent.tokens == 1;
    let several = evidence.steps.iter().any(|step| !is_alone(&step));
    for step in evidence.steps.iter().filter(|step| !several || !is_alone(step)) {
        let Some(x) = step.machine.argument(source)? else { return Ok(()) };
        let (values, piece) = (x.value()?, &step.observed.piece);
        if values.len() != piece.captured.len() {
            return Ok(());
        }
        for (row, x) in values.chunks_exact(width).enumerate() {
            let of = row * width..(row + 1) * width;
            let pairs = piece.expected.value[of.clone()].iter().zip(&piece.captured[of]);
            let (mut along, mut own) = (0.0, 0.0);
            pairs.for_each(|(right, &x)| {
                along += right * f64::from(x);
                own += right * right;
            });
            let ratio = along / own;
            let mean = squares(x) / width as f64 + eps;
            // Each row with the same weight, whatever its size.
            errors.push(1.0 / (ratio * ratio) - 1.0);
            let group = |group: &[f64]| squares(group) / width as f64 / mean;
            rows.push(x.chunks(GROUP).map(group).collect::<Vec<f64>>());
        }
    }
    if !errors.iter().all(|error| error.is_finite()) {
        return Ok(());
    }
    let counts = solve(&rows, &errors).and_then(|found| whole(&found, NEAR));
    let Some(counts) = counts.filter(|counts| counts.iter().any(|&count| count != 0)) else {
        return Ok(());
    };
    let counts: Rc<[i64]> = counts.into();
    let of = move |i: usize| 1 + counts[i / GROUP];
    let kinds = [(0, "left out of the mean square"), (2, "counted twice in the mean square")];
    let parts = kinds.into_iter().filter_map(|(kind, text)| {
        let marks: Vec<bool> = (0..width).map(|i| of(i) == kind).collect();
        let which = axis_phrase(Axis::Element, &marks)?;
        marks.contains(&true).then(|| format!("{which} {text}"))
    });
    let text = parts.collect::<Vec<_>>().join("; ");
    if text.is_empty() {
        return Ok(());
    }
    // The one row of a decode step may be summed the same way, rightly, or without another group.
    let groups = width.div_ceil(GROUP);
    let mut alone: Vec<(String, Counts)> = vec![
        (text.clone(), Box::new(of.clone())),
        (format!("{text}, but in decode steps"), Box::new(|_| 1)),
    ];
    for group in (0..groups).filter(|_| several) {
        let last = (group * GROUP + GROUP).min(width) - 1;
        let text = format!("{text}; in decode steps {}-{last} left out of it", group * GROUP);
        alone.push((text, Box::new(move |i| i64::from(i / GROUP != group))));
    }
    for (text, of_alone) in alone {
        let of = of.clone();
        let of_row = move |row: Row<'_>| {
            let count = |i: usize| if row.is_alone { of_alone(i) } else { of(i) };
            let n = row.source.len() as f64;
            let term = |(i, x): (usize, &f64)| count(i) as f64 * x * x;
            let sum: f64 = row.source.iter().enumerate().map(term).sum();
            ((squares(row.source) / n + eps) / (sum / n + eps)).sqrt()
        };
        let edit = Edits::one(norm, Change::RowTimes(Rc::new(of_row)));
        visit(evidence.mistake(CauseKey::PartialSum, text, &edit)?);
    }
    Ok(())
}

/// Other scales, each with how many mistakes it takes.
fn other_scales(width: usize) -> Vec<(CauseKey, String, u8, Scale)> {
    let mut list: Vec<(CauseKey, String, u8, Scale)> = Vec::new();
    let mut add = |key, text: &str, of: fn(&[f64], f64) -> f64| {
        let scale = move |row: &Row<'_>, eps: f64| of(row.source, eps);
        list.push((key, text.to_string(), 1, Rc::new(scale)));
    };
    let n = |x: &[f64]| x.len() as f64;
    let outside = |x: &[f64], eps| 1.0 / ((squares(x) / x.len() as f64).sqrt() + eps);
    add(CauseKey::Eps, "eps added after the square root", outside);
    let largest = |x: &[f64], eps: f64| {
        let most = x.iter().fold(0f64, |most, x| most.max(x.abs()));
        1.0 / (squares(x) / x.len() as f64 + eps * most * most).sqrt()
    };
    add(CauseKey::Eps, "eps added after the row is divided by its largest element", largest);
    let sum = |x: &[f64], eps: f64| 1.0 / (squares(x) + eps).sqrt();
    add(CauseKey::NotAveraged, "the squares are summed, not averaged", sum);
    let less_one =
        |x: &[f64], eps: f64| 1.0 / (squares(x) / (x.len() as f64 - 1.0).max(1.0) + eps).sqrt();
    add(CauseKey::NotAveraged, "the squares are divided by n - 1", less_one);
    let no_root = |x: &[f64], eps: f64| 1.0 / (squares(x) / x.len() as f64 + eps);
    add(CauseKey::RootMissing, "divided by the mean square, without its root", no_root);
    let absolute = |x: &[f64], _: f64| x.len() as f64 / x.iter().map(|x| x.abs()).sum::<f64>();
    add(CauseKey::NotSquared, "divided by the mean magnitude instead of the RMS", absolute);
    let mut partial = |text: String, mistakes, seen: Rc<dyn Fn(usize, bool) -> bool>| {
        let scale = move |row: &Row<'_>, eps: f64| {
            let kept = row.source.iter().enumerate().filter(|(i, _)| seen(*i, row.is_alone));
            1.0 / (kept.map(|(_, x)| x * x).sum::<f64>() / n(row.source) + eps).sqrt()
        };
        list.push((CauseKey::PartialSum, text, mistakes, Rc::new(scale)));
    };
    for first in [32, 64, 128, 256, 512, width - 1].into_iter().filter(|&first| first < width) {
        let text = format!("only the first {first} elements are summed");
        partial(text, 1, Rc::new(move |i, _| i < first));
    }
    // A longer block is as good as all of the elements.
    let blocks: Vec<usize> =
        [64, 128, 256, 512, 1024].into_iter().filter(|&block| block < width).collect();
    let of_block = |block: usize| format!("only the first 32 of every {block} elements are summed");
    for &block in &blocks {
        let text = format!("{} (one warp of a block)", of_block(block));
        partial(text, 1, Rc::new(move |i, _| i % block < 32));
    }
    // A kernel may take larger blocks for the one row of a decode step.
    for &block in &blocks {
        for alone in blocks.iter().copied().chain([usize::MAX]).filter(|&alone| alone > block) {
            let of_alone = match alone {
                usize::MAX => "the first 32 in decode steps".to_string(),
                _ => format!("of every {alone} in decode steps"),
            };
            let text = format!("{}, {of_alone} (one warp of a block)", of_block(block));
            let seen = move |i, is_alone| i % if is_alone { alone } else { block } < 32;
            partial(text, 2, Rc::new(seen));
        }
    }
    list
}

/// Groups of another size: all heads of a token at once, or each head by itself.
fn groups(evidence: &Evidence<'_>, norm: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let node = evidence.graph().node(norm);
    if node.op == Op::GroupNorm {
        let text = "all groups are normalised as one";
        let edit = Edits::one(norm, Change::int(0, 1));
        visit(evidence.mistake(CauseKey::NormGroups, text, &edit)?);
        return Ok(());
    }
    let (width, heads) = (node.ne[0], node.ne[1]);
    let mut widths = Vec::new();
    if width.is_fixed() && heads.is_fixed() && heads.fixed > 1 {
        let all = (width.fixed * heads.fixed) as usize;
        widths.push((all, "all heads of a token are normalised at once".to_string()));
    }
    let own = width.fixed.max(1) as usize;
    let mut parts = evidence.head_dims();
    let world = evidence.run.recording.tensors.world();
    parts.extend([2, 4, 8, world].map(|n| own / n));
    parts.retain(|&dim| dim > 1 && dim < own && own.is_multiple_of(dim));
    parts.sort_unstable();
    parts.dedup();
    widths.extend(parts.into_iter().map(|dim| {
        let text =
            format!("every {dim} elements are normalised separately, not all {own} together");
        let is_of_rank = world > 1 && dim * world == own;
        (dim, if is_of_rank { format!("{text}: the share of each of {world} ranks") } else { text })
    }));
    for (width, text) in widths {
        let regrouped = move |call: &mut Call<'_, '_>| {
            let ne = [width, call.elements() / width, 1, 1];
            call.ne = ne;
            if let Some(Some(argument)) = call.arguments.first_mut() {
                argument.ne = ne;
            }
        };
        let edit = Edits::one(norm, Change::Call(Rc::new(regrouped)));
        visit(evidence.mistake(CauseKey::NormGroups, text, &edit)?);
    }
    Ok(())
}

/// The weight of a norm missing, changed, or of another norm.
fn weights(evidence: &Evidence<'_>, factor: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let Some(WeightSource { source, .. }) = evidence.weight_source(factor) else {
        return Ok(());
    };
    let edit = Edits::one(factor, Change::LeftOut(1 - source.min(1)));
    visit(evidence.mistake(CauseKey::NormWeightMissing, "weight missing", &edit)?);
    let changes: [(CauseKey, &str, Scalar); 5] = [
        (CauseKey::NormWeightPlusOne, "1 added to the weight", |w| w + 1.0),
        (CauseKey::NormWeightMinusOne, "1 subtracted from the weight", |w| w - 1.0),
        (CauseKey::NormWeightTwice, "multiplied by the weight twice", |w| w * w),
        (CauseKey::NormWeightTwice, "the weight doubled", |w| 2.0 * w),
        (CauseKey::NormWeightZero, "the weight is all zero", |_| 0.0),
    ];
    for (key, text, of) in changes {
        let edit = Edits::one(factor, Change::each(source, of));
        visit(evidence.mistake(key, text, &edit)?);
    }
    evidence.of_other_weights(factor, [CauseKey::NormWeightOfOther; 2], visit)
}
