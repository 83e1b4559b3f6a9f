//! Mistakes in sums, products and quotients of elements: a term or a factor missing, or another.

use super::{Order, Scalar, Visit, near::short};
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{Change, Edits, Evidence, replay::ReplayError},
    graph::{
        Extent, NodeId, Op,
        site::{Axis, Stage},
    },
};

/// Every operation of elements in the cone.
pub fn operations(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let has_norm = !evidence.nodes(|node| node.op.is_norm()).is_empty();
    let wanted = |op: Op| matches!(op, Op::Add | Op::Sub | Op::Mul | Op::Div);
    for id in evidence.nodes(|node| wanted(node.op)) {
        let op = evidence.graph().node(id).op;
        match (evidence.weight_source(id), op) {
            (None, Op::Add | Op::Sub) => terms(evidence, id, visit)?,
            (None, Op::Mul) => factors(evidence, id, visit)?,
            (None, _) => quotients(evidence, id, visit)?,
            (Some(_), Op::Add) => super::product::biases(evidence, id, visit)?,
            (Some(_), Op::Mul) if !has_norm => weights(evidence, id, visit)?,
            _ => {}
        }
    }
    for id in evidence.nodes(|node| node.op == Op::Scale) {
        scales(evidence, id, visit)?;
        evidence.other_inputs(id, 0, &|_| CauseKey::InputOfOther, visit)?;
    }
    Ok(())
}

/// The keys of a term that is missing, and of one of elsewhere.
fn keys(evidence: &Evidence<'_>) -> [CauseKey; 2] {
    match evidence.spec().stage {
        Stage::AttnResidual | Stage::LayerOut => {
            [CauseKey::ResidualMissing, CauseKey::ResidualSource]
        }
        _ => [CauseKey::TermMissing, CauseKey::TermSource],
    }
}

/// Sources with their names.
fn names(evidence: &Evidence<'_>, id: NodeId) -> Option<[String; 2]> {
    let node = evidence.graph().node(id);
    Some([evidence.name_of(node.source(0)?), evidence.name_of(node.source(1)?)])
}

fn terms(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let Some(names) = names(evidence, id) else { return Ok(()) };
    let [missing, other] = keys(evidence);
    for (source, name) in names.iter().enumerate() {
        let zero = Edits::one(id, Change::each(source, |_| 0.0));
        visit(evidence.mistake(missing, format!("{name} is not added"), &zero)?);
        let twice = Edits::one(id, Change::each(source, |x| 2.0 * x));
        let text = format!("{name} is added twice");
        visit(evidence.mistake(CauseKey::ResidualTwice, text, &twice)?);
        let negated = Edits::one(id, Change::each(source, |x| -x));
        let text = format!("{name} with the opposite sign");
        visit(evidence.mistake(CauseKey::ResidualSign, text, &negated)?);
        let doubled = Edits::one(id, Change::each(source, |x| 2.0 * x));
        let fitted = evidence.factor_of(&doubled)?.filter(|_| evidence.may_fit());
        // Those that have a name were tried under it.
        let is_named = |factor: f64| [0.0, 2.0, -1.0].iter().any(|n| (factor - n).abs() < 1e-6);
        for factor in fitted.map(snapped).into_iter().filter(|&factor| !is_named(factor)) {
            let text = format!("{name} times {}", short(factor));
            let edit = Edits::one(id, Change::scaled(source, factor));
            visit(evidence.mistake(CauseKey::Scaled, text, &edit)?);
        }
        evidence.other_inputs(id, source, &|_| other, visit)?;
    }
    let edit = Edits::one(id, Change::Op(Op::Mul));
    let text = format!("{} and {} are multiplied, not added", names[0], names[1]);
    visit(evidence.mistake(CauseKey::OperationOther, text, &edit)?);
    Ok(())
}

fn factors(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let graph = evidence.graph();
    let Some(names) = names(evidence, id) else { return Ok(()) };
    for (source, name) in names.iter().enumerate() {
        let one = Edits::one(id, Change::each(source, |_| 1.0));
        let text = format!("not multiplied by {name}");
        let gates = |id: NodeId| matches!(graph.node(graph.root(id)).op, Op::Sigmoid | Op::Silu);
        let is_gate = graph.node(id).source(source).is_some_and(gates);
        let key = if is_gate { CauseKey::GateMissing } else { CauseKey::FactorMissing };
        visit(evidence.mistake(key, text, &one)?);
        let changes: [(&str, Scalar); 6] = [
            ("one more than", |x| 1.0 + x),
            ("one less", |x| 1.0 - x),
            ("the square of", |x| x * x),
            ("the negative of", |x| -x),
            ("the exponential of", f64::exp),
            ("the sigmoid of", |x| 1.0 / (1.0 + (-x).exp())),
        ];
        for (what, of) in changes {
            let text = format!("multiplied by {what} {name}");
            let edit = Edits::one(id, Change::each(source, of));
            visit(evidence.mistake(CauseKey::Factor, text, &edit)?);
        }
        evidence.other_inputs(id, source, &|_| CauseKey::InputOfOther, visit)?;
        rows(evidence, id, source, visit)?;
    }
    for (op, text) in [(Op::Add, "added"), (Op::Div, "divided"), (Op::Sub, "subtracted")] {
        let text = format!("{} and {} are {text}, not multiplied", names[0], names[1]);
        let edit = Edits::one(id, Change::Op(op));
        visit(evidence.mistake(CauseKey::OperationOther, text, &edit)?);
    }
    Ok(())
}

/// Factors that are those of another slot, head or token.
fn rows(
    evidence: &Evidence<'_>,
    id: NodeId,
    source: usize,
    visit: Visit<'_>,
) -> Result<(), ReplayError> {
    let orders: [(&str, Order); 3] = [
        ("in reverse order of the {}s", |i, n| n - 1 - i),
        ("of the next {}", |i, n| (i + 1) % n),
        ("of the previous {}", |i, n| (i + n - 1) % n),
    ];
    for axis in 0..3 {
        for (text, order) in orders {
            let moved = move |i: usize, ne: [usize; 4]| {
                let step: usize = ne[..axis].iter().product();
                let at = i / step % ne[axis];
                Some(i - at * step + order(at, ne[axis]) * step)
            };
            let has_slots = evidence.spec().axes.iter().any(|axis| axis.axis == Axis::Slot);
            let group = if has_slots { "slot" } else { "head" };
            let text = format!("factors {}", text.replace("{}", ["element", group, "token"][axis]));
            let edit = Edits::one(id, Change::moved(source, moved));
            visit(evidence.mistake(CauseKey::InputOfOther, text, &edit)?);
        }
    }
    Ok(())
}

fn quotients(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let Some(names) = names(evidence, id) else { return Ok(()) };
    let text = format!("not divided by {}", names[1]);
    let one = Edits::one(id, Change::each(1, |_| 1.0));
    let key = if is_by_own_sum(evidence, id) { CauseKey::ExpertNorm } else { CauseKey::NotDivided };
    visit(evidence.mistake(key, text, &one)?);
    let text = format!("multiplied by {}, not divided", names[1]);
    visit(evidence.mistake(
        CauseKey::OperationOther,
        text,
        &Edits::one(id, Change::Op(Op::Mul)),
    )?);
    for source in 0..2 {
        evidence.other_inputs(id, source, &|_| CauseKey::InputOfOther, visit)?;
    }
    Ok(())
}

/// Whether what is divided by is a sum of rows, perhaps limited: of the weights of chosen experts.
fn is_by_own_sum(evidence: &Evidence<'_>, id: NodeId) -> bool {
    let graph = evidence.graph();
    let mut at = graph.node(id).source(1);
    while let Some(source) = at {
        let node = graph.node(graph.root(source));
        match node.op {
            Op::SumRows => return true,
            Op::Clamp | Op::Scale | Op::Add => at = node.source(0),
            _ => return false,
        }
    }
    false
}

/// A factor of the file, changed.
fn weights(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let Some(weight) = evidence.weight_source(id) else { return Ok(()) };
    let (source, name) = (weight.source, evidence.weight_name(&weight.name));
    let edit = Edits::one(id, Change::LeftOut(1 - source.min(1)));
    let text = format!("not multiplied by {name}");
    visit(evidence.mistake(CauseKey::FactorMissing, text, &edit)?);
    let changes: [(&str, Scalar); 9] = [
        ("the negative of", |w| -w),
        ("one more than", |w| w + 1.0),
        ("one less than", |w| w - 1.0),
        ("twice", |w| 2.0 * w),
        ("the square of", |w| w * w),
        ("the exponential of", f64::exp),
        ("the negative exponential of", |w| -w.exp()),
        ("the logarithm of the negative of", |w| (-w).ln()),
        ("the absolute value of", f64::abs),
    ];
    for (what, of) in changes {
        let edit = Edits::one(id, Change::each(source, of));
        let text = format!("multiplied by {what} {name}");
        visit(evidence.mistake(CauseKey::WeightFunction, text, &edit)?);
    }
    let zero = Edits::one(id, Change::each(source, |_| 0.0));
    visit(evidence.mistake(CauseKey::WeightZero, format!("{name} is zero"), &zero)?);
    let edit = Edits::one(id, Change::Op(Op::Add));
    let text = format!("{name} is added, not multiplied by");
    visit(evidence.mistake(CauseKey::OperationOther, text, &edit)?);
    evidence.other_inputs(id, 1 - source.min(1), &|_| CauseKey::InputOfOther, visit)?;
    evidence.of_other_weights(id, [CauseKey::WeightOfOtherLayer, CauseKey::WeightOfOther], visit)
}

/// Another factor than the model's, or none.
fn scales(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let params = evidence.graph().node(id).params(Extent { tokens: 1, cells: 1, is_first: true });
    let [own, added] = [0, 1].map(|index| f64::from(params.float(index)));
    let is_cap = is_of_cap(evidence, id);
    let key = |key| if is_cap { CauseKey::SoftCap } else { key };
    let text = format!("not multiplied by {}", short(own));
    let left_out = Edits::one(id, Change::float(0, 1.0));
    visit(evidence.mistake(key(CauseKey::FactorMissing), text, &left_out)?);
    if added != 0.0 {
        let edit = Edits::one(id, Change::float(1, 0.0));
        visit(evidence.mistake(
            CauseKey::TermMissing,
            format!("{} is not added", short(added)),
            &edit,
        )?);
    }
    let mut list = vec![
        (own * own, "its square".to_string()),
        (1.0 / own, "its inverse".to_string()),
        (own.abs().sqrt(), "its root".to_string()),
        (-own, "its negative".to_string()),
    ];
    let ratio = evidence.ratio(&Edits(Vec::new()))?;
    if let Some(ratio) = ratio.filter(|_| added == 0.0 && evidence.may_fit()) {
        let known = list.iter().any(|(factor, _)| (own * ratio / factor - 1.0).abs() < 1e-5);
        if (ratio - 1.0).abs() > 1e-6 && ratio.abs() > 1e-6 && !known {
            let found = snapped(own * ratio);
            list.push((found, short(found)));
        }
    }
    for (factor, what) in list {
        let text = format!("multiplied by {what} instead of {}", short(own));
        let edit = Edits::one(id, Change::float(0, factor));
        visit(evidence.mistake(key(CauseKey::Scaled), text, &edit)?);
    }
    Ok(())
}

/// Whether a factor is one of a soft cap's: before or after a tanh.
fn is_of_cap(evidence: &Evidence<'_>, id: NodeId) -> bool {
    let graph = evidence.graph();
    let op = |id: NodeId| graph.node(graph.root(id)).op;
    let after = graph.node(id).source(0).is_some_and(|source| op(source) == Op::Tanh);
    let is_before = |node: &crate::graph::Node| {
        node.op == Op::Tanh && node.source(0).is_some_and(|source| graph.root(source) == id)
    };
    after || graph.nodes.iter().any(is_before)
}

/// A fitted number as a person would have written it, if there is such a one.
pub fn snapped(x: f64) -> f64 {
    let near = |candidate: f64| (candidate / x - 1.0).abs() < 2e-6;
    let digits = [2, 3, 4].map(|digits| format!("{x:.digits$e}").parse().unwrap_or(x));
    let inverse = digits.map(|_: f64| 1.0 / (1.0 / x).round());
    let roots = [(x * x).round().sqrt(), 1.0 / (1.0 / (x * x)).round().sqrt()];
    let all = digits.into_iter().chain(inverse).chain(roots.map(|root| root * x.signum()));
    all.into_iter().find(|&candidate| candidate.is_finite() && near(candidate)).unwrap_or(x)
}
